"""`on_failure`: what it is told, what it makes of the run, and that its steps are checkpoints too."""

import asyncio
from typing import Any

import pytest

from tests.unit.support.memory import LONG, SHORT, MemoryRun
from zart_sqla import (
    BodyError,
    DeadlineExceeded,
    Failure,
    RetriesExhausted,
    Retry,
    StepFailure,
    context,
    durable,
    sleep,
    step,
    sync,
)
from zart_sqla.records import StepKind
from zart_sqla.runtime.outcomes import Completed, Failed, LeaseLost


@step(timeout=SHORT)
async def hang() -> None:
    """Take too long."""
    await sleep_forever()


@step(retry=Retry.fixed(2, SHORT))
async def give_up() -> None:
    """Fail each time."""
    raise ValueError("no")


@step
async def fail() -> None:
    """Fail."""
    raise ValueError("no")


async def sleep_forever() -> None:
    """Wait for what never comes."""
    await asyncio.Event().wait()


async def break_down() -> None:
    """Fail as a body does."""
    raise ValueError("no")


async def oversleep() -> None:
    """Sleep past the deadline."""
    await sleep("nap", "2h")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (fail, StepFailure("fail", "ValueError", "no", 1)),
        (hang, StepFailure("hang", "StepTimeout", "it had not ended after 0.001 s", 1)),
        (give_up, RetriesExhausted("give_up", "ValueError", "no", 3)),
        (break_down, BodyError("ValueError", "no", 2)),
        (oversleep, DeadlineExceeded("'look' had not ended 3600 s after its first turn began")),
    ],
    ids=["step", "timeout", "retries", "body", "deadline"],
)
async def test_it_is_told_why(body: Any, expected: Failure) -> None:
    """It gets the input and the failure, and what it returns is the output."""
    told: list[Any] = []

    async def refund(order: str, failure: Failure) -> str:
        told.append((order, failure))
        return "refunded"

    @durable(timeout=LONG, on_failure=refund, retry=Retry.fixed(1, SHORT))
    async def look(order: str) -> str:
        await body()
        return order

    assert await MemoryRun(look, "o-1").result() == "refunded"
    assert told == [("o-1", expected)] * 2


async def test_what_it_raises() -> None:
    """What it raises is the error of the run."""

    async def refund(data: None, failure: Failure) -> None:
        raise OSError("the bank is down")

    @durable(on_failure=refund)
    async def look() -> None:
        await fail()

    assert (await MemoryRun(look).failure()).error.error_type == "OSError"


async def test_what_it_returns_must_fit() -> None:
    """Its value has to fit the output's annotation."""

    async def refund(data: None, failure: Failure) -> str:
        return "text"

    @durable(on_failure=refund)
    async def look() -> int:
        raise ValueError("no")

    assert (await MemoryRun(look).failure()).error.error_type == "InvalidDataError"


@pytest.mark.parametrize("written", range(6))
async def test_its_steps_are_checkpoints(written: int) -> None:
    """Wherever it is interrupted, neither the body nor a recorded step runs again."""
    calls: list[str] = []

    @step("work-{name}")
    async def work(name: str) -> str:
        calls.append(name)
        return name

    async def refund(data: None, failure: Failure) -> list[str]:
        calls.append("refund")
        return [await work("a"), await work("c")]

    @durable(on_failure=refund)
    async def look() -> list[str]:
        calls.append("body")
        await work("a")
        raise ValueError("no")

    run = MemoryRun(look)
    run.recorder.writes_left = written
    first = await run.turn()
    assert isinstance(first, LeaseLost if written < 4 else Completed)
    run.recorder.writes_left = None
    assert await run.result() == ["a", "c"]
    assert list(run.recorder.steps) == ["work-a", "on_failure", "work-a#2", "work-c"]
    assert calls.count("body") == (2 if written < 2 else 1)
    repeated = {0: "a", 2: "a", 3: "c"}.get(written, "")
    for name, times in (("a", 2), ("c", 1)):
        assert calls.count(name) == times + (name == repeated)


async def test_the_marker() -> None:
    """That the body failed is recorded, with its error, before it is called."""

    async def refund(data: None, failure: Failure) -> None: ...

    @durable(on_failure=refund)
    async def look() -> None:
        raise ValueError("no")

    run = MemoryRun(look)
    await run.result()
    marker = run.recorder.steps["on_failure"]
    assert (marker.kind, marker.position) == (StepKind.FAILURE, 0)
    assert marker.error is not None
    assert marker.error.message == "no"


async def test_step_of_the_same_name_as_the_marker() -> None:
    """A step that is called `on_failure` is told from the marker."""

    @step("on_failure")
    async def confuse() -> int:
        return 1

    async def refund(data: None, failure: Failure) -> int:
        return await confuse()

    @durable(on_failure=refund)
    async def look() -> int:
        await confuse()
        raise ValueError("no")

    @durable(on_failure=refund)
    async def look_again() -> int:
        raise ValueError("no")

    assert await MemoryRun(look).result() == 1
    assert await MemoryRun(look_again).result() == 1


async def test_it_sleeps() -> None:
    """It sleeps like a body, also when the deadline has passed: that was the body's, not its own."""
    turns: list[Any] = []

    async def refund(data: None, failure: Failure) -> str:
        turns.append(context().deadline)
        await sleep("cool down", LONG)
        return "refunded"

    @durable(timeout=LONG, on_failure=refund)
    async def look() -> str:
        await oversleep()
        return "never"

    run = MemoryRun(look)
    assert await run.result() == "refunded"
    assert turns == [None, None, None]
    assert run.recorder.steps["cool down"].wake_at == run.recorder.time


async def test_def_function_of_an_async_workflow() -> None:
    """A `def` one runs in a thread, where it calls steps as a `def` workflow does."""

    @step
    def undo(order: str) -> str:
        return f"undid {order}"

    def refund(order: str, failure: Failure) -> list[str]:
        sync.sleep("nap", LONG)
        return [undo(order), undo(order)]

    @durable(on_failure=refund)
    async def look(order: str) -> list[str]:
        await fail()
        return []

    run = MemoryRun(look, "o-1")
    assert await run.result() == ["undid o-1", "undid o-1"]
    assert [one.position for one in run.recorder.steps.values()] == [0, 1, 2, 3, 4]


async def test_async_function_of_a_def_workflow() -> None:
    """An `async def` one runs on the loop, where it calls steps as an `async def` workflow does."""

    @step
    def undo(order: str) -> str:
        return f"undid {order}"

    async def refund(order: str, failure: Failure) -> str:
        await sleep("nap", LONG)
        return await undo.call(order)

    @durable(on_failure=refund)
    def look(order: str) -> str:
        raise ValueError("no")

    assert await MemoryRun(look, "o-1").result() == "undid o-1"


async def test_code_that_has_lost_it() -> None:
    """A later version of the code without `on_failure` fails the run with the error that is recorded."""

    async def refund(data: None, failure: Failure) -> None:
        await sleep("nap", LONG)

    @durable("look", on_failure=refund)
    async def look() -> None:
        raise ValueError("no")

    @durable("look")
    async def look_later() -> None: ...

    run = MemoryRun(look)
    await run.turn()
    outcome = await run.turn(look_later)
    assert isinstance(outcome, Failed)
    assert outcome.error.message == "no"


async def test_it_is_not_called_for_changed_code() -> None:
    """Non-determinism fails the run, and is nothing that a refund could answer."""
    calls: list[str] = []

    async def refund(data: None, failure: Failure) -> None:
        calls.append("refund")

    @durable("look", on_failure=refund)
    async def look() -> None:
        await sleep("nap", LONG)

    @durable("look", on_failure=refund)
    async def look_later() -> None:
        await sleep("rest", LONG)

    run = MemoryRun(look)
    await run.turn()
    outcome = await run.turn(look_later)
    assert isinstance(outcome, Failed)
    assert outcome.error.error_type == "NonDeterminismError"
    assert calls == []
