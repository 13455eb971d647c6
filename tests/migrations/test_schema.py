"""`installed_revision` and `check_schema`: which databases a worker refuses."""

import pytest
from sqlalchemy import Engine, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from zart_sqla.errors import SchemaOutdated
from zart_sqla.migrations import upgrade
from zart_sqla.models import SCHEMA_REVISION
from zart_sqla.store import schema
from zart_sqla.store.schema import check_schema, installed_revision
from zart_sqla.table_names import TableNames

NAMES = TableNames()


def test_current_schema(engine: Engine, names: TableNames) -> None:
    """Tables at the code's revision are accepted."""
    with engine.begin() as connection:
        assert installed_revision(connection, names) is None
        upgrade(connection, names)
        assert installed_revision(connection, names) == SCHEMA_REVISION
        check_schema(connection, names)


def test_missing_tables(engine: Engine, names: TableNames) -> None:
    """Missing tables are refused, with the commands that make them."""
    with engine.connect() as connection, pytest.raises(SchemaOutdated) as caught:
        check_schema(connection, names)
    assert caught.value.actual is None
    assert caught.value.expected == SCHEMA_REVISION
    assert caught.value.tables == names.qualified("executions")
    assert "alembic upgrade heads" in str(caught.value)
    assert "zart migrate" in str(caught.value)


def test_older_tables(engine: Engine, later_revision: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables at an older revision are refused."""
    monkeypatch.setattr(schema, "SCHEMA_REVISION", later_revision)
    with engine.connect() as connection:
        upgrade(connection, NAMES, SCHEMA_REVISION)
        with pytest.raises(SchemaOutdated) as caught:
            check_schema(connection, NAMES)
    assert (caught.value.actual, caught.value.expected) == (SCHEMA_REVISION, later_revision)


def test_newer_tables(engine: Engine) -> None:
    """Tables that a newer release has migrated are accepted: its deployment is under way."""
    with engine.connect() as connection:
        upgrade(connection, NAMES)
        connection.execute(text("COMMENT ON TABLE zart_executions IS 'zart_sqla schema revision zart_9999'"))
        check_schema(connection, NAMES)


def test_tables_that_do_not_say(engine: Engine) -> None:
    """A table without the comment is refused as unknown, not as missing."""
    with engine.connect() as connection:
        upgrade(connection, NAMES)
        connection.execute(text("COMMENT ON TABLE zart_executions IS NULL"))
        assert installed_revision(connection, NAMES) is None
        with pytest.raises(SchemaOutdated) as caught:
            check_schema(connection, NAMES)
    assert caught.value.actual == "unknown"


async def test_with_asyncpg(database_url: str) -> None:
    """The check runs over asyncpg as well."""
    engine = create_async_engine(make_url(database_url).set(drivername="postgresql+asyncpg"))
    async with engine.connect() as connection:
        with pytest.raises(SchemaOutdated):
            await connection.run_sync(check_schema, NAMES)
        await connection.run_sync(upgrade, NAMES)
        await connection.run_sync(check_schema, NAMES)
        assert await connection.run_sync(installed_revision, NAMES) == SCHEMA_REVISION
    await engine.dispose()
