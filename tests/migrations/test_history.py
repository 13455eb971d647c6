"""`upgrade` and `downgrade` over a connection: whose tables they touch, beside whom, and what they say."""

import asyncio
import logging
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from alembic import context, op
from alembic.config import Config
from alembic.operations import Operations
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, Engine, NullPool, make_url, text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import create_async_engine

from tests.migrations.catalog import our_tables, tables
from zart_sqla.errors import ZartError
from zart_sqla.migrations import Migration, MigrationError, downgrade, find_installation, upgrade
from zart_sqla.migrations.history import _script_directory
from zart_sqla.models import SCHEMA_REVISION, tables_of
from zart_sqla.table_names import TableNames

ROOT = Path(__file__).parents[2]
NAMES = TableNames()


def test_upgrade_says_what_it_did(engine: Engine, names: TableNames) -> None:
    """The first upgrade creates everything, the second finds nothing to do, and both say so."""
    with engine.begin() as connection:
        first, second = upgrade(connection, names), upgrade(connection, names)
        assert tables(connection, names.schema) == our_tables(names) | {names.version_table}
    assert first == Migration(names=names, before=None, after=SCHEMA_REVISION)
    assert second == Migration(names=names, before=SCHEMA_REVISION, after=SCHEMA_REVISION)
    table = names.qualified("executions")
    assert (first.has_changed, first.summary) == (
        True,
        f"{table}: migrated from nothing to {SCHEMA_REVISION}",
    )
    assert (second.has_changed, second.summary) == (False, f"{table}: at {SCHEMA_REVISION}, nothing to do")


def test_downgrade_leaves_the_rest(engine: Engine, names: TableNames) -> None:
    """The tables and the version table go; the schema and what else is in it stays. Again: nothing to do."""
    schema = "" if names.schema is None else f'"{names.schema}".'
    with engine.begin() as connection:
        upgrade(connection, names)
        connection.execute(text(f"CREATE TABLE {schema}zart_else (id int)"))
        first, second = downgrade(connection, names), downgrade(connection, names)
        assert tables(connection, names.schema) == {"zart_else"}
    assert (first.before, first.after) == (SCHEMA_REVISION, None)
    assert (second.has_changed, second.summary) == (
        False,
        f"{names.qualified('executions')}: not there, nothing to do",
    )


@pytest.mark.parametrize("run", [upgrade, downgrade])
def test_nothing_is_committed(engine: Engine, run: Callable[..., Migration]) -> None:
    """What was done is undone when the caller's transaction is rolled back, begun by the caller or not."""
    with engine.begin() as connection:
        if run is downgrade:
            upgrade(connection, NAMES)
        before = tables(connection)
    with engine.connect() as connection:
        assert run(connection, NAMES).has_changed
        assert connection.in_transaction()
        connection.rollback()
        assert tables(connection) == before


async def test_runs_with_asyncpg(database_url: str, names: TableNames) -> None:
    """`run_sync` runs both over an asyncpg connection."""
    engine = create_async_engine(make_url(database_url).set(drivername="postgresql+asyncpg"))
    async with engine.begin() as connection:
        assert (await connection.run_sync(upgrade, names)).after == SCHEMA_REVISION
        assert (await connection.run_sync(downgrade, names)).after is None
    await engine.dispose()


async def test_interleaved_in_one_event_loop(database_url: str) -> None:
    """Upgrades of many instances take turns in one thread, some of one instance, some creating one schema."""
    url = make_url(database_url).set(drivername="postgresql+asyncpg")
    engine = create_async_engine(url, poolclass=NullPool)
    instances = [TableNames(f"p{number % 5}_", "shared") for number in range(15)]

    async def migrate(names: TableNames) -> Migration:
        async with engine.begin() as connection:
            return await connection.run_sync(upgrade, names)

    done = await asyncio.gather(*map(migrate, instances))
    assert {migration.after for migration in done} == {SCHEMA_REVISION}
    assert sum(migration.has_changed for migration in done) == 5


def test_concurrent_threads(engine: Engine) -> None:
    """Of upgrades that start together on connections of their own, one creates the tables."""
    barrier = Barrier(6)

    def migrate(_: int) -> Migration:
        with engine.begin() as connection:
            barrier.wait()
            return upgrade(connection, TableNames(schema="new"))

    with ThreadPoolExecutor(6) as pool:
        done = list(pool.map(migrate, range(6)))
    assert sum(migration.has_changed for migration in done) == 1
    assert {migration.after for migration in done} == {SCHEMA_REVISION}


def test_concurrent_processes(database_url: str, engine: Engine) -> None:
    """Processes that start at once do not race."""
    url = make_url(database_url).set(drivername="postgresql+psycopg").render_as_string(hide_password=False)
    code = (
        "import sys; from sqlalchemy import create_engine; from zart_sqla.migrations import upgrade;"
        "from zart_sqla.table_names import TableNames\n"
        "with create_engine(sys.argv[1]).begin() as connection: upgrade(connection, TableNames(schema='new'))"
    )
    command = [sys.executable, "-c", code, url]
    processes = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) for _ in range(4)]
    assert [process.communicate()[1] for process in processes] == [b""] * 4
    with engine.connect() as connection:
        assert find_installation(connection, TableNames(schema="new")).revision == SCHEMA_REVISION


def test_existing_schema_takes_no_privilege_on_the_database(engine: Engine) -> None:
    """A role that may create tables in its schema, but no schema, can migrate."""
    names = TableNames(schema="granted")
    with engine.begin() as connection:
        connection.execute(text("CREATE ROLE zart_tenant"))
        connection.execute(text("CREATE SCHEMA granted AUTHORIZATION zart_tenant"))
        connection.execute(text("SET LOCAL ROLE zart_tenant"))
        assert upgrade(connection, names).has_changed
        assert downgrade(connection, names).has_changed
        connection.rollback()


def test_missing_schema_that_cannot_be_created(engine: Engine) -> None:
    """Without the privilege to create the schema, the database's own error comes out."""
    with engine.begin() as connection:
        connection.execute(text("CREATE ROLE zart_stranger"))
        connection.execute(text("SET LOCAL ROLE zart_stranger"))
        with pytest.raises(ProgrammingError, match="permission denied"):
            upgrade(connection, TableNames(schema="absent"))
        connection.rollback()


def test_host_migration_in_progress_goes_on(engine: Engine) -> None:
    """In a revision of an app's own, `alembic.op` and `alembic.context` mean the app's, before and after."""
    script = _script_directory()
    with engine.begin() as connection, EnvironmentContext(Config(), script) as environment:
        environment.configure(connection=connection)
        with Operations.context(environment.get_context()):
            upgrade(op.get_bind(), NAMES)
            assert op.get_context() is environment.get_context() is context.get_context()
            op.drop_table(NAMES.steps)
        assert NAMES.steps not in tables(connection)


def test_logging_stays_as_it_is(engine: Engine) -> None:
    """No logger gets a handler or a level, and none is disabled."""
    loggers = [logging.root, logging.getLogger("app_of_test_history"), logging.getLogger("alembic")]
    before = [(logger.level, logger.disabled, list(logger.handlers)) for logger in loggers]
    with engine.begin() as connection:
        upgrade(connection, NAMES)
    assert [(logger.level, logger.disabled, list(logger.handlers)) for logger in loggers] == before


def test_app_managed_and_current(engine: Engine) -> None:
    """Where an app's own Alembic made the tables, and they are current, nothing is done, and that is said."""
    with engine.begin() as connection:
        run_as_app(connection, "upgrade")
        done = upgrade(connection, NAMES)
        assert NAMES.version_table not in tables(connection)
    assert done.is_app_managed
    assert done.summary.endswith("managed by the app's own Alembic, nothing to do")


def test_app_managed_and_old(engine: Engine, later_revision: str) -> None:
    """Where an app's own Alembic made the tables, and they are behind, the error says what to run there."""
    with engine.begin() as connection:
        run_as_app(connection, "upgrade")
        with pytest.raises(MigrationError, match=r"run 'alembic upgrade heads' in that app") as caught:
            upgrade(connection, NAMES)
        assert find_installation(connection, NAMES).revision == SCHEMA_REVISION
        assert NAMES.version_table not in tables(connection)
    assert isinstance(caught.value, ZartError)
    assert caught.value.revision == SCHEMA_REVISION


def test_app_managed_is_not_downgraded(engine: Engine) -> None:
    """A downgrade is left to the Alembic that made the tables."""
    with engine.begin() as connection:
        run_as_app(connection, "upgrade")
        with pytest.raises(MigrationError, match="run 'alembic downgrade zart@base' in that app"):
            downgrade(connection, NAMES)
        assert our_tables(NAMES) <= tables(connection)


def test_create_all_counts_as_app_managed(engine: Engine) -> None:
    """Tables from `metadata.create_all` say at which revision they are, so nothing is done."""
    with engine.begin() as connection:
        tables_of(NAMES).executions.metadata.create_all(connection)
        assert upgrade(connection, NAMES).is_app_managed


def test_app_revision_over_ours(engine: Engine) -> None:
    """An app's Alembic that meets tables of `zart migrate` is told how to adopt them."""
    with engine.begin() as connection:
        upgrade(connection, NAMES)
        with pytest.raises(MigrationError, match=f"'alembic stamp {SCHEMA_REVISION}' and drop zart_alembic"):
            run_as_app(connection, "upgrade")


def test_later_revision_is_applied_and_taken_back(engine: Engine, later_revision: str) -> None:
    """Our own history goes on where it stopped, and back by one."""
    with engine.begin() as connection:
        assert upgrade(connection, NAMES, SCHEMA_REVISION).after == SCHEMA_REVISION
        done = upgrade(connection, NAMES)
        assert (done.before, done.after) == (SCHEMA_REVISION, later_revision)
        assert not upgrade(connection, NAMES, SCHEMA_REVISION).has_changed
        assert downgrade(connection, NAMES, SCHEMA_REVISION).after == SCHEMA_REVISION


def test_newer_database_is_left_alone(engine: Engine) -> None:
    """An old release that starts after a newer one has migrated does nothing, and does not downgrade."""
    with engine.begin() as connection:
        upgrade(connection, NAMES)
        connection.execute(text("COMMENT ON TABLE zart_executions IS 'zart_sqla schema revision zart_9999'"))
        connection.execute(text("UPDATE zart_alembic_version SET version_num = 'zart_9999'"))
        done = upgrade(connection, NAMES)
        assert (done.after, done.is_newer, done.is_app_managed) == ("zart_9999", True, False)
        assert "newer than this release" in done.summary
        with pytest.raises(MigrationError, match="downgrade with the release that made them"):
            downgrade(connection, NAMES)


def test_tables_of_something_else(engine: Engine) -> None:
    """A table of that name that is not ours is not touched."""
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE zart_executions (id int)"))
        for run in (upgrade, downgrade):
            with pytest.raises(MigrationError, match="something else made it"):
                run(connection, NAMES)
        assert tables(connection) == {"zart_executions"}


def test_version_table_without_tables(engine: Engine) -> None:
    """A version table whose tables are gone is reported, and `downgrade` clears it away."""
    with engine.begin() as connection:
        upgrade(connection, NAMES)
        run_as_app(connection, "downgrade")
        with pytest.raises(MigrationError, match="drop zart_alembic_version to have them created"):
            upgrade(connection, NAMES)
        downgrade(connection, NAMES)
        assert upgrade(connection, NAMES).has_changed


@pytest.mark.parametrize("run", [upgrade, downgrade])
def test_unknown_target(engine: Engine, run: Callable[..., Migration]) -> None:
    """A revision that does not exist is refused by name."""
    with engine.begin() as connection:
        upgrade(connection, NAMES)
        with pytest.raises(MigrationError, match="no_such"):
            run(connection, NAMES, "no_such")


def run_as_app(connection: Connection, direction: str) -> None:
    """Run our first revision as an app's own Alembic would, which keeps its own record elsewhere."""
    module = _script_directory().get_revision("zart_0001").module
    with Operations.context(MigrationContext.configure(connection)):
        getattr(module, direction)()
