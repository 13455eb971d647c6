"""Events: offered by the app, taken by runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from zart_sqla.statements import events
from zart_sqla.statements.arrays import parameters_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from sqlalchemy import Connection

    from zart_sqla.records import ClaimedTask, NewEvent, RecordedStep
    from zart_sqla.table_names import TableNames


@dataclass(frozen=True, slots=True)
class Offer:
    """What became of an event that was offered.

    Attributes:
        is_new: whether no event of this id had been offered before.
        is_free: whether no worker holds the run.
    """

    is_new: bool
    is_free: bool


def offer(connection: Connection, names: TableNames, event: NewEvent) -> Offer | None:
    """Insert the event, and make the run that awaits it due.

    Returns:
        What became of it; None if there is no such execution, or its run has ended.
    """
    parameters = {
        "id": event.execution_id,
        "event": event.name,
        "unique_id": event.event_id,
        "value": event.payload,
    }
    row = connection.execute(events.offer(names), parameters).one_or_none()
    return None if row is None else Offer(row.is_new, row.is_free)


@dataclass(frozen=True, slots=True)
class EventToTake:
    """A wait for an event, by the holder of a task.

    Attributes:
        task: the task.
        step: the wait, as it would be recorded without an event.
        name: the event's name.
    """

    task: ClaimedTask
    step: RecordedStep
    name: str


_TAKE = ("task_id", "attempt", "name", "position", "started_at", "wake_at", "event")


def take(
    connection: Connection, names: TableNames, worker_id: UUID, waits: Sequence[EventToTake]
) -> dict[tuple[UUID, str], str]:
    """Take events for waits of runs whose tasks the worker holds, and record them as the results of the waits.

    Returns:
        The event's value as JSON text, for `(run_id, name)` of each wait that got one.
    """
    rows = (
        (
            wait.task.task_id,
            wait.task.attempt,
            wait.step.name,
            wait.step.position,
            wait.step.started_at,
            wait.step.wake_at,
            wait.name,
        )
        for wait in waits
    )
    met = connection.execute(events.take(names), {"me": worker_id, **parameters_of("given", _TAKE, rows)})
    return {(row.run_id, row.name): row.result for row in met}
