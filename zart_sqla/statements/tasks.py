"""The queue: claiming tasks, putting them back, finishing them."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    JSON,
    Float,
    Select,
    Text,
    all_,
    any_,
    bindparam,
    case,
    cast,
    delete,
    exists,
    false,
    func,
    insert,
    literal,
    literal_column,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import INTERVAL, JSONB

from zart_sqla.models.mapping import tables_of
from zart_sqla.records import SUSPECT_CRASHES
from zart_sqla.statements.arrays import BOOLEAN, INTEGER, TEXT, TIMESTAMP_TZ, UUID, array_of, rows_of
from zart_sqla.statements.children import delete_steps
from zart_sqla.statements.fences import alive, mine
from zart_sqla.statements.steps import is_recorded

if TYPE_CHECKING:
    from sqlalchemy import CTE, ColumnElement, Executable, FromClause

    from zart_sqla.table_names import TableNames


MAX_CLAIM: Final = 1000
"""How many tasks a claim takes at most."""


def _served(tasks: FromClause, *, all_queues: bool) -> Any:
    """Return the condition for a task that this worker can do."""
    served = tasks.c.task_name == any_(array_of("task_names", TEXT))
    return served if all_queues else served & (tasks.c.queue == any_(array_of("queues", TEXT)))


def _is_harmless(tasks: FromClause, *, all_queues: bool) -> ColumnElement[bool]:
    """Return the condition for a task that can be claimed beside others.

    All tasks of a dead worker have crashed, but mostly just one of them killed it. Ran the suspects side by side
    again, it would take the same others with it each time, until all had crashed too often. So a worker takes one
    suspect at a time. The subquery is not run unless a suspect is met. Its number is no parameter, so that any plan can
    use the index of the suspects: there are few, and many tasks that are due.
    """
    suspects = tasks.alias("suspects")
    enough = literal_column(str(SUSPECT_CRASHES), INTEGER)
    first = (
        select(suspects.c.task_id)
        .where(suspects.c.worker_id.is_(None), suspects.c.due_at <= func.now(), suspects.c.crashes >= enough)
        .where(_served(suspects, all_queues=all_queues))
        .order_by(suspects.c.due_at)
        .limit(1)
        .with_for_update(skip_locked=True)
        .scalar_subquery()
    )
    is_first = bindparam("takes_suspect", type_=BOOLEAN) & (tasks.c.task_id == first)
    return or_(tasks.c.crashes < enough, is_first)


@functools.cache
def claim(names: TableNames, *, all_queues: bool) -> Executable:
    """Give a worker the tasks that are due, the longest due first, with all that their turns need.

    But for the input of a run whose children they are: it would come with each of them; see `children.payloads`.

    Parameters: `me`, `task_names`, `cleaners`, those of them that do something when a run is cancelled, `queues` unless
    all, `limit`, `MAX_CLAIM` at most, `takes_suspect`, whether one of them can be a task that may kill the worker, and
    `ahead_seconds`. Returns: at least one row; in each the `seconds` until the next task becomes due, None if none does
    so soon.
    """
    t = tables_of(names)
    me = alive(names)
    # The planner has to walk the index in the order in which tasks became due, and to stop; else a claim costs as much
    # as there is in the queue. It sees that only while it takes the limit for less than what there is. What it knows of
    # a queue is mostly old, and it takes conditions that it knows nothing of for rare. So the limit is one that it
    # cannot see, of which it assumes a tenth of what there is; and but for the index's own conditions all are in one
    # that counts as true for every other task.
    limit = select(bindparam("limit", type_=INTEGER)).scalar_subquery()
    is_fit = _served(t.tasks, all_queues=all_queues) & _is_harmless(t.tasks, all_queues=all_queues)
    some = (
        select(t.tasks.c.task_id)
        .join(me, true())
        .where(t.tasks.c.worker_id.is_(None), t.tasks.c.due_at <= func.now(), func.coalesce(is_fit, false()))
        .order_by(t.tasks.c.due_at)
        .limit(limit)
        .with_for_update(skip_locked=True, of=t.tasks)
        .subquery("some")
    )
    # It finds them again by a lookup each, not by reading the queue, as long as it expects few: a tenth of the most.
    most = select(some).limit(literal_column(str(MAX_CLAIM), INTEGER)).subquery("most")
    due = select(most).limit(limit).cte("due")
    claimed = (
        update(t.tasks)
        .values(
            worker_id=bindparam("me", type_=UUID),
            attempt=t.tasks.c.attempt + 1,
            is_waiting=False,
            started_at=func.coalesce(t.tasks.c.started_at, func.now()),
            claimed_at=func.now(),
            has_cleanup=t.tasks.c.task_name == any_(array_of("cleaners", TEXT)),
        )
        .where(t.tasks.c.task_id == due.c.task_id)
        .returning(
            t.tasks.c.task_id,
            t.tasks.c.run_id,
            t.tasks.c.task_name,
            t.tasks.c.queue,
            t.tasks.c.due_at,
            t.tasks.c.attempt,
            t.tasks.c.retries,
            t.tasks.c.started_at,
            t.tasks.c.claimed_at,
            t.tasks.c.crashes,
            t.tasks.c.signals,
            t.tasks.c.parent_run_id,
            t.tasks.c.step,
            t.tasks.c.position,
            t.tasks.c.call,
        )
        .cte("claimed")
    )
    upcoming = _seconds_to_next(names, all_queues=all_queues).cte("upcoming")
    runs = t.execution_runs
    is_its = runs.c.run_id == claimed.c.run_id
    run = select(runs).where(is_its).limit(literal_column("1", INTEGER)).lateral("run")  # a lookup each, always
    rows = upcoming.outerjoin(claimed, true()).outerjoin(run, true())
    longest_first = (claimed.c.due_at, claimed.c.position, claimed.c.task_id)
    columns = (
        upcoming.c.seconds,
        claimed.c.task_id,
        claimed.c.run_id,
        run.c.execution_id,
        claimed.c.task_name,
        claimed.c.queue,
        claimed.c.attempt,
        claimed.c.retries,
        case((claimed.c.step.is_(None), cast(run.c.payload, Text))).label("payload"),
        claimed.c.started_at,
        claimed.c.claimed_at,
        claimed.c.crashes,
        claimed.c.signals,
        claimed.c.parent_run_id,
        claimed.c.step,
        claimed.c.position,
        cast(claimed.c.call, Text).label("call"),
        is_recorded(names, claimed.c.run_id, claimed.c.step).label("is_recorded"),
        ((run.c.outcome == "cancelled") & claimed.c.step.is_(None)).is_(true()).label("is_cleanup"),
    )
    return select(*columns).select_from(rows).order_by(*longest_first)


def _seconds_to_next(names: TableNames, *, all_queues: bool) -> Select[Any]:
    """Select in how many seconds the next task becomes due that this worker can do; None where none does so soon.

    It looks no farther than `ahead_seconds`: else one that serves none of those that sleep would pass over all of them.
    """
    t = tables_of(names)
    horizon = func.now() + bindparam("ahead_seconds", type_=Float) * literal_column("INTERVAL '1 second'", INTERVAL)
    soonest = (
        select(t.tasks.c.due_at)
        .where(t.tasks.c.worker_id.is_(None), t.tasks.c.due_at > func.now(), t.tasks.c.due_at <= horizon)
        .where(_served(t.tasks, all_queues=all_queues))
        .order_by(t.tasks.c.due_at)
        .limit(1)
        .scalar_subquery()
    )
    return select(cast(func.extract("epoch", soonest - func.now()), Float).label("seconds"))


@functools.cache
def put_down(names: TableNames) -> Executable:
    """Free tasks that a worker holds, until they are due again.

    One that awaits something is due at once if an event has been offered, or a child resumed, that its turn could not
    see. Both this and the other write the task's row, so whoever comes second sees what the first has done. Of children
    that have ended meanwhile this knows nothing; see `children.wake`.
    Parameters: `me` and `rows_of` lists. Returns: `task_id` and `is_due` of those that it still held and nobody has
    locked.
    """
    t = tables_of(names)
    turn = rows_of(
        "turn",
        task_id=UUID,
        attempt=INTEGER,
        due_at=TIMESTAMP_TZ,
        is_waiting=BOOLEAN,
        retries=INTEGER,
        awaits=TEXT,
        awaits_open=INTEGER,
        signals=INTEGER,
    )
    given = (turn.c.due_at, turn.c.is_waiting, turn.c.retries, turn.c.awaits, turn.c.awaits_open)
    held = mine(names, turn, *given, turn.c.signals.label("seen"))
    due_at = case(
        (held.c.awaits.is_(None) & held.c.awaits_open.is_(None), func.coalesce(held.c.due_at, func.now())),
        (t.tasks.c.signals != held.c.seen, func.now()),
        else_=held.c.due_at,
    )
    return (
        update(t.tasks)
        .values(
            worker_id=None,
            due_at=due_at,
            is_waiting=held.c.is_waiting,
            retries=held.c.retries,
            crashes=0,
            awaits=cast(held.c.awaits, JSONB),
            awaits_open=held.c.awaits_open,
        )
        .where(t.tasks.c.task_id == held.c.task_id)
        .returning(t.tasks.c.task_id, (t.tasks.c.due_at <= func.now()).label("is_due"))
    )


@functools.cache
def finish(names: TableNames) -> Executable:
    """End runs whose tasks a worker holds, with what is left of their children, and tell those who wait for their end.

    Whoever deletes the run's task makes the one terminal transition of the run.
    Parameters: `me`, `channel` and `rows_of` lists. Returns: `(task_id)` of those that it still held and nobody has
    locked.
    """
    t = tables_of(names)
    turn = rows_of("given", task_id=UUID, attempt=INTEGER, outcome=TEXT, result=TEXT, error=TEXT, handled=TEXT)
    held = mine(names, turn, turn.c.outcome, turn.c.result, turn.c.error, turn.c.handled)
    gone = delete(t.tasks).where(t.tasks.c.task_id == held.c.task_id).cte("gone")
    children = delete_steps(names, held.c.run_id).cte("children")
    ended = (
        update(t.execution_runs)
        .values(
            outcome=held.c.outcome,
            result=cast(held.c.result, JSON),
            error=cast(held.c.error, JSON),
            handled=cast(held.c.handled, JSON),
            started_at=held.c.started_at,
            completed_at=func.now(),
        )
        .where(t.execution_runs.c.run_id == held.c.run_id)
        .returning(held.c.task_id, t.execution_runs.c.run_id, t.execution_runs.c.is_awaited)
        .cte("ended")
    )
    told = case((ended.c.is_awaited, func.pg_notify(bindparam("channel", type_=Text), cast(ended.c.run_id, Text))))
    return select(ended.c.task_id, told).add_cte(gone, children)


@functools.cache
def renew(names: TableNames) -> Executable:
    """End runs whose tasks a worker holds, each with a next run of its execution that has another input.

    What is left of the run's children is ended; the executions that it has started are the next run's. Whoever waits
    for the end is told, so that he looks at the next run.
    Parameters: `me`, `channel` and `rows_of` lists. Returns: `(task_id)` of those that it still held, and of which
    nobody has locked the task or that of an execution that it has started.
    """
    t = tables_of(names)
    turn = rows_of("given", task_id=UUID, attempt=INTEGER, new_id=UUID, payload=TEXT)
    kept = ("task_name", "queue", "signals", "has_cleanup")
    more = (t.tasks.c.parent_run_id, *(t.tasks.c[name] for name in kept))
    locked = mine(names, turn, turn.c.new_id, turn.c.payload, *more)
    held = _with_executions(names, locked)
    gone = delete(t.tasks).where(t.tasks.c.task_id == held.c.task_id).returning(t.tasks.c.task_id).cte("gone")
    children = delete_steps(names, held.c.run_id).cte("children")
    adopted = (
        update(t.tasks)
        .values(parent_run_id=held.c.new_id)
        .where(t.tasks.c.parent_run_id == held.c.run_id, t.tasks.c.step.is_(None))
        .where(t.tasks.c.task_id.not_in(select(gone.c.task_id)))
        .cte("adopted")
    )
    run = t.execution_runs
    ended = (
        update(run)
        .values(outcome="completed", started_at=held.c.started_at, completed_at=func.now())
        .where(run.c.run_id == held.c.run_id, run.c.outcome.is_(None))
        .returning(held.c.task_id, run.c.run_id, run.c.execution_id, run.c.run_index, run.c.is_awaited)
        .cte("ended")
    )
    both = ended.join(held, held.c.task_id == ended.c.task_id)
    pointed = (
        update(t.executions)
        .values(run_id=held.c.new_id)
        .where(t.executions.c.execution_id == ended.c.execution_id, ended.c.task_id == held.c.task_id)
        .cte("pointed")
    )
    runs = insert(run).from_select(
        ["run_id", "execution_id", "run_index", "trigger", "payload"],
        select(
            held.c.new_id,
            ended.c.execution_id,
            ended.c.run_index + 1,
            literal("continue", Text),
            cast(held.c.payload, JSON),
        ).select_from(both),
    )
    # A run and one that it has started may be followed in the same statement.
    parent = held.alias("parent")
    tasks = insert(t.tasks).from_select(
        ["task_id", "run_id", "due_at", "parent_run_id", *kept],
        select(
            held.c.new_id,
            held.c.new_id,
            func.now(),
            func.coalesce(parent.c.new_id, held.c.parent_run_id),
            *(held.c[name] for name in kept),
        ).select_from(both.outerjoin(parent, parent.c.run_id == held.c.parent_run_id)),
    )
    told = case((ended.c.is_awaited, func.pg_notify(bindparam("channel", type_=Text), cast(ended.c.run_id, Text))))
    return select(ended.c.task_id, told).add_cte(gone, children, adopted, pointed, runs.cte("runs"), tasks.cte("new"))


def _with_executions(names: TableNames, locked: CTE) -> CTE:
    """Select those of the tasks of runs that are locked of which all executions that they have started are locked too.

    One of those may just be going on as a new run of its own, which could not be seen here; or an app may be at it, for
    which the others that are written in the same batch must not wait.
    """
    child = tables_of(names).tasks.alias("child")
    is_child = (child.c.parent_run_id == locked.c.run_id) & child.c.step.is_(None)
    free = select(child.c.task_id).join(locked, is_child).with_for_update(of=child, skip_locked=True).cte("free")
    others = exists().where(is_child, child.c.task_id.not_in(select(free.c.task_id)))
    return select(locked).where(~others).cte("held")


@functools.cache
def touch(names: TableNames) -> Executable:
    """Write those of the `rows_of` lists of tasks that a worker holds, and change nothing.

    Whoever cancels a run comes before who adds children to it, or sees them: he deletes the task, so one of them waits
    for the other. (It is written, not only locked, for apps whose transactions are stricter than READ COMMITTED: they
    would not see them, and get a serialization failure instead.)
    What follows in it fails when it has to wait for long: for an app that starts an execution of the same id, and then
    perhaps wants one of these tasks. So the two do not wait for each other.
    Parameters: `me` and the lists. Returns: `(task_id)` of those that it still held and nobody has locked.
    """
    tasks = tables_of(names).tasks
    held = mine(names, rows_of("given", task_id=UUID, attempt=INTEGER))
    touched = update(tasks).values(is_waiting=False).where(tasks.c.task_id == held.c.task_id)
    patience = func.set_config("lock_timeout", "500ms", True).label("limited")  # noqa: FBT003
    return touched.returning(tasks.c.task_id, patience)


@functools.cache
def held(names: TableNames) -> Executable:
    """Select those of the `rows_of` lists of tasks that a worker holds. Parameters: `me` and the lists."""
    t = tables_of(names)
    me = alive(names)
    given = rows_of("mine", task_id=UUID, attempt=INTEGER)
    is_mine = (t.tasks.c.task_id == given.c.task_id) & (t.tasks.c.attempt == given.c.attempt)
    return select(t.tasks.c.task_id).join(given, is_mine).join(me, me.c.worker_id == t.tasks.c.worker_id)


@functools.cache
def release_others(names: TableNames) -> Executable:
    """Free the tasks that a worker holds, but for those in the list `kept`, and those that others have locked.

    Parameters: `me` and the list. Returns: `task_id` and `is_freed` of each.
    """
    t = tables_of(names)
    me = alive(names)
    is_unknown = (t.tasks.c.worker_id == me.c.worker_id) & (t.tasks.c.task_id != all_(array_of("kept", UUID)))
    unknown = select(t.tasks.c.task_id).join(me, is_unknown)
    free = unknown.with_for_update(of=t.tasks, skip_locked=True).cte("free")
    freed = (
        update(t.tasks)
        .values(worker_id=None, due_at=func.now())
        .where(t.tasks.c.task_id == free.c.task_id)
        .returning(t.tasks.c.task_id)
        .cte("freed")
    )
    found = unknown.cte("found")
    is_freed = freed.c.task_id.is_not(None).label("is_freed")
    return select(found.c.task_id, is_freed).outerjoin(freed, freed.c.task_id == found.c.task_id)
