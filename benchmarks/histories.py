"""Fills a database with finished runs: the rows of one that a contender really had, copied in bulk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import psycopg

from benchmarks.server import Server

BYTES_A_RUN: Final = 2000
"""What the rows of a run with one step and their indexes take, at most."""
_ROWS_AT_ONCE: Final = 500_000


def fill(server: Server, url: str, copies: Sequence[Mapping[str, Any]], runs: int) -> None:
    """Copy the rows of the database's only run.

    Args:
        server: where the database is.
        url: of the database.
        copies: the tables, and for each the expressions of the columns that tell a run's rows from those of another
            one: by `n`, its number, and `seed`, the row that is copied.
        runs: how many there are to be.
    """
    with server.connected(url) as connection:
        connection.execute("SET synchronous_commit = off")
        connection.execute("SET session_replication_role = replica")  # no trigger tells of what is copied
        for copy in copies:
            _copy(connection, copy["table"], copy["changes"], runs)
        connection.execute("CHECKPOINT")


def _copy(connection: psycopg.Connection[Any], table: str, changes: Mapping[str, str], runs: int) -> None:
    columns = {name: changes.get(name, f'seed."{name}"') for name in _columns(connection, table)}
    names = ", ".join(f'"{name}"' for name in columns)
    insert = f"INSERT INTO {table} ({names}) OVERRIDING SYSTEM VALUE"
    select = f"SELECT {', '.join(columns.values())} FROM seed, generate_series(%s::bigint, %s) AS n"  # noqa: S608
    connection.execute(f"CREATE TEMPORARY TABLE seed AS TABLE {table}".encode())
    for first in range(1, runs + 1, _ROWS_AT_ONCE):
        last = min(first + _ROWS_AT_ONCE - 1, runs)
        connection.execute(f"{insert} {select}".encode(), (first, last))
    connection.execute("DROP TABLE seed")
    connection.execute(f"VACUUM (FREEZE, ANALYZE) {table}".encode())


def _columns(connection: psycopg.Connection[Any], table: str) -> list[str]:
    query = """
        SELECT attname FROM pg_attribute
        WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = '' ORDER BY attnum
    """
    return [name for (name,) in connection.execute(query, (table,))]
