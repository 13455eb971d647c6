"""Starting executions, asking for them, and ending them from outside."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    JSON,
    ColumnElement,
    Integer,
    Text,
    any_,
    bindparam,
    case,
    cast,
    delete,
    exists,
    func,
    insert,
    literal,
    literal_column,
    or_,
    select,
    true,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import INTERVAL
from sqlalchemy.dialects.postgresql import insert as pg_insert

from zart_sqla.models.mapping import run_status, tables_of
from zart_sqla.records import GIVEN_UP
from zart_sqla.statements.arrays import BOOLEAN, INTEGER, TEXT, TIMESTAMP_TZ, UUID, array_of, rows_of

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Executable, FromClause, Select, Subquery

    from zart_sqla.records import ExecutionFilter
    from zart_sqla.table_names import TableNames


_MOMENT = literal_column("INTERVAL '1 second'", INTERVAL)


@functools.cache
def start(names: TableNames) -> Executable:
    """Insert executions that do not exist yet, each with its first run and the task for it.

    An app starts them, or the run of another execution, whose children they then are.

    Parameters: `rows_of` lists. Returns: `(run_id)` of those that were inserted.
    """
    t = tables_of(names)
    rows = select(
        rows_of(
            "given",
            execution_id=TEXT,
            run_id=UUID,
            task_name=TEXT,
            payload=TEXT,
            queue=TEXT,
            due_at=TIMESTAMP_TZ,
            parent_id=TEXT,
            parent_run_id=UUID,
            is_bound=BOOLEAN,
        )
    ).cte("rows")
    inserted = (
        pg_insert(t.executions)
        .from_select(
            ["execution_id", "run_id", "task_name", "queue", "parent_id", "is_bound"],
            select(
                rows.c.execution_id,
                rows.c.run_id,
                rows.c.task_name,
                rows.c.queue,
                rows.c.parent_id,
                rows.c.is_bound,
            ),
        )
        .on_conflict_do_nothing(index_elements=[t.executions.c.execution_id])
        .returning(t.executions.c.run_id)
        .cte("inserted")
    )
    new = rows.join(inserted, inserted.c.run_id == rows.c.run_id)
    runs = insert(t.execution_runs).from_select(
        ["run_id", "execution_id", "run_index", "trigger", "payload"],
        select(
            rows.c.run_id,
            rows.c.execution_id,
            literal(0),
            literal("initial", Text),
            cast(rows.c.payload, JSON),
        ).select_from(new),
    )
    tasks = insert(t.tasks).from_select(
        ["task_id", "run_id", "task_name", "queue", "due_at", "parent_run_id"],
        select(
            rows.c.run_id,
            rows.c.run_id,
            rows.c.task_name,
            rows.c.queue,
            func.coalesce(rows.c.due_at, func.now()),
            rows.c.parent_run_id,
        ).select_from(new),
    )
    return select(inserted.c.run_id).add_cte(runs.cte("runs"), tasks.cte("tasks"))


def _described(names: TableNames) -> Subquery:
    """Return a row for each execution, with what its current run and its task tell."""
    t = tables_of(names)
    run, task = t.execution_runs, t.tasks
    source = t.executions.join(run, run.c.run_id == t.executions.c.run_id).outerjoin(
        task, task.c.task_id == run.c.run_id
    )
    return (
        select(
            t.executions.c.execution_id,
            t.executions.c.task_name,
            run_status(run, task).label("status"),
            run.c.run_id,
            run.c.run_index,
            cast(run.c.payload, Text).label("payload"),
            cast(run.c.result, Text).label("result"),
            cast(run.c.error, Text).label("error"),
            t.executions.c.queue,
            t.executions.c.parent_id,
            run.c.created_at,
            func.coalesce(run.c.started_at, task.c.started_at).label("started_at"),
            run.c.completed_at,
            t.executions.c.created_at.label("listed_at"),
        )
        .select_from(source)
        .subquery("described")
    )


@functools.cache
def describe(names: TableNames) -> Executable:
    """Select the executions whose ids are in the `rows_of` list `execution_id`."""
    described = _described(names)
    given = rows_of("given", execution_id=TEXT)
    is_given = described.c.execution_id == given.c.execution_id
    one = select(described).where(is_given).limit(literal_column("1", INTEGER)).lateral("one")
    return select(one).select_from(given.join(one, true()))


@functools.cache
def ending(names: TableNames) -> Executable:
    """Select how an execution stands.

    Parameters: `id`. Returns: `(run_id, status, result, error)` of its current run, if there is such an execution.
    """
    one = _described(names).c
    wanted = one.execution_id == bindparam("id", type_=Text)
    return select(one.run_id, one.status, one.result, one.error).where(wanted)


def browse(names: TableNames, wanted: ExecutionFilter, after: tuple[datetime, str] | None) -> Executable:
    """Select executions, the newest first, and one more than wanted: that tells whether there is another page.

    Args:
        names: the tables.
        wanted: which executions.
        after: only those that come after this `(created_at, execution_id)`.
    """
    described = _described(names)
    conditions: list[ColumnElement[bool]] = []
    if wanted.status is not None:
        conditions.append(described.c.status == wanted.status.value)
    if wanted.is_unfinished:
        conditions.append(described.c.completed_at.is_(None))
    if wanted.task_name is not None:
        conditions.append(described.c.task_name == wanted.task_name)
    if wanted.search is not None:
        conditions.append(described.c.execution_id.startswith(wanted.search, autoescape=True))
    if wanted.since is not None:
        conditions.append(described.c.listed_at >= wanted.since)
    if after is not None:
        position = tuple_(described.c.listed_at, described.c.execution_id)
        conditions.append(position < tuple_(literal(after[0], TIMESTAMP_TZ), literal(after[1], Text)))
    newest_first = (described.c.listed_at.desc(), described.c.execution_id.desc())
    # It is no parameter: a plan for any would be made for a tenth of all executions.
    most = literal_column(str(wanted.limit + 1), INTEGER)
    return select(described).where(*conditions).order_by(*newest_first).limit(most)


@functools.cache
def cancel(names: TableNames) -> Executable:
    """End the current run of an execution as cancelled, if it has not ended.

    Whoever deletes the run's task makes the one terminal transition of the run; so does this. What the run has started
    is for `cancel_children`, in a later statement.
    Parameters: `id`. Returns, if this ended it: `run_id`, `parent_run_id`, `is_run`, `is_held`, whether a worker is at
    it, and `has_cleanup`, whether there is something to be done now.
    """
    t = tables_of(names)
    current = select(t.executions.c.run_id).where(t.executions.c.execution_id == bindparam("id", type_=Text))
    return _cancelled(names, t.tasks.c.task_id == current.scalar_subquery())


@functools.cache
def cancel_children(names: TableNames) -> Executable:
    """End what is left of the children of runs that were cancelled: steps, and the executions that are bound to them.

    Who adds a child locks the task of the run, as who cancels the run does. So it must be a later statement: only then
    does it see all of them.
    Parameters: the list `run_ids`. Returns: as `cancel`, for each of them.
    """
    return _cancelled(names, _hangs_on_cancelled(names))


@functools.cache
def has_children(names: TableNames) -> Select[Any]:
    """Select whether there is something left that `cancel_children` would end.

    A child that is just going on as a new run of its own has another task when that is committed.
    Parameters: the list `run_ids`.
    """
    return select(exists().select_from(tables_of(names).tasks).where(_hangs_on_cancelled(names)))


def _hangs_on_cancelled(names: TableNames) -> ColumnElement[bool]:
    """Return the condition for a task that ends when one of the runs `run_ids` is cancelled."""
    t = tables_of(names)
    tasks, run = t.tasks, t.execution_runs
    execution = t.executions.join(run, run.c.execution_id == t.executions.c.execution_id)
    is_bound = exists().select_from(execution).where(run.c.run_id == tasks.c.run_id, t.executions.c.is_bound)
    is_child = tasks.c.parent_run_id == any_(array_of("run_ids", UUID))
    return is_child & or_(tasks.c.step.is_not(None), is_bound)


def _cancelled(names: TableNames, condition: ColumnElement[bool]) -> Executable:
    """Delete tasks, and end their runs as cancelled; where a handler cleans up then, make a task of that.

    That task is due a moment later, so that the workers that are at the run have been told before.
    """
    t = tables_of(names)
    gone = (
        delete(t.tasks)
        .where(condition)
        .returning(
            t.tasks.c.run_id,
            t.tasks.c.parent_run_id,
            t.tasks.c.step,
            t.tasks.c.worker_id,
            t.tasks.c.started_at,
            t.tasks.c.task_name,
            t.tasks.c.queue,
            t.tasks.c.signals,
            t.tasks.c.has_cleanup,
        )
        .cte("gone")
    )
    ended = (
        update(t.execution_runs)
        .values(outcome="cancelled", completed_at=func.now(), started_at=gone.c.started_at)
        .where(t.execution_runs.c.run_id == gone.c.run_id, gone.c.step.is_(None))
        .cte("ended")
    )
    # The task starts with a token of 1, as if it had been claimed: its turn then reads the journal.
    cleanup = insert(t.tasks).from_select(
        ["task_id", "run_id", "task_name", "queue", "due_at", "started_at", "signals", "attempt"],
        select(
            func.gen_random_uuid(),
            gone.c.run_id,
            gone.c.task_name,
            gone.c.queue,
            func.now() + _MOMENT,
            gone.c.started_at,
            gone.c.signals,
            literal(1),
        ).where(gone.c.has_cleanup, gone.c.step.is_(None)),
    )
    is_run, is_held = gone.c.step.is_(None).label("is_run"), gone.c.worker_id.is_not(None).label("is_held")
    known = select(gone.c.run_id, gone.c.parent_run_id, is_run, is_held, gone.c.has_cleanup)
    return known.add_cte(ended, cleanup.cte("cleanup"))


@functools.cache
def await_end(names: TableNames) -> Executable:
    """Ask that the end of an execution's current run be notified.

    The mark is on the run, not on its task: a claim passes over a task that somebody else has locked.
    Parameters: `id`. Returns: `(run_id)` of the run if it has not ended.
    """
    t = tables_of(names)
    run = t.execution_runs
    current = select(t.executions.c.run_id).where(t.executions.c.execution_id == bindparam("id", type_=Text))
    return (
        update(run)
        .values(is_awaited=True)
        .where(run.c.run_id == current.scalar_subquery(), run.c.outcome.is_(None))
        .returning(run.c.run_id)
    )


def _with_parent(names: TableNames) -> tuple[FromClause, FromClause]:
    """Return the execution that has started the execution `id`, joined with that one, and then alone."""
    executions = tables_of(names).executions
    parent, child = executions.alias("parent"), executions.alias("child")
    is_started = (child.c.parent_id == parent.c.execution_id) & (child.c.execution_id == bindparam("id", type_=Text))
    return parent.join(child, is_started), parent


@functools.cache
def tell_parent(names: TableNames) -> Executable:
    """Have the run that started an execution count its children anew, since there will be one more.

    It locks the task of that run, as whoever adds a child does.
    Parameters: `id`. Returns: `(run_id)`, if there is such a run that has not ended.
    """
    both, parent = _with_parent(names)
    tasks = tables_of(names).tasks
    waits = tasks.c.worker_id.is_(None) & tasks.c.awaits_open.is_not(None)
    return (
        update(tasks)
        .values(signals=tasks.c.signals + 1, due_at=case((waits, func.now()), else_=tasks.c.due_at))
        .where(tasks.c.task_id == select(parent.c.run_id).select_from(both).scalar_subquery())
        .returning(tasks.c.run_id)
    )


@functools.cache
def has_open_parent(names: TableNames) -> Select[Any]:
    """Select whether an execution was started by another one that has not ended. Parameters: `id`."""
    both, parent = _with_parent(names)
    run = tables_of(names).execution_runs
    of_parent = both.join(run, run.c.run_id == parent.c.run_id)
    return select(exists().select_from(of_parent).where(run.c.outcome.is_(None)))


@functools.cache
def adopt(names: TableNames) -> Executable:
    """Make the executions that a run has started those of the run that follows it.

    Parameters: `old_run`, `new_run`.
    """
    tasks = tables_of(names).tasks
    old, new = bindparam("old_run", type_=UUID), bindparam("new_run", type_=UUID)
    return update(tasks).values(parent_run_id=new).where(tasks.c.parent_run_id == old)


@functools.cache
def has_started(names: TableNames) -> Select[Any]:
    """Select whether there are executions that a run has started and that have not ended. Parameters: `old_run`."""
    tasks = tables_of(names).tasks
    return select(exists().select_from(tasks).where(tasks.c.parent_run_id == bindparam("old_run", type_=UUID)))


@functools.cache
def resume(names: TableNames) -> Executable:
    """Make a new run of an execution whose current run failed, with the checkpoints that need not be done again.

    Those are the ones that succeeded, the children that were given up, and the failures behind which the body went on:
    it would not call the same steps again if they came out otherwise. The executions that the old run has started
    are for `adopt`, in a later statement. This locks the rows of the execution and of the one which has started it: if
    both are resumed at once, the later one sees what the earlier one has done.

    Parameters: `id`, `new_run`, the id of the new run. Returns, if the current run had failed: its `run_id`, and
    `parent_run_id`.
    """
    t = tables_of(names)
    old = t.execution_runs.alias("old")
    failed = (
        select(
            t.executions.c.execution_id,
            t.executions.c.task_name,
            t.executions.c.queue,
            t.executions.c.parent_id,
            old.c.run_id,
            old.c.run_index,
            old.c.payload,
            old.c.handled,
        )
        .join(old, old.c.run_id == t.executions.c.run_id)
        .where(t.executions.c.execution_id == bindparam("id", type_=Text), old.c.outcome == "failed")
        .with_for_update(of=t.executions)
        .cte("failed")
    )
    new_id = bindparam("new_run", type_=UUID)
    pointed = (
        update(t.executions)
        .values(run_id=new_id)
        .where(t.executions.c.execution_id == failed.c.execution_id, t.executions.c.run_id == failed.c.run_id)
        .cte("pointed")
    )
    parent = (
        select(t.executions.c.run_id)
        .where(t.executions.c.execution_id == select(failed.c.parent_id).scalar_subquery())
        .with_for_update(read=True)
        .cte("parent")
    )
    run = insert(t.execution_runs).from_select(
        ["run_id", "execution_id", "run_index", "trigger", "payload"],
        select(new_id, failed.c.execution_id, failed.c.run_index + 1, literal("resume", Text), failed.c.payload),
    )
    copied = ("name", "kind", "position", "attempts", "result", "error", "started_at", "completed_at", "wake_at")
    is_given_up = t.steps.c.error["category"].as_string() == GIVEN_UP
    handled = select(func.json_array_elements_text(failed.c.handled)).correlate(None)
    is_handled = t.steps.c.name.in_(handled)
    steps = insert(t.steps).from_select(
        ["run_id", *copied],
        select(new_id, *(t.steps.c[name] for name in copied))
        .join(failed, failed.c.run_id == t.steps.c.run_id)
        .where(or_(t.steps.c.error.is_(None), is_given_up, failed.c.handled.is_(None), is_handled)),
    )
    has_events = exists().where(t.events.c.execution_id == failed.c.execution_id, t.events.c.taken_at.is_(None))
    # The task starts with a token of 1, as if it had been claimed: the next turn then reads the journal.
    task = insert(t.tasks).from_select(
        ["task_id", "run_id", "task_name", "queue", "due_at", "attempt", "signals", "parent_run_id"],
        select(
            new_id,
            new_id,
            failed.c.task_name,
            failed.c.queue,
            func.now(),
            literal(1),
            cast(has_events, Integer),
            parent.c.run_id,
        ).select_from(failed.outerjoin(parent, true())),
    )
    return (
        select(failed.c.run_id, parent.c.run_id.label("parent_run_id"))
        .select_from(failed.outerjoin(parent, true()))
        .add_cte(pointed, run.cte("run"), steps.cte("steps"), task.cte("task"))
    )
