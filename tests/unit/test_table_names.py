"""`TableNames`: what it answers, what it refuses, and that everything made from it fits into PostgreSQL."""

from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from sqlalchemy import MetaData

from zart_sqla.errors import InvalidIdentifierError, ZartError
from zart_sqla.models import zart_models
from zart_sqla.table_names import PREFIX_VARIABLE, SCHEMA_VARIABLE, TABLES, TableNames

LONGEST_PREFIX = "p" * 32
LONGEST_SCHEMA = "s" * 63
CHARACTERS = "has characters other than ASCII letters, digits and '_'"
START = "does not start with an ASCII letter"
BAD_IN_BOTH = [
    ("", "is empty"),
    ("my-app", CHARACTERS),
    ("my app", CHARACTERS),
    ('my"app', CHARACTERS),
    ("my.app", CHARACTERS),
    ("my$app", CHARACTERS),
    ("caf\N{LATIN SMALL LETTER E WITH ACUTE}", CHARACTERS),
    ("app\n", CHARACTERS),
    ("app\0", CHARACTERS),
    ("9lives", START),
    ("_app", START),
    (" app", START),
    ("\N{CYRILLIC SMALL LETTER A}pp", START),
    (5, "is int, not text"),
    (b"app", "is bytes, not text"),
]
TOO_LONG = "the longest name made from it would pass PostgreSQL's limit of 63"
BAD_PREFIXES = [*BAD_IN_BOTH, (LONGEST_PREFIX + "p", f"is 33 bytes long; with more than 32 {TOO_LONG}")]
BAD_SCHEMAS = [
    *BAD_IN_BOTH,
    (LONGEST_SCHEMA + "s", f"is 64 bytes long; with more than 63 {TOO_LONG}"),
    ("pg_app", "starts with 'pg_', as system schemas do"),
]


def can_be_set(value: object) -> bool:
    """Tell whether an environment variable can have this value."""
    return isinstance(value, str) and "\0" not in value


def test_default() -> None:
    """Without anything said, the prefix is `zart_`, and the search path decides on the schema."""
    assert TableNames.default() == TableNames() == TableNames("zart_", None)


def test_each_table_has_a_property() -> None:
    """Every table can be asked for by its own name, and has the prefix."""
    names = TableNames.with_prefix("myapp_")
    assert {getattr(names, table) for table in TABLES} == {f"myapp_{table}" for table in TABLES}
    assert names.tasks == names.table("tasks") == "myapp_tasks"
    assert (names.prefix, names.schema, names.version_table) == ("myapp_", None, "myapp_alembic_version")


def test_with_schema() -> None:
    """A schema is added to the names that are there; they themselves do not change."""
    names = TableNames.with_prefix("svc_")
    assert names.with_schema("myschema") == TableNames("svc_", "myschema")
    assert names.schema is None


def test_qualified() -> None:
    """For SQL text, the names are quoted, with the schema if there is one."""
    assert TableNames.default().qualified("tasks") == '"zart_tasks"'
    assert TableNames("myapp_", "tenant_a").qualified("tasks") == '"tenant_a"."myapp_tasks"'


@pytest.mark.parametrize("ask", [TableNames().table, TableNames().qualified])
def test_unknown_table(ask: Any) -> None:
    """A table that we do not have is a mistake in the code."""
    with pytest.raises(KeyError, match="orders"):
        ask("orders")


def test_frozen_and_hashable() -> None:
    """Names can be keys, and do not change."""
    assert len({TableNames(), TableNames.default(), TableNames("a_")}) == 2
    with pytest.raises(FrozenInstanceError):
        TableNames().prefix = "other_"  # type: ignore[misc]


@pytest.mark.parametrize(("prefix", "problem"), BAD_PREFIXES)
def test_bad_prefix(prefix: Any, problem: str) -> None:
    """A prefix that does not do is refused with what is wrong with it."""
    with pytest.raises(InvalidIdentifierError) as caught:
        TableNames.with_prefix(prefix)
    assert_describes(caught.value, "prefix", prefix, problem)


@pytest.mark.parametrize(("schema", "problem"), BAD_SCHEMAS)
def test_bad_schema(schema: Any, problem: str) -> None:
    """A schema that does not do is refused with what is wrong with it."""
    with pytest.raises(InvalidIdentifierError) as caught:
        TableNames.default().with_schema(schema)
    assert_describes(caught.value, "schema", schema, problem)


@pytest.mark.parametrize("part", ["a", "A", "Zart_", "a1", "a_", "select", "user", "information"])
def test_good_parts(part: str) -> None:
    """Letters of either case, digits and underscores do, and keywords, because names are quoted."""
    assert TableNames(part, part).qualified("tasks") == f'"{part}"."{part}tasks"'


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, TableNames()),
        ({PREFIX_VARIABLE: "myapp_"}, TableNames("myapp_")),
        ({SCHEMA_VARIABLE: "tenant_a"}, TableNames(schema="tenant_a")),
        ({PREFIX_VARIABLE: "myapp_", SCHEMA_VARIABLE: "tenant_a"}, TableNames("myapp_", "tenant_a")),
    ],
)
def test_from_environment(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: TableNames) -> None:
    """`ZART_TABLE_PREFIX` and `ZART_SCHEMA` each replace the default."""
    for variable, value in variables.items():
        monkeypatch.setenv(variable, value)
    assert TableNames.from_env_or_default() == expected


@pytest.mark.parametrize(
    ("variable", "part", "bad"),
    [
        *((PREFIX_VARIABLE, "prefix", bad) for bad in BAD_PREFIXES if can_be_set(bad[0])),
        *((SCHEMA_VARIABLE, "schema", bad) for bad in BAD_SCHEMAS if can_be_set(bad[0])),
    ],
)
def test_bad_environment(monkeypatch: pytest.MonkeyPatch, variable: str, part: str, bad: tuple[str, str]) -> None:
    """The error of a bad name from the environment tells the variable as well."""
    value, problem = bad
    monkeypatch.setenv(variable, value)
    with pytest.raises(InvalidIdentifierError) as caught:
        TableNames.from_env_or_default()
    assert_describes(caught.value, part, value, problem, variable)


def test_longest_names_fit() -> None:
    """With the longest prefix and schema, every identifier that we name ourselves has at most 63 bytes."""
    names = TableNames(LONGEST_PREFIX, LONGEST_SCHEMA)
    metadata = MetaData()
    zart_models(names, metadata=metadata)
    found = identifiers(metadata)
    assert len(found) > len(TABLES)
    own = {names.work_channel, names.done_channel, names.version_table, f"{names.version_table}_pkc"}
    for identifier in found | own | {names.table(table) for table in TABLES}:
        assert identifier.startswith(LONGEST_PREFIX)
        assert len(identifier.encode()) <= 63


def test_all_that_is_made_has_a_name_of_ours() -> None:
    """No constraint or index is left to be named by PostgreSQL, which cuts off what is too long."""
    metadata = MetaData()
    zart_models(TableNames(), metadata=metadata)
    for table in metadata.tables.values():
        assert all(constraint.name for constraint in table.constraints)
        assert all(index.name for index in table.indexes)


def test_instances_share_nothing() -> None:
    """Two prefixes have no identifier or channel in common, nor do two schemas have a channel."""
    one, two, three = TableNames("one_"), TableNames("two_"), TableNames("one_", "other")
    metadata = {names: MetaData() for names in (one, two)}
    for names in (one, two):
        zart_models(names, metadata=metadata[names])
    assert not identifiers(metadata[one]) & identifiers(metadata[two])
    channels = [(names.work_channel, names.done_channel) for names in (one, two, three)]
    assert len({channel for pair in channels for channel in pair}) == 6


def test_channels_are_told_apart_exactly() -> None:
    """A schema and a prefix that read the same when they are joined do not make the same channel."""
    assert TableNames("b_c", "a").work_channel != TableNames("c", "a_b").work_channel


def identifiers(metadata: MetaData) -> set[str]:
    """Return the names of all tables, constraints and indexes."""
    tables = metadata.tables.values()
    parts: list[Any] = [part for table in tables for part in (table, *table.constraints, *table.indexes)]
    return {str(part.name) for part in parts}


def assert_describes(
    error: InvalidIdentifierError, part: str, actual: object, problem: str, variable: str | None = None
) -> None:
    """Check that an error says all of it, in its attributes and in its text."""
    assert isinstance(error, ZartError)
    assert isinstance(error, ValueError)
    assert (error.part, error.actual, error.problem, error.variable) == (part, actual, problem, variable)
    origin = f" (from the environment variable {variable})" if variable else ""
    assert str(error).startswith(f"table name {part} {actual!r}{origin} {problem}; expected ASCII letters")
