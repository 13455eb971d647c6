"""Code that is deployed between two turns of a run: appended steps are fine, anything else stops the run, resumably."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.support.waiting import PATIENCE
from tests.support.working import let_time_pass, scheduler_on, until, worker_on
from zart_sqla import (
    Durable,
    ExecutionFailed,
    ExecutionStatus,
    StepCall,
    durable,
    gather,
    sleep,
    step,
)

Body = Callable[[], Awaitable[str]]

ran: Counter[str] = Counter()


@pytest.fixture(autouse=True)
def fresh_counter() -> None:
    """Count from nothing in each test."""
    ran.clear()


@step("{name}")
async def work(name: str) -> str:
    """Do something once."""
    ran[name] += 1
    return name


def workflow(*calls: Callable[[], Awaitable[Any]]) -> Durable[None, str]:
    """Return the workflow that makes these calls, under the one name that it has in every release."""

    @durable("order")
    async def order() -> str:
        return " ".join([str(await call()) for call in calls])

    return order


def pause() -> Awaitable[Any]:
    """Sleep for a long while."""
    return sleep("pause", "1h")


def a() -> StepCall[str]:
    """Call the step a."""
    return work("a")


def b() -> StepCall[str]:
    """Call the step b."""
    return work("b")


def c() -> StepCall[str]:
    """Call the step c."""
    return work("c")


OLD = workflow(a, b, pause, c)
CHANGED = {
    "renamed": (workflow(a, lambda: work("bee"), pause, c), 1, "b", "bee"),
    "reordered": (workflow(b, a, pause, c), 0, "a", "b"),
    "inserted": (workflow(a, c, b, pause, c), 1, "b", "c"),
    "removed": (workflow(a, pause, c), 1, "b", "pause"),
    "removed at the end": (workflow(a), 1, "b", None),
    "another kind": (workflow(lambda: sleep("a", 0), b, pause, c), 0, "a", "a (sleep)"),
}


@pytest.mark.parametrize("change", CHANGED)
async def test_changed_code_stops_the_run(migrated_url: str, change: str) -> None:
    """The run fails, naming both steps; resumed with the old code it completes and repeats nothing."""
    new, position, recorded, called = CHANGED[change]
    async with scheduler_on(migrated_url) as scheduler:
        async with worker_on(migrated_url, OLD):
            handle = await scheduler.start(OLD)
            await until(handle, ExecutionStatus.WAITING)
        async with worker_on(migrated_url, new):
            await let_time_pass(scheduler)
            with pytest.raises(ExecutionFailed) as caught:
                await handle.result(timeout=PATIENCE)
        assert caught.value.error_type == "NonDeterminismError"
        assert f"position {position} of this run step {recorded!r} is recorded" in caught.value.message
        assert (f"called {called!r}" if called else "ended without calling it") in caught.value.message
        first = await handle.info()
        async with worker_on(migrated_url, OLD):
            await handle.resume()
            assert await handle.result(timeout=PATIENCE) == "a b None c"
        info = await handle.info()
    assert (info.run_index, info.run_id != first.run_id, info.error) == (1, True, None)
    assert {name: times for name, times in ran.items() if name in "ab"} == {"a": 1, "b": 1}


async def test_appended_steps_are_fine(migrated_url: str) -> None:
    """Steps that come after all that is recorded may be changed freely."""
    new = workflow(a, b, pause, lambda: work("d"), lambda: gather(c(), b()))
    async with scheduler_on(migrated_url) as scheduler:
        async with worker_on(migrated_url, OLD):
            handle = await scheduler.start(OLD)
            await until(handle, ExecutionStatus.WAITING)
        async with worker_on(migrated_url, new):
            await let_time_pass(scheduler)
            assert await handle.result(timeout=PATIENCE) == "a b None d ('c', 'b')"
    assert ran == {"a": 1, "b": 2, "c": 1, "d": 1}


async def test_caught_error_changes_nothing(migrated_url: str) -> None:
    """A body that catches the error is stopped nevertheless, and `on_failure` is not called."""
    told: list[object] = []

    @durable("order", on_failure=lambda _data, failure: told.append(failure))
    async def tolerant() -> str:
        for call in (b, a, c):
            try:
                await call()
            except Exception:  # noqa: BLE001 - the point of this test
                ran["caught"] += 1
        return "done"

    async with scheduler_on(migrated_url) as scheduler:
        async with worker_on(migrated_url, OLD):
            handle = await scheduler.start(OLD)
            await until(handle, ExecutionStatus.WAITING)
        async with worker_on(migrated_url, tolerant):
            await let_time_pass(scheduler)
            with pytest.raises(ExecutionFailed, match="NonDeterminismError"):
                await handle.result(timeout=PATIENCE)
    assert told == []
    assert ran == {"a": 1, "b": 1, "caught": 3}


async def test_changed_result_type(migrated_url: str) -> None:
    """A recorded result that does not fit the step's new type fails the run; the old code can resume it."""

    @step
    async def count() -> str:
        ran["count"] += 1
        return "seven"

    @step("count")
    async def count_better() -> int:
        ran["better"] += 1
        return 7

    old, new = workflow(count, pause), workflow(count_better, pause)
    async with scheduler_on(migrated_url) as scheduler:
        async with worker_on(migrated_url, old):
            handle = await scheduler.start(old)
            await until(handle, ExecutionStatus.WAITING)
        async with worker_on(migrated_url, new):
            await let_time_pass(scheduler)
            with pytest.raises(ExecutionFailed, match="InvalidDataError: the recorded result of step 'count'"):
                await handle.result(timeout=PATIENCE)
        async with worker_on(migrated_url, old):
            await handle.resume()
            assert await handle.result(timeout=PATIENCE) == "seven None"
    assert ran == {"count": 1}


async def test_resume_repeats_only_what_failed(migrated_url: str) -> None:
    """A resumed run keeps the checkpoints that succeeded, and runs the failed step again."""
    broken = True

    @step
    async def ship() -> str:
        ran["ship"] += 1
        if broken:
            raise OSError("no carrier")
        return "shipped"

    order = workflow(a, ship, b)
    async with scheduler_on(migrated_url) as scheduler, worker_on(migrated_url, order):
        handle = await scheduler.start(order)
        with pytest.raises(ExecutionFailed, match="no carrier"):
            await handle.result(timeout=PATIENCE)
        broken = False
        await handle.resume()
        assert await handle.result(timeout=PATIENCE) == "a shipped b"
        assert [one.name for one in await handle.steps()] == ["a", "ship", "b"]
    assert ran == {"a": 1, "ship": 2, "b": 1}


async def test_resumed_once(migrated_url: str) -> None:
    """Of many that resume a failed run at the same time one does; the others are told that it goes on."""
    hold = asyncio.Event()

    @step
    async def ship() -> str:
        ran["ship"] += 1
        if ran["ship"] == 1:
            raise OSError
        await hold.wait()
        return "shipped"

    order = workflow(ship)
    async with scheduler_on(migrated_url) as scheduler, worker_on(migrated_url, order):
        handle = await scheduler.start(order)
        await until(handle, ExecutionStatus.FAILED)
        answers = await asyncio.gather(*(handle.resume() for _ in range(8)), return_exceptions=True)
        assert sorted(type(answer).__name__ for answer in answers) == ["ExecutionAlreadyExists"] * 7 + ["NoneType"]
        hold.set()
        assert await handle.result(timeout=PATIENCE) == "shipped"
        assert (await handle.info()).run_index == 1
    assert ran == {"ship": 2}
