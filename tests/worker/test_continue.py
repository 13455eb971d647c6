"""Endless executions with real workers: runs that others follow, and what is kept from one to the next."""

import asyncio
from typing import Any

import pytest

from tests.support.waiting import PATIENCE, eventually
from tests.support.working import count_rows, let_time_pass, until, working
from zart_sqla import (
    ExecutionCancelled,
    ExecutionFailed,
    ExecutionHandle,
    ExecutionStatus,
    PostgresScheduler,
    context,
    continue_as_new,
    durable,
    schedule,
    sleep,
    start_child,
    step,
    sync,
    wait_for_event,
)
from zart_sqla.client import handles

WAITING = ExecutionStatus.WAITING


@pytest.fixture(autouse=True)
def never_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have waits look by themselves so rarely that only a notification can end them."""
    monkeypatch.setattr(handles, "POLL_SECONDS", 3600.0)


@step
async def work(number: int) -> int:
    """Do something."""
    return number


@durable
async def count(state: list[int]) -> int:
    """Count from the first number up to the second, a run for each."""
    number, last = state
    await work(number)
    if number < last:
        await continue_as_new([number + 1, last])
    return number


@durable
async def collect(taken: list[Any]) -> list[Any]:
    """Take five events, a run for each."""
    taken = [*taken, await wait_for_event("x")]
    if len(taken) < 5:
        await continue_as_new(taken)
    return taken


async def in_run(handle: ExecutionHandle[Any], index: int, status: ExecutionStatus = WAITING) -> None:
    """Wait until the execution is in its run of this number, and stands so."""

    async def look() -> bool:
        info = await handle.info()
        return (info.run_index, info.status) == (index, status)

    await eventually(look)


async def test_two_hundred_runs(migrated_url: str) -> None:
    """The result comes from the last of many runs, each with its own short history, to who has waited all along."""
    async with working(migrated_url, count, workers=2) as scheduler:
        handle = await scheduler.start(count, [0, 199], execution_id="counter")
        assert await handle.result(timeout=PATIENCE) == 199
        info = await handle.info()
        assert (info.run_index, info.status, info.payload) == (199, "completed", [199, 199])
        assert [one.name for one in await handle.steps()] == ["work"]
        counted = await count_rows(scheduler)
        expected = {"executions": 1, "execution_runs": 200, "steps": 200}
        assert {name: count for name, count in counted.items() if count} == expected


async def test_waiters_of_all_kinds(migrated_url: str) -> None:
    """Whoever waits is not taken in by the end of a run: neither an app, nor a parent."""

    @durable
    async def parent() -> int:
        return await (await start_child(count, [0, 20], execution_id="counter")).result()

    async with working(migrated_url, count, parent, workers=2) as scheduler:
        handle = await scheduler.start(parent)
        assert await handle.result(timeout=PATIENCE) == 20
        assert await scheduler.handle("counter").result(timeout=PATIENCE) == 20


async def test_events_are_kept(migrated_url: str) -> None:
    """Events that come early, or between two runs, are each taken once, in order."""
    async with working(migrated_url, collect, workers=2) as scheduler:
        handle = await scheduler.start(collect, [])
        for number in range(3):
            await handle.offer_event("x", number)
        await in_run(handle, 3)
        for number in (3, 4):
            await handle.offer_event("x", number)
        assert await handle.result(timeout=PATIENCE) == [0, 1, 2, 3, 4]


async def test_offers_race_with_runs(migrated_url: str) -> None:
    """However offers meet the change of runs, none is refused and none is lost."""

    @durable
    async def add(total: int) -> int:
        for _ in range(3):
            total += await wait_for_event("x", int)
        if total < 1830:
            await continue_as_new(total)
        return total

    async with working(migrated_url, add, workers=2) as scheduler:
        handle = await scheduler.start(add, 0)
        await asyncio.gather(*(handle.offer_event("x", number) for number in range(61)))
        await handle.offer_event("x", 0)
        await handle.offer_event("x", 0)
        assert await handle.result(timeout=PATIENCE) == 1830


async def test_children_are_kept(migrated_url: str) -> None:
    """A child goes on over the runs of its parent, and is cancelled with the one that is cancelled."""

    @durable
    async def expect() -> Any:
        return await wait_for_event("go")

    @durable
    async def endless(number: int) -> None:
        await start_child(expect, execution_id=f"child-{number}")
        if number < 2:
            await continue_as_new(number + 1)
        await sleep("night", "8h")

    async with working(migrated_url, endless, expect, workers=2) as scheduler:
        handle = await scheduler.start(endless, 0)
        await in_run(handle, 2)
        children = [scheduler.handle(f"child-{number}") for number in range(3)]
        for child in children:
            await until(child, WAITING)
        await children[0].offer_event("go", 1)
        assert await children[0].result(timeout=PATIENCE) == 1
        await handle.cancel()
        for child in children[1:]:
            with pytest.raises(ExecutionCancelled):
                await child.result(timeout=PATIENCE)


async def test_parent_and_children_continue(migrated_url: str) -> None:
    """Parents and children that go on as new runs all the time stay related: the cancellation reaches all of them."""

    @durable
    async def child(number: int) -> None:
        await work(number)
        await continue_as_new(number + 1)

    @durable
    async def parent(number: int) -> None:
        if number == 0:
            for index in range(3):
                await start_child(child, 0, execution_id=f"child-{index}")
        await work(number)
        await continue_as_new(number + 1)

    async with working(migrated_url, child, parent, workers=2) as scheduler:
        handle = await scheduler.start(parent, 0)
        await eventually(lambda: _run_index(handle, 20))
        await handle.cancel()
        for index in range(3):
            assert await scheduler.handle(f"child-{index}").status() is ExecutionStatus.CANCELLED
        await eventually(lambda: _has_no_tasks(scheduler))


async def _run_index(handle: ExecutionHandle[Any], at_least: int) -> bool:
    return (await handle.info()).run_index >= at_least


async def _has_no_tasks(scheduler: PostgresScheduler) -> bool:
    return (await count_rows(scheduler))["tasks"] == 0


@step
async def oversleep() -> None:
    """Sleep for longer than a test takes."""
    await asyncio.Event().wait()


async def test_scheduled_steps_end(migrated_url: str) -> None:
    """A step that the run has scheduled and not waited for is cancelled with it."""

    @durable
    async def endless(number: int) -> int:
        if number == 0:
            schedule(oversleep())
            await sleep("a-while", "1h")
            await continue_as_new(1)
        return number

    async with working(migrated_url, endless, workers=2) as scheduler:
        handle = await scheduler.start(endless, 0)
        await until(handle, WAITING)
        await eventually(lambda: _counts_tasks(scheduler, 2))
        await let_time_pass(scheduler)
        assert await handle.result(timeout=PATIENCE) == 1
        assert (await count_rows(scheduler))["tasks"] == 0


async def _counts_tasks(scheduler: PostgresScheduler, count: int) -> bool:
    return (await count_rows(scheduler))["tasks"] == count


async def test_deadline_of_each_run(migrated_url: str) -> None:
    """A timeout counts for each run anew."""
    deadlines: list[Any] = []

    @durable(timeout="1h")
    async def endless(number: int) -> int:
        deadlines.append(context().deadline)
        await work(number)
        if number < 2:
            await continue_as_new(number + 1)
        return number

    async with working(migrated_url, endless) as scheduler:
        assert await (await scheduler.start(endless, 0)).result(timeout=PATIENCE) == 2
    assert len(set(deadlines)) == 3
    assert deadlines == sorted(deadlines)


async def test_failure_of_a_later_run(migrated_url: str) -> None:
    """A run that fails fails the execution; resumed, it goes on from that run."""
    broken = [True]

    @durable
    async def endless(number: int) -> int:
        if number == 1 and broken:
            raise ValueError("no")
        await work(number)
        if number < 2:
            await continue_as_new(number + 1)
        return number

    async with working(migrated_url, endless, workers=2) as scheduler:
        handle = await scheduler.start(endless, 0)
        with pytest.raises(ExecutionFailed):
            await handle.result(timeout=PATIENCE)
        assert (await handle.info()).run_index == 1
        broken.clear()
        await handle.resume()
        assert await handle.result(timeout=PATIENCE) == 2
        assert (await handle.info()).run_index == 3


async def test_cancel_between_runs(migrated_url: str) -> None:
    """A cancellation that meets the change of runs ends the one that follows: it never comes too late."""

    @durable
    async def endless(number: int) -> None:
        await continue_as_new(number + 1)

    async with working(migrated_url, endless, workers=2) as scheduler:
        handles = await scheduler.start_many(endless, [(None, number) for number in range(10)])
        for handle in handles:
            await eventually(lambda: _run_index(handle, 3))  # noqa: B023 - awaited at once
        await asyncio.gather(*(handle.cancel() for handle in handles))
        assert {await handle.status() for handle in handles} == {ExecutionStatus.CANCELLED}
        await eventually(lambda: _has_no_tasks(scheduler))
        assert {await handle.status() for handle in handles} == {ExecutionStatus.CANCELLED}


async def test_def_workflow(migrated_url: str) -> None:
    """A `def` workflow does the same without `await`."""

    @durable
    def endless(number: int) -> int:
        if number < 5:
            sync.continue_as_new(number + 1)
        return number

    async with working(migrated_url, endless, workers=2) as scheduler:
        assert await (await scheduler.start(endless, 0)).result(timeout=PATIENCE) == 5
