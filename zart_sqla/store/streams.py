"""Streams: what runs emit, and those who follow it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from zart_sqla.statements import streams
from zart_sqla.statements.arrays import parameters_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from sqlalchemy import Connection

    from zart_sqla.records import ClaimedTask, RecordedStep, StreamPosition
    from zart_sqla.table_names import TableNames

PAGE_ITEMS: Final = 500
PAGE_BYTES: Final = 1024 * 1024
"""How much of a stream is read at once, as it is stored; one item is, however large it may be."""


@dataclass(frozen=True, slots=True)
class ItemToEmit:
    """A value for a stream, by the holder of a task.

    Attributes:
        task: the task.
        step: its checkpoint.
        stream: the stream's name.
        value: the value as JSON text.
    """

    task: ClaimedTask
    step: RecordedStep
    stream: str
    value: str

    @property
    def key(self) -> tuple[UUID, str]:
        """The run and the name of the checkpoint."""
        return self.task.run_id, self.step.name


_EMIT = ("task_id", "attempt", "number", "name", "position", "began_at", "stream", "value")


def emit(
    connection: Connection, names: TableNames, worker_id: UUID, new: Sequence[ItemToEmit]
) -> set[tuple[UUID, str]]:
    """Add values to streams, in this order, for runs whose tasks the worker holds, and record that; tell who follows.

    Returns:
        `(run_id, name)` of the checkpoints that are recorded now, new or from before: of tasks that the worker held and
        nobody had locked.
    """
    rows = (
        (
            item.task.task_id,
            item.task.attempt,
            number,
            item.step.name,
            item.step.position,
            item.step.started_at,
            item.stream,
            item.value,
        )
        for number, item in enumerate(new)
    )
    parameters = {"me": worker_id, "channel": names.done_channel, **parameters_of("given", _EMIT, rows)}
    recorded = connection.execute(streams.emit(names), parameters)
    return {(row.run_id, row.name) for row in recorded}


@dataclass(frozen=True, slots=True)
class StreamPage:
    """Some items of a stream, one after the other.

    Attributes:
        run_id: the execution's current run.
        values: their values as JSON text.
        is_last: whether there were no more.
        has_ended: whether the execution had ended, so that there will be no more than there were.
    """

    run_id: UUID
    values: Sequence[str]
    is_last: bool
    has_ended: bool

    @property
    def is_news(self) -> bool:
        """Whether it tells something: that there are items, or that there will be none."""
        return bool(self.values) or self.has_ended


def read(connection: Connection, names: TableNames, position: StreamPosition) -> StreamPage | None:
    """Return the items that are there from a position on, as many as are read at once; None if there is no execution.

    It is one statement: if the execution has ended, no item comes after the last page.
    """
    limits = {"limit": PAGE_ITEMS, "size": PAGE_BYTES}
    wanted = {"id": position.execution_id, "name": position.stream, "offset": position.offset}
    rows = connection.execute(streams.read(names), wanted | limits).all()
    if not rows:
        return None
    items = [row for row in rows if row.seq is not None]
    is_full = bool(items) and (len(items) == PAGE_ITEMS or items[-1].total >= PAGE_BYTES)
    values = [row.value for row in items]
    return StreamPage(rows[0].run_id, values, is_last=not is_full, has_ended=rows[0].has_ended)


@dataclass(frozen=True, slots=True)
class Followed:
    """A run whose items are notified.

    Attributes:
        run_id: the run.
        was_followed: whether they have been for a moment. If not, one that is being written now may not be.
    """

    run_id: UUID
    was_followed: bool


def follow(connection: Connection, names: TableNames, execution_id: str) -> Followed | None:
    """Ask to be notified, for half a minute, of what the execution's current run emits; and of its end.

    Returns:
        The run; None if it has ended, or there is none.
    """
    row = connection.execute(streams.follow(names), {"id": execution_id}).one_or_none()
    return None if row is None else Followed(row.run_id, row.was_followed)
