"""Children: steps of a run that are tasks of their own."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from uuid import UUID

from zart_sqla.records import GIVEN_UP, ErrorRecord, RunHistory
from zart_sqla.statements import children, steps
from zart_sqla.statements.arrays import parameters_of
from zart_sqla.store.rows import error_to_json, recorded_step

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy import Connection

    from zart_sqla.records import Child, ClaimedTask
    from zart_sqla.table_names import TableNames

_GIVEN_UP: Final = ErrorRecord(
    error_type="CancelledError", message="it was cancelled, since others were enough", category=GIVEN_UP
)


@dataclass(frozen=True, slots=True)
class ChildrenToAdd:
    """Children that the holder of a run's task adds to the run."""

    task: ClaimedTask
    children: Sequence[Child]

    @property
    def size(self) -> int:
        """About how many characters they bring."""
        return sum(200 + len(child.call) for child in self.children)


@dataclass(frozen=True, slots=True)
class ChildrenToGiveUp:
    """Children that the holder of a run's task has no more need of, by their names."""

    task: ClaimedTask
    names: Sequence[str]


def child_id(run_id: UUID, name: str) -> UUID:
    """Return the id of the task that is the child of this name: always the same, so it is there once."""
    return uuid.uuid5(run_id, name)


_ADD = ("task_id", "child_id", "name", "child_position", "child_call")


def add(connection: Connection, names: TableNames, worker_id: UUID, new: Sequence[ChildrenToAdd]) -> set[UUID]:
    """Insert children of runs whose tasks the worker holds, but for those that are there or done.

    Returns:
        The tasks of runs that the worker still held.
    """
    rows = (
        (item.task.task_id, child_id(item.task.run_id, child.name), child.name, child.position, child.call)
        for item in new
        for child in item.children
    )
    turns = parameters_of("turn", ("task_id", "attempt"), ((item.task.task_id, item.task.attempt) for item in new))
    given = parameters_of("given", _ADD, rows)
    return set(connection.scalars(children.add(names), {"me": worker_id, **turns, **given}))


def remove(connection: Connection, names: TableNames, worker_id: UUID, done: Iterable[ClaimedTask]) -> set[UUID]:
    """Delete the tasks of children that are done, or of what followed the cancellation of a run.

    Returns:
        Those that the worker still held.
    """
    given = parameters_of("given", ("task_id", "attempt"), ((task.task_id, task.attempt) for task in done))
    return set(connection.scalars(children.remove(names), {"me": worker_id, **given}))


def give_up(
    connection: Connection, names: TableNames, worker_id: UUID, losers: Sequence[ChildrenToGiveUp]
) -> set[UUID]:
    """Delete those of the children that are still open, and record that they were cancelled.

    Returns:
        The tasks of runs that the worker still held.
    """
    rows = (
        (item.task.task_id, item.task.attempt, child_id(item.task.run_id, name))
        for item in losers
        for name in item.names
    )
    parameters = {"me": worker_id, "error": error_to_json(_GIVEN_UP)}
    given = parameters_of("given", ("task_id", "attempt", "child_id"), rows)
    return set(connection.scalars(children.give_up(names), {**parameters, **given}))


def wake(connection: Connection, names: TableNames, run_ids: Iterable[UUID]) -> dict[UUID, bool]:
    """Make those of the runs due that have waited for their children for long enough.

    Returns:
        For each of those, whether it was: not so while somebody has locked its task.
    """
    rows = connection.execute(children.wake(names), {"run_ids": list(run_ids)})
    return {row.run_id: row.is_woken for row in rows}


def wake_all(connection: Connection, names: TableNames) -> dict[UUID, bool]:
    """Make all runs due that have waited for their children for long enough, and that nobody has woken.

    Returns:
        As `wake`.
    """
    return {row.run_id: row.is_woken for row in connection.execute(children.wake_all(names))}


def payloads(connection: Connection, names: TableNames, run_ids: Iterable[UUID]) -> dict[UUID, str]:
    """Return the inputs of the runs as JSON text."""
    rows = connection.execute(children.payloads(names), {"run_ids": list(run_ids)})
    return {row.run_id: row.payload for row in rows}


def histories(connection: Connection, names: TableNames, claimed: Iterable[ClaimedTask]) -> dict[UUID, RunHistory]:
    """Return, for each task that is a child, what there is of its step: failed attempts, or a checkpoint."""
    by_key = {(task.run_id, task.child.name): task for task in claimed if task.child is not None}
    given = parameters_of("given", ("run_id", "name"), by_key)
    attempts = {(row.run_id, row.name): row.attempts for row in connection.execute(children.attempts(names), given)}
    done = {(row.run_id, row.name): recorded_step(row) for row in connection.execute(steps.recorded(names), given)}
    return {
        task.task_id: RunHistory(
            steps=[done[key]] if key in done else [],
            attempts={key[1]: attempts[key]} if key in attempts else {},
        )
        for key, task in by_key.items()
    }
