"""Statements as text: what is compiled is the same each time, and names only the tables that it was made for."""

import re
from uuid import uuid4

import pytest
from sqlalchemy import Compiled, Dialect, Executable, Insert, create_engine
from sqlalchemy.sql import ClauseElement

from tests.statements.catalogue import NO_STATEMENTS, Builder, builders, catalogue
from zart_sqla import TableNames
from zart_sqla.statements import executions, steps, tasks, workers
from zart_sqla.statements.arrays import parameters_of
from zart_sqla.table_names import TABLES

STATEMENTS = catalogue()
DIALECTS: dict[str, Dialect] = {name: create_engine(f"postgresql+{name}://").dialect for name in ("asyncpg", "psycopg")}
REGISTRATION = ["worker_id", "hostname", "pid", "lock_key", "lease_seconds"]
DEFAULT = TableNames()
ELSEWHERE = TableNames("svc_", "myschema")

every_statement = pytest.mark.parametrize("build", list(STATEMENTS.values()), ids=list(STATEMENTS))
every_dialect = pytest.mark.parametrize("dialect", list(DIALECTS.values()), ids=list(DIALECTS))


def compiled(statement: Executable, dialect: Dialect, keys: list[str] | None = None) -> Compiled:
    """Return the statement as a driver gets it."""
    assert isinstance(statement, ClauseElement)
    if isinstance(statement, Insert) and statement.select is None:
        keys = REGISTRATION
    return statement.compile(dialect=dialect, column_keys=keys)


def test_the_catalogue_is_complete() -> None:
    """Every public function of the layer is looked at here."""
    assert {name.split(" ")[0] for name in STATEMENTS} | NO_STATEMENTS == set(builders())


@every_dialect
@every_statement
def test_compiles(build: Builder, dialect: Dialect) -> None:
    """It is SQL for either driver, without a parameter that is filled in as text."""
    text = str(compiled(build(DEFAULT), dialect))
    assert re.match(r"(WITH|SELECT|INSERT|UPDATE|DELETE)\b", text)
    assert "POSTCOMPILE" not in text


@every_dialect
@every_statement
def test_same_text_each_time(build: Builder, dialect: Dialect) -> None:
    """Made anew it has the same text, so that a server's prepared statement is found again."""
    first = str(compiled(build(DEFAULT), dialect))
    getattr(build, "cache_clear", lambda: None)()
    assert str(compiled(build(DEFAULT), dialect)) == first


@pytest.mark.parametrize("name", sorted(set(builders()) - NO_STATEMENTS - {"executions.browse"}))
def test_made_once(name: str) -> None:
    """It is made once for each `TableNames`: two equal ones have the same statement, others another."""
    assert hasattr(builders()[name], "cache_info")
    build = STATEMENTS[name]
    assert build(TableNames("a_")) is build(TableNames("a_"))
    if name not in {"diagnosis.backend", "notifications.notify", "notifications.notify_all", "workers.is_locked"}:
        assert build(TableNames("a_")) is not build(TableNames("b_"))


@every_statement
def test_names_only_its_own_tables(build: Builder) -> None:
    """Each table in the text has the prefix and the schema; no default name is left anywhere."""
    text = str(compiled(build(ELSEWHERE), DIALECTS["psycopg"]))
    assert "zart" not in text
    tables = re.findall(r"(?:FROM|JOIN|INTO|UPDATE|DELETE FROM) (\w+\.svc_\w+)", text)
    assert set(tables) <= {f"myschema.svc_{table}" for table in TABLES}
    # In FOR UPDATE OF a table has no schema: that is PostgreSQL's syntax.
    assert re.findall(r"(?<!myschema\.)(?<! OF )\bsvc_", text) == []
    assert bool(tables) == (str(compiled(build(DEFAULT), DIALECTS["psycopg"])) != text)


@every_statement
def test_quoted_names(build: Builder) -> None:
    """Names that PostgreSQL would fold are quoted wherever they stand."""
    text = str(compiled(build(TableNames("Svc_", "User")), DIALECTS["psycopg"]))
    assert re.findall(r'(?<!")\bSvc_|(?<!")\bUser\b', text) == []


ROWS: dict[str, tuple[Executable, str, tuple[str, ...]]] = {
    "start": (
        executions.start(DEFAULT),
        "given",
        ("execution_id", "run_id", "task_name", "payload", "queue", "due_at"),
    ),
    "describe": (executions.describe(DEFAULT), "given", ("execution_id",)),
    "record": (
        steps.record(DEFAULT),
        "given",
        (
            "task_id",
            "attempt",
            "name",
            "kind",
            "position",
            "attempts",
            "result",
            "error",
            "started_at",
            "wake_at",
        ),
    ),
    "record_attempts": (
        steps.record_attempts(DEFAULT),
        "given",
        ("task_id", "token", "name", "attempt", "error", "started_at"),
    ),
    "recorded": (steps.recorded(DEFAULT), "given", ("run_id", "name")),
    "put_down": (tasks.put_down(DEFAULT), "turn", ("task_id", "attempt", "due_at", "is_waiting", "retries")),
    "finish": (tasks.finish(DEFAULT), "given", ("task_id", "attempt", "outcome", "result", "error")),
    "held": (tasks.held(DEFAULT), "mine", ("task_id", "attempt")),
    "beat": (workers.beat(DEFAULT), "mine", ("task_id", "attempt")),
}


@every_dialect
@pytest.mark.parametrize(("statement", "alias", "columns"), list(ROWS.values()), ids=list(ROWS))
def test_same_text_for_one_row_and_a_thousand(
    statement: Executable, alias: str, columns: tuple[str, ...], dialect: Dialect
) -> None:
    """Rows are one list for each column, so their number is not in the text, nor in the number of parameters."""
    texts = set()
    for count in (0, 1, 1000):
        parameters = parameters_of(alias, columns, [tuple(columns)] * count)
        one = compiled(statement, dialect, list(parameters))
        assert set(parameters) <= set(one.params)
        texts.add((str(one), len(one.params)))
    assert len(texts) == 1


def test_register_takes_columns() -> None:
    """What a worker registers with are parameters of the columns' names."""
    assert set(compiled(workers.register(DEFAULT), DIALECTS["asyncpg"]).params) == set(REGISTRATION)


def test_parameters_of() -> None:
    """Rows are turned into columns, also where there are none."""
    assert parameters_of("a", ("x", "y"), [(1, 2), (3, 4)]) == {"a_x": [1, 3], "a_y": [2, 4]}
    assert parameters_of("a", ("x", "y"), []) == {"a_x": [], "a_y": []}
    with pytest.raises(ValueError, match="zip"):
        parameters_of("a", ("x", "y"), [(uuid4(), 1, 2)])


def test_search_is_escaped() -> None:
    """What is searched for is a parameter, in which `%` and `_` stand for themselves."""
    one = compiled(STATEMENTS["executions.browse"](DEFAULT), DIALECTS["psycopg"])
    assert "order/_" in one.params.values()
    assert "ESCAPE '/'" in str(one)
