"""The workers that live: who they are, who has died, and what becomes of the tasks of the dead."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    ColumnElement,
    Float,
    Select,
    SmallInteger,
    Text,
    any_,
    bindparam,
    case,
    cast,
    column,
    delete,
    exists,
    func,
    insert,
    literal,
    literal_column,
    or_,
    select,
    table,
    update,
)
from sqlalchemy.dialects.postgresql import INTERVAL, OID
from sqlalchemy.dialects.postgresql import insert as pg_insert

from zart_sqla.models.mapping import tables_of
from zart_sqla.statements.arrays import INTEGER, UUID, array_of, rows_of
from zart_sqla.statements.children import delete_steps, error_of

if TYPE_CHECKING:
    from sqlalchemy import Executable

    from zart_sqla.table_names import TableNames

_LOCKS = table(
    "pg_locks",
    column("locktype", Text),
    column("database", OID),
    column("classid", OID),
    column("objid", OID),
    column("objsubid", SmallInteger),
    column("granted", Boolean),
    schema="pg_catalog",
)
_DATABASES = table("pg_database", column("oid", OID), column("datname", Text), schema="pg_catalog")
_SERVER_WARM_UP = literal_column("INTERVAL '10 seconds'", INTERVAL)


def _seconds(name: str) -> ColumnElement[Any]:
    return bindparam(name, type_=Float) * literal_column("INTERVAL '1 second'", INTERVAL)


@functools.cache
def register(names: TableNames) -> Executable:
    """Insert a worker.

    Parameters: the columns `worker_id`, `hostname`, `pid` and `lock_key`, and `lease_seconds`. Returns: the time.
    """
    workers = tables_of(names).workers
    return insert(workers).values(lease_until=func.now() + _seconds("lease_seconds")).returning(func.now())


@functools.cache
def unregister(names: TableNames) -> Executable:
    """Delete a worker. Parameters: `me`."""
    workers = tables_of(names).workers
    return delete(workers).where(workers.c.worker_id == bindparam("me", type_=UUID))


@functools.cache
def release(names: TableNames) -> Executable:
    """Free the tasks of a worker that is deleted, but for those that others have locked.

    Parameters: `me`. Returns: `(task_id)` of each.
    """
    tasks = tables_of(names).tasks
    left = (
        select(tasks.c.task_id)
        .where(tasks.c.worker_id == bindparam("me", type_=UUID))
        .with_for_update(skip_locked=True)
        .cte("left_behind")
    )
    return (
        update(tasks)
        .values(worker_id=None, due_at=func.now())
        .where(tasks.c.task_id == left.c.task_id)
        .returning(tasks.c.task_id)
    )


@functools.cache
def set_lock(names: TableNames) -> Executable:
    """Record the advisory lock that a worker's connection holds. Parameters: `me`, `key`."""
    workers = tables_of(names).workers
    return (
        update(workers)
        .values(lock_key=bindparam("key", type_=BigInteger))
        .where(workers.c.worker_id == bindparam("me", type_=UUID))
    )


def _is_locked(key: ColumnElement[Any]) -> ColumnElement[bool]:
    """Return the condition that some session of this database holds the advisory lock of this key."""
    here = select(_DATABASES.c.oid).where(_DATABASES.c.datname == func.current_database()).scalar_subquery()
    high, low = cast(_LOCKS.c.classid, BigInteger), cast(_LOCKS.c.objid, BigInteger)
    return (
        exists()
        .select_from(_LOCKS)
        .where(
            _LOCKS.c.locktype == "advisory",
            _LOCKS.c.database == here,
            _LOCKS.c.objsubid == 1,  # a key of one bigint
            _LOCKS.c.granted,
            high.op("<<")(literal_column("32")).op("|")(low) == key,
        )
    )


@functools.cache
def is_locked() -> Select[Any]:
    """Select whether some session of this database holds an advisory lock. Parameters: `key`."""
    return select(_is_locked(bindparam("key", type_=BigInteger)))


def _is_dead(names: TableNames) -> ColumnElement[bool]:
    """Return the condition for a worker that is dead.

    Its lease ran out; or its connection is gone, and with it the lock, and it has not said since that it lives. After
    a restart of the server all locks are gone, so the workers from before get a while to take theirs again. So it is
    when one of the server's processes is killed: it ends all connections and recovers in place. Of that it only tells
    that its statistics begin anew.
    """
    workers = tables_of(names).workers
    silent = workers.c.heartbeat_at < func.now() - _seconds("grace_seconds")
    recovery = func.pg_stat_get_bgwriter_stat_reset_time()
    server_start = func.greatest(func.pg_postmaster_start_time(), recovery)
    survived_no_restart = or_(server_start < func.now() - _SERVER_WARM_UP, server_start < workers.c.started_at)
    lock_is_gone = workers.c.lock_key.is_not(None) & ~_is_locked(workers.c.lock_key)
    return or_(workers.c.lease_until < func.now(), case((silent, survived_no_restart & lock_is_gone), else_=False))


@functools.cache
def beat(names: TableNames) -> Executable:
    """Say that a worker lives, and learn what it has to know.

    Parameters: `me`, `lease_seconds`, `grace_seconds` and the `rows_of` lists of the tasks that it runs.
    Returns one row: `now`; `is_alive`, whether it was not taken for dead; `lost`, the tasks that are not its own any
    more; `has_dead`, whether other workers are dead.
    """
    t = tables_of(names)
    me = bindparam("me", type_=UUID)
    beaten = (
        update(t.workers)
        .values(heartbeat_at=func.now(), lease_until=func.now() + _seconds("lease_seconds"))
        .where(t.workers.c.worker_id == me)
        .returning(t.workers.c.worker_id)
        .cte("beaten")
    )
    mine = rows_of("mine", task_id=UUID, attempt=INTEGER)
    still_held = (
        exists()
        .select_from(t.tasks)
        .where(
            t.tasks.c.task_id == mine.c.task_id,
            t.tasks.c.attempt == mine.c.attempt,
            t.tasks.c.worker_id == me,
        )
    )
    lost = func.array(select(mine.c.task_id).where(~still_held).scalar_subquery())
    dead = exists().select_from(t.workers).where(t.workers.c.worker_id != me, _is_dead(names))
    return select(
        func.now().label("now"),
        exists(select(beaten.c.worker_id)).label("is_alive"),
        lost.label("lost"),
        dead.label("has_dead"),
    )


@functools.cache
def bury(names: TableNames) -> Executable:
    """Delete the workers that are dead, so that they can write no more.

    Parameters: `me` of the one who does it, `grace_seconds`. Returns: `(worker_id, hostname, pid)` of the dead.
    """
    workers = tables_of(names).workers
    dead = (
        select(workers.c.worker_id)
        .where(workers.c.worker_id != bindparam("me", type_=UUID), _is_dead(names))
        .with_for_update(skip_locked=True)
    )
    return (
        delete(workers)
        .where(workers.c.worker_id.in_(dead))
        .returning(workers.c.worker_id, workers.c.hostname, workers.c.pid)
    )


def _is_orphaned(names: TableNames) -> ColumnElement[bool]:
    """Return the condition for a task of a worker that is not there any more.

    Who is not there is found first, and once. Asked for each task, it would be asked again for one that another
    worker has claimed meanwhile, of the same snapshot, in which that worker need not be there yet.
    """
    t = tables_of(names)
    held = t.tasks.alias("held")
    holder = exists().select_from(t.workers).where(t.workers.c.worker_id == held.c.worker_id)
    gone = select(held.c.worker_id).distinct().where(held.c.worker_id.is_not(None), ~holder)
    return t.tasks.c.worker_id == any_(func.array(gone.scalar_subquery()))


@functools.cache
def has_orphans(names: TableNames) -> Select[Any]:
    """Select whether there are tasks of workers that are not there any more."""
    return select(exists().select_from(tables_of(names).tasks).where(_is_orphaned(names)))


@functools.cache
def take_over(names: TableNames) -> Executable:
    """Free the tasks of workers that are deleted, and fail the runs and children that have taken down too many of them.

    A task that somebody has locked, such as an app that cancels it in a transaction of its own, stays for later.
    Only the deaths of the `dead` are crashes. One counts only while the run gets nowhere: a checkpoint since the claim
    starts the count anew.
    Parameters: `dead`, `max_crashes`, `crash` (the error as JSON text), `channel`.
    Returns: `task_id`, `execution_id`, `step`, `crashes` and `is_failed` of each.
    """
    t = tables_of(names)
    got_somewhere = (
        exists()
        .select_from(t.steps)
        .where(t.steps.c.run_id == t.tasks.c.run_id, t.steps.c.completed_at >= t.tasks.c.claimed_at)
        .where(t.steps.c.kind != "child", t.tasks.c.step.is_(None))
    )
    has_crashed = t.tasks.c.worker_id == any_(array_of("dead", UUID))
    crashes = case((~has_crashed, t.tasks.c.crashes), (got_somewhere, 1), else_=t.tasks.c.crashes + 1)
    orphans = (
        select(
            t.tasks.c.task_id,
            t.tasks.c.run_id,
            t.tasks.c.step,
            t.tasks.c.position,
            t.tasks.c.started_at,
            crashes.label("crashes"),
            has_crashed.label("has_crashed"),
        )
        .where(_is_orphaned(names))
        .with_for_update(of=t.tasks, skip_locked=True)
        .cte("orphans")
    )
    is_failed = orphans.c.has_crashed & (orphans.c.crashes >= bindparam("max_crashes", type_=INTEGER))
    is_run, is_child = is_failed & orphans.c.step.is_(None), is_failed & orphans.c.step.is_not(None)
    failed_runs = select(orphans.c.run_id).where(is_run)
    freed = (
        update(t.tasks)
        .values(worker_id=None, due_at=func.now(), crashes=orphans.c.crashes)
        .where(t.tasks.c.task_id == orphans.c.task_id, ~is_failed, orphans.c.run_id.not_in(failed_runs))
        .cte("freed")
    )
    gone = delete(t.tasks).where(t.tasks.c.task_id == orphans.c.task_id, is_failed).cte("gone")
    children = delete_steps(names, any_(func.array(failed_runs.scalar_subquery()))).cte("children")
    crash = bindparam("crash", type_=Text)
    recorded = (
        pg_insert(t.steps)
        .from_select(
            ["run_id", "name", "kind", "position", "attempts", "error"],
            select(
                orphans.c.run_id,
                orphans.c.step,
                literal("child", Text),
                orphans.c.position,
                orphans.c.crashes,
                error_of(orphans.c.step, crash),
            ).where(is_child),
        )
        .on_conflict_do_nothing()
        .cte("recorded")
    )
    ended = (
        update(t.execution_runs)
        .values(
            outcome="failed",
            error=cast(crash, JSON),
            started_at=orphans.c.started_at,
            completed_at=func.now(),
        )
        .where(t.execution_runs.c.run_id == orphans.c.run_id, t.execution_runs.c.outcome.is_(None), is_run)
        .returning(t.execution_runs.c.run_id, t.execution_runs.c.is_awaited)
        .cte("ended")
    )
    told = case((ended.c.is_awaited, func.pg_notify(bindparam("channel", type_=Text), cast(ended.c.run_id, Text))))
    return (
        select(
            orphans.c.task_id,
            t.execution_runs.c.execution_id,
            orphans.c.crashes,
            is_failed.label("is_failed"),
            orphans.c.step,
            told,
        )
        .join(t.execution_runs, t.execution_runs.c.run_id == orphans.c.run_id)
        .outerjoin(ended, ended.c.run_id == orphans.c.run_id)
        .add_cte(freed, gone, children, recorded)
    )
