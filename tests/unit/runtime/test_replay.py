"""Replays of recorded runs with other code: what fits, what does not, and that nothing is run."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from tests.support.waiting import eventually
from zart_sqla import (
    Durable,
    EventTimeout,
    ExecutionHistory,
    InvalidDataError,
    NonDeterminismError,
    Retry,
    durable,
    gather,
    now,
    schedule,
    sleep,
    step,
    step_or,
    sync,
    wait,
    wait_any,
    wait_for_event,
)
from zart_sqla.runtime.replay import replay
from zart_sqla.testing import Simulation

calls: list[str] = []


@pytest.fixture(autouse=True)
def forget_calls() -> None:
    """Begin each test without calls."""
    calls.clear()


@step
async def a(value: int = 0) -> int:
    """Be the first step."""
    calls.append("a")
    return value


@step
def b(value: int = 0) -> int:
    """Be the second one, a plain function."""
    calls.append("b")
    return value


@step(retry=Retry.fixed(3, "1h"))
async def fail() -> int:
    """Fail for a while."""
    calls.append("fail")
    raise ConnectionError


@durable("work")
async def old() -> int:
    """Be the code that recorded: a, b, a sleep, an event."""
    value = await a(1) + await b.call(2)
    await sleep("day", "1d")
    return value + int(await wait_for_event("go", int))


async def history_of(workflow: Durable[None, Any], *passed: str, events: Any = ()) -> ExecutionHistory:
    """Return the history of a run after so much time, and forget what was called."""
    run = Simulation(workflow, events=events)
    await run.run_until_waiting()
    for duration in passed:
        await run.advance(duration)
    calls.clear()
    return run.history


async def check(workflow: Durable[None, Any], history: ExecutionHistory) -> None:
    """Replay, and see that no step was called and that nothing else goes on."""
    before = asyncio.all_tasks()
    try:
        await replay(workflow.handler, history)
    finally:
        assert calls == []
        assert asyncio.all_tasks() == before


@pytest.mark.parametrize("passed", [(), ("12h",), ("1d",), ("30d",)], ids=str)
async def test_same_code(passed: tuple[str, ...]) -> None:
    """The code that recorded a run fits it at every point."""
    await check(old, await history_of(old, *passed))


async def test_ended_run() -> None:
    """A run that has ended fits too, and its steps are not called."""
    history = await history_of(old, "2d", events=[("go", 3)])
    assert history.status == "completed"
    await check(old, history)


async def test_appended() -> None:
    """What is added behind the record fits."""

    @durable("work")
    async def new() -> int:
        value = await a(1) + await b.call(2)
        await sleep("day", "1d")
        return value + await a(5) + await fail()

    await check(new, await history_of(old))
    with pytest.raises(NonDeterminismError, match="'go' is recorded, but the code called 'a#2'"):
        await check(new, await history_of(old, "2d", events=[("go", 3)]))


def renamed() -> Durable[None, int]:
    """Return code that has another name for a step."""

    @durable("work")
    async def new() -> int:
        return await a(1) + await b.call(2).named("c")

    return new


def reordered() -> Durable[None, int]:
    """Return code that calls the steps in another order."""

    @durable("work")
    async def new() -> int:
        return await b.call(2) + await a(1)

    return new


def inserted() -> Durable[None, int]:
    """Return code that calls another step first."""

    @durable("work")
    async def new() -> int:
        return await a(1) + await a(2) + await b.call(2)

    return new


def removed() -> Durable[None, int]:
    """Return code that ends too soon."""

    @durable("work")
    async def new() -> int:
        return await a(1)

    return new


def raising() -> Durable[None, int]:
    """Return code that fails before it has come to all that is recorded."""

    @durable("work")
    async def new() -> int:
        raise LookupError

    return new


def catching() -> Durable[None, int]:
    """Return code that catches the error."""

    @durable("work")
    async def new() -> int:
        try:
            return await b.call(1)
        except NonDeterminismError:
            return 0

    return new


@pytest.mark.parametrize(
    ("make", "position", "recorded", "called"),
    [
        (renamed, 1, "b", "c"),
        (reordered, 0, "a", "b"),
        (inserted, 1, "b", "a#2"),
        (removed, 1, "b", None),
        (raising, 0, "a", None),
        (catching, 0, "a", "b"),
    ],
)
async def test_changed(
    make: Callable[[], Durable[None, int]], position: int, recorded: str, called: str | None
) -> None:
    """Code that does not fit is told with the position and both names."""
    with pytest.raises(NonDeterminismError) as found:
        await check(make(), await history_of(old))
    assert (found.value.position, found.value.recorded, found.value.called) == (position, recorded, called)


async def test_changed_type() -> None:
    """A recorded result, or an input, that does not fit its type any more is told."""

    @step("b")
    def text() -> str:
        return ""

    @durable("work")
    async def new() -> None:
        await a(1)
        await text.call()

    with pytest.raises(InvalidDataError, match="the recorded result of step 'b'"):
        await check(new, await history_of(old))

    @durable("work")
    async def other(data: dict[str, int]) -> None: ...

    with pytest.raises(InvalidDataError, match="the input"):
        await replay(other.handler, await history_of(old))


async def test_failed_of_an_event() -> None:
    """A run that has failed of an event which did not fit fits the code all the same."""
    run = Simulation(old, events=[("go", "text")])
    with pytest.raises(InvalidDataError, match="the event 'go'"):
        await run.result()
    calls.clear()
    assert run.history.status == "failed"
    await check(old, run.history)


async def test_side_by_side() -> None:
    """Among calls side by side those that are recorded go on, and the others end the replay."""
    held = asyncio.Event()

    @step
    async def hold() -> int:
        held.set()
        await asyncio.Event().wait()
        return 0

    async def branch() -> None:
        await a().named("branch-1")
        await sleep("branch-2", "1h")
        await a().named("branch-3")

    def code(third: str) -> Durable[None, None]:
        @durable("work")
        async def work() -> None:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(branch())
                tasks.create_task(sleep("long", "2d"))
            await gather(hold(), a(), a().named(third))

        return work

    run = Simulation(code("x"))
    await run.advance("1d")
    calls.clear()
    await check(code("x"), run.history)
    await check(code("y"), run.history)
    finishing = asyncio.create_task(run.result())
    await held.wait()
    await eventually(lambda: "x" in run.steps)
    calls.clear()
    await check(code("x"), run.history)
    with pytest.raises(NonDeterminismError, match="'x' is recorded, but the code called 'y'"):
        await check(code("y"), run.history)
    finishing.cancel()
    await asyncio.wait({finishing})


async def test_branch_removed() -> None:
    """A step that a task of the body's own does not come to any more is missed."""

    def code(*, is_new: bool) -> Durable[None, None]:
        async def branch() -> None:
            if not is_new:
                await a().named("branch")
            await sleep("nap", "1h")

        @durable("work")
        async def work() -> None:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(branch())

        return work

    history = await history_of(code(is_new=False))
    await check(code(is_new=False), history)
    with pytest.raises(NonDeterminismError, match="'branch' is recorded"):
        await check(code(is_new=True), history)


async def test_plain_body() -> None:
    """The body of a `def` workflow is replayed in a thread."""

    @durable("work")
    def plain() -> int:
        b(1)
        sync.sleep("day", "1d")
        return b(2)

    @durable("work")
    def other() -> int:
        return b(1) + b(2)

    history = await history_of(plain)
    await check(plain, history)
    with pytest.raises(NonDeterminismError, match="'day' is recorded, but the code called 'b#2'"):
        await check(other, history)


async def test_children() -> None:
    """Scheduled steps that are done are replayed, those that are not end it, and none is scheduled."""

    @durable("work")
    async def fan() -> int:
        handles = [schedule(b.call(1)), schedule(b.call(2)), schedule(fail())]
        first, rest = await wait_any(handles)
        await a()
        return len(await wait(rest)) + int(first is not None)

    history = await history_of(fan)
    assert list(history.recorded.children) == ["fail"]
    await check(fan, history)

    @durable("work")
    async def other() -> None:
        await wait_any([schedule(b.call(1)), schedule(a())])

    with pytest.raises(NonDeterminismError, match="'b#2' is recorded, but the code called 'a'"):
        await check(other, history)


async def test_failures() -> None:
    """Recorded failures take the branch that they took, and `on_failure` is replayed in place of the body."""

    async def repair(data: None, failure: object) -> int:
        await a(3)
        await sleep("repair", "1d")
        return 1

    @durable("work", on_failure=repair)
    async def broken() -> int:
        await step_or(fail(), 1)
        try:
            await wait_for_event("never", timeout="1h")
        except EventTimeout:
            await a(1)
        raise LookupError

    history = await history_of(broken, "5h")
    assert "on_failure" in {step.name for step in history.recorded.steps}
    await check(broken, history)

    async def other(data: None, failure: object) -> int:
        return await b.call(3)

    handler = durable("work", on_failure=other)(broken.handler.function)
    with pytest.raises(NonDeterminismError, match="'a#2' is recorded, but the code called 'b'"):
        await check(handler, history)


async def test_failure_that_is_not_recorded() -> None:
    """A body that fails where its record ends does not start its `on_failure`."""

    async def repair(data: None, failure: object) -> int:
        return await a(3)

    @durable("work", on_failure=repair)
    async def broken() -> int:
        await a(1)
        raise LookupError

    history = await history_of(broken)
    steps = [one for one in history.recorded.steps if one.name == "a"]
    await check(broken, replace(history, recorded=replace(history.recorded, steps=steps)))


async def test_old_deadline() -> None:
    """A deadline that has passed since does not end the replay before the record does."""

    @durable("work", timeout="2h")
    async def timed() -> timedelta:
        began = await now("began")
        await sleep("nap", "1h")
        return await now("ended") - began

    @durable("work", timeout="1s")
    async def other() -> None:
        await now("began")
        await a()

    history = await history_of(timed)
    await check(timed, history)
    with pytest.raises(NonDeterminismError, match="'nap' is recorded, but the code called 'a'"):
        await check(other, history)
