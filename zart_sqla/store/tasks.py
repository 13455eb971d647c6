"""The queue as a worker sees it: tasks claimed, put down and finished, and the journals of their runs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from zart_sqla.records import Child, ClaimedTask, ErrorRecord, FailedAttempt, NewExecution, RecordedStep, RunHistory
from zart_sqla.statements import steps, tasks
from zart_sqla.statements.arrays import parameters_of
from zart_sqla.store import children
from zart_sqla.store.rows import error_to_json, recorded_step

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy import Connection, Row

    from zart_sqla.table_names import TableNames

MAX_CLAIM: Final = tasks.MAX_CLAIM
"""How many tasks a claim takes at most."""


def claim(  # noqa: PLR0913 - a claim has so many sides
    connection: Connection,
    names: TableNames,
    worker_id: UUID,
    *,
    task_names: Sequence[str],
    cleaners: Sequence[str] = (),
    queues: Sequence[str] | None,
    limit: int,
    takes_suspect: bool = True,
    ahead_seconds: float = 3600.0,
) -> tuple[list[ClaimedTask], float | None]:
    """Give the worker tasks that are due, the longest due first.

    Args:
        connection: where to run it.
        names: the tables.
        worker_id: the worker.
        task_names: the tasks that it has handlers for.
        cleaners: those of them whose handlers do something when a run is cancelled.
        queues: the queues that it serves, None for all.
        limit: how many at most, up to `MAX_CLAIM`.
        takes_suspect: whether one of them can be a task that may kill the worker.
        ahead_seconds: how far to look ahead for the next task.

    Returns:
        The tasks, and in how many seconds the next one becomes due, None if none does in that time.
    """
    parameters = {
        "me": worker_id,
        "limit": limit,
        "takes_suspect": takes_suspect,
        "ahead_seconds": ahead_seconds,
        "task_names": list(task_names),
        "cleaners": list(cleaners),
        **({} if queues is None else {"queues": list(queues)}),
    }
    rows = connection.execute(tasks.claim(names, all_queues=queues is None), parameters).all()
    parents = {row.run_id for row in rows if row.step is not None}
    payloads = children.payloads(connection, names, parents) if parents else {}
    claimed = [_claimed(row, payloads) for row in rows if row.task_id is not None]
    return claimed, rows[0].seconds


def _claimed(row: Row[Any], payloads: dict[UUID, str]) -> ClaimedTask:
    child = None if row.step is None else Child(name=row.step, position=row.position, call=row.call)
    return ClaimedTask(
        task_id=row.task_id,
        run_id=row.run_id,
        execution_id=row.execution_id,
        task_name=row.task_name,
        queue=row.queue,
        attempt=row.attempt,
        retries=row.retries,
        payload=row.payload if child is None else payloads[row.run_id],
        started_at=row.started_at,
        claimed_at=row.claimed_at,
        crashes=row.crashes,
        signals=row.signals,
        parent_run_id=row.parent_run_id,
        child=child,
        is_recorded=row.is_recorded,
        is_cleanup=row.is_cleanup,
    )


def release_others(
    connection: Connection, names: TableNames, worker_id: UUID, kept: Iterable[UUID] = ()
) -> dict[UUID, bool]:
    """Free the tasks that the worker holds, but for those that it means to keep.

    Returns:
        For each of the others, whether it was freed: not so while somebody has locked it.
    """
    rows = connection.execute(tasks.release_others(names), {"me": worker_id, "kept": list(kept)})
    return {row.task_id: row.is_freed for row in rows}


def journal(connection: Connection, names: TableNames, run_ids: Iterable[UUID]) -> dict[UUID, RunHistory]:
    """Return what earlier turns of the runs recorded."""
    recorded: dict[UUID, list[RecordedStep]] = {run_id: [] for run_id in run_ids}
    attempts: dict[UUID, dict[str, int]] = {run_id: {} for run_id in recorded}
    still_open: dict[UUID, dict[str, int | None]] = {run_id: {} for run_id in recorded}
    executions: dict[UUID, list[str]] = {run_id: [] for run_id in recorded}
    for row in connection.execute(steps.journal(names), {"run_ids": list(recorded)}):
        match row.kind:
            case "attempts":
                attempts[row.run_id][row.name] = row.attempts
            case "open":
                still_open[row.run_id][row.name] = row.position
            case "open execution":
                executions[row.run_id].append(row.name)
            case _:
                recorded[row.run_id].append(recorded_step(row))
    return {
        run_id: RunHistory(
            steps=found, attempts=attempts[run_id], children=still_open[run_id], executions=executions[run_id]
        )
        for run_id, found in recorded.items()
    }


@dataclass(slots=True)
class StepToRecord:
    """A checkpoint to be written by the holder of a task."""

    task: ClaimedTask
    step: RecordedStep


@dataclass(frozen=True, slots=True)
class AttemptToRecord:
    """A failed attempt to be written by the holder of a task."""

    task: ClaimedTask
    failed: FailedAttempt


@dataclass(frozen=True, slots=True)
class TaskToPutDown:
    """A task that its holder frees.

    Attributes:
        task: the task.
        due_at: when it is due again; None for at once.
        is_waiting: whether its execution waits until then.
        retries: how often the body has been retried.
        awaits: the events that make it due before; then without `due_at` nothing else does.
        awaits_open: how few open children make it due before; the same.
    """

    task: ClaimedTask
    due_at: datetime | None
    is_waiting: bool
    retries: int
    awaits: frozenset[str] = frozenset()
    awaits_open: int | None = None


@dataclass(slots=True)
class RunToFinish:
    """A run that its task's holder ends.

    Attributes:
        task: the task.
        result: the run's output as JSON text, None if it failed.
        error: what it failed with, None if it completed.
        handled: the names of failed steps that a run which resumes it keeps; None for all.
    """

    task: ClaimedTask
    result: str | None
    error: ErrorRecord | None
    handled: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class RunToRenew:
    """A run that its task's holder ends, so that another one of the execution follows.

    Attributes:
        task: the task.
        run_id: the id of the next run.
        payload: its input as JSON text.
    """

    task: ClaimedTask
    run_id: UUID
    payload: str


@dataclass(frozen=True, slots=True)
class ExecutionToStart:
    """An execution that the holder of a run's task starts.

    Attributes:
        task: the task.
        new: the execution.
        step: the checkpoint that it was started.
    """

    task: ClaimedTask
    new: NewExecution
    step: RecordedStep


_STEP = (
    "task_id",
    "attempt",
    "name",
    "kind",
    "position",
    "attempts",
    "result",
    "error",
    "started_at",
    "wake_at",
)


def record_steps(connection: Connection, names: TableNames, worker_id: UUID, new: Sequence[StepToRecord]) -> int:
    """Insert checkpoints of runs whose tasks the worker holds.

    Returns:
        How many were written: not those that were there before.
    """
    rows = (
        (
            item.task.task_id,
            item.task.attempt,
            item.step.name,
            item.step.kind,
            item.step.position,
            item.step.attempts,
            item.step.result,
            error_to_json(item.step.error),
            item.step.started_at,
            item.step.wake_at,
        )
        for item in new
    )
    parameters = {"me": worker_id, **parameters_of("given", _STEP, rows)}
    return connection.execute(steps.record(names), parameters).rowcount


def find_steps(
    connection: Connection, names: TableNames, keys: Iterable[tuple[UUID, str]]
) -> dict[tuple[UUID, str], RecordedStep]:
    """Return those of the checkpoints `(run_id, name)` that are recorded."""
    rows = connection.execute(steps.recorded(names), parameters_of("given", ("run_id", "name"), keys))
    return {(row.run_id, row.name): recorded_step(row) for row in rows}


def touch(connection: Connection, names: TableNames, worker_id: UUID, claimed: Iterable[ClaimedTask]) -> set[UUID]:
    """Write those of the tasks that the worker still holds, so that nobody ends their runs meanwhile; return which."""
    given = parameters_of("given", ("task_id", "attempt"), ((task.task_id, task.attempt) for task in claimed))
    return set(connection.scalars(tasks.touch(names), {"me": worker_id, **given}))


def held(connection: Connection, names: TableNames, worker_id: UUID, claimed: Iterable[ClaimedTask]) -> set[UUID]:
    """Return those of the tasks that the worker still holds."""
    mine = parameters_of("mine", ("task_id", "attempt"), ((task.task_id, task.attempt) for task in claimed))
    return set(connection.scalars(tasks.held(names), {"me": worker_id, **mine}))


_ATTEMPT = ("task_id", "token", "name", "attempt", "error", "started_at")


def record_attempts(
    connection: Connection, names: TableNames, worker_id: UUID, new: Sequence[AttemptToRecord]
) -> set[tuple[UUID, str]]:
    """Insert failed attempts of runs whose tasks the worker holds.

    Returns:
        `(run_id, step)` of those that are there now.
    """
    rows = (
        (
            item.task.task_id,
            item.task.attempt,
            item.failed.step,
            item.failed.attempt,
            error_to_json(item.failed.error),
            item.failed.started_at,
        )
        for item in new
    )
    inserted = connection.execute(
        steps.record_attempts(names), {"me": worker_id, **parameters_of("given", _ATTEMPT, rows)}
    )
    return {(run_id, name) for run_id, name in inserted}


_PUT_DOWN = ("task_id", "attempt", "due_at", "is_waiting", "retries", "awaits", "awaits_open", "signals")


def put_down(
    connection: Connection, names: TableNames, worker_id: UUID, freed: Sequence[TaskToPutDown]
) -> dict[UUID, bool]:
    """Free tasks that the worker holds.

    Returns:
        Of those that it still held, whether they are due again by now.
    """
    rows = (
        (
            item.task.task_id,
            item.task.attempt,
            item.due_at,
            item.is_waiting,
            item.retries,
            json.dumps(sorted(item.awaits)) if item.awaits else None,
            item.awaits_open,
            item.task.signals,
        )
        for item in freed
    )
    parameters = {"me": worker_id, **parameters_of("turn", _PUT_DOWN, rows)}
    put = connection.execute(tasks.put_down(names), parameters)
    return {task_id: bool(is_due) for task_id, is_due in put}


_FINISH = ("task_id", "attempt", "outcome", "result", "error", "handled")


def finish(connection: Connection, names: TableNames, worker_id: UUID, ended: Sequence[RunToFinish]) -> set[UUID]:
    """End runs whose tasks the worker holds, and tell those who wait for them.

    Returns:
        The tasks that it still held.
    """
    rows = (
        (
            item.task.task_id,
            item.task.attempt,
            "completed" if item.error is None else "failed",
            item.result,
            error_to_json(item.error),
            None if item.handled is None else json.dumps(sorted(item.handled)),
        )
        for item in ended
    )
    parameters = {"me": worker_id, "channel": names.done_channel, **parameters_of("given", _FINISH, rows)}
    return set(connection.scalars(tasks.finish(names), parameters))


_RENEW = ("task_id", "attempt", "new_id", "payload")


def renew(connection: Connection, names: TableNames, worker_id: UUID, ended: Sequence[RunToRenew]) -> set[UUID]:
    """End runs whose tasks the worker holds, each with a next one, and tell those who wait for them.

    Returns:
        The tasks that it still held.
    """
    rows = ((item.task.task_id, item.task.attempt, item.run_id, item.payload) for item in ended)
    parameters = {"me": worker_id, "channel": names.done_channel, **parameters_of("given", _RENEW, rows)}
    return set(connection.scalars(tasks.renew(names), parameters))
