"""`def` workflows: in a thread, with the calls of `zart_sqla.sync`."""

import asyncio
import contextlib
import threading
from datetime import UTC, datetime
from typing import Any

import pytest

from tests.unit.support.memory import LONG, SHORT, MemoryRun
from zart_sqla import (
    NotInWorkflowError,
    Retry,
    StepFailed,
    StepTimeout,
    context,
    durable,
    step,
    sync,
)
from zart_sqla.runtime.outcomes import LeaseLost, Suspended


@step
def double(number: int) -> int:
    """Return twice the number."""
    return number * 2


@step
async def triple(number: int) -> int:
    """Return three times the number."""
    return number * 3


async def test_everything_in_order() -> None:
    """A `def` workflow does what an `async def` one does, in a thread, with the same checkpoints."""
    threads: list[int] = []

    @durable
    def look(number: int) -> list[Any]:
        threads.append(threading.get_ident())
        at = sync.now("t")
        sync.sleep("nap", LONG)
        key = sync.uuid("u")
        return [
            double(number),
            sync.gather(triple(number), double.call(number)),
            sync.capture("c", lambda: 4),
            at.tzinfo is not None,
            key.version,
            0 <= sync.random("r") < 1,
        ]

    run = MemoryRun(look, 2)
    assert await run.result() == [4, [6, 4], 4, True, 4, True]
    assert threading.get_ident() not in threads
    assert {one.position: one.kind.value for one in run.recorder.steps.values()} == {
        0: "capture",
        1: "sleep",
        2: "capture",
        3: "step",
        4: "step",
        5: "step",
        6: "capture",
        7: "capture",
    }


@pytest.mark.parametrize("written", range(4))
async def test_crash(written: int) -> None:
    """Wherever the turn is lost, the next one goes on behind the last checkpoint."""
    calls: list[int] = []

    @step("work-{number}")
    def work(number: int) -> int:
        calls.append(number)
        return number

    @durable
    def look() -> int:
        return sum(work(number) for number in (1, 2, 3))

    run = MemoryRun(look)
    run.recorder.writes_left = written
    assert (await run.turn() == LeaseLost()) == (written < 3)
    run.recorder.writes_left = None
    assert await run.result() == 6
    assert len(calls) == (3 if written == 3 else 4)


async def test_errors() -> None:
    """Retries, timeouts and declared errors are those of an `async def` workflow."""
    attempts: list[int] = []

    @step(retry=Retry.fixed(2, SHORT))
    def flaky() -> str:
        attempts.append(1)
        if len(attempts) < 3:
            raise OSError("down")
        return "up"

    @step(raises=KeyError)
    def declared() -> None:
        raise KeyError("x")

    @step
    def fails() -> None:
        raise ValueError("no")

    @step(timeout=SHORT)
    async def hangs() -> None:
        await asyncio.Event().wait()

    @durable
    def look() -> list[str]:
        found = [flaky()]
        try:
            declared()
        except KeyError as error:
            found.append(repr(error))
        try:
            fails()
        except StepFailed as error:
            found.append(error.message)
        try:
            sync.gather(hangs())
        except StepTimeout as error:
            found.append(error.step)
        return found

    assert await MemoryRun(look).result() == ["up", "KeyError('x')", "no", "hangs"]


async def test_body_that_catches_everything() -> None:
    """A signal that the body catches in its thread still ends the turn, and no further step starts."""
    calls: list[str] = []

    @step("work-{name}")
    def work(name: str) -> None:
        calls.append(name)

    @durable
    def look() -> str:
        with contextlib.suppress(BaseException):  # as badly written as can be
            sync.sleep("nap", LONG)
        with contextlib.suppress(BaseException):
            work("a")
        return "done"

    run = MemoryRun(look)
    assert isinstance(await run.turn(), Suspended)
    assert calls == []
    assert await run.result() == "done"


@pytest.mark.parametrize("error", [SystemExit(3), MemoryError(), RecursionError()], ids=repr)
async def test_any_error_of_a_thread(error: BaseException) -> None:
    """Whatever a thread raises, of the body or of a step, fails the run, not the worker."""

    @step
    def work() -> None:
        raise error

    @durable
    def calls_step() -> None:
        work()

    @durable
    def raises() -> None:
        raise error

    for workflow in (calls_step, raises):
        outcome = await MemoryRun(workflow).failure()
        assert outcome.error.error_type == type(error).__name__


async def test_stop_iteration_of_a_thread() -> None:
    """A StopIteration, which no future can hold, does not leave the turn hanging."""

    @step
    def work() -> None:
        raise StopIteration

    @durable
    def calls_step() -> None:
        work()

    @durable
    def raises() -> None:
        raise StopIteration

    for workflow in (calls_step, raises):
        assert (await MemoryRun(workflow).failure()).error.error_type in {"StopIteration", "RuntimeError"}


async def test_body_retry() -> None:
    """A body that fails in its thread is run again."""
    calls: list[int] = []

    @durable(retry=Retry.fixed(1, SHORT))
    def look() -> int:
        calls.append(context().attempt)
        if len(calls) == 1:
            raise ValueError("no")
        return double(1)

    assert await MemoryRun(look).result() == 2
    assert calls == [1, 2, 2]


def test_outside_a_workflow() -> None:
    """There the calls give plain values, for unit tests; a sleep has nothing to go on from."""
    assert double(2) == 4
    assert sync.gather(double.call(1), triple(1)) == (2, 3)
    assert sync.capture("c", lambda: 3) == 3
    assert sync.now("t") <= datetime.now(UTC)
    assert 0 <= sync.random("r") < 1
    assert sync.uuid("u").version == 4
    with pytest.raises(NotInWorkflowError, match="works only in a workflow"):
        sync.sleep("nap", SHORT)


async def test_in_an_async_workflow() -> None:
    """There they are refused, with what to write instead."""

    @durable
    async def look() -> str:
        with pytest.raises(NotInWorkflowError, match=r"here write 'await sleep\(\.\.\.\)'"):
            sync.sleep("nap", SHORT)
        with pytest.raises(NotInWorkflowError, match=r"here write 'await gather\(\.\.\.\)'"):
            sync.gather(triple(1))
        return "refused"

    assert await MemoryRun(look).result() == "refused"


async def test_on_a_loop_outside_a_workflow() -> None:
    """A unit test that runs on a loop is told to await."""
    with pytest.raises(NotInWorkflowError, match=r"here write 'await now\(\.\.\.\)'"):
        sync.now("t")


async def test_sleep_in_a_def_step() -> None:
    """A step has no place to go on from."""

    @step
    def doze() -> str:
        with pytest.raises(NotInWorkflowError, match="not in a step such as 'doze'"):
            sync.sleep("nap", SHORT)
        return "refused"

    @durable
    def look() -> str:
        return doze()

    assert await MemoryRun(look).result() == "refused"


def test_public_names() -> None:
    """The module has the names that it promises, sorted."""
    assert sync.__all__ == sorted(sync.__all__)
    assert all(hasattr(sync, name) for name in sync.__all__)
