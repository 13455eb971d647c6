"""A turn that is stopped from outside, at each point where it can be."""

import asyncio

import pytest

from tests.unit.support.memory import LONG, MemoryRun
from zart_sqla import Retry, durable, gather, sleep, step, sync, trx
from zart_sqla.runtime.outcomes import Cancelled, Completed, LeaseLost, Outcome, Suspended
from zart_sqla.runtime.turn import StopReason

every_reason = pytest.mark.parametrize(
    ("reason", "expected"),
    [
        (StopReason.CANCELLED, Cancelled()),
        (StopReason.LEASE_LOST, LeaseLost()),
        (StopReason.SHUTDOWN, Suspended()),
    ],
)


async def forever() -> None:
    """Wait for what never comes."""
    await asyncio.Event().wait()


@every_reason
async def test_before_it_has_begun(reason: StopReason, expected: Outcome) -> None:
    """A turn that is stopped before its first moment does not call its body."""
    calls: list[str] = []

    @durable
    async def look() -> None:
        calls.append("body")

    turn = MemoryRun(look).claim()
    running = asyncio.create_task(turn.run())
    turn.stop(reason)
    assert await running == expected
    assert calls == []


@every_reason
async def test_in_the_body(reason: StopReason, expected: Outcome) -> None:
    """The body is cancelled."""
    started = asyncio.Event()

    @durable
    async def look() -> None:
        started.set()
        await forever()

    assert await MemoryRun(look).stopped(reason, started) == expected


@every_reason
async def test_in_a_step(reason: StopReason, expected: Outcome) -> None:
    """The step sees its cancellation, nothing of it is recorded, and it runs again in the next turn."""
    started = asyncio.Event()
    seen: list[str] = []

    @step(retry=Retry.fixed(3, LONG), timeout=LONG)
    async def work() -> str:
        if seen:
            return "done"
        started.set()
        try:
            await forever()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise
        return "never"

    @durable(timeout="2h")
    async def look() -> str:
        return await work()

    run = MemoryRun(look)
    assert await run.stopped(reason, started) == expected
    assert seen == ["cancelled"]
    assert (run.recorder.steps, run.recorder.attempts) == ({}, [])
    assert await run.result() == "done"


@every_reason
async def test_in_a_step_that_ignores_it(reason: StopReason, expected: Outcome) -> None:
    """A step that swallows its cancellation is recorded at most; no other step starts."""
    started = asyncio.Event()
    calls: list[str] = []

    @step
    async def work() -> None:
        started.set()
        try:
            await forever()
        except asyncio.CancelledError:
            calls.append("swallowed")

    @step
    async def more() -> None:
        calls.append("more")

    @durable
    async def look() -> None:
        await work()
        await more()

    assert await MemoryRun(look).stopped(reason, started) == expected
    assert calls == ["swallowed"]


@every_reason
async def test_in_a_body_that_ignores_it(reason: StopReason, expected: Outcome) -> None:
    """A body that swallows its cancellation and returns does not complete the run."""
    started = asyncio.Event()

    @durable
    async def look() -> str:
        started.set()
        try:
            await forever()
        except asyncio.CancelledError:
            return "as if nothing had been"
        return "never"

    assert await MemoryRun(look).stopped(reason, started) == expected


@every_reason
async def test_in_gather(reason: StopReason, expected: Outcome) -> None:
    """All steps that run side by side see their cancellation."""
    started = asyncio.Event()
    seen: list[str] = []

    @step("work-{name}")
    async def work(name: str) -> None:
        if name == "b":
            started.set()
        try:
            await forever()
        except asyncio.CancelledError:
            seen.append(name)
            raise

    @durable
    async def look() -> None:
        await gather(work("a"), work("b"))

    assert await MemoryRun(look).stopped(reason, started) == expected
    assert seen == ["a", "b"]


@every_reason
async def test_in_a_task_group(reason: StopReason, expected: Outcome) -> None:
    """Tasks of the body's own are cancelled with it."""
    started = asyncio.Event()
    seen: list[str] = []

    @step
    async def work() -> None:
        started.set()
        try:
            await forever()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    async def call() -> None:
        await work()

    @durable
    async def look() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(call())

    assert await MemoryRun(look).stopped(reason, started) == expected
    assert seen == ["cancelled"]


@every_reason
async def test_in_a_transaction(reason: StopReason, expected: Outcome) -> None:
    """A step's transaction is rolled back."""
    started = asyncio.Event()

    @step
    async def work() -> None:
        await trx()
        started.set()
        await forever()

    @durable
    async def look() -> None:
        await work()

    run = MemoryRun(look)
    assert await run.stopped(reason, started) == expected
    assert [one.ending for one in run.recorder.transactions] == ["rolled back"]


@every_reason
async def test_in_a_short_sleep(reason: StopReason, expected: Outcome) -> None:
    """A sleep that stays in the process ends at once, and keeps its checkpoint."""
    started = asyncio.Event()

    @durable
    async def look() -> None:
        started.set()
        await sleep("nap", "400ms")

    run = MemoryRun(look)
    assert await run.stopped(reason, started) == expected
    assert run.steps == ["nap"]


@every_reason
async def test_in_on_failure(reason: StopReason, expected: Outcome) -> None:
    """An `on_failure` is cancelled like a body."""
    started = asyncio.Event()

    async def clean_up(data: None, failure: object) -> None:
        started.set()
        await forever()

    @durable(on_failure=clean_up)
    async def look() -> None:
        raise ValueError("no")

    run = MemoryRun(look)
    assert await run.stopped(reason, started) == expected
    assert run.steps == ["on_failure"]


@every_reason
async def test_in_a_step_of_a_def_body(reason: StopReason, expected: Outcome) -> None:
    """A step on the loop sees its cancellation, although its body is in a thread, which goes no further."""
    started = asyncio.Event()
    cancelled = asyncio.Event()
    seen: list[str] = []

    @step
    async def work() -> None:
        started.set()
        try:
            await forever()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    @step
    def more() -> None:
        seen.append("more")

    @durable
    def look() -> None:
        try:
            sync.gather(work())
        except Exception:  # noqa: BLE001 - a cancellation must not be one
            seen.append("eaten")
        finally:
            more()

    assert await MemoryRun(look).stopped(reason, started) == expected
    await asyncio.wait_for(cancelled.wait(), 5)
    assert seen == []


async def test_twice() -> None:
    """The first reason counts."""
    started = asyncio.Event()

    @durable
    async def look() -> None:
        started.set()
        await forever()

    turn = MemoryRun(look).claim()
    running = asyncio.create_task(turn.run())
    await started.wait()
    turn.stop(StopReason.CANCELLED)
    turn.stop(StopReason.SHUTDOWN)
    assert await running == Cancelled()


async def test_after_the_end() -> None:
    """It changes nothing."""

    @durable
    async def look() -> None: ...

    turn = MemoryRun(look).claim()
    outcome = await asyncio.create_task(turn.run())
    turn.stop(StopReason.CANCELLED)
    assert outcome == Completed("null")
