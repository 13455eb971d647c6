"""Sleeping, durably."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from tests.unit.support.memory import LONG, SHORT, START, MemoryRun
from zart_sqla import (
    ConfigError,
    InvalidNameError,
    NotInWorkflowError,
    Retry,
    StepCall,
    context,
    durable,
    sleep,
    step,
)
from zart_sqla.records import StepKind
from zart_sqla.runtime.outcomes import Completed, Suspended


@durable
async def nap(duration: str) -> str:
    """Sleep once."""
    await sleep("nap", duration)
    return "awake"


async def test_long_sleep() -> None:
    """It ends the turn; its moment is recorded with that, and a replay does not sleep again."""
    run = MemoryRun(nap, LONG)
    outcome = await run.turn()
    assert isinstance(outcome, Suspended)
    assert outcome.is_waiting
    assert outcome.due_at == START + timedelta(hours=1)
    assert outcome.step is not None
    known = outcome.step
    assert (known.name, known.kind, known.position) == ("nap", StepKind.SLEEP, 0)
    assert (known.started_at, known.wake_at) == (START, outcome.due_at)
    assert await run.result() == "awake"
    assert run.recorder.time == outcome.due_at


async def test_short_sleep() -> None:
    """It stays in the process, behind a checkpoint."""
    run = MemoryRun(nap, SHORT)
    assert await run.turn() == Completed('"awake"')
    assert run.recorder.steps["nap"].wake_at == START + timedelta(milliseconds=1)


@pytest.mark.parametrize("duration", ["0s", "0ms"])
async def test_no_sleep(duration: str) -> None:
    """No time at all is a checkpoint like any other."""
    run = MemoryRun(nap, duration)
    assert await run.turn() == Completed('"awake"')
    assert run.steps == ["nap"]


async def test_woken_too_early() -> None:
    """A turn before its time sleeps on, until the moment that is recorded."""
    run = MemoryRun(nap, LONG)
    first = await run.turn()
    run.recorder.time += timedelta(minutes=59)
    second = await run.turn()
    assert isinstance(first, Suspended)
    assert isinstance(second, Suspended)
    assert (second.due_at, second.step) == (first.due_at, None)


async def test_changed_duration() -> None:
    """The recorded moment counts, whatever the code says later."""

    @durable("nap")
    async def nap_longer(duration: str) -> str:
        await sleep("nap", "1d")
        return "awake"

    run = MemoryRun(nap, LONG)
    await run.turn()
    assert await run.finish(nap_longer) == Completed('"awake"')
    assert run.recorder.time == START + timedelta(hours=1)


async def test_sleeps_side_by_side() -> None:
    """Sleeps in tasks of the body's own pass at the same time."""

    @durable
    async def nap_twice() -> str:
        await asyncio.gather(sleep("a", "1h"), sleep("b", "3h"), sleep("c", SHORT))
        return "awake"

    run = MemoryRun(nap_twice)
    assert await run.result() == "awake"
    assert run.recorder.time == START + timedelta(hours=3)


async def test_sleep_beside_steps() -> None:
    """The turn ends when nothing but sleeps and delays is left, so that steps beside them do not wait for those."""
    calls: list[str] = []

    @step("{name}")
    async def work(name: str) -> str:
        calls.append(name)
        await asyncio.sleep(0.01)  # others go on meanwhile
        return name

    @step(retry=Retry.fixed(1, "2h"))
    async def flaky() -> str:
        calls.append("flaky")
        if context().attempt == 1:
            raise OSError("down")
        return "up"

    async def chain() -> list[str]:
        both = await asyncio.gather(work("a"), work("b"))
        return [*both, await work("c")]

    @durable
    async def order() -> list[Any]:
        async with asyncio.TaskGroup() as group:
            group.create_task(sleep("nap", "3h"))
            tasks: list[asyncio.Task[Any]] = [group.create_task(chain()), group.create_task(_awaited(flaky()))]
        return [task.result() for task in tasks]

    run = MemoryRun(order)
    outcome = await run.turn()
    assert isinstance(outcome, Suspended)
    assert outcome.due_at == START + timedelta(hours=2)
    assert sorted(calls) == ["a", "b", "c", "flaky"]
    assert await run.result() == [["a", "b", "c"], "up"]
    assert sorted(calls) == ["a", "b", "c", "flaky", "flaky"]


async def _awaited(call: StepCall[Any]) -> Any:
    return await call


async def test_short_remainder() -> None:
    """The rest of a sleep that is shorter than half a second is slept in the process."""
    run = MemoryRun(nap, LONG)
    await run.turn()
    run.recorder.time += timedelta(hours=1) - timedelta(milliseconds=1)
    assert await run.turn() == Completed('"awake"')


@pytest.mark.parametrize("duration", ["soon", -1, None, float("nan")])
async def test_bad_duration(duration: Any) -> None:
    """What is no duration is refused in the body, and nothing is recorded."""

    @durable
    async def nap_badly() -> str:
        with pytest.raises(ConfigError, match="duration"):
            await sleep("nap", duration)
        return "awake"

    run = MemoryRun(nap_badly)
    assert await run.result() == "awake"
    assert run.steps == []


async def test_bad_name() -> None:
    """A name that cannot be stored is refused in the body."""

    @durable
    async def nap_unnamed() -> str:
        with pytest.raises(InvalidNameError, match="is empty"):
            await sleep("", LONG)
        return "awake"

    assert await MemoryRun(nap_unnamed).result() == "awake"


async def test_outside_a_workflow() -> None:
    """There is nothing there that could go on later."""
    with pytest.raises(NotInWorkflowError, match=r"sleep\(\.\.\.\) works only in a workflow that a worker runs"):
        await sleep("nap", SHORT)


async def test_in_a_step() -> None:
    """A step has no place to go on from."""

    @step
    async def doze() -> str:
        with pytest.raises(NotInWorkflowError, match="not in a step such as 'doze'"):
            await sleep("nap", SHORT)
        return "refused"

    @durable
    async def look() -> str:
        return await doze()

    assert await MemoryRun(look).result() == "refused"
