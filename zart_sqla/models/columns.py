"""The columns of each table, as mixins: what the mapped classes made for one `TableNames` have in common."""

# SQLAlchemy reads these annotations at run time, so there is no `from __future__ import annotations` here.
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from sqlalchemy import JSON, BigInteger, Identity, Integer, Text, Uuid, text
from sqlalchemy.dialects.postgresql import JSONB, TIMESTAMP
from sqlalchemy.orm import Mapped, mapped_column

Timestamp: Final = TIMESTAMP(timezone=True)


def _moment(*, default_now: bool = False) -> Any:
    return mapped_column(Timestamp, server_default=text("now()") if default_now else None)


class ExecutionColumns:
    """An execution: its identity, and which of its runs is the current one.

    Attributes:
        execution_id: the id that it was started with.
        task_name: the task that it runs.
        queue: the queue of its tasks.
        run_id: its current run.
        parent_id: the execution that started it; None if an app did.
        is_bound: whether it is cancelled with the execution that started it.
        created_at: when it was started.
        status: where its current run stands: an `ExecutionStatus` as text. It can be queried.
        runs: its runs, the first one first, for reading.
    """

    execution_id: Mapped[str] = mapped_column(Text, primary_key=True)
    task_name: Mapped[str] = mapped_column(Text)
    queue: Mapped[str] = mapped_column(Text)
    run_id: Mapped[UUID] = mapped_column(Uuid)
    parent_id: Mapped[str | None] = mapped_column(Text)
    is_bound: Mapped[bool] = mapped_column(server_default=text("false"))
    created_at: Mapped[datetime] = _moment(default_now=True)

    if TYPE_CHECKING:
        status: Mapped[str]
        runs: Mapped[list["ExecutionRunColumns"]]


class ExecutionRunColumns:
    """One attempt at a whole execution. It is written when it starts and when it ends, not in between.

    Attributes:
        run_id: the run.
        execution_id: the execution that it belongs to.
        run_index: its number there, from 0.
        trigger: what made it: `initial`; `resume`, that a failed run goes on; `continue`, that its body asked for it.
        payload: its input.
        outcome: how it ended: `completed`, `failed` or `cancelled`; None while it has not.
        result: its output, if it completed.
        error: what it failed with, if it failed.
        handled: the names of failed steps behind which its body went on, if it failed: a run that resumes it keeps
            them. None if that is not known: it keeps all.
        created_at: when it was started.
        started_at: when a worker first took it up; known here when it has ended.
        completed_at: when it ended.
        is_awaited: whether somebody waits to be notified of its end.
        followed_until: until when somebody waits to be notified of what it emits; None if nobody ever did.
        status: where it stands: an `ExecutionStatus` as text. It can be queried.
    """

    run_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    execution_id: Mapped[str] = mapped_column(Text)
    run_index: Mapped[int] = mapped_column(Integer)
    trigger: Mapped[str] = mapped_column(Text)
    payload: Mapped[Any] = mapped_column(JSON)
    outcome: Mapped[str | None] = mapped_column(Text)
    result: Mapped[Any | None] = mapped_column(JSON)
    error: Mapped[Any | None] = mapped_column(JSON(none_as_null=True))
    handled: Mapped[list[str] | None] = mapped_column(JSON(none_as_null=True))
    created_at: Mapped[datetime] = _moment(default_now=True)
    started_at: Mapped[datetime | None] = _moment()
    completed_at: Mapped[datetime | None] = _moment()
    is_awaited: Mapped[bool] = mapped_column(server_default=text("false"))
    followed_until: Mapped[datetime | None] = _moment()

    if TYPE_CHECKING:
        status: Mapped[str]
        execution: Mapped[ExecutionColumns]
        steps: Mapped[list["StepColumns"]]


class TaskColumns:
    """A piece of work that is due now or later: a row of the queue, deleted when it is done.

    Attributes:
        task_id: the task; for the task that runs a run, the id of that run; for a child, made from that and its name.
        run_id: the run that it works for.
        task_name: the name under which a worker has the handler.
        queue: the queue it is in.
        due_at: when it can be claimed; None while nothing but a wake-up will make it due.
        is_waiting: whether it was put down to wait, so its execution shows as `waiting`.
        worker_id: the worker that holds it; None while it is free.
        attempt: how often it was claimed: the fencing token of the holder.
        retries: how often the body has been retried after an error.
        crashes: how many workers in a row died with it before it got anywhere.
        started_at: when it was first claimed.
        claimed_at: when it was last claimed.
        signals: how many events were offered to the run.
        awaits: the names of the events that it was put down to wait for; None if it waits for none.
        awaits_open: how few open children make it due; None if it does not wait for children.
        has_cleanup: whether its handler has something to do when the run is cancelled.
        parent_run_id: the run whose child it is; None if it is nobody's.
        step: the name of the step that it is, if it is a child that a run has scheduled; None if it runs a run.
        position: the child's place in the order of calls of its run.
        call: the child's step and its arguments.
    """

    task_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    run_id: Mapped[UUID] = mapped_column(Uuid)
    task_name: Mapped[str] = mapped_column(Text)
    queue: Mapped[str] = mapped_column(Text)
    due_at: Mapped[datetime | None] = _moment()
    is_waiting: Mapped[bool] = mapped_column(server_default=text("false"))
    worker_id: Mapped[UUID | None] = mapped_column(Uuid)
    attempt: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    retries: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    crashes: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    started_at: Mapped[datetime | None] = _moment()
    claimed_at: Mapped[datetime | None] = _moment()
    signals: Mapped[int] = mapped_column(Integer, server_default=text("0"))
    awaits: Mapped[Any | None] = mapped_column(JSONB(none_as_null=True))
    awaits_open: Mapped[int | None] = mapped_column(Integer)
    has_cleanup: Mapped[bool] = mapped_column(server_default=text("false"))
    parent_run_id: Mapped[UUID | None] = mapped_column(Uuid)
    step: Mapped[str | None] = mapped_column(Text)
    position: Mapped[int | None] = mapped_column(Integer)
    call: Mapped[Any | None] = mapped_column(JSON(none_as_null=True))


class StepColumns:
    """A checkpoint: a step of a run that is done and never runs again; or a wait for an event, which may go on.

    Attributes:
        run_id: the run.
        name: the step's name there.
        kind: what it is: a `StepKind` as text.
        position: its place in the order of calls, from 0; None if it was called from a task of the body's own.
        attempts: how many attempts were made.
        result: its value; None if it failed.
        error: what it failed with; None if it did not.
        started_at: when the last attempt began.
        completed_at: when it was recorded; None while it waits for an event.
        wake_at: when a sleep ends, or a wait for an event times out.
    """

    run_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    name: Mapped[str] = mapped_column(Text, primary_key=True)
    kind: Mapped[str] = mapped_column(Text)
    position: Mapped[int | None] = mapped_column(Integer)
    attempts: Mapped[int] = mapped_column(Integer)
    result: Mapped[Any | None] = mapped_column(JSON)
    error: Mapped[Any | None] = mapped_column(JSON(none_as_null=True))
    started_at: Mapped[datetime | None] = _moment()
    completed_at: Mapped[datetime | None] = _moment(default_now=True)
    wake_at: Mapped[datetime | None] = _moment()

    if TYPE_CHECKING:
        failed_attempts: Mapped[list["StepAttemptColumns"]]


class StepAttemptColumns:
    """One failed attempt of a step.

    Attributes:
        run_id: the run.
        name: the step's name there, empty for the body.
        attempt: the attempt's number, from 1.
        error: what it failed with.
        started_at: when it began.
        failed_at: when it was recorded.
    """

    run_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    name: Mapped[str] = mapped_column(Text, primary_key=True)
    attempt: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    error: Mapped[Any] = mapped_column(JSON)
    started_at: Mapped[datetime] = _moment()
    failed_at: Mapped[datetime] = _moment(default_now=True)


class EventColumns:
    """An event that was offered to an execution, kept until the execution takes it, and then as history.

    Attributes:
        event_seq: its number, in the order of arrival for each execution.
        execution_id: the execution that it is for.
        name: its name.
        event_id: what tells it from others; None if nothing does.
        payload: its value.
        offered_at: when it was offered.
        run_id: the run that took it; None while nobody has.
        taken_at: when it was taken.
    """

    event_seq: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    execution_id: Mapped[str] = mapped_column(Text)
    name: Mapped[str] = mapped_column(Text)
    event_id: Mapped[str | None] = mapped_column(Text)
    payload: Mapped[Any] = mapped_column(JSON)
    offered_at: Mapped[datetime] = _moment(default_now=True)
    run_id: Mapped[UUID | None] = mapped_column(Uuid)
    taken_at: Mapped[datetime | None] = _moment()


class StreamItemColumns:
    """A value that a run has emitted into a stream of its execution.

    Attributes:
        execution_id: the execution.
        stream: the stream's name there.
        seq: its number in the stream, from 0 and without gaps, whichever runs of the execution emit.
        run_id: the run that emitted it.
        value: the value.
        emitted_at: when it was emitted.
    """

    execution_id: Mapped[str] = mapped_column(Text, primary_key=True)
    stream: Mapped[str] = mapped_column(Text, primary_key=True)
    seq: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    run_id: Mapped[UUID] = mapped_column(Uuid)
    value: Mapped[Any] = mapped_column(JSON)
    emitted_at: Mapped[datetime] = _moment(default_now=True)


class WorkerColumns:
    """A worker that lives, as far as the database knows. Its tasks are its own while this row is here.

    Attributes:
        worker_id: the worker.
        hostname: the machine that it runs on.
        pid: its process there.
        lock_key: the advisory lock that its connection holds; None where it could not have one.
        started_at: when it registered.
        heartbeat_at: when it last said that it lives.
        lease_until: when it counts as dead unless it says so again.
    """

    worker_id: Mapped[UUID] = mapped_column(Uuid, primary_key=True)
    hostname: Mapped[str] = mapped_column(Text)
    pid: Mapped[int] = mapped_column(Integer)
    lock_key: Mapped[int | None] = mapped_column(BigInteger)
    started_at: Mapped[datetime] = _moment(default_now=True)
    heartbeat_at: Mapped[datetime] = _moment(default_now=True)
    lease_until: Mapped[datetime] = _moment()
