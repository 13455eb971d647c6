"""`on_cancel` with real workers: what a workflow does after it was cancelled, durably."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import func, update

from tests.support.waiting import eventually
from tests.support.working import count_rows, let_time_pass, scheduler_on, until, worker_on, working
from zart_sqla import (
    ExecutionHandle,
    ExecutionStatus,
    PostgresScheduler,
    StepKind,
    context,
    continue_as_new,
    durable,
    gather,
    schedule,
    sleep,
    start_child,
    step,
    trx,
    wait,
    wait_for_event,
)
from zart_sqla.models.mapping import tables_of

CANCELLED = ExecutionStatus.CANCELLED
RUNNING = ExecutionStatus.RUNNING
WAITING = ExecutionStatus.WAITING

done: list[object] = []
"""What the cleanups of a test have done: some of their steps are found by name, on any worker."""


@pytest.fixture(autouse=True)
def _begin() -> None:
    done.clear()


@step("{label}")
async def note(label: str) -> str:
    """Do something."""
    done.append(label)
    return label


async def undo(data: str) -> None:
    """Undo what the workflow did."""
    await note(f"undo {data}")


@durable(on_cancel=undo)
async def order(data: str) -> None:
    """Do something that has to be undone."""
    await note(f"do {data}")
    await sleep("night", "8h")


async def is_over(scheduler: PostgresScheduler) -> None:
    """Wait until no task is left."""

    async def look() -> bool:
        return (await count_rows(scheduler))["tasks"] == 0

    await eventually(look)


async def test_undo(migrated_url: str) -> None:
    """It gets the input, its steps are recorded with those of the body, and the run stays as it was."""
    async with working(migrated_url, order, workers=2) as scheduler:
        handle = await scheduler.start(order, "a")
        await until(handle, WAITING)
        await handle.cancel()
        info = await handle.info()
        assert info.status is CANCELLED
        await eventually(lambda: done, ["do a", "undo a"])
        await is_over(scheduler)
        assert await handle.info() == info
        assert [(one.name, one.kind, one.result) for one in await handle.steps()] == [
            ("do a", StepKind.STEP, "do a"),
            ("night", StepKind.SLEEP, None),
            ("on_cancel", StepKind.CANCELLATION, None),
            ("undo a", StepKind.STEP, "undo a"),
        ]
        await handle.cancel()
        assert (await count_rows(scheduler))["tasks"] == 0


async def test_before_the_first_claim(migrated_url: str) -> None:
    """There is nothing to undo if no worker had taken it up."""
    async with scheduler_on(migrated_url) as scheduler:
        handle = await scheduler.start(order, "a")
        await handle.cancel()
        async with worker_on(migrated_url, order):
            other = await scheduler.start(order, "b")
            await until(other, WAITING)
            await other.cancel()
            await eventually(lambda: done, ["do b", "undo b"])
        assert await handle.status() is CANCELLED


@step
async def stand() -> None:
    """Stand until cancelled."""
    done.append("began")
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        done.append("interrupted")
        raise


async def _run_a_step() -> None:
    await stand()


async def _wait_for_event() -> None:
    await wait_for_event("never")


async def _fan_out() -> None:
    await wait([schedule(stand()), schedule(stand().named("other"))])


async def _stand_side_by_side() -> None:
    await gather(stand(), stand())


@pytest.mark.parametrize(
    ("body", "places"), [(_run_a_step, 1), (_wait_for_event, 0), (_fan_out, 2), (_stand_side_by_side, 2)]
)
async def test_whatever_it_did(migrated_url: str, body: Callable[[], Any], places: int) -> None:
    """It comes after what was under way has been interrupted, whatever that was."""

    @durable(on_cancel=lambda _data: done.append("undo"))
    async def workflow() -> None:
        await body()

    async with working(migrated_url, workflow, workers=2, heartbeat_interval="200ms") as scheduler:
        handle = await scheduler.start(workflow)
        await eventually(lambda: len(done) == places)
        await until(handle, RUNNING if body in {_run_a_step, _stand_side_by_side} else WAITING)
        await handle.cancel()
        await eventually(lambda: "undo" in done)
        assert done == ["began"] * places + ["interrupted"] * places + ["undo"]
        await is_over(scheduler)


async def test_durable(migrated_url: str) -> None:
    """It sleeps as a row, writes with `trx()`, and does each step once, on whichever worker."""

    @step
    async def write() -> None:
        session = await trx()
        done.append(await session.scalar(func.length("abc").select()))

    async def clean(_data: None) -> None:
        await note("first")
        await sleep("cool-off", "8h")
        await write()

    @durable(on_cancel=clean)
    async def workflow() -> None:
        await sleep("night", "8h")

    async with working(migrated_url, workflow, workers=2) as scheduler:
        handle = await scheduler.start(workflow)
        await until(handle, WAITING)
        await handle.cancel()
        await eventually(lambda: _has_step(handle, "cool-off"))
        assert await handle.status() is CANCELLED
        await eventually(lambda: _is_free(scheduler))
        await let_time_pass(scheduler)
        await eventually(lambda: done, ["first", 3])
        await is_over(scheduler)


async def _has_step(handle: ExecutionHandle[Any], name: str) -> bool:
    return name in {one.name for one in await handle.steps()}


async def _is_free(scheduler: PostgresScheduler) -> bool:
    tasks = tables_of(scheduler.names).tasks
    async with scheduler.engine.connect() as connection:
        held = tasks.select().where(tasks.c.worker_id.is_not(None))
        return (await connection.execute(held)).first() is None


async def test_fans_out(migrated_url: str) -> None:
    """It schedules steps on any worker, and starts executions, and is woken by them at once."""

    @durable
    async def other() -> str:
        return await note("other")

    async def clean(_data: None) -> None:
        handles = [schedule(note(f"step-{number}")) for number in range(5)]
        child = await start_child(other, execution_id="other")
        answers = await wait(handles)
        done.append((len(answers), await child.result()))

    @durable(on_cancel=clean)
    async def workflow() -> None:
        await sleep("night", "8h")

    async with working(migrated_url, workflow, other, workers=2) as scheduler:
        handle = await scheduler.start(workflow)
        await until(handle, WAITING)
        await handle.cancel()
        await eventually(lambda: (5, "other") in done)
        await is_over(scheduler)
    assert sorted(map(str, done)) == sorted(["(5, 'other')", "other", *(f"step-{number}" for number in range(5))])


async def test_what_it_leaves_open_ends(migrated_url: str) -> None:
    """A step that it has scheduled and not waited for is cancelled with its end, as at the end of a body."""

    async def clean(_data: None) -> None:
        schedule(stand())
        await sleep("cool-off", "8h")

    @durable(on_cancel=clean)
    async def workflow() -> None:
        await sleep("night", "8h")

    async with working(migrated_url, workflow, workers=2, heartbeat_interval="200ms") as scheduler:
        handle = await scheduler.start(workflow)
        await until(handle, WAITING)
        await handle.cancel()
        await eventually(lambda: done, ["began"])
        await eventually(lambda: _has_step(handle, "cool-off"))
        await let_time_pass(scheduler)
        await eventually(lambda: done, ["began", "interrupted"])
        await is_over(scheduler)


async def test_children_clean_up_too(migrated_url: str) -> None:
    """Each of the executions that are cancelled with another one does what it has to."""

    @durable(on_cancel=undo)
    async def parent(data: str) -> None:
        for name in "bc":
            await start_child(order, name)
        await sleep("night", "8h")
        await note(data)

    async with working(migrated_url, parent, order, workers=2) as scheduler:
        handle = await scheduler.start(parent, "a")
        await eventually(lambda: sorted(map(str, done)) == ["do b", "do c"])
        await until(handle, WAITING)
        await handle.cancel()
        await eventually(lambda: sorted(map(str, done)) == ["do b", "do c", "undo a", "undo b", "undo c"])
        await is_over(scheduler)


async def test_between_two_runs(migrated_url: str) -> None:
    """An endless execution that is cancelled has its cleanup, in whatever run that is."""

    @durable(on_cancel=done.append)
    async def endless(number: int) -> None:
        await continue_as_new(number + 1)

    async with working(migrated_url, endless, workers=2) as scheduler:
        handles = await scheduler.start_many(endless, [(None, 0) for _ in range(10)])
        for handle in handles:
            await eventually(lambda: _is_endless(handle))  # noqa: B023 - awaited at once
        await asyncio.gather(*(handle.cancel() for handle in handles))
        await eventually(lambda: len(done), 10)
        await is_over(scheduler)
        payloads = [(await handle.info()).payload for handle in handles]
        assert sorted(map(str, done)) == sorted(map(str, payloads))


async def _is_endless(handle: ExecutionHandle[Any]) -> bool:
    return (await handle.info()).run_index > 0


async def test_event_that_was_not_taken(migrated_url: str) -> None:
    """It can take what was offered to the run before."""

    async def clean(_data: None) -> None:
        done.append(await wait_for_event("refund"))

    @durable(on_cancel=clean)
    async def workflow() -> None:
        await sleep("night", "8h")

    async with working(migrated_url, workflow) as scheduler:
        handle = await scheduler.start(workflow)
        await until(handle, WAITING)
        await handle.offer_event("refund", 7)
        await handle.cancel()
        await eventually(lambda: done, [7])
        await is_over(scheduler)


async def test_error(migrated_url: str) -> None:
    """What it raises ends it, and changes nothing."""

    async def clean(_data: None) -> None:
        await note("first")
        raise ValueError("no")

    @durable(on_cancel=clean)
    async def workflow() -> None:
        await sleep("night", "8h")

    async with working(migrated_url, workflow) as scheduler:
        handle = await scheduler.start(workflow)
        await until(handle, WAITING)
        await handle.cancel()
        await eventually(lambda: done, ["first"])
        await is_over(scheduler)
        info = await handle.info()
        assert (info.status, info.error) == (CANCELLED, None)


async def test_shutdown(migrated_url: str) -> None:
    """A worker that stops puts it back, and another one goes on with it."""
    gate = asyncio.Event()

    async def clean(_data: None) -> None:
        await note("first")
        done.append("stands")
        await gate.wait()
        done.append(context().execution_id)

    @durable(on_cancel=clean)
    async def workflow() -> None:
        await sleep("night", "8h")

    async with scheduler_on(migrated_url) as scheduler:
        async with worker_on(migrated_url, workflow, shutdown_timeout=0):
            handle = await scheduler.start(workflow, execution_id="x")
            await until(handle, WAITING)
            await handle.cancel()
            await eventually(lambda: done, ["first", "stands"])
        gate.set()
        async with worker_on(migrated_url, workflow):
            await eventually(lambda: done, ["first", "stands", "stands", "x"])
            await is_over(scheduler)
        assert await handle.status() is CANCELLED


async def test_other_code(migrated_url: str) -> None:
    """A handler that has nothing to do any more when its turn comes does nothing."""

    @durable("order")
    async def later(_data: str) -> None:
        pass

    async with scheduler_on(migrated_url) as scheduler:
        async with worker_on(migrated_url, order):
            handle = await scheduler.start(order, "a")
            await until(handle, WAITING)
        await handle.cancel()
        tasks = tables_of(scheduler.names).tasks
        async with scheduler.engine.begin() as connection:
            await connection.execute(update(tasks).values(due_at=func.now()))
        async with worker_on(migrated_url, later):
            await is_over(scheduler)
        assert await handle.status() is CANCELLED
    assert done == ["do a"]
