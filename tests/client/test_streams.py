"""Following streams: from any offset, woken by what is emitted, each item once, and costing nothing meanwhile."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeVar

import pytest
from sqlalchemy import Engine, create_engine, make_url, select

from tests.support.waiting import PATIENCE, eventually
from tests.support.working import scheduler_on, until, worker_on, working
from zart_sqla import (
    ConfigError,
    ExecutionFailed,
    ExecutionHandle,
    ExecutionNotFound,
    ExecutionStatus,
    InvalidDataError,
    InvalidNameError,
    PoolConfig,
    PostgresScheduler,
    StreamReader,
    SyncScheduler,
    durable,
    emit,
    sleep,
    wait_for_event,
)
from zart_sqla.client import streams
from zart_sqla.client import sync as sync_client
from zart_sqla.models.mapping import tables_of
from zart_sqla.store import streams as stored

T = TypeVar("T")


@dataclass(frozen=True)
class Progress:
    """The value of an item."""

    done: int
    price: Decimal = Decimal("0.10")


@pytest.fixture(autouse=True)
def never_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have those who follow look by themselves so rarely that only a notification can wake them."""
    monkeypatch.setattr(streams, "POLL_SECONDS", 3600.0)
    monkeypatch.setattr(sync_client, "_POLL_SECONDS", 3600.0)


@durable
async def count(number: int) -> int:
    """Emit so many values at once, and one more for each event, until that is 0."""
    for done in range(number):
        await emit("progress", done)
    while step := await wait_for_event("go", int):
        await emit("progress", number)
        number += step
    return number


async def read(reader: StreamReader[T], limit: int = 2**63) -> list[T]:
    """Return the next values, until the end or so many."""
    values: list[T] = []
    async with asyncio.timeout(PATIENCE):
        async for value in reader:
            values.append(value)
            if len(values) == limit:
                break
    return values


async def is_followed(scheduler: PostgresScheduler) -> bool:
    """Tell whether somebody follows the one run that there is."""
    run = tables_of(scheduler.names).execution_runs
    async with scheduler.engine.connect() as connection:
        return await connection.scalar(select(run.c.followed_until.is_not(None))) or False


async def test_what_was_emitted_before(migrated_url: str) -> None:
    """A stream that has ended is read from its beginning, or from any offset, and ends."""
    async with working(migrated_url, count) as scheduler:
        handle = await scheduler.start(count, 5)
        await handle.offer_event("go", 0)
        assert await handle.result(timeout=PATIENCE) == 5
        assert await read(handle.stream("progress")) == [0, 1, 2, 3, 4]
        assert await read(handle.stream("progress", int, offset=3)) == [3, 4]
        assert await read(handle.stream("progress", offset=5)) == await read(handle.stream("progress", offset=99)) == []
        assert await read(handle.stream("nothing")) == []
        assert [value async for value in scheduler.handle(handle.execution_id).stream("progress", offset=4)] == [4]


@pytest.mark.parametrize("place", ["apart", "beside a worker"])
async def test_woken_by_what_is_emitted(place: str, migrated_url: str) -> None:
    """Two who follow hear of each item as it is emitted, and of the end; one that is emitted later is no matter."""
    async with worker_on(migrated_url, count), app_at(place, migrated_url) as scheduler:
        handle = await scheduler.start(count, 2)
        readers = [handle.stream("progress") for _ in range(2)]
        for reader in readers:
            assert await read(reader, 2) == [0, 1]
        for number in range(2, 6):
            waits = [asyncio.create_task(read(reader, 1)) for reader in readers]
            await eventually(lambda: is_followed(scheduler))
            await handle.offer_event("go", 1)
            assert [await wait for wait in waits] == [[number], [number]]
        ends = [asyncio.create_task(read(reader)) for reader in readers]
        await handle.offer_event("go", 0)
        assert [await end for end in ends] == [[], []]
        assert [reader.offset for reader in readers] == [6, 6]


@asynccontextmanager
async def app_at(place: str, url: str) -> AsyncIterator[PostgresScheduler]:
    """Yield a scheduler that listens by itself, or one whose worker does, beside another worker that works."""
    if place == "apart":
        async with scheduler_on(url) as scheduler:
            yield scheduler
    else:
        async with worker_on(url, count, queues=["none"]) as worker:
            yield worker._scheduler


async def test_followed_before_there_is_a_worker(migrated_url: str) -> None:
    """Who follows an execution that nobody has taken up hears of its first item."""
    async with scheduler_on(migrated_url) as scheduler:
        handle = await scheduler.start(count, 3)
        following = asyncio.create_task(read(handle.stream("progress"), 3))
        await eventually(lambda: is_followed(scheduler))
        async with worker_on(migrated_url, count):
            assert await following == [0, 1, 2]


async def test_item_that_was_being_written(migrated_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An item whose transaction had begun before anybody followed is not notified: a second look finds it soon."""
    monkeypatch.setattr(streams, "SECOND_LOOK_SECONDS", 1.0)
    async with scheduler_on(migrated_url) as scheduler, scheduler.engine.connect() as connection:
        handle = await scheduler.start("nobody takes it up")
        item = tables_of(scheduler.names).stream_items.insert()
        run_id = (await handle.info()).run_id
        row = {"execution_id": handle.execution_id, "stream": "progress", "seq": 0, "run_id": run_id, "value": 7}
        await connection.execute(item, row)
        following = asyncio.create_task(read(handle.stream("progress"), 1))
        await eventually(lambda: is_followed(scheduler))
        await connection.commit()
        assert await following == [7]


async def test_offset_of_a_reader(migrated_url: str) -> None:
    """A reader that is restarted, in another process for all it knows, goes on where the offset was."""
    async with working(migrated_url, count) as scheduler:
        handle = await scheduler.start(count, 7)
        await handle.offer_event("go", 0)
        offset, values = 0, []
        while True:
            async with scheduler_on(migrated_url) as other:
                reader = other.handle(handle.execution_id).stream("progress", offset=offset)
                assert repr(reader) == f"<stream 'progress' of execution {handle.execution_id!r} from {offset}>"
                some = await read(reader, 2)
            values += some
            offset = reader.offset
            if len(some) < 2:
                break
        assert (values, offset) == ([0, 1, 2, 3, 4, 5, 6], 7)


async def test_reader_that_is_given_up(migrated_url: str) -> None:
    """A reader whose wait was cancelled can be asked again, and has lost nothing."""
    async with working(migrated_url, count) as scheduler:
        handle = await scheduler.start(count, 1)
        reader = handle.stream("progress")
        assert await read(reader, 1) == [0]
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.02):
                    await anext(reader)
        await handle.offer_event("go", 1)
        assert await read(reader, 1) == [1]
        assert reader.offset == 2


async def test_slow_reader(migrated_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A long stream is read a page at a time, and nothing is lost, whatever comes meanwhile."""
    monkeypatch.setattr(stored, "PAGE_ITEMS", 3)
    async with working(migrated_url, count) as scheduler:
        handle = await scheduler.start(count, 10)
        reader = handle.stream("progress", int)
        values = await read(reader, 1)
        await until(handle, ExecutionStatus.WAITING)
        assert len(reader._ahead) < 3
        for _ in range(4):
            await handle.offer_event("go", 1)
        await handle.offer_event("go", 0)
        values += await read(reader)
        assert values == list(range(14))


async def test_without_following(migrated_url: str) -> None:
    """A reader that does not follow ends behind what is there, and marks nothing."""
    async with working(migrated_url, count) as scheduler:
        handle = await scheduler.start(count, 4)
        await until(handle, ExecutionStatus.WAITING)
        reader = handle.stream("progress", follow=False)
        assert await read(reader) == [0, 1, 2, 3]
        assert await read(handle.stream("progress", follow=False, offset=4)) == []
        assert not await is_followed(scheduler)


@durable
async def emit_all(values: list[Any]) -> None:
    """Emit the values into one stream, and fail in the end."""
    for value in values:
        await emit("values", value)
    raise ValueError("in the end")


async def test_types(migrated_url: str) -> None:
    """Values come as the type that the reader names; one that does not fit is refused, and can be passed over."""
    async with working(migrated_url, emit_all) as scheduler:
        values = [{"done": 1, "price": "1.10"}, {"done": "x"}, {"done": 2}]
        handle = await scheduler.start(emit_all, values)
        assert await read(handle.stream("values")) == values
        reader = handle.stream("values", Progress)
        assert await read(reader, 1) == [Progress(1, Decimal("1.10"))]
        for _ in range(2):
            with pytest.raises(InvalidDataError, match=r"item 1 of the stream 'values'.*done"):
                await anext(reader)
            assert reader.offset == 1
        assert await read(handle.stream("values", Progress, offset=reader.offset + 1)) == [Progress(2)]


async def test_every_end(migrated_url: str) -> None:
    """However the execution ends, who follows has all that it emitted, and ends."""

    @durable
    async def sleeper() -> None:
        await emit("progress", 1)
        await sleep("nap", "1h")

    async with working(migrated_url, emit_all, sleeper) as scheduler:
        failed = await scheduler.start(emit_all, [1, 2])
        assert await read(failed.stream("values")) == [1, 2]
        assert await failed.status() is ExecutionStatus.FAILED
        cancelled = await scheduler.start(sleeper)
        following = asyncio.create_task(read(cancelled.stream("progress")))
        await until(cancelled, ExecutionStatus.WAITING)
        await cancelled.cancel()
        assert await following == [1]


async def test_resumed_execution(migrated_url: str) -> None:
    """Who follows ends with the failed run; the new run goes on in the same stream, without repeating anything."""
    turns: list[int] = []

    @durable
    async def flaky() -> str:
        await emit("progress", "begun")
        turns.append(1)
        if len(turns) == 1:
            raise ValueError("once")
        await emit("progress", "mended")
        return "done"

    async with working(migrated_url, flaky) as scheduler:
        handle = await scheduler.start(flaky)
        reader = handle.stream("progress")
        assert await read(reader) == ["begun"]
        assert await read(reader) == []
        with pytest.raises(ExecutionFailed):
            await handle.result(timeout=PATIENCE)
        await handle.resume()
        assert await read(handle.stream("progress", offset=reader.offset)) == ["mended"]
        assert await read(handle.stream("progress")) == ["begun", "mended"]


async def test_waiting_for_the_result_meanwhile(migrated_url: str) -> None:
    """Who waits for the result is not disturbed by what is emitted, and hears of the end."""
    async with working(migrated_url, count) as scheduler:
        handle = await scheduler.start(count, 1)
        result = asyncio.create_task(handle.result(timeout=PATIENCE))
        reader = handle.stream("progress")
        assert await read(reader, 1) == [0]
        for number in (1, 2, 3):
            following = asyncio.create_task(read(reader, 1))
            await handle.offer_event("go", 1)
            assert await following == [number]
        assert not result.done()
        await handle.offer_event("go", 0)
        assert await result == 4


async def test_hundred_followers(migrated_url: str) -> None:
    """A hundred who follow hold no connection of the pool while they wait, and all of them hear of the next item."""
    pool = PoolConfig(max_connections=2, min_connections=0)
    async with (
        worker_on(migrated_url, count),
        await PostgresScheduler.connect_with_pool(migrated_url, pool) as app,
    ):
        handles = await app.start_many(count, [(None, 1)] * 100)
        readers = [handle.stream("progress") for handle in handles]
        assert await asyncio.gather(*(read(reader, 1) for reader in readers)) == [[0]] * 100
        waits = [asyncio.create_task(read(reader, 1)) for reader in readers]
        await eventually(lambda: len(app.ends._waiting) == 100)
        await eventually(app.engine.pool.checkedout, 0)  # type: ignore[attr-defined]
        for handle in handles:
            await handle.offer_event("go", 1)
        assert await asyncio.gather(*waits) == [[1]] * 100
        assert app.ends._waiting == {}


async def test_refused(migrated_url: str) -> None:
    """An unknown id is told when the reader begins; what cannot be asked, at once."""
    async with scheduler_on(migrated_url) as scheduler:
        handle = scheduler.handle("nobody")
        for follow in (True, False):
            with pytest.raises(ExecutionNotFound, match="'nobody'"):
                await anext(handle.stream("progress", follow=follow))
        wrong: Any
        for wrong in (-1, 1.5, True, "1", None, 2**63):
            with pytest.raises(ConfigError, match="offset"):
                handle.stream("progress", offset=wrong)
        for wrong in ("", "\x00", 7):
            with pytest.raises(InvalidNameError, match="stream name"):
                handle.stream(wrong)
        assert await scheduler.start("shop", execution_id="shop") is not None
        assert await read(scheduler.handle("shop").stream("progress", offset=2**63 - 1, follow=False)) == []


# Without await ---------------------------------------------------------------------------------------------------


@pytest.fixture
async def app(migrated_url: str) -> AsyncIterator[PostgresScheduler]:
    """Yield the scheduler of an app that has a worker elsewhere."""
    async with working(migrated_url, count) as scheduler:
        await scheduler.list_executions()
        yield scheduler


@pytest.fixture(params=["psycopg", "a thread of an async app"])
async def client(
    request: pytest.FixtureRequest, migrated_url: str, app: PostgresScheduler
) -> AsyncIterator[SyncScheduler]:
    """Yield a sync scheduler of either kind."""
    if request.param != "psycopg":
        yield app.sync
        return
    engine = engine_on(migrated_url)
    yield SyncScheduler(engine)
    engine.dispose()


def engine_on(url: str) -> Engine:
    """Return an engine with one connection."""
    return create_engine(make_url(url).set(drivername="postgresql+psycopg"), pool_size=1, max_overflow=0)


async def in_thread(function: Callable[[], T]) -> T:
    """Call the function as a sync app would."""
    return await asyncio.to_thread(function)


async def test_plain_reader(client: SyncScheduler, app: PostgresScheduler) -> None:
    """A plain iterator gives the same, as it comes, and goes on from an offset."""
    handle: ExecutionHandle[int] = await app.start(count, 3, execution_id="one")
    reader = client.handle("one").stream("progress", int)

    def first() -> list[int]:
        return [next(reader) for _ in range(3)]

    assert await in_thread(first) == [0, 1, 2]
    assert reader.offset == 3
    assert await in_thread(lambda: list(client.handle("one").stream("progress", offset=1, follow=False))) == [1, 2]
    for number in (3, 4):
        waiting = asyncio.create_task(in_thread(lambda: next(reader)))
        await eventually(lambda: is_followed(app))
        await handle.offer_event("go", 1)
        assert await waiting == number
    waiting_for_end = asyncio.create_task(in_thread(lambda: list(reader)))
    await handle.offer_event("go", 0)
    assert await waiting_for_end == []
    assert await in_thread(lambda: list(client.handle("one").stream("progress"))) == [0, 1, 2, 3, 4]


async def test_plain_reader_lends_its_connection(migrated_url: str, app: PostgresScheduler) -> None:
    """While the app has an item in its hands, the reader holds no connection: the pool's only one is free."""
    await app.start(count, 3, execution_id="one")
    engine = engine_on(migrated_url)

    def use() -> list[tuple[int, str]]:
        handle = SyncScheduler(engine).handle("one")
        reader = handle.stream("progress", int)
        return [(next(reader), handle.info().execution_id) for _ in range(3)]

    assert await in_thread(use) == [(number, "one") for number in range(3)]
    engine.dispose()


async def test_plain_reader_of_nothing(client: SyncScheduler) -> None:
    """An unknown id is told when the reader begins."""
    for follow in (True, False):
        with pytest.raises(ExecutionNotFound):
            await in_thread(lambda: next(client.handle("nobody").stream("progress", follow=follow)))  # noqa: B023


async def test_driver_without_notifications(
    migrated_url: str, app: PostgresScheduler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the driver cannot wait for notifications, the reader looks again and again."""
    monkeypatch.setattr(sync_client, "_POLL_SECONDS_UNNOTIFIED", 0.01)
    handle = await app.start(count, 1, execution_id="one")
    engine = engine_on(migrated_url)
    monkeypatch.setattr(engine.dialect, "driver", "another")
    reader = SyncScheduler(engine).handle("one").stream("progress", int)
    assert await in_thread(lambda: next(reader)) == 0
    waiting = asyncio.create_task(in_thread(lambda: list(reader)))
    await handle.offer_event("go", 1)
    await handle.offer_event("go", 0)
    assert await waiting == [1]
    engine.dispose()
