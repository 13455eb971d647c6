"""Children: steps of a run that are tasks of their own, in the queue and out of it."""

import asyncio
from datetime import timedelta

import pytest

from tests.store.connections import Database, is_blocked
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
    start,
)
from tests.store.family import (
    CALL,
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
)
from zart_sqla.records import (
    GIVEN_UP,
    Child,
    FailedAttempt,
    RecordedStep,
    RunHistory,
    StepKind,
    StepStatus,
)
from zart_sqla.store import children, executions, tasks, workers
from zart_sqla.store.children import ChildrenToAdd, ChildrenToGiveUp, child_id
from zart_sqla.store.tasks import AttemptToRecord

# Adding ----------------------------------------------------------------------------------------------------------


async def test_add_and_claim(database: Database) -> None:
    """A child is due at once, and comes with all that its turn needs: the input is its run's."""
    worker, other = await register(database), await register(database)
    (run_id,) = await start(database, "order-1", payload='{"a": [1.0, "é"]}', queue="slow")
    (parent,) = await claim(database, worker)
    await database.run(
        children.add, worker, [ChildrenToAdd(parent, [Child(name="%_/:'\N{GRINNING FACE}", position=3, call=CALL)])]
    )
    assert await claim(database, other, queues=["default"]) == []
    (child,) = await claim(database, other, queues=["slow"])
    assert child.child == Child(name="%_/:'\N{GRINNING FACE}", position=3, call=CALL)
    assert child.task_id == child_id(run_id, "%_/:'\N{GRINNING FACE}")
    assert (child.run_id, child.parent_run_id, child.execution_id, child.task_name) == (
        run_id,
        run_id,
        "order-1",
        "task",
    )
    assert (child.payload, child.started_at) == ('{"a": [1.0, "é"]}', parent.started_at)
    assert (child.attempt, child.retries, child.is_recorded, child.has_history) == (1, 0, False, False)
    assert (parent.child, parent.parent_run_id) == (None, None)


async def test_claim_of_children_of_several_runs(database: Database) -> None:
    """Each has the input of its own run, claimed beside runs that are due."""
    worker = await register(database)
    for number in range(2):
        await start(database, f"order-{number}", payload=str(number))
    parents = await claim(database, worker)
    await database.run(children.add, worker, [to_add(parent, "a", "b") for parent in parents])
    await start(database, "order-2", payload="2")
    found = await claim(database, worker)
    assert sorted((one.execution_id, one.payload, name_of(one)) for one in found if one.child is not None) == [
        ("order-0", "0", "a"),
        ("order-0", "0", "b"),
        ("order-1", "1", "a"),
        ("order-1", "1", "b"),
    ]
    assert [(one.execution_id, one.payload) for one in found if one.child is None] == [("order-2", "2")]


async def test_add_again(database: Database) -> None:
    """A child is there once, however often it is added, and is not made anew while a worker is at it."""
    worker = await register(database)
    parent = await claim_one(database, worker)
    await add(database, worker, parent, "a", "b")
    (child, _) = sorted(await claim(database, worker), key=name_of)
    await add(database, worker, parent, "a", "b", "c")
    assert await open_children(database) == ["a", "b", "c"]
    assert await database.run(tasks.held, worker, [child]) == {child.task_id}


async def test_add_what_is_done(database: Database) -> None:
    """A step that is recorded is not added once more."""
    worker = await register(database)
    parent = await claim_one(database, worker)
    (child,) = await add_and_claim(database, worker, parent, "a")
    assert await done(database, worker, child) == {child.task_id}
    await add(database, worker, parent, "a")
    assert await open_children(database) == []


@pytest.mark.parametrize("is_child_recorded", [True, False])
async def test_claim_of_what_is_recorded(database: Database, is_child_recorded: bool) -> None:  # noqa: FBT001
    """A child that was added while its checkpoint was being written is told that it is there."""
    worker = await register(database)
    parent = await claim_one(database, worker)
    await add(database, worker, parent, "a")
    if is_child_recorded:
        await record(database, worker, parent, "a")
    (child,) = await claim(database, worker)
    assert (child.is_recorded, child.has_history) == (is_child_recorded, is_child_recorded)
    history = (await database.run(children.histories, [child]))[child.task_id]
    assert [one.result for one in history.steps] == (["1"] if is_child_recorded else [])


async def test_add_without_the_task(database: Database) -> None:
    """Who does not hold the run adds nothing: another worker, an older claim, a buried worker, after the end."""
    worker, other = await register(database), await register(database)
    parent = await claim_one(database, worker)
    await add(database, other, parent, "a")
    await put_down(database, worker, parent)
    await add(database, worker, parent, "a")
    (again,) = await claim(database, worker)
    await add(database, worker, parent, "a")
    await kill(database, worker)
    await database.run(workers.bury, other, grace_seconds=GRACE)
    await add(database, worker, again, "a")
    await database.run(workers.take_over, [worker], max_crashes=5)
    (last,) = await claim(database, other)
    await finish(database, other, last)
    await add(database, other, last, "a")
    assert await open_children(database) == []


async def test_add_for_several_runs(database: Database) -> None:
    """Those of a run that is lost are left out."""
    worker = await register(database)
    await start(database, "a", "b")
    parents = await claim(database, worker)
    await database.run(executions.cancel, "b")
    await database.run(children.add, worker, [to_add(parent, "x", "y") for parent in parents])
    found = await claim(database, worker)
    assert {(one.execution_id, name_of(one)) for one in found} == {("a", "x"), ("a", "y")}


async def test_call_that_postgresql_refuses(database: Database) -> None:
    """What is no JSON text fails the statement, and nothing of it is written."""
    worker = await register(database)
    parent = await claim_one(database, worker)
    bad = ChildrenToAdd(parent, [Child(name="a", position=0, call="1"), Child(name="b", position=1, call="{")])
    with pytest.raises(Exception, match="json"):
        await database.run(children.add, worker, [bad])
    assert await open_children(database) == []


# The turns of a child --------------------------------------------------------------------------------------------


async def test_done(database: Database) -> None:
    """The checkpoint of a child is one of its run, and its task is gone with it; nobody ends the run."""
    worker = await register(database)
    parent = await claim_one(database, worker)
    a, b = await add_and_claim(database, worker, parent, "a", "b")
    assert await done(database, worker, a) == {a.task_id}
    history = await journal(database, parent.run_id)
    assert list(history.steps) == [RecordedStep(name="a", kind=StepKind.CHILD, position=0, result="1")]
    assert history.children == {"b": 1}
    assert (await info(database)).status == "running"
    assert await done(database, worker, a, b) == {b.task_id}


async def test_done_without_the_task(database: Database) -> None:
    """Who does not hold the child writes nothing, and does not remove it."""
    worker, other = await register(database), await register(database)
    parent = await claim_one(database, worker)
    (child,) = await add_and_claim(database, worker, parent, "a")
    assert await done(database, other, child) == set()
    await put_down(database, worker, child)
    assert await done(database, worker, child) == set()
    (again,) = await claim(database, worker)
    assert (again.attempt, again.has_history) == (2, True)
    assert await done(database, worker, child) == set()
    history = await journal(database, parent.run_id)
    assert (list(history.steps), history.children) == ([], {"a": 0})


async def test_done_beside_a_cancellation(database: Database) -> None:
    """A child that an app is cancelling with its run is not removed meanwhile, and nobody waits."""
    worker = await register(database)
    parent = await claim_one(database, worker)
    (child,) = await add_and_claim(database, worker, parent, "a")
    async with database.connected() as link:
        assert await link.run(executions.cancel, "order-1")
        assert await done(database, worker, child) == set()
        assert await database.run(tasks.held, worker, [child]) == {child.task_id}
        await link.rollback()
    assert await done(database, worker, child) == {child.task_id}


async def test_attempts_of_a_child(database: Database) -> None:
    """They are the step's; the next turn of the child knows how many there were, and of its own step only."""
    worker = await register(database)
    parent = await claim_one(database, worker)
    for claimed in await add_and_claim(database, worker, parent, "a", "b"):
        for attempt in range(1, 3 if name_of(claimed) == "a" else 2):
            failed = FailedAttempt(step=name_of(claimed), attempt=attempt, error=ERROR, started_at=claimed.claimed_at)
            await database.run(tasks.record_attempts, worker, [AttemptToRecord(claimed, failed)])
        await put_down(database, worker, claimed, is_waiting=True)
    again = sorted(await claim(database, worker), key=name_of)
    histories = await database.run(children.histories, again)
    assert [histories[one.task_id] for one in again] == [
        RunHistory(steps=[], attempts={"a": 2}),
        RunHistory(steps=[], attempts={"b": 1}),
    ]
    assert (await journal(database, parent.run_id)).attempts == {"a": 2, "b": 1}


async def test_steps_tell_of_children(database: Database) -> None:
    """Those that are not done come last, in the order in which they were scheduled, with their latest errors."""
    worker = await register(database)
    parent = await claim_one(database, worker)
    a, b, _ = await add_and_claim(database, worker, parent, "a", "b", "c")
    await done(database, worker, b)
    failed = FailedAttempt(step="a", attempt=1, error=ERROR, started_at=a.claimed_at)
    await database.run(tasks.record_attempts, worker, [AttemptToRecord(a, failed)])
    await put_down(database, worker, a, is_waiting=True)
    found = await database.run(executions.steps_of, "order-1")
    assert [(one.name, one.kind, one.status, one.attempts, one.result) for one in found] == [
        ("b", StepKind.CHILD, StepStatus.COMPLETED, 1, 1),
        ("a", StepKind.CHILD, StepStatus.WAITING, 1, None),
        ("c", StepKind.CHILD, StepStatus.WAITING, 0, None),
    ]
    assert found[1].error is not None
    assert (found[1].error["message"], found[2].error) == ("no", None)


# Giving up -------------------------------------------------------------------------------------------------------


async def test_give_up(database: Database) -> None:
    """Those that are open are gone, and recorded as cancelled; the others stay as they are."""
    worker, other = await register(database), await register(database)
    parent = await claim_one(database, worker)
    await add(database, worker, parent, "a", "b", "c", "d")
    claimed = {name_of(one): one for one in await claim(database, other, limit=4)}
    await done(database, other, claimed["b"])
    await put_down(database, other, claimed["c"])
    assert await give_up(database, worker, parent, "a", "b", "c", "unknown")
    assert await errors(database, parent.run_id) == {"a": GIVEN_UP, "b": None, "c": GIVEN_UP}
    (recorded,) = [one for one in (await journal(database, parent.run_id)).steps if one.name == "a"]
    assert recorded.error is not None
    assert (recorded.kind, recorded.position, recorded.attempts, recorded.error.step) == (StepKind.CHILD, 0, 1, "a")
    assert await open_children(database) == ["d"]
    assert await done(database, other, claimed["a"]) == set()
    assert await errors(database, parent.run_id) == {"a": GIVEN_UP, "b": None, "c": GIVEN_UP}
    assert await give_up(database, worker, parent, "a")


async def test_give_up_for_several_runs(database: Database) -> None:
    """Each gives up its own; one that the worker does not hold any more gives up none."""
    worker = await register(database)
    await start(database, "order-1", "order-2", "order-3")
    parents = await claim(database, worker)
    await database.run(children.add, worker, [to_add(parent, "a", "b") for parent in parents])
    one, other, lost = parents
    await put_down(database, worker, lost, due_at=lost.claimed_at + timedelta(days=1))
    losers = [ChildrenToGiveUp(one, ["a"]), ChildrenToGiveUp(other, ["a", "b"]), ChildrenToGiveUp(lost, ["a"])]
    assert await database.run(children.give_up, worker, losers) == {one.task_id, other.task_id}
    assert await open_children(database) == ["a", "b", "b"]
    assert await errors(database, lost.run_id) == {}


async def test_give_up_beside_a_cancellation(database: Database) -> None:
    """A run that an app is cancelling gives up nothing meanwhile, and nobody waits."""
    worker = await register(database)
    parent = await claim_one(database, worker)
    await add(database, worker, parent, "a")
    async with database.connected() as link:
        assert await link.run(executions.cancel, "order-1")
        assert not await give_up(database, worker, parent, "a")
        await link.rollback()
    assert await give_up(database, worker, parent, "a")


@pytest.mark.parametrize("is_committed", [True, False])
async def test_give_up_while_a_child_is_recorded(database: Database, is_committed: bool) -> None:  # noqa: FBT001
    """Of the child that is done and the run that gives it up, whoever commits first decides; the other follows."""
    worker = await register(database)
    parent = await claim_one(database, worker)
    (child,) = await add_and_claim(database, worker, parent, "a")
    async with database.connected() as link:
        await link.run(tasks.record_steps, worker, [checkpoint(child)])
        waiting = asyncio.create_task(give_up(database, worker, parent, "a"))
        assert await is_blocked(waiting, database)
        assert await link.run(children.remove, worker, [child]) == set()  # the run has locked it: a little later, then
        await (link.commit() if is_committed else link.rollback())
    assert await waiting
    assert await errors(database, parent.run_id) == {"a": None if is_committed else GIVEN_UP}
    assert await open_children(database) == []


async def test_child_is_recorded_while_it_is_given_up(database: Database) -> None:
    """The checkpoint comes too late, and leaves what is recorded alone."""
    worker = await register(database)
    parent = await claim_one(database, worker)
    (child,) = await add_and_claim(database, worker, parent, "a")
    async with database.connected() as link:
        await link.run(children.give_up, worker, [ChildrenToGiveUp(parent, ["a"])])
        waiting = asyncio.create_task(done(database, worker, child))
        assert await is_blocked(waiting, database)
        await link.commit()
    assert await waiting == set()
    assert await errors(database, parent.run_id) == {"a": GIVEN_UP}
