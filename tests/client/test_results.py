"""Waiting for results: typed, woken by the end itself, and costing nothing meanwhile."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import TypedDict
from uuid import UUID

import pytest
from pydantic import BaseModel

from tests.support.waiting import PATIENCE, eventually
from tests.support.working import count_awaited, let_time_pass, registry_of, scheduler_on, until, worker_on, working
from zart_sqla import (
    ExecutionCancelled,
    ExecutionFailed,
    ExecutionFinished,
    ExecutionHandle,
    ExecutionNotFound,
    ExecutionStatus,
    InvalidDataError,
    PoolConfig,
    PostgresScheduler,
    WaitTimedOut,
    Worker,
    WorkerConfig,
    ZartError,
    durable,
    sleep,
)
from zart_sqla.client import handles


@dataclass
class Line:
    """A dataclass."""

    article: UUID
    price: Decimal


class Invoice(BaseModel):
    """A model with a dataclass in it."""

    lines: list[Line]
    paid_within: timedelta


class Note(TypedDict):
    """A typed dictionary."""

    text: str
    raw: bytes


@pytest.fixture(autouse=True)
def never_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have waits look by themselves so rarely that only a notification can end them."""
    monkeypatch.setattr(handles, "POLL_SECONDS", 3600.0)


@durable
async def nap(number: int) -> int:
    """Sleep for long, then give the number, or fail if it is negative."""
    await sleep("nap", "1h")
    if number < 0:
        raise ValueError(number)
    return number


async def test_typed_results(migrated_url: str) -> None:
    """A result has the type that the workflow declares; without it, it is plain JSON data."""

    @durable
    async def bill(line: Line) -> Invoice:
        assert isinstance(line, Line)
        return Invoice(lines=[line, line], paid_within=timedelta(days=30))

    @durable
    async def annotate(line: Line | None) -> list[Note]:
        return [{"text": str(line), "raw": b"\x00\xff"}]

    line = Line(UUID(int=3), Decimal("1.10"))
    async with working(migrated_url, bill, annotate) as scheduler:
        handle = await scheduler.start(bill, line)
        assert await handle.result(timeout=PATIENCE) == Invoice(lines=[line, line], paid_within=timedelta(days=30))
        assert await scheduler.handle(handle.execution_id, bill).result() == await handle.result()
        plain = await scheduler.handle(handle.execution_id).result()
        assert plain == {"lines": [{"article": str(line.article), "price": "1.10"}] * 2, "paid_within": "P30D"}
        assert (await handle.info()).result == plain
        notes = await scheduler.start(annotate, None)
        assert await notes.result(timeout=PATIENCE) == [{"text": "None", "raw": b"\x00\xff"}]
        with pytest.raises(InvalidDataError, match="the output of execution"):
            await scheduler.handle(handle.execution_id, annotate).result()


async def test_wait_times_out(migrated_url: str) -> None:
    """A wait that takes too long raises WaitTimedOut, a TimeoutError, and the execution goes on."""
    async with working(migrated_url, nap) as scheduler:
        handle = await scheduler.start(nap, 7, execution_id="nap")
        for timeout in ("50ms", 0.05, timedelta(0)):
            with pytest.raises(WaitTimedOut, match="'nap' had not ended after") as caught:
                await handle.result(timeout=timeout)
            assert isinstance(caught.value, TimeoutError)
            assert isinstance(caught.value, ZartError)
            assert caught.value.execution_id == "nap"
        with pytest.raises(TimeoutError) as outer:
            async with asyncio.timeout(0.05):
                await handle.result(timeout=PATIENCE)
        assert not isinstance(outer.value, WaitTimedOut)
        await until(handle, ExecutionStatus.WAITING)
        await let_time_pass(scheduler)
        assert await handle.result(timeout=PATIENCE) == 7


async def test_unknown_id(migrated_url: str) -> None:
    """The handle of an unknown id costs nothing; every question about it raises ExecutionNotFound."""
    async with scheduler_on(migrated_url) as scheduler:
        handle = scheduler.handle("nobody", nap)
        for question in (handle.info, handle.status, handle.steps, handle.result, handle.cancel, handle.resume):
            with pytest.raises(ExecutionNotFound, match="'nobody'") as caught:
                await question()
            assert isinstance(caught.value, LookupError)
            assert caught.value.execution_id == "nobody"
        assert repr(handle) == "<execution 'nobody'>"


@pytest.fixture(params=["apart", "beside a worker"])
async def waiting_app(request: pytest.FixtureRequest, migrated_url: str) -> AsyncIterator[PostgresScheduler]:
    """Yield a scheduler that listens by itself, or one whose worker does, beside another worker that works."""
    async with worker_on(migrated_url, nap):
        if request.param == "apart":
            async with scheduler_on(migrated_url) as scheduler:
                yield scheduler
        else:
            async with worker_on(migrated_url, nap, queues=["none"]) as worker:
                yield worker._scheduler


async def test_woken_by_the_end(waiting_app: PostgresScheduler) -> None:
    """Every way in which an execution ends wakes those who wait for it, without any polling."""
    good, bad, doomed = await waiting_app.start_many(nap, [("good", 1), ("bad", -1), ("doomed", 2)])
    waits = [asyncio.create_task(one.result(timeout=PATIENCE)) for one in (good, good, bad, doomed)]
    await eventually(lambda: count_awaited(waiting_app), 3)
    await doomed.cancel()
    with pytest.raises(ExecutionCancelled, match="'doomed' was cancelled"):
        await waits[3]
    await let_time_pass(waiting_app)
    assert [await waits[0], await waits[1]] == [1, 1]
    with pytest.raises(ExecutionFailed, match="'bad' failed: ValueError: -1") as caught:
        await waits[2]
    failed = caught.value
    assert (failed.execution_id, failed.error_type, failed.message, failed.step) == ("bad", "ValueError", "-1", None)


async def test_woken_when_resumed_run_ends(migrated_url: str) -> None:
    """Who waits for a resumed execution is woken by the end of its new run."""
    turns: list[int] = []

    @durable
    async def flaky() -> str:
        turns.append(1)
        if len(turns) == 1:
            raise ValueError("once")
        await sleep("nap", "1h")
        return "done"

    async with working(migrated_url, flaky) as scheduler:
        handle = await scheduler.start(flaky)
        with pytest.raises(ExecutionFailed):
            await handle.result(timeout=PATIENCE)
        await handle.resume()
        wait = asyncio.create_task(handle.result(timeout=PATIENCE))
        await eventually(lambda: count_awaited(scheduler), 1)
        await let_time_pass(scheduler)
        assert await wait == "done"
        assert (await handle.info()).run_index == 1
        with pytest.raises(ExecutionFinished):
            await handle.resume()


async def test_worker_that_listened_stops(migrated_url: str) -> None:
    """Who waited where a worker listened is woken also after that worker has stopped."""
    async with worker_on(migrated_url, nap), scheduler_on(migrated_url) as scheduler:
        async with Worker(scheduler, registry_of(nap), WorkerConfig(queues=["none"])):
            handle = await scheduler.start(nap, 5)
            wait = asyncio.create_task(handle.result(timeout=PATIENCE))
            await eventually(lambda: count_awaited(scheduler), 1)
        await let_time_pass(scheduler)
        assert await wait == 5


async def test_hundred_waiters(migrated_url: str) -> None:
    """A hundred waits at once hold no connection of the pool, and all of them end."""
    pool = PoolConfig(max_connections=2, min_connections=0)
    async with (
        worker_on(migrated_url, nap),
        scheduler_on(migrated_url) as outside,
        await PostgresScheduler.connect_with_pool(migrated_url, pool) as app,
    ):
        started: list[ExecutionHandle[int]] = await app.start_many(nap, [(None, number) for number in range(100)])
        waits = [asyncio.create_task(handle.result(timeout=PATIENCE)) for handle in started]
        await eventually(lambda: count_awaited(outside), 100)
        await eventually(app.engine.pool.checkedout, 0)  # type: ignore[attr-defined]
        assert not any(wait.done() for wait in waits)
        await let_time_pass(app)
        assert await asyncio.gather(*waits) == list(range(100))


async def test_result_of_what_has_ended(migrated_url: str) -> None:
    """A result can be asked for as often as one likes, later, and from elsewhere."""
    async with working(migrated_url, nap) as scheduler:
        handle = await scheduler.start(nap, 3, execution_id="done")
        await until(handle, ExecutionStatus.WAITING)
        await let_time_pass(scheduler)
        await until(handle, ExecutionStatus.COMPLETED)
    async with scheduler_on(migrated_url) as scheduler:
        again = scheduler.handle("done", nap)
        assert [await again.result(), await again.result(timeout="1s")] == [3, 3]
