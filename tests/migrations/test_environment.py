"""Where the names come from, and what `include_name` keeps from autogenerate."""

from argparse import Namespace
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from sqlalchemy import Column, Connection, Engine, Integer, MetaData, Table, text

from zart_sqla.errors import ConfigError, InvalidIdentifierError
from zart_sqla.migrations import include_name, include_name_for, table_names, upgrade
from zart_sqla.migrations.history import _script_directory
from zart_sqla.models import zart_models
from zart_sqla.table_names import PREFIX_VARIABLE, SCHEMA_VARIABLE, TABLES, TableNames


def configuration(names: object = None, *arguments: str) -> Config:
    """Return a configuration with these names in its attributes and these `-x` arguments."""
    return Config(cmd_opts=Namespace(x=list(arguments)), attributes={"zart_table_names": names})


def test_names_from_attributes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The attribute wins over the arguments and the environment, as a whole."""
    monkeypatch.setenv(SCHEMA_VARIABLE, "of_env")
    names = TableNames("of_attribute_")
    assert table_names(configuration(names, "zart_prefix=of_x_", "zart_schema=of_x")) == names


def test_names_from_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    """The arguments win over the environment; other arguments are not ours."""
    monkeypatch.setenv(PREFIX_VARIABLE, "of_env_")
    monkeypatch.setenv(SCHEMA_VARIABLE, "of_env")
    both = configuration(None, "tenant=a", "zart_prefix=of_x_", "zart_schema=of_x", "flag")
    assert table_names(both) == TableNames("of_x_", "of_x")


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("zart_prefix=of_x_", TableNames("of_x_", "of_env")),
        ("zart_schema=of_x", TableNames("of_env_", "of_x")),
    ],
)
def test_names_from_one_argument(monkeypatch: pytest.MonkeyPatch, argument: str, expected: TableNames) -> None:
    """What the arguments leave out comes from the environment."""
    monkeypatch.setenv(PREFIX_VARIABLE, "of_env_")
    monkeypatch.setenv(SCHEMA_VARIABLE, "of_env")
    assert table_names(configuration(None, argument)) == expected


@pytest.mark.parametrize("config", [None, Config(), configuration()], ids=["none", "bare", "empty"])
def test_names_from_environment(monkeypatch: pytest.MonkeyPatch, config: Config | None) -> None:
    """Without attribute and arguments, the environment decides, then the default."""
    assert table_names(config) == TableNames()
    monkeypatch.setenv(PREFIX_VARIABLE, "of_env_")
    assert table_names(config) == TableNames("of_env_")


def test_wrong_attribute() -> None:
    """An attribute of another type is refused."""
    with pytest.raises(ConfigError, match=r"zart_table_names.*expected a TableNames, got 'myapp_'"):
        table_names(configuration("myapp_"))


@pytest.mark.parametrize("argument", ["zart_prefix", "zart_prefix=", "zart_schema="])
def test_empty_argument(argument: str) -> None:
    """An argument without a value is refused, not taken for the default."""
    with pytest.raises(InvalidIdentifierError, match="is empty"):
        table_names(configuration(None, argument))


def test_include_name_outside_of_an_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no `env.py` runs, the names come from the environment."""
    monkeypatch.setenv(PREFIX_VARIABLE, "of_env_")
    assert not include_name("of_env_tasks", "table", {"schema_name": None})
    assert include_name("zart_tasks", "table", {"schema_name": None})


def test_include_name_knows_all_our_tables(names: TableNames) -> None:
    """Each table and the version table are hidden in their schema, and in no other."""
    include = include_name_for(names)
    parent_names = {"schema_name": names.schema}
    for table in [*map(names.table, TABLES), names.version_table]:
        assert not include(table, "table", parent_names)
        assert include(table, "table", {"schema_name": "another"})


def test_include_name_hides_nothing_else(names: TableNames) -> None:
    """What else has our prefix, the app's version table, schemas and parts of tables are not hidden."""
    include = include_name_for(names)
    parent_names = {"schema_name": names.schema}
    assert include(f"{names.prefix}orders", "table", parent_names)
    assert include("alembic_version", "table", parent_names)
    assert include(names.schema, "schema", {})
    assert include(None, "unique_constraint", parent_names)
    assert include(names.tasks, "column", parent_names)


def test_include_name_of_several_instances() -> None:
    """A database with several instances has all of them hidden."""
    include = include_name_for(TableNames("one_"), TableNames("two_", "other"))
    assert not include("one_tasks", "table", {"schema_name": None})
    assert not include("two_tasks", "table", {"schema_name": "other"})
    assert include("two_tasks", "table", {"schema_name": None})


@pytest.mark.parametrize("include_schemas", [False, True])
def test_autogenerate_drops_only_the_apps(engine: Engine, names: TableNames, *, include_schemas: bool) -> None:
    """Of an app that does not know our tables, autogenerate proposes to drop the app's own table alone."""
    with engine.begin() as connection:
        upgrade(connection, names)
        connection.execute(text("CREATE TABLE zart_retired (id int)"))
        found = autogenerate(connection, names, MetaData(), include_schemas=include_schemas)
    assert found == [("remove_table", "zart_retired")]


@pytest.mark.parametrize("include_schemas", [False, True])
@pytest.mark.parametrize("schema", [None, "public"])
def test_autogenerate_with_our_models(engine: Engine, schema: str | None, *, include_schemas: bool) -> None:
    """With our tables in the target too, `include_name` does not hide them: they would be created again."""
    names = TableNames(schema=schema)
    metadata = MetaData()
    zart_models(names, metadata=metadata)
    app = MetaData()
    Table("orders", app, Column("id", Integer))
    with engine.begin() as connection:
        upgrade(connection, names)
        found = autogenerate(connection, names, [app, metadata], include_schemas=include_schemas)
    assert found == [("add_table", "orders")]


def test_autogenerate_where_the_schema_is_the_default(engine: Engine) -> None:
    """Tables in a named schema that the search path begins with are found there."""
    with engine.begin() as connection:
        upgrade(connection, TableNames(schema="public"))
        assert autogenerate(connection, TableNames(schema="public"), MetaData()) == []


def autogenerate(
    connection: Connection, names: TableNames, target: Any, *, include_schemas: bool = False
) -> list[tuple[str, str]]:
    """Return what autogenerate proposes in an environment that uses `include_name`, as (operation, table)."""
    with EnvironmentContext(configuration(names), _script_directory()) as environment:
        environment.configure(
            connection=connection,
            target_metadata=target,
            include_name=include_name,
            include_schemas=include_schemas,
        )
        found = compare_metadata(environment.get_context(), target)
    return [(operation, table.name) for operation, table in found]
