"""The connections that are made for us are closed, whatever comes in between."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import asyncpg
import pytest
from sqlalchemy import URL, Connection, event, text
from sqlalchemy.engine.interfaces import IsolationLevel
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.support.working import CONFIG, registry_of, scheduler_on
from zart_sqla import PoolConfig, PostgresScheduler, Worker, WorkerConfig, durable
from zart_sqla.client import diagnosis
from zart_sqla.client import scheduler as scheduler_module
from zart_sqla.client.engines import call, make_engine
from zart_sqla.store.diagnosis import backend
from zart_sqla.worker.clock import DatabaseClock
from zart_sqla.worker.identity import Identity
from zart_sqla.worker.transactions import Transactions


@durable
async def order() -> None:
    """Do nothing."""


async def ask(scheduler: PostgresScheduler) -> None:
    """Have the client make a connection."""
    await scheduler.engine.dispose()
    await scheduler.list_executions()


async def connect_in_time(scheduler: PostgresScheduler) -> None:
    """Have a part of the worker make a connection, as the writer, the poller and the sender of wake-ups do."""
    await scheduler.engine.dispose()
    await call(scheduler.engine, backend, seconds=60)


async def listen(scheduler: PostgresScheduler) -> None:
    """Have the listener for the ends of runs make its connection."""
    await scheduler.ends.listen()
    await scheduler.ends.close()


async def ask_for_sessions(scheduler: PostgresScheduler) -> None:
    """Have the doctor make connections."""
    await diagnosis.has_sessions(scheduler.engine)


async def ask_for_news(scheduler: PostgresScheduler) -> None:
    """Have the doctor make a connection to listen on."""
    await diagnosis.hears_news(scheduler.engine, scheduler.names)


async def work(scheduler: PostgresScheduler) -> None:
    """Have a worker make its own connection; the one on which it looks at the tables is in the pool."""
    async with Worker(scheduler, registry_of(order), WorkerConfig(**CONFIG)):
        pass


async def start_to_work(scheduler: PostgresScheduler) -> None:
    """Have a worker make the connection on which it looks at the tables."""
    await scheduler.engine.dispose()
    await work(scheduler)


async def begin_step(scheduler: PostgresScheduler) -> None:
    """Have a worker make a connection for the transaction of a step."""
    await scheduler.engine.dispose()
    config = WorkerConfig(**CONFIG)
    names, identity, clock = scheduler.names, Identity(), DatabaseClock()
    transactions = Transactions(
        scheduler.engine, names, identity, clock, config, None, on_done=print, on_checkpoint=print
    )
    task: Any = None
    await transactions.begin(task, None)


USES = (ask, connect_in_time, listen, ask_for_sessions, ask_for_news, work, start_to_work, begin_step)


@pytest.mark.parametrize("use", USES, ids=lambda use: use.__name__)
async def test_cancelled_while_connecting(
    migrated_url: str, use: Callable[[PostgresScheduler], Coroutine[Any, Any, None]]
) -> None:
    """Who is cancelled when the server has let it in, but the connection is not set up, leaves none behind."""
    made: list[asyncpg.Connection] = []

    def cancel(connection: Any, _entry: object) -> None:
        made.append(connection.driver_connection)
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        connection.run_async(lambda driver: driver.execute("SELECT 1"))

    async with scheduler_on(migrated_url) as scheduler:
        event.listen(scheduler.engine.sync_engine, "connect", cancel, insert=True)
        await asyncio.wait([asyncio.create_task(use(scheduler))])
        assert [connection.is_closed() for connection in made] == [True]


async def test_pool_that_cannot_be_filled(migrated_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the pool's second connection fails at the start, the first one does not stay open."""
    made: list[asyncpg.Connection] = []

    def fail(connection: Any, _entry: object) -> None:
        made.append(connection.driver_connection)
        if len(made) == 2:
            raise ConnectionResetError

    def make_failing_engine(url: str | URL, pool: PoolConfig | None) -> AsyncEngine:
        engine = make_engine(url, pool)
        event.listen(engine.sync_engine, "connect", fail)
        return engine

    monkeypatch.setattr(scheduler_module, "make_engine", make_failing_engine)
    with pytest.raises(ConnectionResetError):
        await PostgresScheduler.connect_with_pool(migrated_url, PoolConfig(min_connections=3))
    assert [connection.is_closed() for connection in made] == [True, True]


def transactions_of_two(connection: Connection) -> int:
    """Return in how many transactions two statements are."""
    return len({connection.scalar(text(f"SELECT pg_current_xact_id()::text, {number}")) for number in range(2)})


@pytest.mark.parametrize(("level", "transactions"), [("AUTOCOMMIT", 2), ("READ COMMITTED", 1)])
async def test_transactions_of_a_call(migrated_url: str, level: IsolationLevel, transactions: int) -> None:
    """The statements of a call are one transaction, or one each; the app's connections are as they were afterwards."""
    async with scheduler_on(migrated_url) as scheduler:
        assert await call(scheduler.engine, transactions_of_two, isolation_level=level) == transactions
        async with scheduler.engine.connect() as connection:
            assert await connection.run_sync(transactions_of_two) == 1


async def test_call_that_fails(migrated_url: str) -> None:
    """What a call does before it fails is undone, and its connection is back in the pool."""

    def insert_and_fail(connection: Connection) -> None:
        connection.execute(text("CREATE TABLE torn (number int)"))
        raise LookupError

    async with scheduler_on(migrated_url) as scheduler:
        with pytest.raises(LookupError):
            await call(scheduler.engine, insert_and_fail, isolation_level="READ COMMITTED")
        assert (
            await call(scheduler.engine, lambda connection: connection.scalar(text("SELECT to_regclass('torn')")))
            is None
        )
        pool: Any = scheduler.engine.pool
        assert pool.checkedout() == 0


async def test_call_without_answer(migrated_url: str) -> None:
    """A call that is not answered in time fails, and its connection is not used again."""

    def wait(connection: Connection) -> None:
        connection.execute(text("SELECT pg_sleep(60)"))

    async with scheduler_on(migrated_url) as scheduler:
        before = await call(scheduler.engine, backend)
        with pytest.raises(TimeoutError, match=r"did not answer within 0\.2 s"):
            await call(scheduler.engine, wait, seconds=0.2)
        assert await call(scheduler.engine, backend) != before
