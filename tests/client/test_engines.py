"""The connections that are made for us are closed, whatever comes in between."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import asyncpg
import pytest
from sqlalchemy import URL, event
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.support.working import CONFIG, registry_of, scheduler_on
from zart_sqla import PoolConfig, PostgresScheduler, Worker, WorkerConfig, durable
from zart_sqla.client import diagnosis
from zart_sqla.client import scheduler as scheduler_module
from zart_sqla.client.engines import connected, make_engine
from zart_sqla.worker.clock import DatabaseClock
from zart_sqla.worker.identity import Identity
from zart_sqla.worker.transactions import Transactions


@durable
async def order() -> None:
    """Do nothing."""


async def call(scheduler: PostgresScheduler) -> None:
    """Have the client make a connection."""
    await scheduler.engine.dispose()
    await scheduler.list_executions()


async def connect_in_time(scheduler: PostgresScheduler) -> None:
    """Have a part of the worker make a connection, as the writer, the poller and the sender of wake-ups do."""
    await scheduler.engine.dispose()
    async with connected(scheduler.engine, 60):
        pass


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


USES = (call, connect_in_time, listen, ask_for_sessions, ask_for_news, work, start_to_work, begin_step)


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
