"""Workflows that start others, endless ones, and streams, in a simulation."""

import pytest

from zart_sqla import (
    ExecutionAlreadyExists,
    ExecutionFailed,
    continue_as_new,
    durable,
    emit,
    sleep,
    start_child,
    step,
    sync,
)
from zart_sqla.testing import Simulation, WorkflowStuck, crash_at_every_step, run_workflow


@step
async def double(number: int) -> int:
    """Return twice the number."""
    return number * 2


@durable
async def pack(number: int) -> int:
    """Take a day."""
    await sleep("day", "1d")
    if number < 0:
        raise ValueError("nothing to pack")
    return await double(number)


@durable
async def ship(numbers: list[int]) -> list[int]:
    """Have each packed, all at the same time."""
    children = [await start_child(pack, number, execution_id=f"pack-{number}") for number in numbers]
    return [await child.result() for child in children]


@durable
async def count(number: int) -> str:
    """Go on until 3."""
    await emit("numbers", await double(number))
    if number < 3:
        await continue_as_new(number + 1)
    return f"counted to {number}"


async def test_children() -> None:
    """They run beside the workflow by the same clock, and give their results."""
    run = Simulation(ship, [1, 2, 3], workflows=[pack])
    began = run.now
    assert await run.result() == [2, 4, 6]
    assert (run.now - began).days == 1


async def test_child_that_fails() -> None:
    """Its failure is the workflow's to handle, or the workflow's own."""
    with pytest.raises(ExecutionFailed, match="nothing to pack"):
        await run_workflow(ship, [-1], workflows=[pack])


async def test_id_that_is_taken() -> None:
    """An execution id is there once."""
    with pytest.raises(ExecutionAlreadyExists, match="pack-1"):
        await run_workflow(ship, [1, 1], workflows=[pack])


async def test_unknown_child() -> None:
    """To wait for a workflow that the test has not passed would take for ever, and says so."""
    with pytest.raises(WorkflowStuck, match=r"'pack'.*workflows="):
        await run_workflow(ship, [1])


async def test_child_that_is_not_waited_for() -> None:
    """A workflow that goes on without its child needs not know it."""

    @durable
    async def send_off() -> str:
        await start_child("elsewhere", {"number": 1})
        return "sent"

    assert await run_workflow(send_off) == "sent"


async def test_endless() -> None:
    """One run follows the other; what they emit is one stream."""
    run = Simulation(count, 0)
    assert await run.result() == "counted to 3"
    assert run.emitted == [("numbers", 0), ("numbers", 2), ("numbers", 4), ("numbers", 6)]


@durable
def plain(number: int) -> int:
    """Have it packed, and go on until 2."""
    packed = sync.start_child(pack, number).result()
    if number < 2:
        sync.continue_as_new(number + 1)
    return packed


async def test_def_workflow() -> None:
    """A `def` workflow starts others and goes on as new, too."""
    assert await run_workflow(plain, 0, workflows=[pack]) == 4


async def test_crashes() -> None:
    """Whatever the worker dies of, the ends are the same."""
    report = await crash_at_every_step(ship, [1, 2], workflows=[pack])
    assert report.output == [2, 4]
    assert report.calls == {"double": 3}
    report = await crash_at_every_step(count, 0)
    assert report.output == "counted to 3"
