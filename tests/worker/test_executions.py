"""Executions that workflows start, with real workers: typed results, failures, cancellations, resumptions."""

import asyncio
from collections import Counter
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest

from tests.support.waiting import PATIENCE, eventually
from tests.support.working import count_rows, let_time_pass, scheduler_on, until, worker_on, working
from zart_sqla import (
    ExecutionAlreadyExists,
    ExecutionCancelled,
    ExecutionFailed,
    ExecutionHandle,
    ExecutionStatus,
    NotInWorkflowError,
    PostgresScheduler,
    StepKind,
    context,
    durable,
    schedule,
    sleep,
    start_child,
    step,
    sync,
    trx,
    wait_for_event,
)

CANCELLED = ExecutionStatus.CANCELLED
COMPLETED = ExecutionStatus.COMPLETED
RUNNING = ExecutionStatus.RUNNING
WAITING = ExecutionStatus.WAITING


@dataclass(frozen=True)
class Parcel:
    """What a child is given, and gives back."""

    id: str
    weight: Decimal


@durable
async def pack(parcel: Parcel) -> Parcel:
    """Be a child."""
    return Parcel(parcel.id, parcel.weight * 2)


@durable
async def expect(name: str) -> Any:
    """Be a child that waits for an event."""
    return await wait_for_event(name)


@durable
async def nap(name: str) -> str:
    """Be a child that sleeps."""
    await sleep("night", "8h")
    return name


@durable
async def refuse(name: str) -> None:
    """Be a child that fails."""
    await turn_down(name)


@step
async def turn_down(name: str) -> None:
    """Fail."""
    raise ValueError(name)


class Gates:
    """Where a child stands until the test lets it go on.

    Attributes:
        gate: what it waits for.
        seen: what has happened to it.
    """

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.seen: list[str] = []

    async def stand(self) -> None:
        """Wait for the gate, and tell if that is cancelled."""
        self.seen.append("began")
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.seen.append("interrupted")
            raise
        self.seen.append("ended")


@durable
async def waiter(names: list[str]) -> list[Any]:
    """Have a child for each name, and wait for them in that order."""
    children = [await start_child(expect, name, execution_id=f"{context().execution_id}-{name}") for name in names]
    return [await child.result() for child in children]


async def one(scheduler: PostgresScheduler, execution_id: str, status: ExecutionStatus) -> ExecutionHandle[Any]:
    """Return an execution when it is there and stands so."""
    handle = scheduler.handle(execution_id)

    async def look() -> bool:
        listed = await scheduler.list_executions(search=execution_id)
        return any(found.execution_id == execution_id and found.status is status for found in listed)

    await eventually(look)
    return handle


async def is_quiet(scheduler: PostgresScheduler) -> None:
    """Wait until no task is left."""

    async def look() -> bool:
        return (await count_rows(scheduler))["tasks"] == 0

    await eventually(look)


# Results ----------------------------------------------------------------------------------------------------------


async def test_result_is_typed(migrated_url: str) -> None:
    """The parent gets what the child returned, in its type, the first time and on replay."""
    seen: list[Parcel] = []

    @durable
    async def order() -> Decimal:
        child = await start_child(pack, Parcel("a", Decimal("1.5")), execution_id="child")
        seen.append(await child.result())
        await sleep("a-while", "1h")
        return seen[-1].weight

    async with working(migrated_url, order, pack, workers=2) as scheduler:
        handle = await scheduler.start(order, execution_id="parent")
        await eventually(lambda: seen)
        await until(handle, WAITING)
        await let_time_pass(scheduler)
        assert await handle.result(timeout=PATIENCE) == Decimal("3.0")
        assert seen == [Parcel("a", Decimal("3.0"))] * len(seen)
        assert len(seen) >= 2
        child = await scheduler.handle("child").info()
        assert (child.parent_id, child.task_name, child.status) == ("parent", "pack", "completed")
        steps = [(one.name, one.kind, one.result) for one in await handle.steps()]
        assert steps[:2] == [
            ("pack", StepKind.EXECUTION, "child"),
            ("pack.result", StepKind.RESULT, {"id": "a", "weight": "3.0"}),
        ]


async def test_many_children(migrated_url: str) -> None:
    """Twenty children, over two workers, each once; the parent waits as a row."""

    @durable
    async def order() -> list[str]:
        children = [await start_child(pack, Parcel(str(number), Decimal(number))) for number in range(20)]
        return [str((await child.result()).weight) for child in children]

    async with working(migrated_url, order, pack, workers=2) as scheduler:
        handle = await scheduler.start(order)
        assert await handle.result(timeout=PATIENCE) == [str(2 * number) for number in range(20)]
        assert (await count_rows(scheduler))["executions"] == 21
        await is_quiet(scheduler)


async def test_grandchildren(migrated_url: str) -> None:
    """Children have children."""

    @durable
    async def tree(depth: int) -> int:
        if depth == 0:
            return 1
        children = [await start_child(tree, depth - 1) for _ in range(2)]
        return 1 + sum([await child.result() for child in children])

    async with working(migrated_url, tree, workers=2) as scheduler:
        assert await (await scheduler.start(tree, 3)).result(timeout=PATIENCE) == 15
        await is_quiet(scheduler)


async def test_def_workflow(migrated_url: str) -> None:
    """A `def` workflow has children without `await`."""

    @durable
    def order() -> Parcel:
        return sync.start_child(pack, Parcel("a", Decimal(1))).result()

    async with working(migrated_url, order, pack, workers=2) as scheduler:
        assert await (await scheduler.start(order)).result(timeout=PATIENCE) == Parcel("a", Decimal(2))


async def test_fire_and_forget(migrated_url: str) -> None:
    """A child that nobody waits for goes on after its parent has completed, or failed."""

    @durable
    async def order(fails: bool) -> None:  # noqa: FBT001 - an input
        await start_child(expect, "go", execution_id=f"child-{fails}")
        if fails:
            raise ValueError("no")

    async with working(migrated_url, order, expect, workers=2) as scheduler:
        await (await scheduler.start(order, False)).result(timeout=PATIENCE)  # noqa: FBT003
        with pytest.raises(ExecutionFailed):
            await (await scheduler.start(order, True)).result(timeout=PATIENCE)  # noqa: FBT003
        for child in (await one(scheduler, "child-False", WAITING), await one(scheduler, "child-True", WAITING)):
            await child.offer_event("go", 1)
            assert await child.result(timeout=PATIENCE) == 1
        await is_quiet(scheduler)


async def test_queue(migrated_url: str) -> None:
    """A child is in its parent's queue, or in the one that is named."""

    @durable
    async def order() -> None:
        await start_child(pack, Parcel("a", Decimal(1)), execution_id="same")
        await start_child(pack, Parcel("a", Decimal(1)), execution_id="named", queue="slow")

    async with working(migrated_url, order, pack, queues=["fast", "slow"]) as scheduler:
        await (await scheduler.start(order, queue="fast")).result(timeout=PATIENCE)
        assert [(await scheduler.handle(name).info()).queue for name in ("same", "named")] == ["fast", "slow"]


async def test_wakes_once_for_each(migrated_url: str) -> None:
    """The end of a child brings about one turn of a parent that waits, and nothing else does."""
    turns: list[int] = []

    @durable
    async def order() -> list[Any]:
        children = [await start_child(expect, name, execution_id=name) for name in ("a", "b", "c")]
        turns.append(1)
        return [await child.result() for child in children]

    async with working(migrated_url, order, expect) as scheduler:
        handle = await scheduler.start(order)
        for name in ("c", "b", "a"):
            child = await one(scheduler, name, WAITING)
            await until(handle, WAITING)
            before = len(turns)
            await child.offer_event("other")  # wakes nobody
            await child.offer_event(name, name)
            await child.result(timeout=PATIENCE)
            await eventually(lambda: len(turns), before + 1)
        assert await handle.result(timeout=PATIENCE) == ["a", "b", "c"]
    assert len(turns) == 4


# Failures ---------------------------------------------------------------------------------------------------------


async def test_failed_child(migrated_url: str) -> None:
    """Its failure can be caught, and the branch is the same on replay; uncaught it fails the parent."""

    @durable
    async def careful() -> str:
        child = await start_child(refuse, "no money", execution_id="child-1")
        try:
            await child.result()
        except ExecutionFailed as error:
            await sleep("a-while", "1h")
            return f"{error.execution_id} {error.step} {error.error_type} {error.message}"
        return "no"

    @durable
    async def careless() -> None:
        await (await start_child(refuse, "no money", execution_id="child-2")).result()

    async with working(migrated_url, careful, careless, refuse, workers=2) as scheduler:
        handle = await scheduler.start(careful)
        await until(handle, WAITING)
        await eventually(lambda: _has_step(handle, "a-while"))
        await let_time_pass(scheduler)
        assert await handle.result(timeout=PATIENCE) == "child-1 turn_down ValueError no money"
        with pytest.raises(ExecutionFailed) as caught:
            await (await scheduler.start(careless)).result(timeout=PATIENCE)
        assert (caught.value.step, caught.value.message) == ("refuse.result", "no money")
        assert await scheduler.handle("child-2").status() is ExecutionStatus.FAILED


async def _has_step(handle: ExecutionHandle[Any], name: str) -> bool:
    return name in {one.name for one in await handle.steps()}


async def test_existing_id(migrated_url: str) -> None:
    """An id that is taken is told once and for all, even when it is free of its run; nothing runs twice."""

    @durable
    async def order() -> str:
        try:
            await start_child(pack, Parcel("b", Decimal(1)), execution_id="taken")
        except ExecutionAlreadyExists as error:
            await sleep("a-while", "1h")
            return f"{error.execution_id} {error.status}"
        return "no"

    async with working(migrated_url, order, expect, pack, workers=2) as scheduler:
        taken = await scheduler.start(expect, "go", execution_id="taken")
        await until(taken, WAITING)
        handle = await scheduler.start(order)
        await eventually(lambda: _has_step(handle, "a-while"))
        await taken.offer_event("go")
        await taken.result(timeout=PATIENCE)
        await until(handle, WAITING)
        await let_time_pass(scheduler)
        assert await handle.result(timeout=PATIENCE) == "taken waiting"
        assert (await taken.info()).parent_id is None


async def test_same_id_from_many_parents(migrated_url: str) -> None:
    """Of many parents that start the same id at once, one has a child."""

    @durable
    async def order(_number: int) -> bool:
        try:
            child = await start_child(pack, Parcel("a", Decimal(1)), execution_id="shared")
        except ExecutionAlreadyExists:
            return False
        await child.result()
        return True

    async with working(migrated_url, order, pack, workers=2) as scheduler:
        handles = await scheduler.start_many(order, [(None, number) for number in range(20)])
        answers = [await handle.result(timeout=PATIENCE) for handle in handles]
        assert Counter(answers) == {False: 19, True: 1}


async def test_id_that_an_app_is_starting(migrated_url: str) -> None:
    """A parent waits for the app that has started the same id and not committed, and hinders nobody meanwhile."""

    @durable
    async def order(child_id: str) -> str:
        try:
            await start_child(expect, "go", execution_id=child_id)
        except ExecutionAlreadyExists:
            return "taken"
        return "started"

    async with working(migrated_url, order, expect, workers=2) as scheduler, scheduler.engine.connect() as app:
        await scheduler.start(expect, "go", execution_id="contested", session=app)
        blocked = await scheduler.start(order, "contested")
        await until(blocked, RUNNING)
        other = await scheduler.start(expect, "go")
        await other.offer_event("go", 1)
        assert await other.result(timeout=PATIENCE) == 1
        await app.rollback()
        assert await blocked.result(timeout=PATIENCE) == "started"


# Cancelling -------------------------------------------------------------------------------------------------------


async def test_cancelled_child(migrated_url: str) -> None:
    """A parent that waits for a child which an app cancels hears of it at once."""

    @durable
    async def order() -> str:
        child = await start_child(nap, "a", execution_id="child")
        try:
            return await child.result()
        except ExecutionCancelled as error:
            return f"{error.execution_id} was cancelled"

    async with working(migrated_url, order, nap, workers=2) as scheduler:
        handle = await scheduler.start(order)
        child = await one(scheduler, "child", WAITING)
        await until(handle, WAITING)
        await child.cancel()
        assert await handle.result(timeout=PATIENCE) == "child was cancelled"


async def test_last_two_children_cancelled_at_once(migrated_url: str) -> None:
    """If the last ones are cancelled in two transactions at the same time, the parent wakes after the later one."""

    @durable
    async def order() -> list[str]:
        children = [await start_child(nap, name, execution_id=name) for name in ("a", "b")]
        seen = []
        for child in children:
            with pytest.raises(ExecutionCancelled) as caught:
                await child.result()
            seen.append(caught.value.execution_id)
        return seen

    async with working(migrated_url, order, nap, workers=2) as scheduler:
        handle = await scheduler.start(order)
        a, b = [await one(scheduler, name, WAITING) for name in ("a", "b")]
        await until(handle, WAITING)
        async with scheduler.engine.connect() as first, scheduler.engine.connect() as second:
            await a.cancel(session=first)
            await b.cancel(session=second)
            await first.commit()
            await second.commit()
        assert await handle.result(timeout=PATIENCE) == ["a", "b"]


@pytest.mark.parametrize("child_does", ["sleeps", "waits", "runs a step", "fans out", "has children", "is not claimed"])
async def test_cancel_of_a_parent(migrated_url: str, child_does: str) -> None:
    """Whatever a child does just then, it is cancelled with its parent, and stays so."""
    place = Gates()

    @step
    async def stand() -> None:
        await place.stand()

    @durable
    async def child(does: str) -> None:
        match does:
            case "sleeps":
                await sleep("night", "8h")
            case "waits":
                await wait_for_event("never")
            case "runs a step":
                await stand()
            case "fans out":
                await schedule(oversleep())
            case "has children":
                await (await start_child(nap, "x", execution_id="grandchild")).result()

    @durable
    async def order(does: str) -> None:
        queue = "nobody's" if does == "is not claimed" else None
        await (await start_child(child, does, execution_id="child", queue=queue)).result()

    async with working(migrated_url, order, child, nap, workers=2, queues=["default"]) as scheduler:
        handle = await scheduler.start(order, child_does, execution_id="parent")
        states = {"runs a step": RUNNING, "is not claimed": ExecutionStatus.SCHEDULED}
        await one(scheduler, "child", states.get(child_does, WAITING))
        below = ["grandchild"] if child_does == "has children" else []
        for name in below:
            await one(scheduler, name, WAITING)
        seen = ["began", "interrupted"] if child_does == "runs a step" else []
        await eventually(lambda: place.seen == seen[:1])
        await until(handle, WAITING)
        await handle.cancel()
        names = ["parent", "child", *below]
        assert [await scheduler.handle(name).status() for name in names] == [CANCELLED] * len(names)
        await eventually(lambda: place.seen == seen)
        assert (await count_rows(scheduler))["tasks"] == 0
        await let_time_pass(scheduler)
        assert [await scheduler.handle(name).status() for name in names] == [CANCELLED] * len(names)


@step
async def oversleep() -> None:
    """Sleep for longer than a test takes."""
    await asyncio.Event().wait()


async def test_leave(migrated_url: str) -> None:
    """A child that is to be left goes on, with its own children; the others are cancelled."""

    @durable
    async def independent() -> Any:
        return await (await start_child(expect, "go", execution_id="grandchild")).result()

    @durable
    async def order() -> None:
        await start_child(independent, execution_id="left", on_parent_cancel="leave")
        await start_child(nap, "x", execution_id="bound")
        await sleep("night", "8h")

    async with working(migrated_url, order, independent, expect, nap, workers=2) as scheduler:
        handle = await scheduler.start(order)
        bound, left = await one(scheduler, "bound", WAITING), await one(scheduler, "left", WAITING)
        grandchild = await one(scheduler, "grandchild", WAITING)
        await until(handle, WAITING)
        await handle.cancel()
        assert [await child.status() for child in (bound, left, grandchild)] == [CANCELLED, WAITING, WAITING]
        await grandchild.offer_event("go", 7)
        assert await left.result(timeout=PATIENCE) == 7


async def test_cancel_beside_starts(migrated_url: str) -> None:
    """Parents that are cancelled while they start children leave none behind."""

    @durable
    async def order(number: int) -> None:
        for index in range(100):
            await start_child(nap, "x", execution_id=f"child-{number}-{index}")

    async with working(migrated_url, order, nap, workers=2) as scheduler:
        handles = await scheduler.start_many(order, [(None, number) for number in range(5)])
        for number, handle in enumerate(handles):
            await one(scheduler, f"child-{number}-0", WAITING)
            await handle.cancel()
        await is_quiet(scheduler)
        listed = await scheduler.list_executions(task_name="nap", limit=1000)
        assert {child.status for child in listed} == {CANCELLED}


async def test_step_that_cancels_its_parent(migrated_url: str) -> None:
    """In the transaction of its checkpoint it cannot, since it would go with it; it may without."""
    told: list[str] = []

    @step
    async def rebel() -> None:
        session = await trx()
        try:
            await scheduler.handle("parent").cancel(session=session)
        except NotInWorkflowError as error:
            told.append(str(error))

    @durable
    async def child() -> str:
        await rebel()
        return "done"

    @durable
    async def order() -> str:
        return await (await start_child(child)).result()

    async with working(migrated_url, order, child, workers=2) as scheduler:
        handle = await scheduler.start(order, execution_id="parent")
        assert await handle.result(timeout=PATIENCE) == "done"
    assert len(told) == 1
    assert "cannot end the run of its own step" in told[0]


# Resuming ---------------------------------------------------------------------------------------------------------


async def test_resume_of_a_parent(migrated_url: str) -> None:
    """A parent that failed while its child runs is resumed, and woken by the end of that child at once."""
    place = Gates()
    broken = [True]

    @durable
    async def child() -> int:
        await place.stand()
        return 7

    @durable
    async def order() -> int:
        started = await start_child(child, execution_id="child")
        if broken[0]:
            raise ValueError("not yet")
        return await started.result()

    async with working(migrated_url, order, child, workers=2) as scheduler:
        handle = await scheduler.start(order)
        with pytest.raises(ExecutionFailed):
            await handle.result(timeout=PATIENCE)
        await eventually(lambda: place.seen)
        broken.clear()
        broken.append(False)
        await handle.resume()
        await until(handle, WAITING)
        place.gate.set()
        assert await handle.result(timeout=PATIENCE) == 7
        assert place.seen == ["began", "ended"]


async def test_resume_of_a_child_then_its_parent(migrated_url: str) -> None:
    """A child that failed, and its parent with it, are resumed one after the other, and both complete."""
    broken = [True]

    @step
    async def charge() -> int:
        if broken:
            raise ValueError("no money")
        return 7

    @durable
    async def child() -> int:
        return await charge()

    @durable
    async def order() -> int:
        return await (await start_child(child, execution_id="child")).result()

    async with working(migrated_url, order, child, workers=2) as scheduler:
        handle = await scheduler.start(order)
        with pytest.raises(ExecutionFailed):
            await handle.result(timeout=PATIENCE)
        await handle.resume()  # too early: the child is still what it was
        with pytest.raises(ExecutionFailed):
            await handle.result(timeout=PATIENCE)
        broken.clear()
        await scheduler.handle("child").resume()
        await handle.resume()
        assert await handle.result(timeout=PATIENCE) == 7
        assert (await handle.info()).run_index == 2


async def test_resume_of_a_child_beside_an_awaited_one(migrated_url: str) -> None:
    """A child that goes on again does not hide the end of the one that its parent waits for."""
    broken = [True]

    @durable
    async def flaky() -> Any:
        if broken:
            raise ValueError("not yet")
        return await wait_for_event("never")

    @durable
    async def order() -> Any:
        await start_child(flaky, execution_id="flaky")
        return await (await start_child(expect, "go", execution_id="awaited")).result()

    async with working(migrated_url, order, flaky, expect, workers=2) as scheduler:
        handle = await scheduler.start(order)
        flaky_one = await one(scheduler, "flaky", ExecutionStatus.FAILED)
        awaited = await one(scheduler, "awaited", WAITING)
        await until(handle, WAITING)
        broken.clear()
        await flaky_one.resume()
        await until(flaky_one, WAITING)
        await awaited.offer_event("go", 3)
        assert await handle.result(timeout=PATIENCE) == 3


async def test_leaving_worker(migrated_url: str) -> None:
    """A worker that stops right after the child ended leaves a parent that wakes."""
    async with scheduler_on(migrated_url) as scheduler:
        handle = await scheduler.start(waiter, ["a"], execution_id="w")
        async with worker_on(migrated_url, waiter, expect):
            child = await one(scheduler, "w-a", WAITING)
            await until(handle, WAITING)
            await child.offer_event("a", 5)
            await child.result(timeout=PATIENCE)
        async with worker_on(migrated_url, waiter, expect):
            assert await handle.result(timeout=PATIENCE) == [5]
