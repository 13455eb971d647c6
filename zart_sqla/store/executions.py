"""Executions as an application sees them: started, asked for, cancelled, resumed."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from zart_sqla.errors import ConfigError
from zart_sqla.records import ExecutionFilter, ExecutionInfo, ExecutionStatus, NewExecution, Page, StepInfo
from zart_sqla.statements import executions, notifications, steps
from zart_sqla.statements.arrays import parameters_of
from zart_sqla.store import children
from zart_sqla.store.rows import error_from_json, execution_info, step_info

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from sqlalchemy import Connection

    from zart_sqla.records import ErrorRecord
    from zart_sqla.table_names import TableNames

_COLUMNS = ("execution_id", "run_id", "task_name", "payload", "queue", "due_at")


def insert(connection: Connection, names: TableNames, new: Sequence[NewExecution]) -> set[UUID]:
    """Insert those executions whose ids are not taken.

    Returns:
        The runs of those that were inserted.
    """
    # In one order, always: two that insert the same ids would else wait for each other for ever.
    in_order = sorted(new, key=lambda one: one.execution_id)
    rows = ((e.execution_id, e.run_id, e.task_name, e.payload, e.queue, None) for e in in_order)
    return set(connection.scalars(executions.start(names), parameters_of("given", _COLUMNS, rows)))


def find(connection: Connection, names: TableNames, execution_ids: Sequence[str]) -> dict[str, ExecutionInfo]:
    """Return those of the executions that exist, by their ids."""
    rows = connection.execute(executions.describe(names), {"given_execution_id": list(execution_ids)})
    return {row.execution_id: execution_info(row) for row in rows}


@dataclass(frozen=True, slots=True)
class Ending:
    """How an execution's current run stands, and what it ended with, as text.

    Attributes:
        status: where it stands.
        result: its output as JSON text, if it completed.
        error: what it failed with, if it failed.
    """

    status: ExecutionStatus
    result: str | None
    error: ErrorRecord | None


def ending(connection: Connection, names: TableNames, execution_id: str) -> Ending | None:
    """Return how the execution stands, None if there is none."""
    row = connection.execute(executions.describe(names), {"given_execution_id": [execution_id]}).one_or_none()
    if row is None:
        return None
    return Ending(ExecutionStatus(row.status), row.result, error_from_json(row.error))


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


def cancel(connection: Connection, names: TableNames, execution_id: str) -> bool:
    """End the execution's current run as cancelled, with its children, and tell its workers and who waits for it.

    Returns:
        Whether it was this call that ended it.
    """
    row = connection.execute(executions.cancel(names), {"id": execution_id}).one_or_none()
    if row is None:
        return False
    has_children_held = children.end(connection, names, row.run_id)
    notify(connection, names.done_channel, str(row.run_id))
    if row.is_held or has_children_held:
        notify(connection, names.work_channel, f"cancel {row.run_id}")
    return True


def await_end(connection: Connection, names: TableNames, execution_id: str) -> UUID | None:
    """Ask to be notified of the end of the execution's current run.

    Returns:
        The run, None if it has ended or there is none.
    """
    run_id: UUID | None = connection.scalar(executions.await_end(names), {"id": execution_id})
    return run_id


def resume(connection: Connection, names: TableNames, execution_id: str, run_id: UUID) -> bool:
    """Make a new run of a failed execution that goes on from the checkpoints that succeeded.

    Returns:
        Whether the execution was there, failed, and so goes on.
    """
    row = connection.execute(executions.resume(names), {"id": execution_id, "new_run": run_id}).one_or_none()
    return row is not None


def notify_work(connection: Connection, names: TableNames) -> None:
    """Wake the workers when the transaction commits."""
    notify(connection, names.work_channel)


def notify(connection: Connection, channel: str, payload: str = "") -> None:
    """Send a notification when the transaction commits."""
    connection.execute(notifications.notify(), {"channel": channel, "payload": payload})


def _cursor(created_at: datetime, execution_id: str) -> str:
    position = json.dumps([created_at.isoformat(), execution_id])
    return base64.urlsafe_b64encode(position.encode()).decode()


def _position(cursor: str) -> tuple[datetime, str]:
    try:
        created_at, execution_id = json.loads(base64.urlsafe_b64decode(cursor.encode()))
        return datetime.fromisoformat(created_at), str(execution_id)
    except (binascii.Error, ValueError, TypeError) as error:
        raise ConfigError("cursor", expected="the next_cursor of an earlier page", actual=cursor) from error
