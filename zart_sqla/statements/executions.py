"""Starting executions, asking for them, and ending them from outside."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from sqlalchemy import (
    JSON,
    ColumnElement,
    Integer,
    Text,
    bindparam,
    cast,
    delete,
    exists,
    func,
    insert,
    literal,
    or_,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import insert as pg_insert

from zart_sqla.models.mapping import run_status, tables_of
from zart_sqla.records import GIVEN_UP
from zart_sqla.statements.arrays import TEXT, TIMESTAMP_TZ, UUID, rows_of
from zart_sqla.statements.children import delete_steps

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Executable, Subquery

    from zart_sqla.records import ExecutionFilter
    from zart_sqla.table_names import TableNames


@functools.cache
def start(names: TableNames) -> Executable:
    """Insert executions that do not exist yet, each with its first run and the task for it.

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
        )
    ).cte("rows")
    inserted = (
        pg_insert(t.executions)
        .from_select(
            ["execution_id", "run_id", "task_name", "queue"],
            select(rows.c.execution_id, rows.c.run_id, rows.c.task_name, rows.c.queue),
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
        ["task_id", "run_id", "task_name", "queue", "due_at"],
        select(
            rows.c.run_id,
            rows.c.run_id,
            rows.c.task_name,
            rows.c.queue,
            func.coalesce(rows.c.due_at, func.now()),
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
    return select(described).join(given, given.c.execution_id == described.c.execution_id)


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
    return select(described).where(*conditions).order_by(*newest_first).limit(wanted.limit + 1)


@functools.cache
def cancel(names: TableNames) -> Executable:
    """End the current run of an execution as cancelled, with what is left of its children, if it has not ended.

    Whoever deletes the run's task makes the one terminal transition of the run; so does this.
    Parameters: `id`. Returns: `(run_id, is_held)`, whether workers are at it, if it was this statement that ended it.
    """
    t = tables_of(names)
    current = select(t.executions.c.run_id).where(t.executions.c.execution_id == bindparam("id", type_=Text))
    gone = (
        delete(t.tasks)
        .where(t.tasks.c.task_id == current.scalar_subquery())
        .returning(t.tasks.c.run_id, t.tasks.c.worker_id, t.tasks.c.started_at)
        .cte("gone")
    )
    ended = (
        update(t.execution_runs)
        .values(outcome="cancelled", completed_at=func.now(), started_at=gone.c.started_at)
        .where(t.execution_runs.c.run_id == gone.c.run_id)
        .returning(t.execution_runs.c.run_id)
        .cte("ended")
    )
    children = delete_steps(names, gone.c.run_id).returning(t.tasks.c.worker_id).cte("children")
    has_children_held = exists(select(children.c.worker_id).where(children.c.worker_id.is_not(None)))
    is_held = or_(gone.c.worker_id.is_not(None), has_children_held).label("is_held")
    return select(gone.c.run_id, is_held).join(ended, ended.c.run_id == gone.c.run_id)


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


@functools.cache
def resume(names: TableNames) -> Executable:
    """Make a new run of an execution whose current run failed, with the checkpoints that need not be done again.

    Those are the ones that succeeded, and the children that were given up.

    Parameters: `id`, `new_run`, the id of the new run. Returns: `(run_id)` if the current run had failed.
    """
    t = tables_of(names)
    old = t.execution_runs.alias("old")
    failed = (
        select(
            t.executions.c.execution_id,
            t.executions.c.task_name,
            t.executions.c.queue,
            old.c.run_id,
            old.c.run_index,
            old.c.payload,
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
    run = insert(t.execution_runs).from_select(
        ["run_id", "execution_id", "run_index", "trigger", "payload"],
        select(new_id, failed.c.execution_id, failed.c.run_index + 1, literal("resume", Text), failed.c.payload),
    )
    copied = ("name", "kind", "position", "attempts", "result", "error", "started_at", "completed_at", "wake_at")
    is_given_up = t.steps.c.error["category"].as_string() == GIVEN_UP
    steps = insert(t.steps).from_select(
        ["run_id", *copied],
        select(new_id, *(t.steps.c[name] for name in copied))
        .join(failed, failed.c.run_id == t.steps.c.run_id)
        .where(or_(t.steps.c.error.is_(None), is_given_up), t.steps.c.kind != "failure"),
    )
    has_events = exists().where(t.events.c.execution_id == failed.c.execution_id, t.events.c.taken_at.is_(None))
    # The task starts with a token of 1, as if it had been claimed: the next turn then reads the journal.
    task = insert(t.tasks).from_select(
        ["task_id", "run_id", "task_name", "queue", "due_at", "attempt", "signals"],
        select(
            new_id, new_id, failed.c.task_name, failed.c.queue, func.now(), literal(1), cast(has_events, Integer)
        ).select_from(failed),
    )
    return (
        select(new_id.label("run_id"))
        .select_from(failed)
        .add_cte(pointed, run.cte("run"), steps.cte("steps"), task.cte("task"))
    )
