"""When a queue is drained, for contenders that have psycopg."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import psycopg

from benchmarks.contenders import common
from benchmarks.contenders.common import Meter


def nothing_left(connection: psycopg.AsyncConnection[Any], undone: str) -> Callable[[], Awaitable[bool]]:
    """Return what tells whether nothing is left to be done.

    Args:
        connection: in autocommit.
        undone: a query that finds a row, `SELECT FROM ...`, as long as something is left.
    """

    async def is_done() -> bool:
        cursor = await connection.execute(f"SELECT NOT EXISTS ({undone})".encode())
        row = await cursor.fetchone()
        return row is not None and row[0]

    return is_done


async def drained(connection: psycopg.AsyncConnection[Any], undone: str, meter: Meter, runs: int) -> None:
    """Return when nothing is left of that many runs, each of which was counted when it began in this process."""
    await common.until(nothing_left(connection, undone), is_near=lambda: meter.count >= runs)
