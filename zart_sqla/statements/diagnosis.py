"""What `zart doctor` asks: who works, what waits in vain, and whether anything was lost."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from sqlalchemy import ColumnElement, Float, bindparam, cast, func, literal_column, select
from sqlalchemy.dialects.postgresql import INTERVAL

from zart_sqla.models.mapping import tables_of
from zart_sqla.statements.arrays import INTEGER

if TYPE_CHECKING:
    from sqlalchemy import Executable

    from zart_sqla.table_names import TableNames


def _seconds_between(earlier: ColumnElement[Any], later: ColumnElement[Any]) -> ColumnElement[float]:
    return cast(func.extract("epoch", later - earlier), Float)


@functools.cache
def workers(names: TableNames) -> Executable:
    """Select the workers, each with the seconds since its heartbeat and those left of its lease."""
    t = tables_of(names)
    now = func.now()
    held = select(func.count()).where(t.tasks.c.worker_id == t.workers.c.worker_id).scalar_subquery()
    return select(
        t.workers.c.worker_id,
        t.workers.c.hostname,
        t.workers.c.pid,
        t.workers.c.lock_key.is_not(None).label("has_lock"),
        _seconds_between(t.workers.c.heartbeat_at, now).label("silent_seconds"),
        _seconds_between(now, t.workers.c.lease_until).label("lease_seconds"),
        held.label("tasks"),
    ).order_by(t.workers.c.started_at)


@functools.cache
def overdue(names: TableNames) -> Executable:
    """Select the kinds of tasks that nobody has taken for longer than `seconds` since they were due.

    Parameters: `seconds`.
    """
    tasks = tables_of(names).tasks
    seconds = _seconds_between(tasks.c.due_at, func.now())
    patience = bindparam("seconds", type_=Float) * literal_column("INTERVAL '1 second'", INTERVAL)
    return (
        select(
            tasks.c.task_name,
            tasks.c.queue,
            func.count().label("tasks"),
            func.max(seconds).label("seconds"),
        )
        .where(tasks.c.worker_id.is_(None), tasks.c.due_at < func.now() - patience)
        .group_by(tasks.c.task_name, tasks.c.queue)
        .order_by(func.max(seconds).desc())
    )


@functools.cache
def lost(names: TableNames) -> Executable:
    """Select some of the runs that have not ended and have no task, so that nobody will go on with them.

    There must be none: each run that has not ended has a task. Each row has the `total` too. Parameters: `limit`.
    """
    t = tables_of(names)
    runs = t.execution_runs
    return (
        select(runs.c.execution_id, func.count().over().label("total"))
        .outerjoin(t.tasks, t.tasks.c.task_id == runs.c.run_id)
        .where(runs.c.outcome.is_(None), t.tasks.c.task_id.is_(None))
        .order_by(runs.c.created_at)
        .limit(bindparam("limit", type_=INTEGER))
    )


@functools.cache
def backend() -> Executable:
    """Select the process of the server that answers."""
    return select(func.pg_backend_pid())
