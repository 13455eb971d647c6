"""The workers that live, and what becomes of the tasks of those that died."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import func, select

from zart_sqla.records import ErrorRecord
from zart_sqla.statements import workers
from zart_sqla.statements.arrays import parameters_of
from zart_sqla.store.rows import error_to_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy import Connection

    from zart_sqla.table_names import TableNames


@dataclass(frozen=True, slots=True)
class Beat:
    """What a heartbeat tells the worker.

    Attributes:
        now: the time, by the database's clock.
        is_alive: whether the worker still counts as alive; if not, none of its tasks is its own any more.
        lost: those of its tasks that are not its own any more.
        has_dead: whether other workers are dead and their tasks wait to be taken over.
    """

    now: datetime
    is_alive: bool
    lost: frozenset[UUID]
    has_dead: bool


@dataclass(frozen=True, slots=True)
class Orphan:
    """A task whose worker died.

    Attributes:
        task_id: the task.
        execution_id: the execution that it works for.
        crashes: how many workers in a row died with it.
        is_failed: whether its run, or the step, was failed for that.
        step: the step that it is, if it is a child.
    """

    task_id: UUID
    execution_id: str
    crashes: int
    is_failed: bool
    step: str | None = None


@dataclass(frozen=True, slots=True)
class DeadWorker:
    """A worker that died.

    Attributes:
        worker_id: the worker.
        hostname: the machine that it ran on.
        pid: its process there.
    """

    worker_id: UUID
    hostname: str
    pid: int


def register(  # noqa: PLR0913 - as many as the row has columns
    connection: Connection,
    names: TableNames,
    worker_id: UUID,
    *,
    hostname: str,
    pid: int,
    lock_key: int | None,
    lease_seconds: float,
) -> datetime:
    """Insert the worker: from now on it can claim.

    Returns:
        The time, by the database's clock.
    """
    parameters = {
        "worker_id": worker_id,
        "hostname": hostname,
        "pid": pid,
        "lock_key": lock_key,
        "lease_seconds": lease_seconds,
    }
    now: datetime = connection.execute(workers.register(names), parameters).scalar_one()
    return now


def unregister(connection: Connection, names: TableNames, worker_id: UUID) -> int:
    """Delete the worker and free the tasks that it still holds, in one transaction of the caller's.

    The tasks come second: only then are those seen that a claim took which was under way. A task that somebody has
    locked is left to the workers that go on.

    Returns:
        How many tasks were freed.
    """
    connection.execute(workers.unregister(names), {"me": worker_id})
    return len(connection.execute(workers.release(names), {"me": worker_id}).all())


def set_lock(connection: Connection, names: TableNames, worker_id: UUID, lock_key: int | None) -> None:
    """Record which advisory lock says that the worker's process lives, None where it could not have one."""
    connection.execute(workers.set_lock(names), {"me": worker_id, "key": lock_key})


def lock(connection: Connection, lock_key: int) -> bool:
    """Take the advisory lock for as long as the session lives.

    Returns:
        Whether the session holds it now. Behind a transaction pooler it does not: there is no session to hold it.
    """
    if not connection.scalar(select(func.pg_try_advisory_lock(lock_key))):
        return False
    return bool(connection.scalar(workers.is_locked(), {"key": lock_key}))


def beat(
    connection: Connection,
    names: TableNames,
    worker_id: UUID,
    *,
    running: Iterable[tuple[UUID, int]],
    lease_seconds: float,
    grace_seconds: float,
) -> Beat:
    """Say that the worker lives, and learn what it has to know.

    Args:
        connection: where to run it.
        names: the tables.
        worker_id: the worker.
        running: the tasks that it runs, each with its fencing token.
        lease_seconds: for how long it counts as alive without another beat.
        grace_seconds: for how long a worker counts as alive whose connection is gone.
    """
    parameters = {
        "me": worker_id,
        "lease_seconds": lease_seconds,
        "grace_seconds": grace_seconds,
        **parameters_of("mine", ("task_id", "attempt"), running),
    }
    row = connection.execute(workers.beat(names), parameters).one()
    return Beat(row.now, row.is_alive, frozenset(row.lost or ()), row.has_dead)


def bury(connection: Connection, names: TableNames, worker_id: UUID, *, grace_seconds: float) -> list[DeadWorker]:
    """Delete the workers that are dead, so that they can write no more."""
    rows = connection.execute(workers.bury(names), {"me": worker_id, "grace_seconds": grace_seconds})
    return [DeadWorker(*row) for row in rows]


def take_over(connection: Connection, names: TableNames, dead: Sequence[UUID], *, max_crashes: int) -> list[Orphan]:
    """Free the tasks of the dead, in a statement after the one that buried them, and those that others left behind.

    It must be a later statement: only then does it see all that they claimed before they were buried. What somebody
    has locked stays as it is; then `has_orphans`.
    """
    error = ErrorRecord(
        error_type="WorkerCrashed",
        message=f"{max_crashes} workers in a row died while they ran it, and it got nowhere in between",
        attempts=max_crashes,
        category="crash",
    )
    parameters = {
        "dead": list(dead),
        "max_crashes": max_crashes,
        "crash": error_to_json(error),
        "channel": names.done_channel,
    }
    rows = connection.execute(workers.take_over(names), parameters)
    return [Orphan(row.task_id, row.execution_id, row.crashes, row.is_failed, row.step) for row in rows]


def has_orphans(connection: Connection, names: TableNames) -> bool:
    """Return whether there are tasks of workers that are not there any more."""
    return bool(connection.scalar(workers.has_orphans(names)))
