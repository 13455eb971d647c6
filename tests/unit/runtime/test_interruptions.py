"""Steps that say that they get on, steps that are stuck, and what is done in order although a step is interrupted."""

import asyncio
import threading
from datetime import timedelta

import pytest

from tests.unit.support.memory import LONG, MemoryRun
from zart_sqla import (
    ConfigError,
    NotInWorkflowError,
    Retry,
    RetryExhausted,
    StepFailed,
    StepStalled,
    StepTimeout,
    durable,
    progress,
    shield,
    step,
    sync,
)
from zart_sqla.runtime.outcomes import Cancelled
from zart_sqla.runtime.turn import StopReason

BEAT = 0.2
"""A heartbeat, in seconds, that is long enough for a loaded machine and short enough for a test."""


async def forever() -> None:
    """Wait for what never comes."""
    await asyncio.Event().wait()


# Progress -----------------------------------------------------------------------------------------------------------


def test_progress_is_nothing_outside_a_workflow() -> None:
    """A unit test of a step needs no workflow for it."""
    progress()
    assert sync.progress is progress


async def test_progress_in_the_body() -> None:
    """It is for steps: a body makes progress by calling them."""

    @durable
    async def look() -> None:
        progress()

    failed = await MemoryRun(look).failure()
    assert failed.error.error_type == NotInWorkflowError.__name__


async def test_step_that_gets_on() -> None:
    """A step may take many times its heartbeat, as long as it says that it gets on."""

    @step(heartbeat=BEAT)
    async def work() -> int:
        for _ in range(10):
            await asyncio.sleep(BEAT / 4)
            progress()
        return 10

    @durable
    async def look() -> int:
        return await work()

    assert await MemoryRun(look).result() == 10


async def test_plain_step_that_gets_on() -> None:
    """A `def` step says so from its thread."""
    tick = threading.Event()

    @step(heartbeat=BEAT)
    def work() -> int:
        for _ in range(10):
            tick.wait(BEAT / 4)
            progress()
        return 10

    @durable
    async def look() -> int:
        return await work.call()

    assert await MemoryRun(look).result() == 10


async def test_step_without_a_heartbeat() -> None:
    """It may be silent for as long as it likes, and what it says is no matter."""

    @step
    async def work() -> str:
        progress()
        return "done"

    @durable
    async def look() -> str:
        return await work()

    assert await MemoryRun(look).result() == "done"


@pytest.mark.parametrize("heartbeat", ["soon", 0, -1])
def test_wrong_heartbeat(heartbeat: object) -> None:
    """A heartbeat is a duration longer than zero."""
    with pytest.raises(ConfigError, match=r"^heartbeat"):
        step(heartbeat=heartbeat)(forever)  # type: ignore[call-overload]


# Steps that are stuck -----------------------------------------------------------------------------------------------


async def test_stuck_step_is_made_again() -> None:
    """The attempt is cancelled and counts as failed; the retry makes the next one."""
    seen: list[str] = []

    @step(heartbeat=BEAT, retry=Retry.fixed(2, 0))
    async def work() -> str:
        seen.append("began")
        if len(seen) > 1:
            return "done"
        try:
            await forever()
        finally:
            seen.append("cancelled")
        return "never"

    @durable
    async def look() -> str:
        return await work()

    run = MemoryRun(look)
    assert await run.result() == "done"
    assert seen == ["began", "cancelled", "began"]
    (failed,) = run.recorder.attempts
    assert (failed.error.error_type, failed.attempt) == ("StepStalled", 1)
    assert failed.error.message == f"step 'work' has made no progress for {BEAT:g} s"


async def test_stuck_plain_step_is_made_again() -> None:
    """The thread of a `def` step cannot be interrupted, but another attempt does not wait for it."""
    release = threading.Event()
    seen: list[str] = []

    @step(heartbeat=BEAT, retry=Retry.fixed(1, 0))
    def work() -> str:
        seen.append("began")
        if len(seen) == 1:
            release.wait()
            progress()  # it wakes up, and nobody is there to hear it
            seen.append("woke up")
            return "late"
        return "done"

    @durable
    async def look() -> str:
        return await work.call()

    run = MemoryRun(look)
    try:
        assert await run.result() == "done"
        assert seen == ["began", "began"]
    finally:
        release.set()


@pytest.mark.parametrize(("retries", "kind"), [(0, StepFailed), (1, RetryExhausted)])
async def test_step_that_is_stuck_each_time(retries: int, kind: type[Exception]) -> None:
    """Without a further attempt the step has failed, as with an error of its own."""

    @step(heartbeat=BEAT, retry=Retry.fixed(retries, 0))
    async def work() -> None:
        await forever()

    @durable
    async def look() -> str:
        try:
            await work()
        except kind as error:
            return f"{error.error_type} after {error.attempts}"  # type: ignore[attr-defined]
        return "never"

    assert await MemoryRun(look).result() == f"StepStalled after {retries + 1}"


async def test_declared_stall() -> None:
    """A step may declare it as an answer."""

    @step(heartbeat=BEAT, raises=StepStalled)
    async def work() -> None:
        await forever()

    @durable
    async def look() -> str:
        try:
            await work()
        except StepStalled as error:
            return f"{error.step} {error.heartbeat.total_seconds():g}"
        return "never"

    assert await MemoryRun(look).result() == f"work {BEAT:g}"


async def test_timeout_before_a_heartbeat() -> None:
    """A step that gets on is still bound by its timeout, which is final."""

    @step(heartbeat="1h", timeout=BEAT, retry=Retry.fixed(5, 0))
    async def work() -> None:
        await forever()

    @durable
    async def look() -> str:
        try:
            await work()
        except StepTimeout as error:
            return f"timed out after {error.attempts}"
        return "never"

    assert await MemoryRun(look).result() == "timed out after 1"


async def test_timeout_error_of_the_step_itself() -> None:
    """A `TimeoutError` that the step raises is its own, whatever limits it has."""

    @step(heartbeat="1h", timeout="1h")
    async def work() -> None:
        raise TimeoutError("mine")

    @durable
    async def look() -> None:
        await work()

    failed = await MemoryRun(look).failure()
    assert (failed.error.error_type, failed.error.message) == ("TimeoutError", "mine")


async def test_method_keeps_its_heartbeat() -> None:
    """A step that is a method has the options that it was declared with."""

    class Files:
        @step(heartbeat="3s")
        async def copy(self) -> None: ...

    assert Files().copy.heartbeat == Files.copy.heartbeat == timedelta(seconds=3)


# Shield -------------------------------------------------------------------------------------------------------------


async def test_shield_gives_the_value() -> None:
    """Where nothing interrupts it, it is as if it were not there."""

    async def answer() -> int:
        return 7

    assert await shield(answer()) == 7
    with pytest.raises(ZeroDivisionError):
        await shield(asyncio.to_thread(lambda: 1 / 0))


async def test_shielded_cleanup_of_a_cancelled_run() -> None:
    """The cancellation waits for it, and goes on then: the step does not come to its next line."""
    started, cleaning, cleaned = asyncio.Event(), asyncio.Event(), asyncio.Event()
    seen: list[str] = []

    async def give_back() -> None:
        seen.append("giving back")
        cleaning.set()
        await cleaned.wait()
        seen.append("given back")

    @step
    async def work() -> None:
        started.set()
        try:
            await forever()
        finally:
            await shield(give_back())
            seen.append("next line")

    @durable
    async def look() -> None:
        await work()

    run = MemoryRun(look)
    turn = run.claim()
    running = asyncio.create_task(turn.run())
    await started.wait()
    turn.stop(StopReason.CANCELLED)
    await cleaning.wait()
    running.cancel()  # again, while it is at it
    await asyncio.sleep(0)
    assert seen == ["giving back"]
    cleaned.set()
    assert await running == Cancelled()
    assert seen == ["giving back", "given back"]
    assert run.steps == []


async def test_timeout_waits_for_what_is_shielded() -> None:
    """A step's timeout comes after it, too."""
    seen: list[str] = []

    async def write() -> None:
        await asyncio.sleep(2 * BEAT)
        seen.append("written")

    @step(timeout=BEAT)
    async def work() -> None:
        await shield(write())
        seen.append("next line")

    @durable
    async def look() -> str:
        try:
            await work()
        except StepTimeout:
            return "timed out"
        return "never"

    assert await MemoryRun(look).result() == "timed out"
    assert seen == ["written"]


async def test_error_of_what_is_shielded() -> None:
    """If it fails while it is being waited for, the interruption says so as its cause."""
    release = asyncio.Event()

    async def fail() -> None:
        await release.wait()
        raise ValueError("no")

    waiting = asyncio.create_task(shield(fail()))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.sleep(0)
    release.set()
    with pytest.raises(asyncio.CancelledError) as caught:
        await waiting
    assert str(caught.value.__cause__) == "no"


async def test_stall_before_a_long_delay() -> None:
    """A retry delay after a stall ends the turn like any other."""

    @step(heartbeat=BEAT, retry=Retry.fixed(1, LONG))
    async def work() -> str:
        if not run.recorder.attempts:
            await forever()
        return "done"

    @durable
    async def look() -> str:
        return await work()

    run = MemoryRun(look)
    assert await run.result() == "done"
