"""The timeout of an execution: measured from its first turn, waits included."""

import asyncio
import threading
from datetime import timedelta

from tests.unit.support.memory import LONG, SHORT, START, MemoryRun
from zart_sqla import ExecutionTimeout, Failure, Retry, context, durable, sleep, step, sync
from zart_sqla.runtime.outcomes import Failed, Suspended


async def test_in_a_step() -> None:
    """The step sees its cancellation, and the run fails."""
    seen: list[str] = []

    @step(retry=Retry.fixed(3, SHORT))
    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    @durable(timeout="10ms", retry=Retry.fixed(3, SHORT))
    async def look() -> None:
        await hang()

    run = MemoryRun(look)
    outcome = await run.turn()
    assert isinstance(outcome, Failed)
    assert (outcome.error.category, outcome.error.error_type) == ("execution_timeout", "ExecutionTimeout")
    assert outcome.error.message == "'look' had not ended 0.01 s after its first turn began"
    assert seen == ["cancelled"]
    assert (run.recorder.steps, run.recorder.attempts) == ({}, [])


async def test_in_a_sleep() -> None:
    """A sleep that would pass it ends with it, and the run fails then."""

    @durable(timeout=LONG)
    async def look() -> None:
        await sleep("nap", "2h")

    run = MemoryRun(look)
    first = await run.turn()
    assert isinstance(first, Suspended)
    assert first.due_at == START + timedelta(hours=1)
    assert (await run.failure()).error.category == "execution_timeout"
    assert run.recorder.time == first.due_at


async def test_between_attempts_of_a_step() -> None:
    """A retry that would pass it is not waited for."""

    @step(retry=Retry.fixed(3, "2h"))
    async def fetch() -> None:
        raise OSError("down")

    @durable(timeout=LONG)
    async def look() -> None:
        await fetch()

    run = MemoryRun(look)
    assert (await run.failure()).error.category == "execution_timeout"
    assert run.recorder.time == START + timedelta(hours=1)


async def test_between_attempts_of_the_body() -> None:
    """Nor is a retry of the body."""

    @durable(timeout=LONG, retry=Retry.fixed(3, "2h"))
    async def look() -> None:
        raise OSError("down")

    run = MemoryRun(look)
    assert (await run.failure()).error.category == "execution_timeout"
    assert run.recorder.time == START + timedelta(hours=1)


async def test_steps_do_not_start_after_it() -> None:
    """A turn that begins too late calls nothing more."""
    calls: list[str] = []

    @step
    async def work() -> None:
        calls.append("work")

    @durable(timeout=LONG)
    async def look() -> None:
        calls.append("body")
        await work()

    run = MemoryRun(look)
    run.recorder.time += timedelta(hours=1)
    assert (await run.failure()).error.category == "execution_timeout"
    assert calls == []


async def test_in_time() -> None:
    """A run that ends before it is not touched by it."""

    @durable(timeout=LONG)
    async def look() -> str:
        await sleep("nap", "59m")
        return "in time"

    assert await MemoryRun(look).result() == "in time"


async def test_context_tells_it() -> None:
    """`context().deadline` is when it passes, None without a timeout."""

    @durable(timeout=LONG)
    async def hurried() -> bool:
        return context().deadline == START + timedelta(hours=1)

    @durable
    async def unhurried() -> bool:
        return context().deadline is None

    assert await MemoryRun(hurried).result() is True
    assert await MemoryRun(unhurried).result() is True


async def test_body_cannot_go_on_after_it() -> None:
    """A body that catches its cancellation and goes on does not complete the run."""

    @step
    async def work() -> None: ...

    @durable(timeout="10ms")
    async def look() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            raise ValueError("something else") from None
        return "never"

    outcome = await MemoryRun(look).turn()
    assert isinstance(outcome, Failed)


async def test_timeout_error_of_the_body_itself() -> None:
    """A TimeoutError that the body raises is an error like others."""

    @durable(timeout=LONG)
    async def look() -> None:
        raise TimeoutError("their server")

    outcome = await MemoryRun(look).failure()
    assert (outcome.error.error_type, outcome.error.category) == ("TimeoutError", "error")


async def test_thread_that_is_left_behind() -> None:
    """A `def` body cannot be interrupted; but when its time is over none of its calls does anything any more."""
    go_on = threading.Event()
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    calls: list[str] = []

    @step
    def work(name: str) -> str:
        calls.append(name)
        return name

    def refund(data: None, failure: Failure) -> str:
        go_on.set()
        asyncio.run_coroutine_threadsafe(ended.wait(), loop).result(5)
        return work("refund")

    @durable(timeout="50ms", on_failure=refund)
    def look() -> str:
        go_on.wait(5)
        try:
            work("too late")
            sync.sleep("nap", SHORT)
        finally:
            loop.call_soon_threadsafe(ended.set)
        return "never"

    run = MemoryRun(look)
    outcome = await run.turn()
    assert not isinstance(outcome, Failed), outcome
    assert calls == ["refund"]
    assert run.steps == ["on_failure", "work"]


async def test_it_is_an_error_of_its_own() -> None:
    """Its error tells the task and the time."""
    error = ExecutionTimeout("look", timedelta(minutes=30))
    assert str(error) == "'look' had not ended 1800 s after its first turn began"
    assert (error.task_name, error.timeout) == ("look", timedelta(minutes=30))
