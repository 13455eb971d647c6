"""What something costs the database: statements, transactions, rows and WAL."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, fields

import asyncpg
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.support.traffic import Traffic
from tests.support.waiting import eventually

_ROWS = """
    SELECT sum(n_tup_ins)::bigint, sum(n_tup_upd)::bigint, sum(n_tup_hot_upd)::bigint, sum(n_tup_del)::bigint,
        (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint
    FROM pg_stat_user_tables WHERE relname <> 'zart_workers'
"""
"""What has been written so far; but for the heartbeats, whose connection tells of them when it likes."""


@dataclass(frozen=True)
class Cost:
    """What something costs.

    Attributes:
        statements: how many statements are sent.
        transactions: how many transactions these are.
        inserted: how many rows are inserted.
        updated: how many rows are updated.
        hot: how many of those leave the indexes alone, since the new version of the row stands beside the old one.
        deleted: how many rows are deleted.
        wal: how many bytes of WAL are written.
    """

    statements: float
    transactions: float
    inserted: float
    updated: float
    hot: float
    deleted: float
    wal: float

    def __sub__(self, other: "Cost") -> "Cost":
        return Cost(*(mine - its for mine, its in zip(self.numbers, other.numbers, strict=True)))

    def __truediv__(self, count: int) -> "Cost":
        return Cost(*(number / count for number in self.numbers))

    @property
    def numbers(self) -> tuple[float, ...]:
        """All of them, in this order."""
        return tuple(getattr(self, field.name) for field in fields(self))


def least(costs: Sequence[Cost]) -> Cost:
    """Return the cost of what is done again and again, with the least WAL: for the others, a page may have been split.

    Raises:
        AssertionError: it is not the same each time.
    """
    assert len({cost.numbers[:-1] for cost in costs}) == 1, costs
    return min(costs, key=lambda cost: cost.wal)


class Meter:
    """Reads off what things cost, on a server where nobody else does anything.

    Args:
        said: what this process says.
        outside: a connection that is not counted.
        engines: the engines of this process, with one connection each.
    """

    def __init__(self, said: Traffic, outside: asyncpg.Connection, *engines: AsyncEngine) -> None:
        self._said = said
        self._outside = outside
        self._engines = engines

    async def cost(self, doing: Callable[[], Awaitable[object]], is_done: Callable[[], object] = lambda: True) -> Cost:
        """Return what it costs to do something, until that is done and all that was said for it is on record."""
        before = await self._read()
        self._said.clear()
        await doing()
        await eventually(is_done)
        await eventually(lambda: self._said.is_settled)
        said = len(self._said.statements), self._said.committed
        after = await self._read()
        return Cost(*said, *(late - early for late, early in zip(after, before, strict=True)))

    async def _read(self) -> tuple[int, ...]:
        for engine in self._engines:
            async with engine.connect() as connection:
                await connection.execute(select(func.pg_stat_force_next_flush()))
        await self._outside.execute("SELECT pg_stat_force_next_flush()")
        return tuple(*await self._outside.fetch(_ROWS))
