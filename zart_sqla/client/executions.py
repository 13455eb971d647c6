"""What can be done with executions, over a connection: the one implementation behind the async and the sync client."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal

from zart_sqla.codec import MAX_INNER_NAME_BYTES, checked_name, plain_json
from zart_sqla.errors import (
    ConfigError,
    ExecutionAlreadyExists,
    ExecutionCancelled,
    ExecutionFailed,
    ExecutionFinished,
    ExecutionNotFound,
    NotInWorkflowError,
)
from zart_sqla.ids import new_id
from zart_sqla.records import ExecutionFilter, ExecutionStatus, NewEvent
from zart_sqla.runtime.context import active_step
from zart_sqla.runtime.executions import prepare
from zart_sqla.store import events, executions, histories

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy import Connection

    from zart_sqla.client.connections import AnyConnection
    from zart_sqla.codec import Codec
    from zart_sqla.histories import ExecutionHistory
    from zart_sqla.records import Ending, ExecutionInfo, NewExecution, StepInfo
    from zart_sqla.runtime.handlers import Durable
    from zart_sqla.table_names import TableNames

OnConflict = Literal["raise", "return"]
_ROWS_A_STATEMENT: Final = 5000
MAX_PAGE: Final = 1000


def checked_on_conflict(on_conflict: str) -> None:
    """Check what is to be done when an id is taken.

    Raises:
        ConfigError: it is neither `raise` nor `return`.
    """
    if on_conflict not in ("raise", "return"):
        raise ConfigError("on_conflict", expected="'raise' or 'return'", actual=on_conflict)


def start(connection: Connection, names: TableNames, new: Sequence[NewExecution], on_conflict: OnConflict) -> None:
    """Insert the executions.

    Raises:
        ExecutionAlreadyExists: an id is taken, and `on_conflict` is `raise`; then none of them is inserted.
    """
    if len(new) == 1:
        _insert(connection, names, new, on_conflict)
        return
    in_order = sorted(new, key=lambda one: one.execution_id)  # as the store does within a statement
    with connection.begin_nested():
        for first in range(0, len(in_order), _ROWS_A_STATEMENT):
            _insert(connection, names, in_order[first : first + _ROWS_A_STATEMENT], on_conflict)


def _insert(connection: Connection, names: TableNames, new: Sequence[NewExecution], on_conflict: OnConflict) -> None:
    inserted = executions.insert(connection, names, new)
    if on_conflict == "raise" and len(inserted) < len(new):
        taken = next(one.execution_id for one in new if one.run_id not in inserted)
        raise ExecutionAlreadyExists(taken, info(connection, names, taken).status)


def info(connection: Connection, names: TableNames, execution_id: str) -> ExecutionInfo:
    """Return the execution.

    Raises:
        ExecutionNotFound: there is none.
    """
    found = executions.find(connection, names, [execution_id])
    if execution_id not in found:
        raise ExecutionNotFound(execution_id)
    return found[execution_id]


def steps(connection: Connection, names: TableNames, execution_id: str) -> list[StepInfo]:
    """Return the steps of the execution's current run, in the order of recording.

    Raises:
        ExecutionNotFound: there is none.
    """
    return executions.steps_of(connection, names, execution_id) or _nothing_if_known(connection, names, execution_id)


def history(connection: Connection, names: TableNames, execution_id: str) -> ExecutionHistory:
    """Return what is recorded of the execution's current run.

    Raises:
        ExecutionNotFound: there is none.
    """
    found = histories.histories(connection, names, [execution_id])
    if execution_id not in found:
        raise ExecutionNotFound(execution_id)
    return found[execution_id]


def _nothing_if_known(connection: Connection, names: TableNames, execution_id: str) -> list[StepInfo]:
    info(connection, names, execution_id)
    return []


def run_to_spare(session: AnyConnection | None) -> UUID | None:
    """Return the run that may not be cancelled in this transaction, None if there is none.

    It is that of a step which has asked for a transaction: the checkpoint would be part of it, and could not be
    written, since the run would be over.
    """
    step = active_step.get()
    has_transaction = step is not None and step.transaction is not None
    return step.turn.task.run_id if step is not None and has_transaction and session is not None else None


def cancel(connection: Connection, names: TableNames, execution_id: str, spared: UUID | None = None) -> None:
    """End the execution as cancelled.

    Raises:
        ExecutionNotFound: there is none.
        ExecutionFinished: it has completed or failed. To cancel one that is cancelled changes nothing.
        NotInWorkflowError: that would end the run that is to be spared; nothing is changed.
    """
    if spared is None:
        _cancel(connection, names, execution_id)
        return
    with connection.begin_nested():
        if spared in _cancel(connection, names, execution_id):
            raise NotInWorkflowError("cancel(session=...)", "cannot end the run of its own step: leave out the session")


def _cancel(connection: Connection, names: TableNames, execution_id: str) -> set[UUID]:
    """Cancel the execution, and return the runs that this has ended."""
    while not (ended := executions.cancel(connection, names, execution_id)):
        status = info(connection, names, execution_id).status
        if status is ExecutionStatus.CANCELLED:
            break
        if status.is_terminal:
            raise ExecutionFinished(execution_id, status)
        # Another run of it has begun in between.
    return ended


def prepare_event(execution_id: str, name: str, value: object, event_id: str | None) -> NewEvent:
    """Return the event to be offered, checked and encoded.

    Raises:
        InvalidDataError: the value cannot be stored.
        InvalidNameError: the name or the id cannot be stored.
    """
    payload, _ = plain_json.pack(value, subject=f"the event {name!r}")
    return NewEvent(
        execution_id=execution_id,
        name=checked_name("event name", name, longest=MAX_INNER_NAME_BYTES),
        payload=payload,
        event_id=None if event_id is None else checked_name("event id", event_id, longest=MAX_INNER_NAME_BYTES),
    )


def offer_event(connection: Connection, names: TableNames, event: NewEvent) -> bool:
    """Offer the event to its execution.

    Returns:
        Whether no event of this id had been offered before.

    Raises:
        ExecutionNotFound: there is none.
        ExecutionFinished: it has ended.
    """
    while (offer := events.offer(connection, names, event)) is None:
        status = info(connection, names, event.execution_id).status
        if status.is_terminal:
            raise ExecutionFinished(event.execution_id, status)
        # Another run of it has begun in between.
    return offer.is_new


def resume(connection: Connection, names: TableNames, execution_id: str) -> None:
    """Let a failed execution go on, in a new run that keeps the checkpoints that succeeded.

    Raises:
        ExecutionNotFound: there is none.
        ExecutionFinished: it has completed or was cancelled.
        ExecutionAlreadyExists: it has not ended.
    """
    if executions.resume(connection, names, execution_id, new_id()):
        return
    status = info(connection, names, execution_id).status
    if status.is_terminal:
        raise ExecutionFinished(execution_id, status)
    raise ExecutionAlreadyExists(execution_id, status)


def ending(connection: Connection, names: TableNames, execution_id: str) -> Ending:
    """Return how the execution stands.

    Raises:
        ExecutionNotFound: there is none.
    """
    found = executions.ending(connection, names, execution_id)
    if found is None:
        raise ExecutionNotFound(execution_id)
    return found


def result_of(ended: Ending, execution_id: str, codec: Codec[Any]) -> Any:
    """Return the output of an execution that has ended.

    Raises:
        ExecutionFailed: it failed.
        ExecutionCancelled: it was cancelled.
    """
    if ended.status is ExecutionStatus.COMPLETED:
        return codec.unpack(ended.result or "null", subject=f"the output of execution {execution_id!r}")
    if ended.error is None:
        raise ExecutionCancelled(execution_id)
    error = ended.error
    raise ExecutionFailed(execution_id, error_type=error.error_type, message=error.message, step=error.step)


def prepare_many(
    workflow: Durable[Any, Any] | str, items: Iterable[tuple[str | None, Any]], queue: str
) -> list[NewExecution]:
    """Return the executions to be started, each from an id (None for a new one) and its input."""
    return [prepare(workflow, data, execution_id=execution_id, queue=queue) for execution_id, data in items]


def checked_filter(
    status: ExecutionStatus | str | None,
    task_name: str | None,
    search: str | None,
    since: datetime | None,
    limit: int,
) -> ExecutionFilter:
    """Return the filter, checked.

    Raises:
        ConfigError: an argument is out of range.
    """
    if status is not None and status not in set(ExecutionStatus):
        raise ConfigError("status", expected=f"one of {', '.join(ExecutionStatus)}", actual=status)
    if since is not None and since.tzinfo is None:
        raise ConfigError("since", expected="a datetime with a time zone", actual=since)
    if not 1 <= limit <= MAX_PAGE:
        raise ConfigError("limit", expected=f"a whole number from 1 to {MAX_PAGE}", actual=limit)
    known = None if status is None else ExecutionStatus(status)
    return ExecutionFilter(status=known, task_name=task_name, search=search, since=since, limit=limit)
