"""Each revision up and down, and what they make compared with the models."""

import io
from importlib.util import find_spec
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.operations import Operations
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, Engine, MetaData, text
from sqlalchemy.schema import CreateSchema

from tests.migrations.catalog import definitions, our_tables, tables
from zart_sqla.migrations import downgrade, find_installation, known_revisions, upgrade
from zart_sqla.migrations.history import _script_directory
from zart_sqla.models import SCHEMA_REVISION, tables_of, zart_models
from zart_sqla.table_names import TableNames

has_opt_in = pytest.mark.skipif(
    find_spec("alembic.ext") is None,
    reason="this Alembic does not compare the names of check constraints",
)


def test_models_are_at_the_newest_revision() -> None:
    """The revision that the models describe is the head, of one line of revisions on the branch `zart`."""
    script = _script_directory()
    assert script.get_heads() == [SCHEMA_REVISION] == known_revisions()[:1]
    assert script.get_revision("zart@head").revision == SCHEMA_REVISION
    assert script.get_base() == "zart_0001"


def test_each_revision_goes_up_and_down(engine: Engine, names: TableNames) -> None:
    """Every revision can be applied, says so, and can be taken back; in the end no table is left."""
    with engine.begin() as connection:
        for revision in reversed(known_revisions()):
            assert upgrade(connection, names, revision).after == revision
            assert find_installation(connection, names).revision == revision
        for earlier in [*known_revisions()[1:], None]:
            assert downgrade(connection, names, "-1").after == earlier
            assert find_installation(connection, names).revision == earlier
        assert tables(connection, names.schema) == set()


@pytest.mark.parametrize("plugins", [None, pytest.param("alembic.ext.*", marks=has_opt_in)])
def test_autogenerate_finds_no_difference(engine: Engine, names: TableNames, plugins: str | None) -> None:
    """Autogenerate has nothing to change; types, server defaults and comments are compared."""
    with engine.begin() as connection:
        upgrade(connection, names)
        assert differences(connection, names, plugins) == []


def test_autogenerate_does_compare(engine: Engine, names: TableNames) -> None:
    """The comparison of the test above sees a changed comment and a lost index."""
    with engine.begin() as connection:
        upgrade(connection, names)
        connection.execute(text(f"COMMENT ON TABLE {names.qualified('executions')} IS 'other'"))
        connection.execute(text(f"ALTER TABLE {names.qualified('tasks')} ALTER due_at TYPE date"))
        assert len(differences(connection, names)) == 2


def test_revisions_and_models_make_the_same(engine: Engine) -> None:
    """`upgrade` and `create_all` make the same columns, constraints, indexes and comments."""
    migrated, created = TableNames(schema="migrated"), TableNames(schema="created")
    with engine.begin() as connection:
        upgrade(connection, migrated)
        connection.execute(CreateSchema("created"))
        tables_of(created).executions.metadata.create_all(connection)
        found = definitions(connection, "migrated", without=migrated.version_table)
        assert found == definitions(connection, "created")


def test_two_prefixes_share_a_database(engine: Engine) -> None:
    """One instance is removed from a schema that holds two, and the other is not changed."""
    one, two = TableNames("one_"), TableNames("two_")
    with engine.begin() as connection:
        upgrade(connection, one)
        before = definitions(connection, "public")
        upgrade(connection, two)
        downgrade(connection, two)
        assert definitions(connection, "public") == before
        assert tables(connection) == our_tables(one) | {one.version_table}


def test_no_enum_types_are_made(engine: Engine, names: TableNames) -> None:
    """The tables bring no types of their own into the database."""
    with engine.begin() as connection:
        upgrade(connection, names)
        assert connection.scalar(text("SELECT count(*) FROM pg_type WHERE typtype = 'e'")) == 0


def test_offline_script_makes_the_same(engine: Engine, names: TableNames) -> None:
    """The SQL that `--sql` prints makes what an online upgrade makes, and its downgrade removes it."""
    up, down = offline_script(names, "upgrade"), offline_script(names, "downgrade")
    schema = names.schema or "public"
    with engine.connect() as connection:
        upgrade(connection, names)
        expected = definitions(connection, schema, without=names.version_table)
        connection.rollback()
    with engine.begin() as connection:
        connection.exec_driver_sql(up)
        assert definitions(connection, schema, without="alembic_version") == expected
        connection.exec_driver_sql(down)
        assert tables(connection, names.schema) <= {"alembic_version"}


def test_app_environment_may_pass_arguments(engine: Engine) -> None:
    """The revisions accept what an `env.py` passes to `run_migrations`, as the `multidb` template does."""
    script = _script_directory().get_revision("zart_0001")
    with engine.begin() as connection, Operations.context(MigrationContext.configure(connection)):
        script.module.upgrade(engine_name="main")
        assert tables(connection) == our_tables(TableNames())
        script.module.downgrade(engine_name="main")
        assert tables(connection) == set()


def differences(connection: Connection, names: TableNames, *plugins: str | None) -> list[Any]:
    """Return what autogenerate would change to make the database fit the models."""
    metadata = MetaData()
    zart_models(names, metadata=metadata)
    version_table = names.version_table

    def include_name(name: str | None, type_: str, parent_names: Any) -> bool:
        return not (type_ == "table" and name == version_table)

    options = {
        "compare_type": True,
        "compare_server_default": True,
        "include_schemas": names.schema is not None,
        "include_name": include_name,
        "autogenerate_plugins": ["alembic.autogenerate.*", *filter(None, plugins)],
    }
    return list(compare_metadata(MigrationContext.configure(connection, opts=options), metadata))


def offline_script(names: TableNames, direction: str) -> str:
    """Return what an offline upgrade or downgrade prints, run as Alembic's own commands run it."""
    config, script, output = Config(), _script_directory(), io.StringIO()
    config.attributes["zart_table_names"] = names
    steps = script._upgrade_revs if direction == "upgrade" else script._downgrade_revs
    goal = "zart@head" if direction == "upgrade" else "zart@base"
    start = None if direction == "upgrade" else "zart@head"
    environment = EnvironmentContext(
        config, script, as_sql=True, starting_rev=start, fn=lambda revision, _: steps(goal, revision)
    )
    environment.configure(dialect_name="postgresql", output_buffer=output, literal_binds=True)
    environment.run_migrations()
    return output.getvalue()
