"""Several waits for scheduled steps at once, in tasks of a body's own."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from tests.unit.support.memory import LONG, START, MemoryRun
from zart_sqla import StepFailed, durable, schedule, sleep, step, wait, wait_for_event
from zart_sqla.runtime.outcomes import Suspended

calls: list[str] = []


@pytest.fixture(autouse=True)
def _forget_calls() -> None:
    """Start each test without calls."""
    calls.clear()


@step("{name}")
async def work(name: str) -> str:
    """Do something."""
    calls.append(name)
    return name


@step
async def fail() -> None:
    """Fail."""
    raise ValueError("no")


async def suspended(run: MemoryRun) -> Suspended:
    """Return how a turn ends that goes on later."""
    outcome = await run.turn()
    assert isinstance(outcome, Suspended), outcome
    return outcome


async def wait_and_work(names: str, after: str) -> str:
    """Schedule steps, wait for them, and call another one."""
    await wait([schedule(work(name)) for name in names])
    return await work(after)


async def test_side_by_side() -> None:
    """Each of several waits in a task group goes on as soon as its own steps are done, beside sleeps and events."""

    @durable
    async def order() -> list[Any]:
        async with asyncio.TaskGroup() as group:
            one = group.create_task(wait_and_work("abc", "x"))
            other = group.create_task(wait_and_work("de", "y"))
            group.create_task(sleep("nap", LONG))
            paid = group.create_task(wait_for_event("paid"))
        return [one.result(), other.result(), paid.result()]

    run = MemoryRun(order)
    outcome = await suspended(run)
    assert (outcome.due_at, outcome.awaits_open) == (START + timedelta(hours=1), 3)
    assert outcome.awaits == {"paid"}
    assert sorted(run.children) == ["a", "b", "c", "d", "e"]
    for name in "de":
        await run.run_child(name)
    assert (await suspended(run)).awaits_open == 0
    assert sorted(calls) == ["d", "e", "y"]
    run.offer("paid", 7)
    assert (await suspended(run)).awaits == frozenset()
    for name in "abc":
        await run.run_child(name)
    outcome = await suspended(run)
    assert (outcome.due_at, outcome.awaits_open) == (START + timedelta(hours=1), None)
    assert await run.result() == ["x", "y", 7]
    assert sorted(calls) == ["a", "b", "c", "d", "e", "x", "y"]


async def test_side_by_side_and_scheduled_before() -> None:
    """It does not matter which of the tasks of a body's own begins to wait first."""

    @durable
    async def order() -> list[Any]:
        handles = {name: schedule(work(name)) for name in "abcd"}

        async def go_on(names: str, after: str) -> str:
            await wait([handles[name] for name in names])
            return await work(after)

        async with asyncio.TaskGroup() as group:
            one = group.create_task(go_on("abc", "x"))
            other = group.create_task(go_on("d", "y"))
        return [one.result(), other.result()]

    run = MemoryRun(order)
    assert (await suspended(run)).awaits_open == 3
    await run.run_child("d")
    assert (await suspended(run)).awaits_open == 0
    assert calls == ["d", "y"]
    assert await run.result() == ["x", "y"]


async def test_beside_a_task_that_has_only_just_begun() -> None:
    """A body that waits right after it has begun a task of its own lets that task come to its own wait."""

    @durable
    async def order() -> list[Any]:
        a, b = schedule(work("a")), schedule(work("b"))
        other = asyncio.create_task(go_on(b))
        try:
            return [*await wait([a]), "y"][1:]
        finally:
            await other

    async def go_on(handle: Any) -> str:
        await handle
        return await work("x")

    run = MemoryRun(order)
    await run.turn()
    await run.run_child("b")
    assert (await suspended(run)).awaits_open == 0
    assert calls == ["b", "x"]
    assert await run.result() == ["y"]


async def test_awaited_by_asyncio() -> None:
    """What `schedule` returns is an awaitable like others."""

    @durable
    async def order() -> list[Any]:
        a, b, failed = schedule(work("a")), schedule(work("b")), schedule(fail())
        found = list(await asyncio.gather(a, b))
        with pytest.raises(StepFailed):
            await asyncio.wait_for(failed, 60)
        return found

    assert await MemoryRun(order).result() == ["a", "b"]
