"""Runs that wait for their children, and what becomes of children when their run ends, or a worker dies."""

import asyncio
import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.store.connections import Database, Link, is_blocked
from tests.store.crew import (
    ERROR,
    GRACE,
    claim,
    claim_one,
    finish,
    info,
    kill,
    put_down,
    record,
    register,
    rows,
    start,
)
from tests.store.family import (
    add,
    add_and_claim,
    checkpoint,
    done,
    errors,
    give_up,
    journal,
    name_of,
    open_children,
    to_add,
    wait_for,
    wake,
)
from zart_sqla.records import GIVEN_UP, ClaimedTask
from zart_sqla.store import children, executions, tasks, workers
from zart_sqla.store.children import ChildrenToGiveUp
from zart_sqla.store.tasks import RunToFinish, TaskToPutDown
from zart_sqla.store.workers import Orphan

NEVER = datetime(2100, 1, 1, tzinfo=UTC)

# Waking ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("awaits_open", [0, 1, 2])
async def test_threshold(database: Database, awaits_open: int) -> None:
    """A run is woken as soon as so few of its children are open, and not before; then it is due."""
    worker = await register(database)
    parent = await claim_one(database, worker)
    found = await add_and_claim(database, worker, parent, "a", "b", "c")
    await wait_for(database, worker, parent, awaits_open)
    assert (await info(database)).status == "waiting"
    for still_open in (2, 1, 0):
        assert await wake(database, parent.run_id) == {}
        await done(database, worker, found[still_open])
        if still_open == awaits_open:
            break
    assert await wake(database, parent.run_id) == {parent.task_id: True}
    assert await wake(database, parent.run_id) == {}
    (again,) = await claim(database, worker)
    assert (again.task_id, again.attempt) == (parent.task_id, 2)
    assert set((await journal(database, parent.run_id)).children) == {*"abc"[:awaits_open]}


async def test_no_children_at_all(database: Database) -> None:
    """A run that waits for what is over by now is due with the first look."""
    worker = await register(database)
    parent = await claim_one(database, worker)
    await wait_for(database, worker, parent)
    assert await claim(database, worker) == []
    assert await wake(database, parent.run_id) == {parent.task_id: True}


async def test_runs_that_do_not_wait_for_children(database: Database) -> None:
    """One that sleeps, or that a worker holds, or that is due, is left alone."""
    worker = await register(database)
    await start(database, "sleeps", "is held", "is due")
    by_id = {one.execution_id: one for one in await claim(database, worker)}
    await put_down(database, worker, by_id["sleeps"], due_at=NEVER, is_waiting=True)
    await put_down(database, worker, by_id["is due"], due_at=by_id["is due"].claimed_at, awaits_open=0)
    before = await rows(database, lambda tables: tables.tasks)
    assert await wake(database, *(one.run_id for one in by_id.values()), uuid4()) == {}
    assert await database.run(children.wake_all) == {}
    assert await rows(database, lambda tables: tables.tasks) == before


async def test_wait_with_a_time(database: Database) -> None:
    """A run that waits for children, and not for ever, is due at whichever comes first."""
    worker = await register(database)
    parent = await claim_one(database, worker)
    await add(database, worker, parent, "a")
    (child,) = await claim(database, worker)
    assert await put_down(database, worker, parent, due_at=NEVER, is_waiting=True, awaits_open=0)
    assert await wake(database, parent.run_id) == {}
    await done(database, worker, child)
    assert await wake(database, parent.run_id) == {parent.task_id: True}
    assert len(await claim(database, worker)) == 1


async def test_claimed_again_and_waiting_for_others(database: Database) -> None:
    """What a run waited for before says nothing about a later wait, nor about the turn in between."""
    worker = await register(database)
    parent = await claim_one(database, worker)
    (child,) = await add_and_claim(database, worker, parent, "a")
    await wait_for(database, worker, parent)
    await done(database, worker, child)
    await wake(database, parent.run_id)
    (again,) = await claim(database, worker)
    assert await wake(database, parent.run_id) == {}
    await add(database, worker, again, "b")
    await wait_for(database, worker, again)
    assert await wake(database, parent.run_id) == {}
    (other,) = await claim(database, worker)
    await put_down(database, worker, other, due_at=NEVER)
    assert await database.run(children.wake_all) == {}


async def test_wake_all(database: Database) -> None:
    """It finds all runs that have waited for long enough, of whatever worker, and no others."""
    worker = await register(database)
    await start(database, "a", "b", "c")
    by_id = {one.execution_id: one for one in await claim(database, worker)}
    await add(database, worker, by_id["c"], "open")
    for parent in by_id.values():
        await wait_for(database, worker, parent)
    ready = {by_id[name].task_id: True for name in "ab"}
    assert await database.run(children.wake_all) == ready
    assert await database.run(children.wake_all) == {}


@pytest.mark.parametrize("look", ["wake", "wake_all"])
async def test_locked_run(database: Database, look: str) -> None:
    """A run that somebody has locked is passed over, and told of, so that a later look can find it."""
    worker = await register(database)
    await start(database, "order-1", "order-2")
    parents = await claim(database, worker)
    for parent in parents:
        await wait_for(database, worker, parent)
    ids = {one.execution_id: one.task_id for one in parents}
    known = [parents[0].run_id, parents[1].run_id]
    again: Any = (children.wake_all,) if look == "wake_all" else (children.wake, known)
    async with database.connected() as link:
        assert await link.run(executions.cancel, "order-1")
        assert await database.run(*again) == {ids["order-1"]: False, ids["order-2"]: True}
        await link.rollback()
    assert await database.run(*again) == {ids["order-1"]: True}


async def test_child_that_ends_before_the_run_is_put_down(database: Database) -> None:
    """The look after the child finds the run held; the one after the run is put down finds the child gone."""
    worker, other = await register(database), await register(database)
    parent = await claim_one(database, worker)
    await add(database, worker, parent, "a")
    (child,) = await claim(database, other)
    async with database.connected() as link:
        await link.run(tasks.put_down, worker, to_wait(parent))
        await done(database, other, child)
        assert await wake(database, parent.run_id) == {}
        await link.commit()
    assert await wake(database, parent.run_id) == {parent.task_id: True}


async def test_run_that_is_put_down_before_its_child_ends(database: Database) -> None:
    """The look after the run is put down finds the child open; the one after the child finds the run."""
    worker, other = await register(database), await register(database)
    parent = await claim_one(database, worker)
    await add(database, worker, parent, "a")
    (child,) = await claim(database, other)
    async with database.connected() as link:
        await link.run(tasks.record_steps, other, [checkpoint(child)])
        await link.run(children.remove, other, [child])
        await wait_for(database, worker, parent)
        assert await wake(database, parent.run_id) == {}
        await link.commit()
    assert await wake(database, parent.run_id) == {parent.task_id: True}


async def test_two_last_children_at_once(database: Database) -> None:
    """Of two that end at the same time neither sees the other; the look after the later commit sees both."""
    worker, other = await register(database), await register(database)
    parent = await claim_one(database, worker)
    a, b = await add_and_claim(database, worker, parent, "a", "b")
    await wait_for(database, worker, parent)
    async with database.connected() as one, database.connected() as two:
        for link, child in ((one, a), (two, b)):
            await link.run(tasks.record_steps, worker, [checkpoint(child)])
            await link.run(children.remove, worker, [child])
        await one.commit()
        assert await wake(database, parent.run_id) == {}
        await two.commit()
    assert await wake(database, parent.run_id) == {parent.task_id: True}
    assert len(await claim(database, other)) == 1


async def test_two_looks_at_once(database: Database) -> None:
    """One of them wakes the run; the other passes it over, and finds it awake the next time."""
    worker = await register(database)
    parent = await claim_one(database, worker)
    await wait_for(database, worker, parent)
    async with database.connected() as link:
        assert await link.run(children.wake, [parent.run_id]) == {parent.task_id: True}
        assert await wake(database, parent.run_id) == {parent.task_id: False}
        await link.commit()
    assert await wake(database, parent.run_id) == {}


def to_wait(parent: ClaimedTask) -> list[TaskToPutDown]:
    """Return how a run is put down that waits for all of its children."""
    return [TaskToPutDown(parent, None, is_waiting=True, retries=0, awaits_open=0)]


# Ends ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [None, ERROR])
async def test_end_of_the_run(database: Database, error: Any) -> None:
    """What is left of its children goes with it, and whoever is at one of them writes nothing more."""
    worker, other = await register(database), await register(database)
    await start(database, "order-2")
    (bystander,) = await claim(database, worker)
    parent = await claim_one(database, worker)
    await add(database, worker, parent, "a", "b")
    (a,) = await claim(database, other, limit=1)
    await add(database, worker, bystander, "c")
    assert await finish(database, worker, parent, error)
    assert await open_children(database) == ["c"]
    assert await done(database, other, a) == set()
    assert (await journal(database, parent.run_id)).steps == []
    beat = await database.run(
        workers.beat, other, running=[(a.task_id, a.attempt)], lease_seconds=30, grace_seconds=GRACE
    )
    assert beat.lost == {a.task_id}


@pytest.mark.parametrize("is_child_held", [True, False])
async def test_cancel(database: Database, is_child_held: bool) -> None:  # noqa: FBT001
    """A run that is cancelled takes its children along, held or not, and touches no other run's."""
    worker = await register(database)
    await start(database, "order-2")
    (bystander,) = await claim(database, worker)
    parent = await claim_one(database, worker)
    await add(database, worker, parent, "a", "b")
    if is_child_held:
        await claim(database, worker)
    await add(database, worker, bystander, "c")
    await wait_for(database, worker, parent)
    assert await database.run(executions.cancel, "order-1")
    assert await open_children(database) == ["c"]
    assert (await info(database)).status == "cancelled"
    assert await database.run(children.wake_all) == {}
    assert await database.run(executions.cancel, "order-1") == set()


async def bury(database: Database, dead: UUID, undertaker: UUID, max_crashes: int = 2) -> list[Orphan]:
    """Let a worker die; return what became of its tasks."""
    await kill(database, dead)
    await database.run(workers.bury, undertaker, grace_seconds=GRACE)
    found = await database.run(workers.take_over, [dead], max_crashes=max_crashes)
    return sorted(found, key=lambda one: one.step or "")


async def test_crash_of_a_child(database: Database) -> None:
    """Another worker goes on with it; a child that crashes too often fails, and not its run, which is told."""
    worker, undertaker = await register(database), await register(database)
    parent = await claim_one(database, undertaker)
    await add(database, undertaker, parent, "a", "b")
    await wait_for(database, undertaker, parent)
    (first,) = await claim(database, worker, limit=1)
    name = name_of(first)
    assert await bury(database, worker, undertaker) == [Orphan(first.task_id, "order-1", 1, is_failed=False, step=name)]
    worker = await register(database)
    again = {name_of(one): one for one in await claim(database, worker)}
    assert {one: task.crashes for one, task in again.items()} == {"a": 0, "b": 0} | {name: 1}
    found = await bury(database, worker, undertaker)
    assert [(one.step, one.crashes, one.is_failed) for one in found] == [
        ("a", 1 + (name == "a"), name == "a"),
        ("b", 1 + (name == "b"), name == "b"),
    ]
    (step,) = (await journal(database, parent.run_id)).steps
    assert step.error is not None
    assert (step.name, step.attempts, step.error.category, step.error.step) == (name, 2, "crash", name)
    assert step.position == (0 if name == "a" else 1)
    assert (await info(database)).status == "waiting"
    (left,) = await claim(database, undertaker)
    await done(database, undertaker, left)
    assert await wake(database, parent.run_id) == {parent.task_id: True}


async def test_progress_of_the_others(database: Database) -> None:
    """A child's crash counts whatever the run and its siblings have recorded; a run's does not count theirs for it."""
    worker, undertaker = await register(database), await register(database)
    parent = await claim_one(database, worker)
    a, b = await add_and_claim(database, worker, parent, "a", "b")
    await done(database, worker, b)
    await bury(database, worker, undertaker, max_crashes=5)
    for crashes in (2, 3):
        worker = await register(database)
        batch = await claim(database, worker)
        while more := await claim(database, worker):
            batch += more
        (run,) = (one for one in batch if one.child is None)
        await record(database, worker, run, f"step-{crashes}")
        found = await bury(database, worker, undertaker, max_crashes=5)
        assert [(one.step, one.crashes) for one in found] == [(None, 1), ("a", crashes)]
    assert a.crashes == 0


async def test_run_that_crashes_too_often(database: Database) -> None:
    """It fails, and its children are gone with it, whoever held them."""
    worker, undertaker = await register(database), await register(database)
    parent = await claim_one(database, worker)
    await add(database, worker, parent, "a", "b", "c")
    await claim(database, undertaker, limit=1)
    await claim(database, worker, limit=1)
    found = await bury(database, worker, undertaker, max_crashes=1)
    assert [one.step is None for one in found] == [True, False]
    assert (await info(database)).status == "failed"
    assert await rows(database, lambda tables: tables.tasks) == []


async def test_resume(database: Database) -> None:
    """The new run keeps what succeeded and what was given up; what failed or was open is scheduled anew."""
    worker = await register(database)
    parent = await claim_one(database, worker)
    found = {name_of(one): one for one in await add_and_claim(database, worker, parent, "ok", "failed", "lost", "open")}
    await done(database, worker, found["ok"])
    await database.run(tasks.record_steps, worker, [checkpoint(found["failed"], None, ERROR)])
    await database.run(children.remove, worker, [found["failed"]])
    await give_up(database, worker, parent, "lost")
    await database.run(tasks.finish, worker, [RunToFinish(parent, None, ERROR, handled=frozenset())])
    run_id = uuid4()
    assert await database.run(executions.resume, "order-1", run_id)
    assert await errors(database, run_id) == {"ok": None, "lost": GIVEN_UP}
    (again,) = await claim(database, worker)
    assert again.run_id == run_id
    await add(database, worker, again, "ok", "failed", "lost", "open")
    assert await open_children(database) == ["failed", "open"]


# Many at once ----------------------------------------------------------------------------------------------------


async def test_two_workers_that_record_each_others_losers(database: Database) -> None:
    """Each records a child of the run that the other gives up: as a worker writes that, they never wait in a ring."""
    one, other = await register(database), await register(database)
    await start(database, "order-1", "order-2")
    (first,) = await claim(database, one, limit=1)
    (second,) = await claim(database, other, limit=1)
    await add(database, one, first, "a")
    (of_first,) = await claim(database, other)
    await add(database, other, second, "a")
    (of_second,) = await claim(database, one)
    async with database.connected() as link:
        await link.run(tasks.record_steps, one, [checkpoint(of_second)])
        waiting = asyncio.create_task(give_up(database, other, second, "a"))
        assert await is_blocked(waiting, database)
        assert await done(database, other, of_first) == {of_first.task_id}
        await link.run(children.remove, one, [of_second])
        await link.commit()
        assert await waiting
        assert await link.run(children.give_up, one, [ChildrenToGiveUp(first, ["a"])]) == {first.task_id}
        await link.commit()
    assert [await errors(database, run.run_id) for run in (first, second)] == [{"a": None}] * 2


async def compete(link: Link, *writes: Callable[[Any, Any], Any]) -> None:
    """Write this, in a transaction of its own."""
    await link.call(lambda connection: [write(connection, link.names) for write in writes])
    await link.commit()


@pytest.mark.parametrize("is_finish", [True, False])
async def test_many_children_recorded_while_they_are_given_up(database: Database, is_finish: bool) -> None:  # noqa: FBT001
    """Two workers record children in opposite orders, and their runs end or give them up: nobody waits in a ring."""
    chance = random.Random(2)
    names = [f"step-{number}" for number in range(20)]
    home, one, other = [await register(database) for _ in range(3)]
    for number in range(10):
        parents = [await claim_one(database, home, f"order-{number}-{half}") for half in "ab"]
        await database.run(children.add, home, [to_add(parent, *names) for parent in parents])
        shares = await claim(database, one, limit=20), await claim(database, other, limit=20)
        losers = [ChildrenToGiveUp(parent, chance.sample(names, len(names))) for parent in parents]
        ended = [RunToFinish(parent, "1", None) for parent in parents]

        def record_share(worker: UUID, share: list[ClaimedTask]) -> tuple[Callable[[Any, Any], Any], ...]:
            in_order = sorted(share, key=lambda claimed: claimed.task_id.int)  # as a worker writes them
            return (
                lambda connection, names: tasks.record_steps(
                    connection, names, worker, [checkpoint(claimed) for claimed in in_order]
                ),
                lambda connection, names: children.remove(connection, names, worker, reversed(in_order)),
            )

        def end(connection: Any, names: Any, losers: Any = losers, ended: Any = ended) -> None:
            if is_finish:
                tasks.finish(connection, names, home, ended)
            else:
                children.give_up(connection, names, home, losers)

        async with database.connected() as a, database.connected() as b, database.connected() as c:
            work = [compete(a, *record_share(one, shares[0])), compete(b, *record_share(other, shares[1]))]
            work.insert(chance.randrange(3), compete(c, end))
            await asyncio.gather(*work)
        if not is_finish:
            assert {len(await errors(database, parent.run_id)) for parent in parents} == {len(names)}
        await database.run(tasks.finish, home, ended)
        assert await rows(database, lambda tables: tables.tasks) == []
