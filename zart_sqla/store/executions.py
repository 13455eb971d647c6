"""Executions as an application sees them: started, asked for, cancelled, resumed."""

from __future__ import annotations

import base64
import binascii
import json
from datetime import datetime
from typing import TYPE_CHECKING, Any

from zart_sqla.errors import ConfigError
from zart_sqla.records import Ending, ExecutionFilter, ExecutionInfo, ExecutionStatus, NewExecution, Page, StepInfo
from zart_sqla.statements import executions, notifications, steps
from zart_sqla.statements.arrays import parameters_of
from zart_sqla.store.rows import error_from_json, execution_info, step_info

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from uuid import UUID

    from sqlalchemy import Connection, Row

    from zart_sqla.table_names import TableNames

_COLUMNS = (
    "execution_id",
    "run_id",
    "task_name",
    "payload",
    "queue",
    "due_at",
    "parent_id",
    "parent_run_id",
    "is_bound",
)


def insert(connection: Connection, names: TableNames, new: Sequence[NewExecution]) -> set[UUID]:
    """Insert those executions whose ids are not taken.

    Returns:
        The runs of those that were inserted.
    """
    # In one order, always: two that insert the same ids would else wait for each other for ever.
    in_order = sorted(new, key=lambda one: one.execution_id)
    rows = (
        (e.execution_id, e.run_id, e.task_name, e.payload, e.queue, None, e.parent_id, e.parent_run_id, e.is_bound)
        for e in in_order
    )
    return set(connection.scalars(executions.start(names), parameters_of("given", _COLUMNS, rows)))


def find(connection: Connection, names: TableNames, execution_ids: Sequence[str]) -> dict[str, ExecutionInfo]:
    """Return those of the executions that exist, by their ids."""
    rows = connection.execute(executions.describe(names), {"given_execution_id": list(execution_ids)})
    return {row.execution_id: execution_info(row) for row in rows}


def ending(connection: Connection, names: TableNames, execution_id: str) -> Ending | None:
    """Return how the execution stands, None if there is none."""
    row = connection.execute(executions.ending(names), {"id": execution_id}).one_or_none()
    if row is None:
        return None
    return Ending(row.run_id, ExecutionStatus(row.status), row.result, error_from_json(row.error))


def browse(
    connection: Connection, names: TableNames, wanted: ExecutionFilter, cursor: str | None
) -> Page[ExecutionInfo]:
    """Return a page of executions, the newest first.

    Args:
        connection: where to run it.
        names: the tables.
        wanted: which executions.
        cursor: the `next_cursor` of the page before; None for the first.

    Raises:
        ConfigError: it is not such a cursor.
    """
    after = None if cursor is None else _position(cursor)
    rows = connection.execute(executions.browse(names, wanted, after)).all()
    page = rows[: wanted.limit]
    items = [execution_info(row) for row in page]
    if len(rows) == len(page):
        return Page(items)
    return Page(items, _cursor(page[-1].listed_at, page[-1].execution_id))


def steps_of(connection: Connection, names: TableNames, execution_id: str) -> list[StepInfo]:
    """Return the steps of the execution's current run, in the order of recording."""
    rows = connection.execute(steps.describe(names), {"id": execution_id})
    return [step_info(row) for row in rows]


def cancel(connection: Connection, names: TableNames, execution_id: str) -> set[UUID]:
    """End the execution's current run as cancelled, with all that hangs on it, and tell those whom it concerns.

    Returns:
        The runs that this call has ended: none if the execution's had ended before.
    """
    rows = connection.execute(executions.cancel(names), {"id": execution_id}).all()
    level = {row.run_id for row in rows}
    ended = set(level)
    while level:
        below = _cancel_children(connection, names, level)
        level = {row.run_id for row in below if row.is_run}
        ended |= level
        rows = [*rows, *below]
    _tell_of_cancellation(connection, names, rows)
    return ended


def _cancel_children(connection: Connection, names: TableNames, run_ids: set[UUID]) -> list[Row[Any]]:
    """End what hangs on these runs, also what goes on as a new run of its own at the same moment."""
    given = {"run_ids": list(run_ids)}
    rows: list[Row[Any]] = []
    while connection.scalar(executions.has_children(names), given):
        rows += connection.execute(executions.cancel_children(names), given)
    return rows


def _tell_of_cancellation(connection: Connection, names: TableNames, rows: Sequence[Row[Any]]) -> None:
    """Tell the workers that are at what was cancelled or have something to do now, and whoever waits for it."""
    ended = {row.run_id for row in rows if row.is_run}
    work = {f"cancel {row.run_id}" for row in rows if row.is_held}
    work |= {f"wake {row.parent_run_id}" for row in rows if row.parent_run_id not in {None, *ended}}
    work |= {"" for row in rows if row.has_cleanup}
    for channel, payloads in ((names.done_channel, set(map(str, ended))), (names.work_channel, work)):
        if payloads:
            _notify_all(connection, channel, payloads)


def await_end(connection: Connection, names: TableNames, execution_id: str) -> UUID | None:
    """Ask to be notified of the end of the execution's current run.

    Returns:
        The run, None if it has ended or there is none.
    """
    run_id: UUID | None = connection.scalar(executions.await_end(names), {"id": execution_id})
    return run_id


def resume(connection: Connection, names: TableNames, execution_id: str, run_id: UUID) -> bool:
    """Make a new run of a failed execution that goes on from the checkpoints that succeeded.

    If another execution has started it, that one counts it among its children again.

    Returns:
        Whether the execution was there, failed, and so goes on.
    """
    told = _tell_parent(connection, names, execution_id)
    row = connection.execute(executions.resume(names), {"id": execution_id, "new_run": run_id}).one_or_none()
    if row is None:
        return False
    if row.parent_run_id is not None and row.parent_run_id != told:  # it was resumed at the same moment
        _tell_parent(connection, names, execution_id)
    followed = {"old_run": row.run_id, "new_run": run_id}
    while connection.scalar(executions.has_started(names), {"old_run": row.run_id}):
        connection.execute(executions.adopt(names), followed)
    return True


def _tell_parent(connection: Connection, names: TableNames, execution_id: str) -> UUID | None:
    """Lock the run that has started the execution, so that it does not miss that there is one more child.

    Returns:
        The run, None if there is none that has not ended.
    """
    given = {"id": execution_id}
    while (told := connection.scalar(executions.tell_parent(names), given)) is None:
        if not connection.scalar(executions.has_open_parent(names), given):
            return None
        # Another run of it has begun in between.
    run_id: UUID = told
    return run_id


def notify_work(connection: Connection, names: TableNames) -> None:
    """Wake the workers when the transaction commits."""
    notify(connection, names.work_channel)


def notify(connection: Connection, channel: str, payload: str = "") -> None:
    """Send a notification when the transaction commits."""
    connection.execute(notifications.notify(), {"channel": channel, "payload": payload})


def _notify_all(connection: Connection, channel: str, payloads: Iterable[str]) -> None:
    given = parameters_of("given", ("payload",), ((payload,) for payload in sorted(payloads)))
    connection.execute(notifications.notify_all(), {"channel": channel, **given})


def _cursor(created_at: datetime, execution_id: str) -> str:
    position = json.dumps([created_at.isoformat(), execution_id])
    return base64.urlsafe_b64encode(position.encode()).decode()


def _position(cursor: str) -> tuple[datetime, str]:
    try:
        created_at, execution_id = json.loads(base64.urlsafe_b64decode(cursor.encode()))
        return datetime.fromisoformat(created_at), str(execution_id)
    except (binascii.Error, ValueError, TypeError) as error:
        raise ConfigError("cursor", expected="the next_cursor of an earlier page", actual=cursor) from error
