"""Scheduled steps where something goes wrong: changed code, refused writes, lost leases, deadlines, failed bodies."""

import asyncio
import contextlib
from datetime import timedelta
from typing import Any

import pytest

from tests.unit.support.memory import LONG, SHORT, START, MemoryRun
from zart_sqla import (
    DeadlineExceeded,
    Durable,
    Failure,
    InvalidDataError,
    Retry,
    StepFailure,
    durable,
    schedule,
    sleep,
    step,
    wait,
    wait_any,
    wait_first_n,
)
from zart_sqla.runtime.outcomes import Completed, Failed, LeaseLost, Suspended
from zart_sqla.runtime.turn import StopReason

calls: list[str] = []
started = asyncio.Event()


@pytest.fixture(autouse=True)
def _forget_calls() -> None:
    """Start each test without calls."""
    calls.clear()
    started.clear()


@step("{name}")
async def work(name: str) -> str:
    """Do something."""
    calls.append(name)
    return name


@step
async def fail() -> None:
    """Fail."""
    raise ValueError("no")


@step
async def hang() -> None:
    """Begin what does not end."""
    started.set()
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        calls.append("interrupted")
        raise


async def suspended(run: MemoryRun) -> Suspended:
    """Return how a turn ends that goes on later."""
    outcome = await run.turn()
    assert isinstance(outcome, Suspended), outcome
    return outcome


# Changed code ----------------------------------------------------------------------------------------------------


def version(*names: str) -> Durable[Any, Any]:
    """Return a version of the code, which schedules these steps and waits for them."""

    @durable("task")
    async def look() -> int:
        return len(await wait([schedule(work(name)) for name in names]))

    return look


@durable("task")
async def call_the_second() -> int:
    """Have the plain call of a step where it was scheduled."""
    handle = schedule(work("a"))
    await work("b")
    return len(await wait([handle])) + 1


@durable("task")
async def do_nothing() -> int:
    """Have nothing left of it."""
    return 0


CHANGED: dict[str, tuple[Durable[Any, Any], str, str]] = {
    "renamed": (version("a", "x"), "step 'b' is recorded", "called 'x'"),
    "reordered": (version("b", "a"), "step 'a' is recorded", "called 'b'"),
    "inserted": (version("x", "a", "b"), "step 'a' is recorded", "called 'x'"),
    "the last removed": (version("a"), "step 'b' is recorded", "ended without calling it"),
    "all removed": (do_nothing, "step 'a' is recorded", "ended without calling it"),
    "called plainly": (call_the_second, "step 'b' is recorded", "called 'b (step)'"),
}


@pytest.mark.parametrize("is_done", [True, False])
@pytest.mark.parametrize(("new", "recorded", "called"), list(CHANGED.values()), ids=list(CHANGED))
async def test_changed_code(new: Durable[Any, Any], recorded: str, called: str, is_done: bool) -> None:  # noqa: FBT001
    """The run stops, whether what was scheduled is done or not; nothing runs twice, and the old code goes on."""
    old = version("a", "b")
    run = MemoryRun(old)
    await run.turn()
    if is_done:
        await run.run_child("a")
        await run.run_child("b")
    outcome = await run.turn(new)
    if new == CHANGED["the last removed"][0] and not is_done:
        outcome = await run.finish(new)  # it waits first
    assert isinstance(outcome, Failed)
    assert outcome.error.error_type == "NonDeterminismError"
    assert recorded in outcome.error.message
    assert called in outcome.error.message
    assert await run.finish(old) == Completed("2")
    assert sorted(calls) == ["a", "b"]


async def test_appended() -> None:
    """Steps that are scheduled after those which are known can be added."""
    run = MemoryRun(version("a", "b"))
    await run.turn()
    await run.run_child("b")
    assert await run.finish(version("a", "b", "c")) == Completed("3")
    assert sorted(calls) == ["a", "b", "c"]


async def test_scheduled_instead_of_called() -> None:
    """A step that was called plainly, and is recorded, cannot become one that is scheduled."""
    run = MemoryRun(call_the_second)
    await run.turn()
    outcome = await run.turn(version("a", "b"))
    assert isinstance(outcome, Failed)
    assert "called 'b (child)'" in outcome.error.message


def choice_of(*names: str, of: str = "abc") -> Durable[Any, Any]:
    """Return a version of the code, which takes the first of these steps, and then waits for all."""

    @durable("task")
    async def look() -> str:
        handles = {name: schedule(work(name)) for name in of}
        with contextlib.suppress(Exception):  # as many bodies do
            first, _ = await wait_any([handles[name] for name in names])
        await wait(handles.values())
        return str(first)

    return look


async def test_changed_choice() -> None:
    """A choice whose answer is not among the steps any more stops the run, even if the body catches that."""
    run = MemoryRun(choice_of("a", "b"))
    await run.turn()
    await run.run_child("a")
    await run.turn()
    outcome = await run.turn(choice_of("b", "c"))
    assert isinstance(outcome, Failed)
    assert outcome.error.error_type == "NonDeterminismError"
    assert "step 'wait_any' is recorded, but the code called 'wait_any (without a)'" in outcome.error.message
    assert await run.finish(choice_of("a", "b", "c")) == Completed("\"Ok(value='a')\"")


# A refused write -------------------------------------------------------------------------------------------------


async def test_refused() -> None:
    """A step that PostgreSQL refuses is told of where it is waited for; the body can go on without it."""

    @durable
    async def order() -> list[str]:
        with pytest.raises(InvalidDataError, match="the step 'a' cannot be stored: refused"):
            await wait([schedule(work("a"))])
        await sleep("nap", LONG)
        return [await work("b")]

    run = MemoryRun(order)
    run.recorder.refused = {"a"}
    assert await run.result() == ["b"]
    assert run.children == []


async def test_refused_before_others() -> None:
    """It is told of even if others have been scheduled after it meanwhile, which are not refused."""

    @durable
    async def order() -> str:
        bad = schedule(work("a"))
        await work("b")
        good = schedule(work("c"))
        await work("d")
        last = schedule(work("e"))
        with pytest.raises(InvalidDataError, match="the step 'a' cannot be stored"):
            await wait([bad, good, last])
        return "refused"

    run = MemoryRun(order)
    run.recorder.refused = {"a"}
    assert await run.turn() == Completed('"refused"')
    assert run.children == ["c", "e"]


async def test_refused_and_not_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    """If nothing waits for it, nothing is lost, and nothing is told."""

    @durable
    async def order() -> str:
        schedule(work("a"))
        await work("b")
        return await work("c")

    run = MemoryRun(order)
    run.recorder.refused = {"a"}
    assert await run.result() == "c"
    del run
    assert caplog.records == []


# A lost lease ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("writes", range(6))
async def test_lost_lease(writes: int) -> None:
    """Wherever it is lost, the turn ends, and the next one goes on; each step is recorded once."""

    @durable
    async def order() -> list[str]:
        handles = [schedule(work(name)) for name in "ab"]
        await work("c")
        await wait_any(handles)
        await wait_first_n([*handles, schedule(work("d"))], 2)
        return [await work("e")]

    run = MemoryRun(order)
    run.recorder.writes_left = writes
    outcome = await run.turn()
    while not isinstance(outcome, LeaseLost):
        run.recorder.writes_left += 1  # that of another worker is not counted
        await run.run_child(run.children[0])
        outcome = await run.turn()
    run.recorder.writes_left = None
    assert await run.result() == ["e"]
    assert sorted(run.steps) == ["a", "b", "c", "d", "e", "wait_any", "wait_first_n"]
    assert sorted({*calls}) in (["a", "b", "c", "e"], ["a", "b", "c", "d", "e"])


async def test_lost_before_it_is_waited_for() -> None:
    """A turn that has lost its task while it schedules makes no step of it, whatever its body catches."""

    @durable
    async def order() -> None:
        handle = schedule(work("a"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        for _ in range(2):
            with contextlib.suppress(BaseException):
                await wait([handle])
            with contextlib.suppress(BaseException):
                schedule(work("b"))

    run = MemoryRun(order)
    run.recorder.writes_left = 0
    assert await run.turn() == LeaseLost()
    assert run.children == []


async def test_lost_by_a_child() -> None:
    """A child whose task is another worker's by now records nothing."""
    run = MemoryRun(version("a"))
    await run.turn()
    run.recorder.writes_left = 0
    assert await run.run_child("a") == LeaseLost()
    assert run.children == ["a"]
    run.recorder.writes_left = None
    assert await run.result() == 1
    assert calls == ["a", "a"]


# Stopping --------------------------------------------------------------------------------------------------------


@durable
async def hang_elsewhere() -> None:
    """Wait for a step that hangs, and hang."""
    schedule(work("a"))
    await hang()


async def test_stopped_body() -> None:
    """A turn that is stopped leaves what it has scheduled to whoever goes on with the run."""
    run = MemoryRun(hang_elsewhere)
    assert await run.stopped(StopReason.SHUTDOWN, started) == Suspended()
    assert (run.children, run.steps, calls) == (["a"], [], ["interrupted"])


# A deadline ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("has_on_failure", [True, False])
async def test_deadline(has_on_failure: bool) -> None:  # noqa: FBT001
    """A wait ends with the timeout of the execution; its `on_failure` can call steps of the same names, and sleep."""
    told: list[Failure] = []

    async def refund(_data: None, failure: Failure) -> list[str]:
        told.append(failure)
        first = await work("a")
        await sleep("nap", LONG)
        return [first, await work("b"), await schedule(work("c"))]

    @durable(timeout=LONG, on_failure=refund if has_on_failure else None)
    async def order() -> list[str]:
        await work("z")
        await wait([schedule(work(name)) for name in "abc"])
        return []

    run = MemoryRun(order)
    assert await run.turn() == Suspended(due_at=START + timedelta(hours=1), is_waiting=True, awaits_open=0)
    await run.run_child("b")
    run.recorder.time += timedelta(hours=1)
    if not has_on_failure:
        assert (await run.failure()).error.category == "execution_timeout"
        return
    assert await run.result() == ["a", "b", "c"]
    assert {*told} == {DeadlineExceeded("'order' had not ended 3600 s after its first turn began")}
    assert run.steps == ["z", "b", "a", "c", "on_failure", "a#2", "nap", "b#2", "c#2"]
    assert calls == ["z", "b", "a", "b", "c"]


async def test_retry_of_a_child_beside_the_deadline() -> None:
    """A child keeps to its retry delay: the deadline is its run's to meet, and the run's end will be the child's."""
    run = MemoryRun(hurried)
    await run.turn()
    assert await run.run_child("retry_later") == Suspended(due_at=START + timedelta(hours=2), is_waiting=True)


@step(retry=Retry.fixed(3, "2h"))
async def retry_later() -> None:
    """Fail."""
    raise ValueError("no")


@durable(timeout=LONG)
async def hurried() -> None:
    """Wait for a step that is tried again when it is too late."""
    await wait([schedule(retry_later())])


# A failed body ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_sudden", [True, False])
async def test_on_failure(is_sudden: bool) -> None:  # noqa: FBT001
    """What the body has scheduled is cancelled when it fails, even if that has only just been; it runs no more."""
    told: list[Failure] = []

    async def refund(_data: None, failure: Failure) -> list[str]:
        told.append(failure)
        await sleep("nap", LONG)
        return [*run.children, await schedule(work("refund"))]

    @durable(on_failure=refund)
    async def order() -> list[str]:
        handles = [schedule(work(name)) for name in "ab"]
        if not is_sudden:
            await wait([handles[0]])
        await fail()
        return []

    run = MemoryRun(order)
    assert await run.result() == ["refund"]
    assert {*told} == {StepFailure("fail", "ValueError", "no", 1)}
    assert calls == (["refund"] if is_sudden else ["a", "refund"])
    errors = {name: one.error.category for name, one in run.recorder.steps.items() if one.error is not None}
    given_up = {"b"} if not is_sudden else {"a", "b"}
    assert {name for name, category in errors.items() if category == "step_cancelled"} == given_up


async def test_on_failure_after_a_refused_write() -> None:
    """A step that was never written has not to be cancelled."""

    async def refund(_data: None, failure: Failure) -> str:
        return failure.message if isinstance(failure, StepFailure) else ""

    @durable(on_failure=refund)
    async def order() -> str:
        schedule(work("a"))
        await fail()
        return ""

    run = MemoryRun(order)
    run.recorder.refused = {"a"}
    assert await run.result() == "no"


async def test_body_that_is_retried() -> None:
    """It finds what it has scheduled before, done or not."""
    attempts: list[int] = []

    @durable(retry=Retry.fixed(2, SHORT))
    async def order() -> int:
        handles = [schedule(work(name)) for name in "ab"]
        await work("c")
        await work("d")
        attempts.append(1)
        if len(attempts) == 1:
            raise OSError("down")
        return len(await wait(handles))

    run = MemoryRun(order)
    assert (await suspended(run)).failed is not None
    await run.run_child("a")
    assert await run.result() == 2
    assert sorted(calls) == ["a", "b", "c", "d"]
