"""The client of a sync application: on its own engine, or from a thread of an async one."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeVar

import pytest
from sqlalchemy import Engine, create_engine, make_url

from tests.support.waiting import PATIENCE, eventually
from tests.support.working import count_awaited, let_time_pass, scheduler_on, worker_on
from zart_sqla import (
    ConfigError,
    ExecutionAlreadyExists,
    ExecutionCancelled,
    ExecutionFailed,
    ExecutionNotFound,
    ExecutionStatus,
    InvalidDataError,
    PostgresScheduler,
    SyncExecutionHandle,
    SyncScheduler,
    TableNames,
    WaitTimedOut,
    durable,
    sleep,
    step,
)
from zart_sqla.client import handles
from zart_sqla.client import sync as sync_client

T = TypeVar("T")


@step
async def half(number: int) -> float:
    """Give half of the number."""
    return number / 2


@durable
async def halve(number: int) -> float:
    """Give half of the number, or fail if it is negative."""
    if number < 0:
        raise ValueError(number)
    return await half(number)


@durable
async def nap(number: int) -> int:
    """Sleep for long."""
    await sleep("nap", "1h")
    return number


@pytest.fixture(autouse=True)
def never_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have waits look by themselves so rarely that only a notification can end them."""
    monkeypatch.setattr(handles, "POLL_SECONDS", 3600.0)
    monkeypatch.setattr(sync_client, "_POLL_SECONDS", 3600.0)


@pytest.fixture
def engine(migrated_url: str) -> Iterator[Engine]:
    """Yield the app's engine, on psycopg."""
    made = create_engine(make_url(migrated_url).set(drivername="postgresql+psycopg"))
    yield made
    made.dispose()


@pytest.fixture
async def scheduler(migrated_url: str) -> AsyncIterator[PostgresScheduler]:
    """Yield an async scheduler, whose event loop is known."""
    async with scheduler_on(migrated_url) as made:
        await made.list_executions()
        yield made


@pytest.fixture(params=["its own engine", "a thread of an async app"])
def client(request: pytest.FixtureRequest, engine: Engine, scheduler: PostgresScheduler) -> SyncScheduler:
    """Return a sync scheduler of either kind."""
    return SyncScheduler(engine) if request.param == "its own engine" else scheduler.sync


async def in_thread(function: Callable[[], T]) -> T:
    """Call the function as a sync app would."""
    return await asyncio.to_thread(function)


async def test_the_same_calls(client: SyncScheduler, migrated_url: str) -> None:
    """Starting, waiting, asking, listing, cancelling and resuming work without await."""

    def use() -> None:
        handle = client.start(halve, 5, execution_id="five")
        assert handle.result(timeout=PATIENCE) == 2.5
        assert handle.status() is ExecutionStatus.COMPLETED
        assert [one.name for one in handle.steps()] == ["half"]
        assert (handle.info().payload, repr(handle)) == (5, "<execution 'five'>")
        assert client.handle("five", halve).result() == 2.5
        many = client.start_many(halve, [(None, number) for number in range(20)])
        assert [one.result(timeout=PATIENCE) for one in many] == [number / 2 for number in range(20)]
        by_name: SyncExecutionHandle[Any] = client.start("halve", 8)
        assert by_name.result(timeout=PATIENCE) == 4
        page = client.list_executions(search="fiv", limit=1)
        assert [info.execution_id for info in page] == ["five"]
        sleeper = client.start(nap, 1)
        sleeper.cancel()
        with pytest.raises(ExecutionCancelled):
            sleeper.result(timeout=PATIENCE)
        failed = client.start(halve, -1)
        for _ in range(2):
            with pytest.raises(ExecutionFailed, match="ValueError: -1"):
                failed.result(timeout=PATIENCE)
            failed.resume()
        with pytest.raises(ExecutionFailed):
            failed.result(timeout=PATIENCE)
        assert failed.info().run_index == 2

    async with worker_on(migrated_url, halve, nap):
        await in_thread(use)


async def test_the_same_errors(client: SyncScheduler) -> None:
    """Errors are the same as those of the async client."""

    def use() -> None:
        client.start(nap, 1, execution_id="taken")
        with pytest.raises(ExecutionAlreadyExists) as caught:
            client.start(nap, 2, execution_id="taken")
        assert (caught.value.execution_id, caught.value.status) == ("taken", "scheduled")
        assert client.start(nap, 2, execution_id="taken", on_conflict="return").info().payload == 1
        with pytest.raises(ExecutionAlreadyExists):
            client.start_many(nap, [("new", 1), ("taken", 2)])
        assert client.start_many(nap, []) == []
        assert len(client.list_executions()) == 1
        with pytest.raises(InvalidDataError):
            client.start(nap, "one")  # type: ignore[misc]
        with pytest.raises(WaitTimedOut, match=r"'taken' had not ended after 0\.05 s"):
            client.handle("taken").result(timeout="50ms")
        with pytest.raises(ConfigError, match="limit"):
            client.list_executions(limit=0)
        nobody = client.handle("nobody")
        for question in (nobody.info, nobody.status, nobody.steps, nobody.result, nobody.cancel, nobody.resume):
            with pytest.raises(ExecutionNotFound):
                question()

    await in_thread(use)


async def test_woken_by_the_end(client: SyncScheduler, scheduler: PostgresScheduler, migrated_url: str) -> None:
    """A wait is ended by the notification, not by a poll, however the execution ends."""
    results: list[object] = []

    def wait_for(name: str) -> None:
        try:
            results.append(client.handle(name, nap).result(timeout=PATIENCE))
        except ExecutionCancelled:
            results.append("cancelled")

    async with worker_on(migrated_url, nap):
        first, second = await scheduler.start_many(nap, [("first", 1), ("second", 2)])
        threads = [threading.Thread(target=wait_for, args=(name,)) for name in ("first", "second")]
        for thread in threads:
            thread.start()
        await eventually(lambda: count_awaited(scheduler), 2)
        await first.cancel()
        await eventually(lambda: results, ["cancelled"])
        await let_time_pass(scheduler)
        await eventually(lambda: results, ["cancelled", 2])
        for thread in threads:
            thread.join()
        assert await second.result() == 2


async def test_connection_is_given_back_clean(engine: Engine, migrated_url: str) -> None:
    """After a wait its connection is in the pool again, and listens to nothing."""
    client = SyncScheduler(engine)
    async with worker_on(migrated_url, halve):
        await in_thread(lambda: client.start(halve, 2).result(timeout=PATIENCE))
    with pytest.raises(WaitTimedOut):
        await in_thread(lambda: client.start(nap, 2).result(timeout="20ms"))
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT pg_listening_channels()").all() == []


async def test_migrates_and_closes(database_url: str) -> None:
    """SyncScheduler.connect has an engine of its own, which it closes; it can make the tables."""
    names = TableNames.with_prefix("app_")
    with SyncScheduler.connect(database_url, names=names) as client:
        client.migrate()
        client.migrate()
        handle = client.start("task", [1], execution_id="x")
        assert handle.info().payload == [1]
    async with scheduler_on(database_url, names=names) as scheduler:
        assert (await scheduler.handle("x").info()).payload == [1]


async def test_where_it_cannot_work(engine: Engine, scheduler: PostgresScheduler, migrated_url: str) -> None:
    """On the loop's own thread, or without its loop, `scheduler.sync` is refused instead of standing still."""
    with pytest.raises(ConfigError, match="a call in the loop's own thread"):
        scheduler.sync.start(nap, 1)
    unused = PostgresScheduler(scheduler.engine)
    with pytest.raises(ConfigError, match="a loop that does not run"):
        await in_thread(lambda: unused.sync.start(nap, 1))
    with pytest.raises(ConfigError, match="a sync Engine"):
        SyncScheduler()
    with pytest.raises(ConfigError, match="a sync Engine"):
        SyncScheduler(scheduler.engine.sync_engine)
    with pytest.raises(ConfigError, match="postgresql"):
        SyncScheduler.connect(migrated_url.replace("postgresql://", "postgresql+asyncpg://"))
    assert await scheduler.list_executions() is not None
    assert SyncScheduler(engine).list_executions().items == []
