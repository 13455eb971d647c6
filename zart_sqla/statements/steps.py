"""Checkpoints and failed attempts: writing them, and reading back what earlier turns wrote."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    JSON,
    Text,
    any_,
    bindparam,
    case,
    cast,
    exists,
    func,
    literal,
    null,
    or_,
    select,
    union_all,
)
from sqlalchemy.dialects.postgresql import insert as pg_insert

from zart_sqla.models.mapping import tables_of
from zart_sqla.statements.arrays import INTEGER, TEXT, TIMESTAMP_TZ, UUID, array_of, rows_of
from zart_sqla.statements.fences import alive

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Executable, FromClause
    from sqlalchemy.dialects.postgresql import Insert

    from zart_sqla.table_names import TableNames


COLUMNS: Final = ("run_id", "name", "kind", "position", "attempts", "result", "error", "started_at", "wake_at")


def is_recorded(names: TableNames, run_id: ColumnElement[Any], name: ColumnElement[Any]) -> ColumnElement[bool]:
    """Return the condition that a step is recorded.

    It is a scalar subquery, which is looked up by the primary key for each row. An EXISTS would be planned as a join
    or a hash, and over the steps of a run with thousands of them if it was planned while there were few.
    """
    steps = tables_of(names).steps
    return select(steps.c.name).where(steps.c.run_id == run_id, steps.c.name == name).scalar_subquery().is_not(None)


@functools.cache
def record(names: TableNames) -> Executable:
    """Insert checkpoints of runs whose tasks a worker holds, and complete those that had only begun.

    They are inserted in the order in which a run that gives children up inserts the same: so two such statements never
    wait for each other. The planner keeps no other order than one that is asked for.
    Parameters: `me` and `rows_of` lists. Its row count tells how many were written: not those whose task is not the
    worker's any more, nor those that were there before.
    """
    t = tables_of(names)
    me = alive(names)
    given = rows_of(
        "given",
        task_id=UUID,
        attempt=INTEGER,
        name=TEXT,
        kind=TEXT,
        position=INTEGER,
        attempts=INTEGER,
        result=TEXT,
        error=TEXT,
        started_at=TIMESTAMP_TZ,
        wake_at=TIMESTAMP_TZ,
    )
    held = given.join(t.tasks, (t.tasks.c.task_id == given.c.task_id) & (t.tasks.c.attempt == given.c.attempt))
    rows = select(
        t.tasks.c.run_id,
        given.c.name,
        given.c.kind,
        given.c.position,
        given.c.attempts,
        cast(given.c.result, JSON),
        cast(given.c.error, JSON),
        given.c.started_at,
        given.c.wake_at,
        case((_is_open(given), null()), else_=func.now()),
    ).select_from(held.join(me, me.c.worker_id == t.tasks.c.worker_id))
    inserted = pg_insert(t.steps).from_select([*COLUMNS, "completed_at"], rows.order_by(t.tasks.c.task_id))
    return completed(names, inserted).execution_options(preserve_rowcount=True)


def _is_open(step: FromClause) -> ColumnElement[bool]:
    """Return the condition for a checkpoint of something that has only begun."""
    return (step.c.kind == "event") & step.c.result.is_(None) & step.c.error.is_(None)


def completed(names: TableNames, inserted: Insert) -> Insert:
    """Return the insertion of checkpoints as one that completes those which have only begun, and changes no others."""
    steps = tables_of(names).steps
    new = inserted.excluded
    return inserted.on_conflict_do_update(
        index_elements=[steps.c.run_id, steps.c.name],
        set_={"result": new.result, "error": new.error, "completed_at": new.completed_at},
        where=steps.c.completed_at.is_(None) & new.completed_at.is_not(None),
    )


@functools.cache
def record_attempts(names: TableNames) -> Executable:
    """Insert failed attempts of steps of runs whose tasks a worker holds.

    Parameters: `me` and `rows_of` lists. Returns: `(run_id)` of those that were inserted or there before.
    """
    t = tables_of(names)
    me = alive(names)
    given = rows_of(
        "given", task_id=UUID, token=INTEGER, name=TEXT, attempt=INTEGER, error=TEXT, started_at=TIMESTAMP_TZ
    )
    held = given.join(t.tasks, (t.tasks.c.task_id == given.c.task_id) & (t.tasks.c.attempt == given.c.token))
    rows = select(
        t.tasks.c.run_id, given.c.name, given.c.attempt, cast(given.c.error, JSON), given.c.started_at
    ).select_from(held.join(me, me.c.worker_id == t.tasks.c.worker_id))
    inserted = pg_insert(t.step_attempts).from_select(["run_id", "name", "attempt", "error", "started_at"], rows)
    key = [t.step_attempts.c.run_id, t.step_attempts.c.name, t.step_attempts.c.attempt]
    # The update changes nothing; it makes RETURNING tell of the row that was there before too.
    return inserted.on_conflict_do_update(index_elements=key, set_={"attempt": inserted.excluded.attempt}).returning(
        t.step_attempts.c.run_id, t.step_attempts.c.name
    )


@functools.cache
def journal(names: TableNames) -> Executable:
    """Select what there is of runs: checkpoints, counts of failed attempts, children and executions that are not done.

    Parameters: the list `run_ids`.
    """
    t = tables_of(names)
    wanted = array_of("run_ids", UUID)
    checkpoints = select(
        t.steps.c.run_id,
        t.steps.c.name,
        t.steps.c.kind,
        t.steps.c.position,
        t.steps.c.attempts,
        cast(t.steps.c.result, Text).label("result"),
        cast(t.steps.c.error, Text).label("error"),
        t.steps.c.started_at,
        t.steps.c.wake_at,
        t.steps.c.completed_at,
    ).where(t.steps.c.run_id == any_(wanted))
    nothing = [cast(null(), type_) for type_ in (TEXT, TEXT, TIMESTAMP_TZ, TIMESTAMP_TZ, TIMESTAMP_TZ)]
    failed = t.step_attempts
    counts = (
        select(
            failed.c.run_id,
            failed.c.name,
            literal("attempts", Text),
            cast(null(), INTEGER),
            func.max(failed.c.attempt),
            *nothing,
        )
        .where(failed.c.run_id == any_(wanted), failed.c.name != "")
        .where(~is_recorded(names, failed.c.run_id, failed.c.name))
        .group_by(failed.c.run_id, failed.c.name)
    )
    child = t.tasks
    children = select(
        child.c.run_id, child.c.step, literal("open", Text), child.c.position, child.c.attempt, *nothing
    ).where(child.c.parent_run_id == any_(wanted), child.c.step.is_not(None))
    run = t.execution_runs
    executions = (
        select(child.c.parent_run_id, run.c.execution_id, literal("open execution", Text), cast(null(), INTEGER))
        .add_columns(child.c.attempt, *nothing)
        .join(run, run.c.run_id == child.c.run_id)
        .where(child.c.parent_run_id == any_(wanted), child.c.step.is_(None))
    )
    return union_all(checkpoints, counts, children, executions)


@functools.cache
def retries(names: TableNames) -> Executable:
    """Select how often the bodies of runs were retried: `(run_id, retries)` of those that were.

    Parameters: the list `run_ids`.
    """
    failed = tables_of(names).step_attempts
    count = func.max(failed.c.attempt).label("retries")
    is_of_body = (failed.c.run_id == any_(array_of("run_ids", UUID))) & (failed.c.name == "")
    return select(failed.c.run_id, count).where(is_of_body).group_by(failed.c.run_id)


@functools.cache
def recorded(names: TableNames) -> Executable:
    """Select the checkpoints of the `rows_of` lists `run_id` and `name`."""
    t = tables_of(names)
    given = rows_of("given", run_id=UUID, name=TEXT)
    return select(
        t.steps.c.run_id,
        t.steps.c.name,
        t.steps.c.kind,
        t.steps.c.position,
        t.steps.c.attempts,
        cast(t.steps.c.result, Text).label("result"),
        cast(t.steps.c.error, Text).label("error"),
        t.steps.c.started_at,
        t.steps.c.wake_at,
        t.steps.c.completed_at,
    ).join(given, (given.c.run_id == t.steps.c.run_id) & (given.c.name == t.steps.c.name))


@functools.cache
def describe(names: TableNames) -> Executable:
    """Select the steps of an execution's current run, in the order of recording; last those that are not done.

    Parameters: `id`.
    """
    t = tables_of(names)
    run = select(t.executions.c.run_id).where(t.executions.c.execution_id == bindparam("id", type_=Text))
    run_id = run.scalar_subquery()
    is_sleep = t.steps.c.kind == "sleep"
    failed = t.step_attempts
    last = failed.alias("last")
    done = select(
        t.steps.c.name,
        t.steps.c.kind,
        or_(t.steps.c.completed_at.is_(None), is_sleep & (t.steps.c.wake_at > func.now())).label("is_waiting"),
        t.steps.c.attempts,
        cast(t.steps.c.result, Text).label("result"),
        cast(t.steps.c.error, Text).label("error"),
        t.steps.c.started_at,
        case((is_sleep, t.steps.c.wake_at), else_=t.steps.c.completed_at).label("completed_at"),
        func.coalesce(t.steps.c.completed_at, func.now()).label("recorded_at"),
        t.steps.c.position,
    ).where(t.steps.c.run_id == run_id)
    is_done = is_recorded(names, last.c.run_id, last.c.name)
    is_last = ~exists().select_from(failed).where(
        failed.c.run_id == last.c.run_id, failed.c.name == last.c.name, failed.c.attempt > last.c.attempt
    )
    child = t.tasks
    is_child = exists().select_from(child).where(child.c.parent_run_id == last.c.run_id, child.c.step == last.c.name)
    between = select(
        last.c.name,
        case((is_child, "child"), else_="step"),
        literal(True),  # noqa: FBT003
        last.c.attempt,
        cast(null(), TEXT),
        cast(last.c.error, Text),
        last.c.started_at,
        cast(null(), TIMESTAMP_TZ),
        last.c.failed_at,
        cast(null(), INTEGER),
    ).where(last.c.run_id == run_id, last.c.name != "", ~is_done, is_last)
    has_failed = exists().select_from(failed).where(failed.c.run_id == run_id, failed.c.name == child.c.step)
    scheduled = select(
        child.c.step,
        literal("child", Text),
        literal(True),  # noqa: FBT003
        literal(0),
        cast(null(), TEXT),
        cast(null(), TEXT),
        child.c.claimed_at,
        cast(null(), TIMESTAMP_TZ),
        func.now(),
        child.c.position,
    ).where(child.c.parent_run_id == run_id, child.c.step.is_not(None), ~has_failed)
    return union_all(done, between, scheduled).order_by("recorded_at", "position")
