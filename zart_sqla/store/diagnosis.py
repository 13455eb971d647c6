"""How the queue and its workers are, for `zart doctor` and the logs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from zart_sqla.statements import diagnosis

if TYPE_CHECKING:
    from collections.abc import Sequence
    from uuid import UUID

    from sqlalchemy import Connection

    from zart_sqla.table_names import TableNames


@dataclass(frozen=True, slots=True)
class WorkerHealth:
    """A worker that is registered.

    Attributes:
        worker_id: the worker.
        hostname: the machine that it runs on.
        pid: its process there.
        has_lock: whether it could take a session lock, by which its death is noticed at once.
        silent_seconds: how long ago its last heartbeat was.
        lease_seconds: how long it still counts as alive; negative if it does not.
        tasks: how many tasks it holds.
    """

    worker_id: UUID
    hostname: str
    pid: int
    has_lock: bool
    silent_seconds: float
    lease_seconds: float
    tasks: int

    @property
    def is_alive(self) -> bool:
        """Whether its lease still runs."""
        return self.lease_seconds > 0


@dataclass(frozen=True, slots=True)
class Overdue:
    """Tasks of one name in one queue that are due, and that nobody takes.

    Attributes:
        task_name: the name.
        queue: the queue.
        tasks: how many.
        seconds: how long the longest has been due.
    """

    task_name: str
    queue: str
    tasks: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Lost:
    """Runs that have not ended and have no task.

    Attributes:
        total: how many.
        execution_ids: some of the executions that they belong to.
    """

    total: int
    execution_ids: Sequence[str]


def workers(connection: Connection, names: TableNames) -> list[WorkerHealth]:
    """Return the workers that are registered, the oldest first."""
    return [WorkerHealth(*row) for row in connection.execute(diagnosis.workers(names))]


def overdue(connection: Connection, names: TableNames, seconds: float) -> list[Overdue]:
    """Return the kinds of tasks that nobody has taken for so long since they were due, the longest first."""
    return [Overdue(*row) for row in connection.execute(diagnosis.overdue(names), {"seconds": seconds})]


def lost(connection: Connection, names: TableNames, limit: int) -> Lost:
    """Return the runs that nobody will go on with, naming so many at most."""
    rows = connection.execute(diagnosis.lost(names), {"limit": limit}).all()
    return Lost(rows[0].total if rows else 0, [row.execution_id for row in rows])


def backend(connection: Connection) -> int:
    """Return the server's process that answers on this connection."""
    pid: int = connection.execute(diagnosis.backend()).scalar_one()
    return pid
