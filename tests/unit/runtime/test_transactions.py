"""`trx()`: what becomes of a step's transaction, and where it is refused."""

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from tests.unit.support.memory import LONG, SHORT, MemoryRun
from zart_sqla import NotInWorkflowError, Retry, durable, gather, step, trx
from zart_sqla.runtime.outcomes import LeaseLost, Suspended


def endings(run: MemoryRun) -> list[str | None]:
    """Return what became of the run's transactions."""
    return [one.ending for one in run.recorder.transactions]


async def test_commits_with_the_checkpoint() -> None:
    """A step that returns commits, once."""

    @step
    async def write() -> str:
        assert isinstance(await trx(), AsyncSession)
        return "written"

    @durable
    async def look() -> str:
        return await write()

    run = MemoryRun(look)
    assert await run.result() == "written"
    assert endings(run) == ["committed"]


async def test_rolls_back_on_an_error() -> None:
    """Each attempt has a transaction of its own; those that fail are rolled back."""

    @step(retry=Retry.fixed(2, SHORT))
    async def write() -> None:
        await trx()
        raise ValueError("no")

    @durable
    async def look() -> None:
        await write()

    run = MemoryRun(look)
    await run.failure()
    assert endings(run) == ["rolled back"] * 3


async def test_rolls_back_on_a_declared_error() -> None:
    """A declared error is recorded, and what the step wrote is not."""

    @step(raises=KeyError)
    async def write() -> None:
        await trx()
        raise KeyError("x")

    @durable
    async def look() -> str:
        try:
            await write()
        except KeyError:
            return "caught"
        return "never"

    run = MemoryRun(look)
    assert await run.result() == "caught"
    assert endings(run) == ["rolled back"]
    assert run.steps == ["write"]


async def test_rolls_back_on_a_timeout() -> None:
    """A step that times out is rolled back."""

    @step(timeout=SHORT)
    async def write() -> None:
        await trx()
        await asyncio.Event().wait()

    @durable
    async def look() -> None:
        await write()

    run = MemoryRun(look)
    await run.failure()
    assert endings(run) == ["rolled back"]


async def test_rolls_back_a_result_that_does_not_fit() -> None:
    """A value that cannot be recorded takes what was written with it."""

    @step
    async def write() -> int:
        await trx()
        return "text"  # type: ignore[return-value]

    @durable
    async def look() -> None:
        await write()

    run = MemoryRun(look)
    await run.failure()
    assert endings(run) == ["rolled back"]


async def test_lost_task() -> None:
    """A step whose task is another worker's commits nothing, and the turn ends."""

    @step
    async def write() -> None:
        await trx()

    @durable
    async def look() -> None:
        with contextlib.suppress(BaseException):  # as badly written as can be
            await write()

    run = MemoryRun(look)
    run.recorder.writes_left = 1
    assert await run.turn() == LeaseLost()
    assert endings(run) == ["rolled back"]


async def test_lost_before_it_begins() -> None:
    """So does one that cannot even begin."""

    @step
    async def write() -> None:
        await trx()

    @durable
    async def look() -> None:
        await write()

    run = MemoryRun(look)
    run.recorder.writes_left = 0
    assert await run.turn() == LeaseLost()


async def test_error_of_the_database() -> None:
    """An error that is the database's ends the turn, and costs the step no attempt."""
    calls: list[int] = []

    @step
    async def write() -> str:
        await trx()
        calls.append(1)
        if len(calls) == 1:
            raise ConnectionResetError("the server went away")
        return "written"

    @durable
    async def look() -> str:
        return await write()

    run = MemoryRun(look)
    assert isinstance(await run.turn(), Suspended)
    assert run.recorder.attempts == []
    assert await run.result() == "written"
    assert endings(run) == ["rolled back", "committed"]
    assert run.recorder.steps["write"].attempts == 1


async def test_side_by_side() -> None:
    """Each step has its own: one fails and rolls back, the others commit."""

    @step("write-{number}")
    async def write(number: int) -> int:
        await trx()
        if number == 2:
            raise ValueError("no")
        return number

    @durable
    async def look() -> str:
        try:
            await gather(write(1), write(2), write(3))
        except Exception as error:  # noqa: BLE001 - whatever came
            return type(error).__name__
        return "nothing"

    run = MemoryRun(look)
    assert await run.result() == "StepFailed"
    assert sorted(map(str, endings(run))) == ["committed", "committed", "rolled back"]


async def refused(call: Callable[[], Any], match: str) -> None:
    """Expect the call of `trx` to be refused."""
    with pytest.raises(NotInWorkflowError, match=match):
        await call()


async def test_outside_a_workflow() -> None:
    """There is no run whose checkpoint could commit with it."""
    await refused(trx, r"trx\(\) works only in a step of a workflow that a worker runs")


async def test_in_the_body() -> None:
    """A body has no checkpoint of its own."""

    @durable
    async def look() -> None:
        await refused(trx, "works only in a step")

    await MemoryRun(look).result()


async def test_twice() -> None:
    """A step has one."""

    @step
    async def write() -> None:
        await trx()
        await refused(trx, "was called before in step 'write': keep the session that it gave")

    @durable
    async def look() -> None:
        await write()

    run = MemoryRun(look)
    await run.result()
    assert endings(run) == ["committed"]


async def test_in_a_def_step() -> None:
    """A thread cannot use an AsyncSession of the loop."""

    @step
    def write() -> None:
        asyncio.run(refused(trx, "works only in an 'async def' step"))

    @durable
    async def look() -> None:
        await write.call()

    await MemoryRun(look).result()


async def test_in_a_step_that_a_step_calls() -> None:
    """An inner step is part of the outer one, and so is its transaction."""

    @step
    async def inner() -> AsyncSession:
        return await trx()

    @step
    async def outer() -> bool:
        return isinstance(await inner(), AsyncSession)

    @durable
    async def look() -> bool:
        return await outer()

    run = MemoryRun(look)
    assert await run.result() is True
    assert endings(run) == ["committed"]
    assert run.steps == ["outer"]


async def test_wait_for_a_retry() -> None:
    """A step that waits for its next attempt has rolled back before the turn ends."""

    @step(retry=Retry.fixed(1, LONG))
    async def write() -> None:
        await trx()
        raise ValueError("no")

    @durable
    async def look() -> None:
        await write()

    run = MemoryRun(look)
    assert isinstance(await run.turn(), Suspended)
    assert endings(run) == ["rolled back"]
