"""`gather`: steps side by side, each with its own checkpoint."""

import asyncio
from typing import Any

import pytest

from tests.unit.support.memory import LONG, SHORT, START, MemoryRun
from zart_sqla import (
    NotInWorkflowError,
    Retry,
    RetryExhausted,
    StepFailed,
    durable,
    gather,
    sleep,
    step,
    sync,
)
from zart_sqla.runtime.outcomes import Completed, LeaseLost, Suspended


@step("double-{number}")
async def double(number: int) -> int:
    """Return twice the number."""
    return number * 2


@step("triple-{number}")
def triple(number: int) -> int:
    """Return three times the number."""
    return number * 3


async def test_values_in_order() -> None:
    """The values come in the order of the calls, of both kinds of steps, and the places are theirs."""

    @durable
    async def look() -> list[int]:
        a, b, c = await gather(double(1), triple.call(2), double(3))
        return [a, b, c]

    run = MemoryRun(look)
    assert await run.result() == [2, 6, 6]
    assert {one.name: one.position for one in run.recorder.steps.values()} == {
        "double-1": 0,
        "triple-2": 1,
        "double-3": 2,
    }


async def test_side_by_side() -> None:
    """They run at the same time: each waits for the other here."""
    both = asyncio.Barrier(2)

    @step("meet-{name}")
    async def meet(name: str) -> str:
        await asyncio.wait_for(both.wait(), 5)
        return name

    @durable
    async def look() -> list[str]:
        return list(await gather(meet("a"), meet("b")))

    assert await MemoryRun(look).result() == ["a", "b"]


async def test_nothing() -> None:
    """No calls are no values."""

    @durable
    async def look() -> list[Any]:
        return list(await gather())

    assert await MemoryRun(look).result() == []


async def test_same_name_twice() -> None:
    """The same call twice is two steps."""

    @durable
    async def look() -> list[int]:
        return list(await gather(double(1), double(1), double(1)))

    run = MemoryRun(look)
    assert await run.result() == [2, 2, 2]
    assert sorted(run.steps) == ["double-1", "double-1#2", "double-1#3"]


async def test_first_error_in_order() -> None:
    """All come to their end, and then the first error, in the order of the calls, is raised."""
    done: list[str] = []
    failed = asyncio.Event()

    @step
    async def slow() -> None:
        await failed.wait()
        done.append("slow")
        raise ValueError("slow")

    @step
    async def quick() -> None:
        done.append("quick")
        failed.set()
        raise ValueError("quick")

    @step
    async def fine() -> str:
        await failed.wait()
        done.append("fine")
        return "fine"

    @durable
    async def look() -> str:
        try:
            await gather(slow(), quick(), fine())
        except StepFailed as error:
            return error.message
        return "nothing"

    run = MemoryRun(look)
    assert await run.result() == "slow"
    assert sorted(done) == ["fine", "quick", "slow"]
    assert sorted(run.steps) == ["fine", "quick", "slow"]


async def test_followed_by_more() -> None:
    """A step, a sleep and another gather follow; each runs once."""
    calls: list[str] = []

    @step("work-{name}")
    async def work(name: str) -> str:
        calls.append(name)
        return name

    @durable
    async def look() -> list[str]:
        first = await gather(work("a"), work("b"))
        third = await work("c")
        await sleep("nap", LONG)
        return [*first, third, *await gather(work("d"), work("e"))]

    assert await MemoryRun(look).result() == ["a", "b", "c", "d", "e"]
    assert sorted(calls) == ["a", "b", "c", "d", "e"]


async def test_one_waits_for_its_retry() -> None:
    """When one has to wait the others are recorded, and the turn ends until then."""
    calls: list[str] = []

    @step("work-{name}", retry=Retry.fixed(1, LONG))
    async def work(name: str) -> str:
        calls.append(name)
        if name == "b" and calls.count("b") == 1:
            raise OSError("down")
        return name

    @durable
    async def look() -> list[str]:
        return list(await gather(work("a"), work("b"), work("c")))

    run = MemoryRun(look)
    assert isinstance(await run.turn(), Suspended)
    assert sorted(run.steps) == ["work-a", "work-c"]
    assert await run.result() == ["a", "b", "c"]
    assert sorted(calls) == ["a", "b", "b", "c"]


async def test_the_soonest_of_several_waits() -> None:
    """When several have to wait the turn ends until the first of them is due."""

    @step("work-{hours}", retry=Retry.fixed(1, "2h"))
    async def two(hours: int) -> None:
        raise OSError("down")

    @step("work-{hours}", retry=Retry.fixed(1, "1h"))
    async def one(hours: int) -> None:
        raise OSError("down")

    @durable
    async def look() -> str:
        try:
            await gather(two(2), one(1))
        except RetryExhausted as error:
            return error.step
        return "nothing"

    run = MemoryRun(look)
    outcome = await run.turn()
    assert isinstance(outcome, Suspended)
    assert outcome.due_at is not None
    assert (outcome.due_at - START).total_seconds() == 3600
    assert await run.result() == "work-2"


async def test_lost_in_the_middle() -> None:
    """A lost task decides over an error and over a wait."""

    @step(retry=Retry.fixed(1, LONG))
    async def wait() -> None:
        raise OSError("down")

    @step
    async def fail() -> None:
        raise ValueError("no")

    @durable
    async def look() -> None:
        await gather(fail(), wait(), double(1))

    run = MemoryRun(look)
    run.recorder.writes_left = 2
    assert await run.turn() == LeaseLost()


@pytest.mark.parametrize("other", [3, None, "text"])
async def test_only_calls(other: Any) -> None:
    """Whatever is not the call of a step is refused before anything runs."""

    @durable
    async def look() -> str:
        with pytest.raises(NotInWorkflowError, match="takes calls of steps"):
            await gather(double(1), other)
        return "refused"

    run = MemoryRun(look)
    assert await run.result() == "refused"
    assert run.steps == []


async def test_outside_a_workflow() -> None:
    """There it calls the plain functions."""
    assert await gather(double(1), triple.call(2)) == (2, 6)


async def test_from_a_def_body() -> None:
    """`sync.gather` does the same from a thread."""

    @durable
    def look() -> list[int]:
        first = sync.gather(double(1), triple.call(2))
        sync.sleep("nap", SHORT)
        return [*first, *sync.gather(double(3))]

    run = MemoryRun(look)
    assert await run.turn() == Completed("[2,6,6]")
    assert await run.result() == [2, 6, 6]
    assert [run.recorder.steps[name].position for name in ("double-1", "triple-2", "nap", "double-3")] == [0, 1, 2, 3]
