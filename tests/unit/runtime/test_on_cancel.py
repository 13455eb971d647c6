"""`on_cancel`: what it may do after the run was cancelled, durably, and that the run stays as it is."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.support.memory import LONG, MemoryRun
from zart_sqla import (
    ConfigError,
    NotInWorkflowError,
    Retry,
    StepFailed,
    context,
    continue_as_new,
    durable,
    schedule,
    sleep,
    start_child,
    step,
    sync,
    wait,
)
from zart_sqla.runtime.outcomes import CleanedUp, LeaseLost, Outcome, Suspended
from zart_sqla.runtime.turn import StopReason


class Bench:
    """Steps of a test, and what has been done.

    Attributes:
        done: the labels of what was done, in that order.
    """

    def __init__(self) -> None:
        self.done: list[object] = []

    @step("{label}")
    async def do(self, label: str) -> str:
        """Do something."""
        self.done.append(label)
        return label

    @step(retry=Retry.fixed(1, LONG))
    async def fail(self) -> None:
        """Fail, whatever is tried."""
        self.done.append("fail")
        raise ValueError("no")


@pytest.fixture
def bench() -> Bench:
    """Return a bench."""
    return Bench()


async def cancelled(run: MemoryRun) -> MemoryRun:
    """Return the run, cancelled while it waits."""
    outcome = await run.turn()
    assert isinstance(outcome, Suspended), outcome
    run.cancel()
    return run


async def test_called_with_the_data(bench: Bench) -> None:
    """It gets the input, and its steps are recorded behind those of the body."""

    async def undo(data: dict[str, int]) -> None:
        assert data == {"a": 1}
        await bench.do("undo")

    @durable(on_cancel=undo)
    async def body(_data: dict[str, int]) -> None:
        await bench.do("do")
        await sleep("night", LONG)

    run = await cancelled(MemoryRun(body, {"a": 1}))
    assert await run.finish() == CleanedUp()
    assert await run.replay() == CleanedUp()
    assert bench.done == ["do", "undo"]
    assert [(one.name, one.kind.value, one.position) for one in run.recorder.steps.values()] == [
        ("do", "step", 0),
        ("night", "sleep", 1),
        ("on_cancel", "cancellation", 2),
        ("undo", "step", 3),
    ]


async def test_before_anything_was_recorded(bench: Bench) -> None:
    """It works for a run that has recorded nothing."""

    @durable(on_cancel=bench.done.append)
    async def body(_number: int) -> None:
        await asyncio.Event().wait()

    run = MemoryRun(body, 7)
    run.cancel()
    assert await run.finish() == CleanedUp()
    assert bench.done == [7]
    assert [(one.name, one.position) for one in run.recorder.steps.values()] == [("on_cancel", 0)]


async def test_names_of_the_body_are_taken(bench: Bench) -> None:
    """A step that the body has called, or tried, has a number when it is called again."""

    async def undo(_data: None) -> None:
        await bench.do("one")
        await bench.do("one")
        with pytest.raises(StepFailed):
            await bench.fail()

    @durable(on_cancel=undo)
    async def body() -> None:
        await bench.do("one")
        await bench.fail()

    run = await cancelled(MemoryRun(body))
    assert await run.finish() == CleanedUp()
    assert run.steps == ["one", "on_cancel", "one#2", "one#3", "fail#2"]
    assert bench.done == ["one", "fail", "one", "one", "fail", "fail"]


async def test_sleeps_and_retries(bench: Bench) -> None:
    """It is durable: it sleeps as a row, and each step is done once, over any number of turns."""

    async def undo(_data: None) -> None:
        await bench.do("first")
        await sleep("cool-off", LONG)
        await bench.do("last")

    @durable(on_cancel=undo)
    async def body() -> None:
        await sleep("night", LONG)

    run = await cancelled(MemoryRun(body))
    outcome = await run.turn()
    assert isinstance(outcome, Suspended)
    assert outcome.is_waiting
    assert await run.finish() == CleanedUp()
    assert bench.done == ["first", "last"]


async def test_fans_out(bench: Bench) -> None:
    """It schedules steps, starts executions and waits for them."""

    async def undo(_data: None) -> None:
        handles = [schedule(work(number).named(f"work-{number}")) for number in range(2)]
        child = await start_child("other", execution_id="other")
        answers = await wait(handles)
        bench.done.append([*(answer.value for answer in answers), await child.result()])  # type: ignore[union-attr]

    @durable(on_cancel=undo)
    async def body() -> None:
        schedule(work(9).named("work-0"))
        await sleep("night", LONG)

    run = await cancelled(MemoryRun(body))
    outcome = await run.turn()
    assert isinstance(outcome, Suspended)
    assert outcome.awaits_open == 1
    assert sorted(run.children) == ["work-0", "work-1"]
    for name in run.children:
        await run.run_child(name)
    outcome = await run.turn()
    assert isinstance(outcome, Suspended)
    run.end("other", 5)
    assert await run.finish() == CleanedUp()
    assert bench.done == [[0, 1, 5]]


@step
async def work(number: int) -> int:
    """Do something."""
    return number


def test_def(bench: Bench) -> None:
    """It may be a `def`, also of an `async def` workflow."""

    def undo(_data: None) -> None:
        sync.sleep("cool-off", LONG)
        bench.done.append(context().execution_id)

    @durable(on_cancel=undo)
    async def body() -> None:
        await sleep("night", LONG)

    async def play() -> Outcome:
        return await (await cancelled(MemoryRun(body))).finish()

    assert asyncio.run(play()) == CleanedUp()
    assert bench.done == ["order-1"]


async def _raise(_data: None) -> None:
    raise ValueError("no")


async def _exit(_data: None) -> None:
    raise SystemExit(3)


async def _use_up(_data: None) -> None:
    bench = Bench()
    await bench.fail()


@pytest.mark.parametrize("undo", [_raise, _exit, _use_up])
async def test_errors_change_nothing(undo: Callable[[None], Any], caplog: pytest.LogCaptureFixture) -> None:
    """What it raises is logged, and it is not tried again, whatever the workflow says of its own errors."""
    told: list[object] = []

    @durable(on_cancel=undo, retry=Retry.fixed(5, 0), on_failure=lambda _data, failure: told.append(failure))
    async def body() -> None:
        await sleep("night", LONG)

    run = await cancelled(MemoryRun(body))
    assert await run.finish() == CleanedUp()
    assert told == []
    assert "failed" in caplog.text


async def test_deadline_of_the_body(bench: Bench) -> None:
    """The time of the workflow is not its own: it has as much as it takes."""

    async def undo(_data: None) -> None:
        assert context().deadline is None
        await sleep("cool-off", "5h")
        bench.done.append("undone")

    @durable(on_cancel=undo, timeout=LONG)
    async def body() -> None:
        await sleep("night", "8h")

    run = await cancelled(MemoryRun(body))
    assert await run.finish() == CleanedUp()
    assert bench.done == ["undone"]


async def test_cannot_go_on(bench: Bench) -> None:
    """It cannot begin another run: what was cancelled stays so."""

    async def undo(number: int) -> None:
        with pytest.raises(NotInWorkflowError, match="was cancelled"):
            await continue_as_new(number)
        await bench.do("undo")

    @durable(on_cancel=undo)
    async def body(_number: int) -> None:
        await sleep("night", LONG)

    run = await cancelled(MemoryRun(body, 1))
    assert await run.finish() == CleanedUp()
    assert bench.done == ["undo"]


async def test_without_one() -> None:
    """A handler that has none any more, since the code has changed, does nothing."""

    @durable
    async def body() -> None:
        await sleep("night", LONG)

    run = await cancelled(MemoryRun(body))
    assert await run.turn() == CleanedUp()
    assert run.steps == ["night"]


async def test_changed_code(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """If what it had recorded does not fit its code any more, it ends, and that is logged."""

    async def before(_data: None) -> None:
        await bench.do("first")
        await sleep("cool-off", LONG)

    async def after(_data: None) -> None:
        await bench.do("second")

    async def wait_long() -> None:
        await sleep("night", LONG)

    run = await cancelled(MemoryRun(durable("body", on_cancel=before)(wait_long)))
    assert isinstance(await run.turn(), Suspended)
    assert await run.turn(durable("body", on_cancel=after)(wait_long)) == CleanedUp()
    assert bench.done == ["first"]
    assert "'first'" in caplog.text


async def test_changed_input(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    """If the input does not fit any more, it is not called, and that is logged."""

    @durable("body")
    async def before(_data: str) -> None:
        await sleep("night", LONG)

    @durable("body", on_cancel=bench.done.append)
    async def after(_data: int) -> None:
        pass

    run = await cancelled(MemoryRun(before, "text"))
    assert await run.turn(after) == CleanedUp()
    assert bench.done == []
    assert "the input" in caplog.text


async def test_lost_lease(bench: Bench) -> None:
    """Taken over, it does nothing more; whoever took it over goes on."""

    async def undo(_data: None) -> None:
        await bench.do("first")
        await bench.do("last")

    @durable(on_cancel=undo)
    async def body() -> None:
        await sleep("night", LONG)

    run = await cancelled(MemoryRun(body))
    run.recorder.writes_left = 1
    assert await run.turn() == LeaseLost()
    run.recorder.writes_left = None
    assert await run.finish() == CleanedUp()
    assert bench.done == ["first", "first", "last"]


async def test_shutdown() -> None:
    """Stopped with its worker, it goes back to the queue."""
    entered = asyncio.Event()

    async def undo(_data: None) -> None:
        entered.set()
        await asyncio.Event().wait()

    @durable(on_cancel=undo)
    async def body() -> None:
        await sleep("night", LONG)

    run = await cancelled(MemoryRun(body))
    assert await run.stopped(StopReason.SHUTDOWN, entered) == Suspended()


def test_not_callable() -> None:
    """Something that cannot be called is refused."""
    with pytest.raises(ConfigError, match="on_cancel"):
        durable(on_cancel=3)(work)  # type: ignore[call-overload]
