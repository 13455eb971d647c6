"""Executions that runs have started: started, waited for, cancelled in levels, resumed, and handed to a next run."""

import asyncio
from collections.abc import Iterable
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import func

from tests.store.connections import Database, is_blocked
from tests.store.crew import (
    ERROR,
    claim,
    claim_one,
    finish,
    info,
    kill,
    make_due,
    new,
    put_down,
    register,
    renew,
    rows,
    start,
)
from zart_sqla.models.mapping import tables_of
from zart_sqla.records import Child, ClaimedTask, NewEvent
from zart_sqla.store import children, diagnosis, events, executions, tasks, workers
from zart_sqla.store.children import ChildrenToAdd
from zart_sqla.store.tasks import RunToRenew

CLEANERS: dict[str, Any] = {"cleaners": ["task"]}


async def start_child(database: Database, parent: ClaimedTask, *execution_ids: str, **options: Any) -> list[UUID]:
    """Start executions as children of a run, bound to it, and return their runs."""
    known: dict[str, Any] = {"parent_id": parent.execution_id, "parent_run_id": parent.run_id, "is_bound": True}
    runs: list[UUID] = []
    for execution_id in execution_ids:
        runs += await database.run(executions.insert, [new(execution_id, **known | options)])
    return runs


async def family(database: Database, worker: UUID, *names: str) -> tuple[ClaimedTask, dict[str, ClaimedTask]]:
    """Return a run and its children, all of them claimed by the worker."""
    parent = await claim_one(database, worker, "parent")
    await start_child(database, parent, *names)
    return parent, {one.execution_id: one for one in await claim(database, worker)}


async def open_executions(database: Database, run_id: UUID) -> list[str]:
    """Return the executions that a run has started and that have not ended."""
    return sorted((await database.run(tasks.journal, [run_id]))[run_id].executions)


async def wait_for(database: Database, worker: UUID, claimed: ClaimedTask, awaits_open: int) -> None:
    """Put a run down until so few of its children are open."""
    assert await put_down(database, worker, claimed, is_waiting=True, awaits_open=awaits_open)


async def is_due(database: Database, run_id: UUID) -> bool:
    """Tell whether a run's task can be claimed."""

    def look(connection: Any, names: Any) -> bool:
        table = tables_of(names).tasks
        query = table.select().where(
            table.c.task_id == run_id, table.c.due_at <= func.now(), table.c.worker_id.is_(None)
        )
        return connection.execute(query).one_or_none() is not None

    return await database.run(look)


async def statuses(database: Database, execution_ids: Iterable[str]) -> list[str]:
    """Return where executions stand."""
    return [(await info(database, one)).status.value for one in execution_ids]


# Starting and waiting ---------------------------------------------------------------------------------------------


async def test_start(database: Database) -> None:
    """A child is an execution like others, with a parent, and open in its journal until it ends."""
    worker = await register(database)
    parent, claimed = await family(database, worker, "a", "b")
    child = await info(database, "a")
    assert (child.parent_id, child.status, child.run_index) == ("parent", "running", 0)
    assert (await info(database, "parent")).parent_id is None
    assert claimed["a"].parent_run_id == parent.run_id
    assert claimed["a"].child is None
    assert await open_executions(database, parent.run_id) == ["a", "b"]
    await finish(database, worker, claimed["a"])
    assert await open_executions(database, parent.run_id) == ["b"]


async def test_wake(database: Database) -> None:
    """A run is woken when few enough are open, steps and executions counted together, and not before."""
    worker = await register(database)
    parent, claimed = await family(database, worker, "a", "b")
    step = ChildrenToAdd(parent, [Child(name="step", position=0, call="{}")])
    await database.run(children.add, worker, [step])
    await wait_for(database, worker, parent, 1)
    assert await database.run(children.wake, [parent.run_id]) == {}
    await finish(database, worker, claimed["a"])
    assert await database.run(children.wake, [parent.run_id]) == {}
    assert not await is_due(database, parent.run_id)
    await finish(database, worker, claimed["b"])
    assert await database.run(children.wake, [parent.run_id, uuid4()]) == {parent.run_id: True}
    assert await is_due(database, parent.run_id)
    assert await database.run(children.wake, [parent.run_id]) == {}


async def test_wake_of_a_locked_run(database: Database) -> None:
    """One that somebody has locked is told, to be woken later."""
    worker = await register(database)
    parent, claimed = await family(database, worker, "a")
    await wait_for(database, worker, parent, 0)
    await finish(database, worker, claimed["a"])
    async with database.connected() as app:
        offered = NewEvent(execution_id="parent", name="x", payload="1")
        assert await app.run(events.offer, offered)
        assert await database.run(children.wake, [parent.run_id]) == {parent.run_id: False}
        await app.rollback()
    assert await database.run(children.wake_all) == {parent.run_id: True}


async def test_wake_of_a_run_that_was_followed(database: Database) -> None:
    """Who ends a child may have claimed it for a run that another one has followed since: that one is woken."""
    worker = await register(database)
    parent, claimed = await family(database, worker, "a")
    await finish(database, worker, parent, ERROR)
    resumed = uuid4()
    assert await database.run(executions.resume, "parent", resumed)
    (again,) = await claim(database, worker)
    await wait_for(database, worker, again, 0)
    await finish(database, worker, claimed["a"])
    assert claimed["a"].parent_run_id == parent.run_id
    assert await database.run(children.wake, [parent.run_id]) == {resumed: True}


# Cancelling -------------------------------------------------------------------------------------------------------


async def test_cancel_in_levels(database: Database) -> None:
    """Children and grandchildren are cancelled with their ancestor, unless they are to be left, or have ended."""
    worker = await register(database)
    parent, claimed = await family(database, worker, "a", "b", "done")
    await start_child(database, parent, "left", is_bound=False)
    await finish(database, worker, claimed["done"])
    await start_child(database, claimed["a"], "a-1", "a-2")
    (left,) = [one for one in await claim(database, worker) if one.execution_id == "left"]
    await start_child(database, left, "left-1")
    await start(database, "stranger")
    ended = await database.run(executions.cancel, "parent")
    names = ["parent", "a", "b", "a-1", "a-2"]
    assert ended == {(await info(database, name)).run_id for name in names}
    assert await statuses(database, names) == ["cancelled"] * 5
    assert await statuses(database, ["done", "left", "left-1", "stranger"]) == [
        "completed",
        "running",
        "scheduled",
        "scheduled",
    ]
    assert (await info(database, "a")).completed_at is not None
    assert await database.run(executions.cancel, "parent") == set()


async def test_cancel_of_a_child(database: Database) -> None:
    """The parent and the siblings go on, and the parent can be woken."""
    worker = await register(database)
    parent, _ = await family(database, worker, "a", "b")
    await wait_for(database, worker, parent, 1)
    assert await database.run(executions.cancel, "a")
    assert await database.run(children.wake, [parent.run_id]) == {parent.run_id: True}
    assert await statuses(database, ["a", "b"]) == ["cancelled", "running"]


async def test_cancel_waits_for_a_start(database: Database) -> None:
    """Who is starting a child holds the run: a cancellation waits, and then takes the child along."""
    worker = await register(database)
    parent = await claim_one(database, worker, "parent")
    async with database.connected() as starter, database.connected() as app:
        assert await starter.run(tasks.touch, worker, [parent]) == {parent.task_id}
        child = new("a", parent_id="parent", parent_run_id=parent.run_id, is_bound=True)
        await starter.run(executions.insert, [child])
        waiting = asyncio.create_task(app.run(executions.cancel, "parent"))
        assert await is_blocked(waiting, database)
        await starter.commit()
        assert await waiting == {parent.run_id, child.run_id}
        await app.commit()
    assert await statuses(database, ["parent", "a"]) == ["cancelled", "cancelled"]


async def test_start_beside_an_open_cancellation(database: Database) -> None:
    """While the run is being cancelled no child can be started, and nobody waits; after it neither."""
    worker = await register(database)
    parent = await claim_one(database, worker, "parent")
    async with database.connected() as app:
        await app.run(executions.cancel, "parent")
        assert await database.run(tasks.touch, worker, [parent]) == set()
        assert await database.run(tasks.held, worker, [parent]) == {parent.task_id}
        await app.commit()
    assert await database.run(tasks.touch, worker, [parent]) == set()
    assert await database.run(tasks.held, worker, [parent]) == set()


async def test_cancel_of_a_child_that_continues(database: Database) -> None:
    """A child that goes on as a new run at that moment does not escape the cancellation of its parent."""
    worker = await register(database)
    parent, claimed = await family(database, worker, "a")
    async with database.connected() as writer, database.connected() as app:
        assert await writer.run(tasks.renew, worker, [RunToRenew(claimed["a"], uuid4(), "2")])
        waiting = asyncio.create_task(app.run(executions.cancel, "parent"))
        assert await is_blocked(waiting, database)
        await writer.commit()
        assert len(await waiting) == 2
        await app.commit()
    assert await statuses(database, ["parent", "a"]) == ["cancelled", "cancelled"]
    assert (await info(database, "a")).run_index == 1
    assert await rows(database, lambda tables: tables.tasks) == []
    assert parent.run_id == (await info(database, "parent")).run_id


async def test_two_cancellations(database: Database) -> None:
    """Of two that meet at a child one ends it, and the other goes on from there."""
    worker = await register(database)
    _, claimed = await family(database, worker, "a")
    await start_child(database, claimed["a"], "a-1")
    async with database.connected() as one, database.connected() as other:
        assert len(await one.run(executions.cancel, "a")) == 2
        waiting = asyncio.create_task(other.run(executions.cancel, "parent"))
        assert await is_blocked(waiting, database)
        await one.commit()
        assert len(await waiting) == 1
        await other.commit()
    assert await statuses(database, ["parent", "a", "a-1"]) == ["cancelled"] * 3


async def test_many_cancel_and_start_races(database: Database) -> None:
    """However they interleave, no child outlives a parent that was cancelled, and nothing is left of either."""
    worker = await register(database)
    ids = [f"order-{number}" for number in range(10)]
    await start(database, *ids)
    claimed = await claim(database, worker)

    async def add(parent: ClaimedTask) -> None:
        async with database.connected() as link:
            if await link.run(tasks.touch, worker, [parent]):
                known = {"parent_id": parent.execution_id, "parent_run_id": parent.run_id, "is_bound": True}
                await link.run(executions.insert, [new(f"{parent.execution_id}-child", **known)])
            await link.commit()

    races = (asyncio.gather(database.run(executions.cancel, one.execution_id), add(one)) for one in claimed)
    await asyncio.gather(*races)
    assert await rows(database, lambda tables: tables.tasks) == []
    assert {one["outcome"] for one in await rows(database, lambda tables: tables.execution_runs)} == {"cancelled"}


# What follows a cancellation --------------------------------------------------------------------------------------


async def test_cleanup(database: Database) -> None:
    """A run that a handler with something to do had taken leaves a task, due a moment later, that changes nothing."""
    worker = await register(database)
    await start(database, "order-1")
    (claimed,) = await claim(database, worker, **CLEANERS)
    await database.run(executions.cancel, "order-1")
    cancelled = await info(database)
    assert await claim(database, worker, **CLEANERS) == []
    await make_due(database)
    (cleanup,) = await claim(database, worker, **CLEANERS)
    assert cleanup.is_cleanup
    assert cleanup.has_history
    assert cleanup.task_id != claimed.task_id
    assert (cleanup.run_id, cleanup.payload, cleanup.parent_run_id) == (claimed.run_id, claimed.payload, None)
    assert cleanup.started_at == claimed.started_at
    assert await info(database) == cancelled
    assert await database.run(executions.cancel, "order-1") == set()
    assert await database.run(children.remove, worker, [cleanup]) == {cleanup.task_id}
    assert await rows(database, lambda tables: tables.tasks) == []
    assert await info(database) == cancelled


@pytest.mark.parametrize("is_claimed", [True, False])
async def test_no_cleanup(database: Database, is_claimed: bool) -> None:  # noqa: FBT001
    """There is none before the first claim, nor if the handler that had the run has nothing to do."""
    worker = await register(database)
    await start(database, "order-1")
    if is_claimed:
        await claim(database, worker, cleaners=["other"])
    await database.run(executions.cancel, "order-1")
    assert await rows(database, lambda tables: tables.tasks) == []


async def test_cleanup_of_children(database: Database) -> None:
    """Each of the runs that were cancelled has its own."""
    worker = await register(database)
    await start(database, "parent")
    (parent,) = await claim(database, worker, **CLEANERS)
    await start_child(database, parent, "a", "b")
    await claim(database, worker, limit=1, **CLEANERS)
    await database.run(executions.cancel, "parent")
    await make_due(database)
    assert {one.execution_id for one in await claim(database, worker, **CLEANERS)} == {"parent", "a"}


async def test_cleanup_is_kept_over_runs(database: Database) -> None:
    """An endless execution that is cancelled between two of its runs has one too."""
    worker = await register(database)
    await start(database, "order-1")
    (claimed,) = await claim(database, worker, **CLEANERS)
    await renew(database, worker, claimed)
    await database.run(executions.cancel, "order-1")
    await make_due(database)
    (cleanup,) = await claim(database, worker, **CLEANERS)
    assert cleanup.is_cleanup
    assert cleanup.payload == "2"


async def test_cleanup_sees_events(database: Database) -> None:
    """It knows that events were offered to the run, and can take those that were not taken."""
    worker = await register(database)
    await start(database, "order-1")
    await database.run(events.offer, NewEvent(execution_id="order-1", name="x", payload="1"))
    await claim(database, worker, **CLEANERS)
    await database.run(executions.cancel, "order-1")
    await make_due(database)
    (cleanup,) = await claim(database, worker, **CLEANERS)
    assert cleanup.signals == 1


async def test_cleanup_with_children(database: Database) -> None:
    """Its steps are tasks like others, not cleanups; it is woken by them, and takes those that are left with it."""
    worker = await register(database)
    await start(database, "order-1")
    await claim(database, worker, **CLEANERS)
    await database.run(executions.cancel, "order-1")
    await make_due(database)
    (cleanup,) = await claim(database, worker, **CLEANERS)
    wanted = [Child(name=name, position=number, call="{}") for number, name in enumerate("ab")]
    assert await database.run(children.add, worker, [ChildrenToAdd(cleanup, wanted)]) == {cleanup.task_id}
    await start_child(database, cleanup, "started")
    await wait_for(database, worker, cleanup, 2)
    step, other, started = await claim(database, worker, **CLEANERS)
    assert [one.is_cleanup for one in (step, other, started)] == [False] * 3
    assert step.child is not None
    assert await database.run(children.remove, worker, [step]) == {step.task_id}
    assert await database.run(children.wake, [cleanup.run_id]) == {cleanup.run_id: True}
    (cleanup,) = await claim(database, worker, **CLEANERS)
    assert cleanup.is_cleanup
    assert await database.run(children.remove, worker, [cleanup]) == {cleanup.task_id}
    assert await database.run(tasks.held, worker, [other, started]) == {started.task_id}


async def test_removal_of_one_step(database: Database) -> None:
    """A step that is done takes no siblings with it."""
    worker = await register(database)
    parent = await claim_one(database, worker)
    wanted = [Child(name=name, position=number, call="{}") for number, name in enumerate("ab")]
    await database.run(children.add, worker, [ChildrenToAdd(parent, wanted)])
    one, other = await claim(database, worker)
    assert await database.run(children.remove, worker, [one]) == {one.task_id}
    assert await database.run(tasks.held, worker, [parent, one, other]) == {parent.task_id, other.task_id}


async def test_crashes_of_a_cleanup(database: Database) -> None:
    """One that kills its workers is given up, with its steps; the run stays cancelled, as it was."""
    worker = await register(database)
    await start(database, "order-1")
    await claim(database, worker, **CLEANERS)
    await database.run(executions.cancel, "order-1")
    cancelled = await info(database)
    await make_due(database)
    (cleanup,) = await claim(database, worker, **CLEANERS)
    await database.run(children.add, worker, [ChildrenToAdd(cleanup, [Child(name="a", position=0, call="{}")])])
    await kill(database, worker)
    other = await register(database)
    dead = [one.worker_id for one in await database.run(workers.bury, other, grace_seconds=1)]
    (orphan,) = await database.run(workers.take_over, dead, max_crashes=1)
    assert (orphan.execution_id, orphan.is_failed) == ("order-1", True)
    assert await rows(database, lambda tables: tables.tasks) == []
    assert await info(database) == cancelled


async def test_diagnosis_of_a_cleanup(database: Database) -> None:
    """It makes nothing look lost; overdue, it is told as other tasks are."""
    worker = await register(database)
    await start(database, "order-1")
    await claim(database, worker, **CLEANERS)
    await database.run(executions.cancel, "order-1")
    assert (await database.run(diagnosis.lost, 10)).total == 0
    await make_due(database, later=timedelta(seconds=-60))
    (overdue,) = await database.run(diagnosis.overdue, 30)
    assert (overdue.task_name, overdue.tasks) == ("task", 1)


# Runs that others follow ------------------------------------------------------------------------------------------


async def test_renew(database: Database) -> None:
    """The run completes, and the next one has another input, no history, and the rest of what it had."""
    worker = await register(database)
    grand = await claim_one(database, worker, "grand")
    await start_child(database, grand, "order-1", queue="slow")
    (claimed,) = await claim(database, worker, **CLEANERS)
    new_run = (await renew(database, worker, claimed))[claimed.run_id]
    now = await info(database)
    assert (now.run_id, now.run_index, now.status, now.payload) == (new_run, 1, "scheduled", 2)
    assert (now.queue, now.started_at, now.parent_id) == ("slow", None, "grand")
    runs = {one["run_id"]: one for one in await rows(database, lambda tables: tables.execution_runs)}
    assert (runs[claimed.run_id]["outcome"], runs[claimed.run_id]["result"]) == ("completed", None)
    assert runs[claimed.run_id]["started_at"] == claimed.started_at
    assert runs[new_run]["trigger"] == "continue"
    assert await open_executions(database, grand.run_id) == ["order-1"]
    (again,) = await claim(database, worker)
    assert (again.run_id, again.attempt, again.has_history) == (new_run, 1, False)
    assert again.parent_run_id == grand.run_id
    assert not await finish(database, worker, claimed)
    assert await renew(database, worker, claimed) == {}


async def test_renew_of_several(database: Database) -> None:
    """Several are one statement; of those that are not the worker's any more, nothing comes."""
    worker, other = await register(database), await register(database)
    await start(database, "a", "b", "c")
    first = await claim(database, worker, limit=2)
    (theirs,) = await claim(database, other)
    assert set(await renew(database, worker, *first, theirs)) == {one.run_id for one in first}
    assert [(await info(database, one)).run_index for one in "abc"] == [1, 1, 0]


async def test_renew_keeps_events(database: Database) -> None:
    """Events that were not taken are the next run's, and it knows that there are some."""
    worker = await register(database)
    claimed = await claim_one(database, worker)
    await database.run(events.offer, NewEvent(execution_id="order-1", name="x", payload="1"))
    await renew(database, worker, claimed)
    (again,) = await claim(database, worker)
    assert again.signals == 1


async def test_renew_with_children(database: Database) -> None:
    """Scheduled steps end with the run; executions are the next run's, which is cancelled with them."""
    worker = await register(database)
    parent, claimed = await family(database, worker, "a")
    await database.run(children.add, worker, [ChildrenToAdd(parent, [Child(name="s", position=0, call="{}")])])
    new_run = (await renew(database, worker, parent))[parent.run_id]
    assert await open_executions(database, parent.run_id) == []
    assert await open_executions(database, new_run) == ["a"]
    assert [one["step"] for one in await rows(database, lambda tables: tables.tasks)] == [None, None]
    assert await database.run(executions.cancel, "parent") == {new_run, claimed["a"].run_id}


@pytest.mark.parametrize("is_committed", [True, False])
async def test_renew_beside_a_locked_child(database: Database, is_committed: bool) -> None:  # noqa: FBT001
    """A worker does not wait for an app that is at a child of the run; it settles the others, and that one later."""
    worker = await register(database)
    parent, claimed = await family(database, worker, "a")
    await start(database, "other")
    (other,) = await claim(database, worker)
    async with database.connected() as app:
        await app.run(executions.cancel, "a")
        assert set(await renew(database, worker, parent, other)) == {other.run_id}
        assert await database.run(tasks.held, worker, [parent]) == {parent.task_id}
        await (app.commit() if is_committed else app.rollback())
    new_run = (await renew(database, worker, parent))[parent.run_id]
    assert await open_executions(database, new_run) == ([] if is_committed else ["a"])
    assert claimed["a"].parent_run_id == parent.run_id


async def test_renew_of_parent_and_child(database: Database) -> None:
    """If both go on as new runs at once, the child is still the parent's."""
    worker, other = await register(database), await register(database)
    parent = await claim_one(database, worker, "parent")
    await start_child(database, parent, "a")
    (child,) = await claim(database, other)
    async with database.connected() as writer:
        assert await writer.run(tasks.renew, other, [RunToRenew(child, uuid4(), "2")])
        assert await renew(database, worker, parent) == {}
        await writer.commit()
    new_run = (await renew(database, worker, parent))[parent.run_id]
    assert await open_executions(database, new_run) == ["a"]
    assert (await info(database, "a")).run_index == 1


async def test_renew_in_one_batch(database: Database) -> None:
    """Parent, child and grandchild go on as new runs in one statement, and stay related."""
    worker = await register(database)
    parent, claimed = await family(database, worker, "a", "b")
    await start_child(database, claimed["a"], "a-1")
    (grandchild,) = await claim(database, worker)
    done = await renew(database, worker, grandchild, parent, claimed["a"])
    assert await open_executions(database, done[parent.run_id]) == ["a", "b"]
    assert await open_executions(database, done[claimed["a"].run_id]) == ["a-1"]
    left = {one["task_id"] for one in await rows(database, lambda tables: tables.tasks)}
    assert left == {*done.values(), claimed["b"].task_id}
    assert len(await database.run(executions.cancel, "parent")) == 4


async def test_cancel_waits_for_a_renewal(database: Database) -> None:
    """A cancellation that finds the run followed by another one says that it ended nothing; the next try does."""
    worker = await register(database)
    claimed = await claim_one(database, worker)
    async with database.connected() as writer, database.connected() as app:
        assert await writer.run(tasks.renew, worker, [RunToRenew(claimed, uuid4(), "2")])
        waiting = asyncio.create_task(app.run(executions.cancel, "order-1"))
        assert await is_blocked(waiting, database)
        await writer.commit()
        assert await waiting == set()
        assert len(await app.run(executions.cancel, "order-1")) == 1
        await app.commit()
    assert (await info(database)).status == "cancelled"


async def test_renewal_of_a_cancelled_run(database: Database) -> None:
    """After a cancellation there is no next run."""
    worker = await register(database)
    claimed = await claim_one(database, worker)
    await database.run(executions.cancel, "order-1")
    assert await renew(database, worker, claimed) == {}
    assert (await info(database)).status == "cancelled"


# Resuming ---------------------------------------------------------------------------------------------------------


async def fail(database: Database, worker: UUID, claimed: ClaimedTask) -> None:
    """Let a run fail."""
    assert await finish(database, worker, claimed, ERROR)


async def test_resume_of_a_parent(database: Database) -> None:
    """Its children that go on are the new run's."""
    worker = await register(database)
    parent, _ = await family(database, worker, "a", "b")
    await fail(database, worker, parent)
    run_id = uuid4()
    assert await database.run(executions.resume, "parent", run_id)
    assert await open_executions(database, run_id) == ["a", "b"]
    assert len(await database.run(executions.cancel, "parent")) == 3


async def test_resume_of_a_parent_whose_child_continues(database: Database) -> None:
    """If the child goes on as a new run at that moment, it is the new run's too."""
    worker = await register(database)
    parent, claimed = await family(database, worker, "a")
    await fail(database, worker, parent)
    run_id = uuid4()
    async with database.connected() as writer, database.connected() as app:
        assert await writer.run(tasks.renew, worker, [RunToRenew(claimed["a"], uuid4(), "2")])
        waiting = asyncio.create_task(app.run(executions.resume, "parent", run_id))
        assert await is_blocked(waiting, database)
        await writer.commit()
        assert await waiting
        await app.commit()
    assert await open_executions(database, run_id) == ["a"]


async def test_resume_of_a_child_wakes_the_waiting_parent(database: Database) -> None:
    """A parent that waits for others counts anew: else the resumed child would hide the end of the awaited one."""
    worker = await register(database)
    parent, claimed = await family(database, worker, "a", "b")
    await fail(database, worker, claimed["b"])
    await wait_for(database, worker, parent, 0)
    assert await database.run(executions.resume, "b", uuid4())
    assert await is_due(database, parent.run_id)
    (again, child) = sorted(await claim(database, worker), key=lambda one: one.execution_id, reverse=True)
    assert (again.run_id, child.execution_id) == (parent.run_id, "b")
    assert await open_executions(database, parent.run_id) == ["a", "b"]
    assert child.parent_run_id == parent.run_id


async def test_resume_of_a_child_during_the_parents_turn(database: Database) -> None:
    """A turn that could not know of it is made again, instead of waiting for too many to end."""
    worker = await register(database)
    parent, claimed = await family(database, worker, "a", "b")
    await fail(database, worker, claimed["b"])
    assert await database.run(executions.resume, "b", uuid4())
    await wait_for(database, worker, parent, 0)
    assert await is_due(database, parent.run_id)


async def test_resume_of_a_child_leaves_a_sleeping_parent(database: Database) -> None:
    """A parent that waits for no child goes on waiting."""
    worker = await register(database)
    parent, claimed = await family(database, worker, "a")
    await fail(database, worker, claimed["a"])
    later = parent.claimed_at + timedelta(hours=1)
    await put_down(database, worker, parent, is_waiting=True, due_at=later)
    assert await database.run(executions.resume, "a", uuid4())
    assert not await is_due(database, parent.run_id)
    assert await open_executions(database, parent.run_id) == ["a"]


@pytest.mark.parametrize("ending", ["completed", "cancelled"])
async def test_resume_of_an_orphan(database: Database, ending: str) -> None:
    """A child whose parent is over can be resumed all the same."""
    worker = await register(database)
    parent, claimed = await family(database, worker, "a")
    await fail(database, worker, claimed["a"])
    if ending == "cancelled":
        await database.run(executions.cancel, "parent")
    else:
        await finish(database, worker, parent)
    assert await database.run(executions.resume, "a", uuid4())
    assert await statuses(database, ["parent", "a"]) == [ending, "scheduled"]


async def test_resume_beside_a_renewal_of_the_parent(database: Database) -> None:
    """A resumed child is the child of the run that follows, whichever of the two is first."""
    worker = await register(database)
    parent, claimed = await family(database, worker, "a")
    await fail(database, worker, claimed["a"])
    async with database.connected() as writer, database.connected() as app:
        renewal = RunToRenew(parent, uuid4(), "2")
        assert await writer.run(tasks.renew, worker, [renewal])
        waiting = asyncio.create_task(app.run(executions.resume, "a", uuid4()))
        assert await is_blocked(waiting, database)
        await writer.commit()
        assert await waiting
        await app.commit()
    assert await open_executions(database, renewal.run_id) == ["a"]


async def test_renewal_beside_a_resumption_of_the_child(database: Database) -> None:
    """The worker leaves the renewal for a moment while a child is being resumed, and then takes it along."""
    worker = await register(database)
    parent, claimed = await family(database, worker, "a")
    await fail(database, worker, claimed["a"])
    async with database.connected() as app:
        assert await app.run(executions.resume, "a", uuid4())
        assert await renew(database, worker, parent) == {}
        await app.commit()
    new_run = (await renew(database, worker, parent))[parent.run_id]
    assert await open_executions(database, new_run) == ["a"]


@pytest.mark.parametrize("first", ["parent", "a"])
async def test_resume_of_both_at_once(database: Database, first: str) -> None:
    """If parent and child are resumed at the same moment, the child is that of the parent's new run."""
    worker = await register(database)
    parent, claimed = await family(database, worker, "a")
    await fail(database, worker, claimed["a"])
    await fail(database, worker, parent)
    runs = {"parent": uuid4(), "a": uuid4()}
    (second,) = {"parent", "a"} - {first}
    async with database.connected() as one, database.connected() as other:
        assert await one.run(executions.resume, first, runs[first])
        waiting = asyncio.create_task(other.run(executions.resume, second, runs[second]))
        assert await is_blocked(waiting, database)
        await one.commit()
        assert await waiting
        await other.commit()
    assert await open_executions(database, runs["parent"]) == ["a"]


async def test_crashed_child(database: Database) -> None:
    """A child that is failed for its crashes is nothing to wait for any more."""
    worker, other = await register(database), await register(database)
    parent = await claim_one(database, other, "parent")
    await start_child(database, parent, "a")
    await claim(database, worker)
    await wait_for(database, other, parent, 0)
    await kill(database, worker)
    dead = [one.worker_id for one in await database.run(workers.bury, other, grace_seconds=1)]
    (orphan,) = await database.run(workers.take_over, dead, max_crashes=1)
    assert (orphan.execution_id, orphan.is_failed) == ("a", True)
    assert await database.run(children.wake_all) == {parent.run_id: True}


async def test_locks_end_with_the_patience(database: Database) -> None:
    """Who starts a child does not wait for long for an app that starts one of the same id: both might wait for ever."""
    worker = await register(database)
    parent = await claim_one(database, worker, "parent")
    async with database.connected() as app, database.connected() as starter:
        await app.run(executions.insert, [new("a")])
        assert await starter.run(tasks.touch, worker, [parent]) == {parent.task_id}
        blocked = asyncio.create_task(starter.run(executions.insert, [new("a")]))
        assert await is_blocked(blocked, database)
        cancelling = asyncio.create_task(app.run(executions.cancel, "parent"))
        with pytest.raises(Exception, match="lock timeout"):
            await blocked
        await starter.rollback()
        assert await cancelling == {parent.run_id}
        await app.commit()


async def test_waiting_is_no_claim(database: Database) -> None:
    """A run that waits for children is nobody's to claim, and shows as waiting."""
    worker = await register(database)
    parent, _ = await family(database, worker, "a")
    await wait_for(database, worker, parent, 0)
    assert await claim(database, worker) == []
    assert (await info(database, "parent")).status == "waiting"
