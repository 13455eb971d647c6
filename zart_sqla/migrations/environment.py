"""What an Alembic environment and its revisions ask: which names, which tables are not the app's to drop."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Protocol

from alembic import context, op
from alembic.operations import Operations
from sqlalchemy import MetaData, func, inspect, select
from sqlalchemy.schema import CreateSchema

from zart_sqla.errors import ConfigError
from zart_sqla.migrations.errors import MigrationError
from zart_sqla.migrations.installed import find_installation
from zart_sqla.table_names import TABLES, TableNames

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from alembic.config import Config
    from alembic.runtime.migration import MigrationContext

NAMES_ATTRIBUTE: Final = "zart_table_names"
_ARGUMENTS: Final = {"zart_prefix": "prefix", "zart_schema": "schema"}


class NameFilter(Protocol):
    """A function for Alembic's `include_name=`."""

    def __call__(self, name: str | None, type_: str, parent_names: Mapping[Any, str | None], /) -> bool:
        """Return whether autogenerate is to look at what has this name in the database."""
        ...


def table_names(config: Config | None) -> TableNames:
    """Return the names that this Alembic configuration asks for.

    They come from `config.attributes["zart_table_names"]`; else from `-x zart_prefix=...` and
    `-x zart_schema=...`, each alone or both; else, and for the one that `-x` leaves out, from the environment
    variables `ZART_TABLE_PREFIX` and `ZART_SCHEMA`.

    Args:
        config: the configuration, `context.config` in an `env.py`; None asks the environment alone.

    Raises:
        ConfigError: the attribute is not a `TableNames`.
        InvalidIdentifierError: PostgreSQL identifiers cannot be made from what was asked for.
    """
    if config is None:
        return TableNames.from_env_or_default()
    names: object = config.attributes.get(NAMES_ATTRIBUTE)
    if names is None:
        return _names_from_arguments(config)
    if not isinstance(names, TableNames):
        raise ConfigError(f"config.attributes[{NAMES_ATTRIBUTE!r}]", expected="a TableNames", actual=names)
    return names


def include_name(name: str | None, type_: str, parent_names: Mapping[Any, str | None], /) -> bool:
    """Keep autogenerate from proposing to drop the tables of zart_sqla, as Alembic's `include_name=`.

    It answers False for a table of zart_sqla that the target metadata does not hold, and for the version
    table of `migrate()`; True for all else. Which names the tables have is found as for `table_names`. It
    works with and without `include_schemas=True`; which schemas to look at stays the app's decision.
    """
    return include_name_for(table_names(getattr(context, "config", None)))(name, type_, parent_names)


def include_name_for(*instances: TableNames) -> NameFilter:
    """Return an `include_name` for these names: for a database that has the tables more than once."""
    hidden = {(names.schema, table) for names in instances for table in _all_tables(names)}

    def include(name: str | None, type_: str, parent_names: Mapping[Any, str | None], /) -> bool:
        if type_ != "table" or name is None:
            return True
        autogenerate = _current_context()
        spellings = _spellings(parent_names.get("schema_name"), autogenerate)
        if hidden.isdisjoint((schema, name) for schema in spellings):
            return True
        return _is_in_target(name, spellings, autogenerate)

    return include


def revision_scope(operations: Operations | None) -> tuple[Operations, TableNames]:
    """Return what a revision works with: the operations to run, and the names of the tables.

    Args:
        operations: those that `upgrade()` of this package passes in, as `alembic.op` is one variable for
            the whole process and may be in use; None where an app's Alembic runs the revision and
            `alembic.op` is right.
    """
    if operations is None:
        operations = Operations(op.get_context())
    return operations, table_names(operations.get_context().config)


def create_schema(operations: Operations, schema: str) -> None:
    """Create the schema, unless it is there: then it takes no privilege on the database."""
    is_offline = operations.get_context().as_sql
    if is_offline or not inspect(operations.get_bind()).has_schema(schema):
        operations.execute(CreateSchema(schema, if_not_exists=True))


def refuse_taken_names(operations: Operations, names: TableNames, revision: str) -> None:
    """Stop a revision that creates the tables where they are already, and say how they can be adopted.

    Raises:
        MigrationError: the executions table is in the schema where it would be created.
    """
    if operations.get_context().as_sql:
        return
    connection = operations.get_bind()
    schema = names.schema or connection.scalar(select(func.current_schema()))
    if inspect(connection).has_table(names.executions, schema):
        found = find_installation(connection, names).revision
        problem = (
            "they are there, though not in this history; if 'zart migrate' made them, adopt them with "
            f"'alembic stamp {found or revision}' and drop {names.version_table}"
        )
        raise MigrationError(names.qualified("executions"), revision=found, problem=problem)


def _names_from_arguments(config: Config) -> TableNames:
    arguments: Iterable[str] = getattr(config.cmd_opts, "x", None) or ()
    pairs = (argument.partition("=") for argument in arguments)
    given = {_ARGUMENTS[key]: value for key, _, value in pairs if key in _ARGUMENTS}
    return replace(TableNames.from_env_or_default(), **given)


def _all_tables(names: TableNames) -> list[str]:
    return [*(names.table(table) for table in TABLES), names.version_table]


def _current_context() -> MigrationContext | None:
    try:
        return context.get_context()
    except Exception:  # noqa: BLE001 - no class of its own: Alembic says so where no env.py is running
        return None


def _spellings(schema: str | None, autogenerate: MigrationContext | None) -> set[str | None]:
    """Return how a schema can be written: Alembic calls the default one None, `TableNames` may not."""
    default = autogenerate.dialect.default_schema_name if autogenerate else None
    return {None, default} if schema in {None, default} else {schema}


def _is_in_target(table: str, schemas: set[str | None], autogenerate: MigrationContext | None) -> bool:
    target = autogenerate.opts.get("target_metadata") if autogenerate else None
    metadatas: Iterable[MetaData] = [target] if isinstance(target, MetaData) else target or ()
    keys = {f"{schema}.{table}" if schema else table for schema in schemas}
    return any(not keys.isdisjoint(metadata.tables) for metadata in metadatas)
