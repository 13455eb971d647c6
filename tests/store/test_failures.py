"""What an error of the database means: the same for either driver."""

import secrets
from collections.abc import Callable
from functools import partial
from typing import Any

import asyncpg
import pytest
from sqlalchemy import Connection, Executable, exc, insert, text

from tests.store.connections import Database
from tests.store.crew import new, start
from zart_sqla.models.mapping import tables_of
from zart_sqla.store import executions
from zart_sqla.store.failures import brief, is_data_fault, is_interruption, is_transient, sqlstate_of

STATES = {
    "40001": "transient",
    "40P01": "transient",
    "55P03": "transient",
    "57P01": "transient",
    "57P02": "transient",
    "57P03": "transient",
    "25P03": "transient",
    "08006": "transient",
    "53100": "transient",
    "53300": "transient",
    "22P02": "data",
    "22021": "data",
    "23505": "data",
    "23514": "data",
    "54000": "data",
    "42P01": "neither",
    "42501": "neither",
    "25006": "neither",
    "57014": "neither",
    "P0001": "neither",
    "XX000": "neither",
}


async def raised(database: Database, function: Callable[[Connection], Any]) -> exc.DBAPIError:
    """Return the error that the function gets from the database."""
    with pytest.raises(exc.DBAPIError) as caught:
        await database.call(function)
    return caught.value


def execute(connection: Connection, statement: Executable) -> None:
    """Execute a statement."""
    connection.execute(statement)


def kind_of(error: BaseException) -> str:
    """Return what the error is taken for."""
    assert not (is_transient(error) and is_data_fault(error))
    return "transient" if is_transient(error) else "data" if is_data_fault(error) else "neither"


async def test_every_state(database: Database) -> None:
    """An error is told by the SQLSTATE that the server gives it."""
    for state, expected in STATES.items():
        raising = text(f"DO $$ BEGIN RAISE EXCEPTION 'on purpose' USING ERRCODE = '{state}'; END $$")
        error = await raised(database, partial(execute, statement=raising))
        assert (sqlstate_of(error), kind_of(error)) == (state, expected)
        assert is_interruption(error) == (state == "57014")
        assert "on purpose" in brief(error)
        assert "RAISE" not in brief(error)


async def test_text_that_is_no_json(database: Database) -> None:
    """It is about the values."""
    error = await raised(
        database, lambda connection: executions.insert(connection, database.names, [new("a", payload="{")])
    )
    assert kind_of(error) == "data"


async def test_nul_in_a_payload(database: Database) -> None:
    """So is a character that PostgreSQL cannot hold, where nobody has refused it before."""
    error = await raised(
        database, lambda connection: executions.insert(connection, database.names, [new("a", payload='"\x00"')])
    )
    assert kind_of(error) == "data"


async def test_duplicate(database: Database) -> None:
    """So is a row that is there already."""
    (run_id,) = await start(database, "order-1")
    table = tables_of(database.names).tasks
    row = {"task_id": run_id, "run_id": run_id, "task_name": "x", "queue": "x"}
    error = await raised(database, lambda connection: connection.execute(insert(table).values(row)))
    assert isinstance(error, exc.IntegrityError)
    assert kind_of(error) == "data"


async def test_index_entry_that_is_too_long(database: Database) -> None:
    """So is a name that an index cannot take, where nobody has refused it before."""
    long = secrets.token_hex(20_000)
    error = await raised(database, lambda connection: executions.insert(connection, database.names, [new(long)]))
    assert kind_of(error) == "data"


async def test_terminated_connection(database: Database) -> None:
    """A connection that is cut says nothing about what was asked."""
    end = text("SELECT pg_terminate_backend(pg_backend_pid())")
    assert kind_of(await raised(database, lambda connection: connection.execute(end))) == "transient"


async def test_cut_connection(database: Database) -> None:
    """Nor does one that was cut before it was asked."""
    async with database.connected() as link:
        pid = await link.call(lambda connection: connection.scalar(text("SELECT pg_backend_pid()")))
        await database.call(lambda connection: connection.execute(text(f"SELECT pg_terminate_backend({pid}, 5000)")))
        with pytest.raises(exc.DBAPIError) as caught:
            await link.call(lambda connection: connection.execute(text("SELECT 1")))
    assert kind_of(caught.value) == "transient"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (exc.TimeoutError("the pool is exhausted"), "transient"),
        (ConnectionRefusedError("nobody there"), "transient"),
        (TimeoutError("too slow"), "transient"),
        (asyncpg.InternalClientError("the server's last words were read"), "transient"),
        (exc.InvalidRequestError("a bug"), "neither"),
        (ValueError("a bug"), "neither"),
    ],
    ids=["pool", "refused", "slow", "ending", "sqlalchemy", "python"],
)
def test_errors_without_state(error: Exception, expected: str) -> None:
    """An error that is none of the server's is told by its type."""
    assert sqlstate_of(error) is None
    assert kind_of(error) == expected


def test_brief() -> None:
    """An error without words has the name of its type; one with many has its first line."""
    assert brief(ValueError()) == "ValueError"
    assert brief(ValueError("one\ntwo")) == "one"
