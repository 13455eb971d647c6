"""What tests of children do again and again: add them to a run, claim them, end them, and look."""

from typing import Any
from uuid import UUID

from tests.store.connections import Database
from tests.store.crew import claim, put_down, rows
from zart_sqla.records import Child, ClaimedTask, ErrorRecord, RecordedStep, RunHistory, StepKind
from zart_sqla.store import children, tasks
from zart_sqla.store.children import ChildrenToAdd, ChildrenToGiveUp
from zart_sqla.store.tasks import StepToRecord

CALL = '{"step": ":work", "arguments": {"name": [1.0, 1e2, "é"]}}'


def to_add(claimed: ClaimedTask, *names: str) -> ChildrenToAdd:
    """Return children of these names, one after the other."""
    return ChildrenToAdd(claimed, [Child(name=name, position=at, call=CALL) for at, name in enumerate(names)])


async def add(database: Database, worker: UUID, claimed: ClaimedTask, *names: str) -> None:
    """Add children of these names."""
    await database.run(children.add, worker, [to_add(claimed, *names)])


async def add_and_claim(database: Database, worker: UUID, claimed: ClaimedTask, *names: str) -> list[ClaimedTask]:
    """Add children, and have the worker claim them; in the order of their names."""
    await add(database, worker, claimed, *names)
    found = await claim(database, worker)
    return sorted(found, key=name_of)


def name_of(claimed: ClaimedTask) -> str:
    """Return the name of the step that a task is."""
    assert claimed.child is not None
    return claimed.child.name


def checkpoint(claimed: ClaimedTask, result: str | None = "1", error: ErrorRecord | None = None) -> StepToRecord:
    """Return the checkpoint of a child."""
    assert claimed.child is not None
    name, position = claimed.child.name, claimed.child.position
    return StepToRecord(
        claimed, RecordedStep(name=name, kind=StepKind.CHILD, position=position, result=result, error=error)
    )


async def done(database: Database, worker: UUID, *claimed: ClaimedTask) -> set[UUID]:
    """Record that children are done, as a worker does; return those whose tasks it still held."""

    def write(connection: Any, names: Any) -> set[UUID]:
        tasks.record_steps(connection, names, worker, [checkpoint(one) for one in claimed])
        return children.remove(connection, names, worker, claimed)

    return await database.run(write)


async def give_up(database: Database, worker: UUID, claimed: ClaimedTask, *names: str) -> bool:
    """Give up children; return whether the worker still held the run."""
    found = await database.run(children.give_up, worker, [ChildrenToGiveUp(claimed, names)])
    return found == {claimed.task_id}


async def wait_for(database: Database, worker: UUID, claimed: ClaimedTask, awaits_open: int = 0) -> None:
    """Put the run down until few enough of its children are open."""
    assert await put_down(database, worker, claimed, is_waiting=True, awaits_open=awaits_open)


async def wake(database: Database, *run_ids: UUID) -> dict[UUID, bool]:
    """Look whether these runs have waited for long enough."""
    return await database.run(children.wake, run_ids)


async def open_children(database: Database) -> list[str]:
    """Return the names of the children that are in the queue."""
    return sorted(row["step"] for row in await rows(database, lambda tables: tables.tasks) if row["step"] is not None)


async def journal(database: Database, run_id: UUID) -> RunHistory:
    """Return what there is of a run."""
    return (await database.run(tasks.journal, [run_id]))[run_id]


async def errors(database: Database, run_id: UUID) -> dict[str, str | None]:
    """Return the categories of the errors that are recorded of a run's steps."""
    history = await journal(database, run_id)
    return {one.name: None if one.error is None else one.error.category for one in history.steps}
