"""Starting in the app's transaction: the execution exists if and only if the app's own rows do."""

import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import Column, Engine, MetaData, Table, Text, create_engine, insert, make_url, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from tests.support.waiting import PATIENCE
from tests.support.working import scheduler_on, worker_on
from zart_sqla import (
    ConfigError,
    ExecutionAlreadyExists,
    ExecutionNotFound,
    InvalidDataError,
    PostgresScheduler,
    SyncScheduler,
    durable,
)

orders = Table("orders", MetaData(), Column("order_id", Text, primary_key=True))


@durable
async def fulfil(order_id: str) -> str:
    """Do what is to be done for an order."""
    return f"fulfilled {order_id}"


async def settled(value: Any) -> Any:
    """Return the value, awaited where it has to be."""
    return await value if inspect.isawaitable(value) else value


class Joined:
    """One of the app's sessions or connections, and the scheduler that joins its transactions."""

    def __init__(self, transaction: Any, scheduler: PostgresScheduler | SyncScheduler) -> None:
        self.transaction = transaction
        self.scheduler = scheduler

    async def order(self, order_id: str) -> None:
        """Write a row of the app's, and start its execution."""
        await settled(self.transaction.execute(insert(orders).values(order_id=order_id)))
        await self.start(order_id)

    async def start(self, order_id: str) -> Any:
        """Start an execution."""
        return await settled(self.scheduler.start(fulfil, order_id, execution_id=order_id, session=self.transaction))

    async def savepoint(self) -> Any:
        """Begin a transaction within the transaction."""
        return await settled(self.transaction.begin_nested())

    async def commit(self) -> None:
        """Commit."""
        await settled(self.transaction.commit())

    async def rollback(self) -> None:
        """Roll back."""
        await settled(self.transaction.rollback())


class App:
    """An app with an async and a sync engine, and a scheduler on each."""

    def __init__(self, scheduler: PostgresScheduler, engine: Engine) -> None:
        self.scheduler = scheduler
        self.engine = engine
        self.sync_scheduler = SyncScheduler(engine)

    @asynccontextmanager
    async def joined(self, kind: str) -> AsyncIterator[Joined]:
        """Yield a session or connection of this kind."""
        async with AsyncExitStack() as stack:
            match kind:
                case "AsyncSession":
                    session = await stack.enter_async_context(AsyncSession(self.scheduler.engine))
                    yield Joined(session, self.scheduler)
                case "AsyncConnection":
                    connection = await stack.enter_async_context(self.scheduler.engine.connect())
                    yield Joined(connection, self.scheduler)
                case "Session" | "Session in an async app":
                    scheduler = self.sync_scheduler if kind == "Session" else self.scheduler
                    yield Joined(stack.enter_context(Session(self.engine)), scheduler)
                case _:
                    scheduler = self.sync_scheduler if kind == "Connection" else self.scheduler
                    yield Joined(stack.enter_context(self.engine.connect()), scheduler)

    async def both(self) -> tuple[set[str], set[str]]:
        """Return the orders, and the executions."""
        async with self.scheduler.engine.connect() as connection:
            known = set(await connection.scalars(select(orders.c.order_id)))
        return known, {info.execution_id for info in await self.scheduler.list_executions()}


KINDS = (
    "AsyncSession",
    "AsyncConnection",
    "Session",
    "Connection",
    "Session in an async app",
    "Connection in an async app",
)
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture
async def app(migrated_url: str) -> AsyncIterator[App]:
    """Yield an app with a table of its own."""
    engine = create_engine(make_url(migrated_url).set(drivername="postgresql+psycopg"))
    orders.metadata.create_all(engine)
    async with scheduler_on(migrated_url) as scheduler:
        yield App(scheduler, engine)
    engine.dispose()


@every_kind
async def test_both_or_neither(app: App, kind: str) -> None:
    """Committed, both are there; rolled back, whole or to a savepoint, neither is; others see nothing before."""
    async with app.joined(kind) as joined:
        await joined.order("rolled back")
        await joined.rollback()
        await joined.order("committed")
        assert await app.both() == (set(), set())
        await joined.commit()
        assert await app.both() == ({"committed"}, {"committed"})

        await joined.order("outer")
        first = await joined.savepoint()
        await joined.order("to the savepoint")
        await settled(first.rollback())
        second = await joined.savepoint()
        await joined.order("nested")
        third = await joined.savepoint()
        await joined.order("deeply nested")
        await settled(third.rollback())
        await settled(second.commit())
        await joined.commit()
        expected = {"committed", "outer", "nested"}
        assert await app.both() == (expected, expected)

        await joined.savepoint()
        await joined.order("nested in a rollback")
        await joined.rollback()
        assert await app.both() == (expected, expected)


@every_kind
async def test_workers_are_woken(app: App, migrated_url: str, kind: str) -> None:
    """After the commit a worker that hardly ever polls takes it up; one that was rolled back it does not."""
    async with worker_on(migrated_url, fulfil), app.joined(kind) as joined:
        await joined.start("dropped")
        await joined.rollback()
        for order_id in ("a", "b"):
            await joined.start(order_id)
            await joined.start(f"{order_id}2")
            await joined.commit()
            for one in (order_id, f"{order_id}2"):
                result = await app.scheduler.handle(one, fulfil).result(timeout=PATIENCE)
                assert result == f"fulfilled {one}"
        with pytest.raises(ExecutionNotFound):
            await app.scheduler.handle("dropped").info()


@every_kind
async def test_caught_conflict(app: App, kind: str) -> None:
    """A conflict that the app catches leaves its transaction as it was, for a single start and for many."""
    await app.scheduler.start(fulfil, "taken", execution_id="taken")
    many = [("new 1", "x"), ("taken", "x"), ("new 2", "x")]
    async with app.joined(kind) as joined:
        await joined.order("mine")
        calls: list[Callable[[], Any]] = [
            lambda: joined.start("taken"),
            lambda: joined.scheduler.start_many(fulfil, many, session=joined.transaction),
        ]
        for call in calls:
            with pytest.raises(ExecutionAlreadyExists) as caught:
                await settled(call())
            assert (caught.value.execution_id, caught.value.status) == ("taken", "scheduled")
        with pytest.raises(InvalidDataError):
            await settled(joined.scheduler.start(fulfil, "\x00", session=joined.transaction))
        await joined.order("mine too")
        await joined.commit()
    assert await app.both() == ({"mine", "mine too"}, {"mine", "mine too", "taken"})


async def test_id_is_taken_in_a_transaction_under_way(app: App) -> None:
    """Two transactions that start one id: the second waits for the first, and is refused or goes ahead."""
    async with app.joined("AsyncSession") as first, app.joined("AsyncSession") as second:
        await first.start("one")
        await first.rollback()
        await second.start("one")
        await second.commit()
        with pytest.raises(ExecutionAlreadyExists):
            await first.start("one")


@pytest.mark.parametrize("wrong", ["AsyncSession", "AsyncConnection"])
async def test_async_session_in_a_sync_call(app: App, wrong: str) -> None:
    """A call without await refuses a session that has to be awaited."""
    async with app.joined(wrong) as joined:
        with pytest.raises(ConfigError, match="a Session or a Connection in a call without await"):
            app.sync_scheduler.start(fulfil, "x", session=joined.transaction)


async def test_something_else(app: App) -> None:
    """Anything else than the four kinds is refused by both schedulers."""
    starts: list[Callable[..., Any]] = [app.scheduler.start, app.sync_scheduler.start]
    for start in starts:
        with pytest.raises(ConfigError, match="an AsyncSession, Session, AsyncConnection or Connection"):
            await settled(start(fulfil, "x", session=app.engine))
