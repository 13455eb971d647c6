"""Children: steps of a run that are tasks of their own."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from sqlalchemy import (
    JSON,
    Text,
    any_,
    bindparam,
    cast,
    delete,
    func,
    literal,
    literal_column,
    or_,
    select,
    true,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.dialects.postgresql import insert as pg_insert

from zart_sqla.models.mapping import tables_of
from zart_sqla.statements.arrays import INTEGER, TEXT, UUID, array_of, rows_of
from zart_sqla.statements.fences import mine
from zart_sqla.statements.steps import is_recorded

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Delete, Executable

    from zart_sqla.table_names import TableNames

_STEP_PATH = literal_column("'{step}'", ARRAY(Text))


def delete_steps(names: TableNames, run_id: ColumnElement[Any]) -> Delete:
    """Delete the tasks that are steps of a run.

    Whoever does it has locked the task of the run before: so two of them never wait for each other.
    """
    tasks = tables_of(names).tasks
    return delete(tasks).where(tasks.c.parent_run_id == run_id, tasks.c.step.is_not(None))


@functools.cache
def add(names: TableNames) -> Executable:
    """Insert children of runs whose tasks a worker holds, unless they are there, or done.

    It writes the tasks of the runs, as `tasks.touch` does.
    Parameters: `me` and `rows_of` lists. Returns: `(task_id)` of those runs' tasks that it still held and nobody has
    locked.
    """
    t = tables_of(names)
    turns = rows_of("turn", task_id=UUID, attempt=INTEGER)
    held = mine(names, turns)
    written = (
        update(t.tasks)
        .values(is_waiting=False)
        .where(t.tasks.c.task_id == held.c.task_id)
        .returning(t.tasks.c.task_id, t.tasks.c.run_id, t.tasks.c.task_name, t.tasks.c.queue, t.tasks.c.started_at)
        .cte("written")
    )
    given = rows_of("given", task_id=UUID, child_id=UUID, name=TEXT, child_position=INTEGER, child_call=TEXT)
    rows = (
        select(
            given.c.child_id,
            written.c.run_id,
            written.c.task_name,
            written.c.queue,
            func.now(),
            written.c.started_at,
            written.c.run_id,
            given.c.name,
            given.c.child_position,
            cast(given.c.child_call, JSON),
        )
        .select_from(given.join(written, written.c.task_id == given.c.task_id))
        .where(~is_recorded(names, written.c.run_id, given.c.name))
    )
    columns = ("task_id", "run_id", "task_name", "queue", "due_at", "started_at", "parent_run_id")
    inserted = pg_insert(t.tasks).from_select([*columns, "step", "position", "call"], rows)
    new = inserted.on_conflict_do_nothing(index_elements=[t.tasks.c.task_id]).cte("new")
    return select(written.c.task_id).add_cte(new)


@functools.cache
def remove(names: TableNames) -> Executable:
    """Delete tasks that a worker holds and that are done: children, or what follows a cancellation, with its children.

    Parameters: `me` and `rows_of` lists. Returns: `(task_id)` of those that it still held and nobody has locked.
    """
    tasks = tables_of(names).tasks
    done = mine(names, rows_of("given", task_id=UUID, attempt=INTEGER), tasks.c.step)
    children = delete_steps(names, done.c.run_id).where(done.c.step.is_(None)).cte("children")
    return delete(tasks).where(tasks.c.task_id == done.c.task_id).returning(tasks.c.task_id).add_cte(children)


@functools.cache
def give_up(names: TableNames) -> Executable:
    """Delete open children of runs whose tasks a worker holds, and record that they were cancelled.

    The task of the run is locked first, as by whoever else deletes children: so they do not wait for each other.
    Parameters: `me`, `error` as JSON text, and `rows_of` lists. Returns: `(task_id)` of those runs' tasks that it
    still held and nobody has locked.
    """
    t = tables_of(names)
    given = rows_of("given", task_id=UUID, attempt=INTEGER, child_id=UUID)
    held = mine(names, given, given.c.child_id)
    gone = (
        delete(t.tasks)
        .where(t.tasks.c.task_id == held.c.child_id)
        .returning(t.tasks.c.task_id, t.tasks.c.run_id, t.tasks.c.step, t.tasks.c.position, t.tasks.c.attempt)
        .cte("gone")
    )
    error = error_of(gone.c.step, bindparam("error", type_=Text))
    # In the order in which children are recorded: two who insert the same steps then never wait for each other.
    rows = select(gone.c.run_id, gone.c.step, literal("child", Text), gone.c.position, gone.c.attempt, error).order_by(
        gone.c.task_id
    )
    columns = ["run_id", "name", "kind", "position", "attempts", "error"]
    recorded = pg_insert(t.steps).from_select(columns, rows).on_conflict_do_nothing().cte("recorded")
    return select(held.c.task_id).distinct().add_cte(recorded)


def error_of(step: ColumnElement[Any], error: ColumnElement[str]) -> ColumnElement[Any]:
    """Return the error, given as JSON text, as that of a step."""
    return cast(func.jsonb_set(cast(error, JSONB), _STEP_PATH, func.to_jsonb(step)), JSON)


@functools.cache
def wake(names: TableNames) -> Executable:
    """Make those of the runs due that wait for children of which few enough are open.

    It has to be a statement after the commit of whatever may have been the last thing to wait for, a child that ended
    or a run that was put down: of two such commits at once, the statement after the later one sees both. Of a run that
    another one of its execution has followed, the children are that one's: who ends a child may have claimed it before.
    Parameters: the list `run_ids`. Returns: `run_id` and `is_woken` of each: not so while somebody has locked it.
    """
    t = tables_of(names)
    run = t.execution_runs
    given = select(func.unnest(array_of("run_ids", UUID)).label("run_id"))
    current = (
        select(t.executions.c.run_id)
        .join(run, run.c.execution_id == t.executions.c.execution_id)
        .where(run.c.run_id == any_(array_of("run_ids", UUID)))
    )
    return _wake(names, t.tasks.c.run_id == any_(func.array(union_all(given, current).scalar_subquery())))


@functools.cache
def wake_all(names: TableNames) -> Executable:
    """Make all runs due that wait for children of which few enough are open: a worker may have died before it did.

    Returns: `run_id` and `is_woken` of each: not so while somebody has locked it.
    """
    return _wake(names, true())


def _wake(names: TableNames, condition: ColumnElement[bool]) -> Executable:
    tasks = tables_of(names).tasks
    child = tasks.alias("child")
    # No more of them are counted than matter: of ten thousand, mostly one.
    some = select(child.c.task_id).where(child.c.parent_run_id == tasks.c.run_id).limit(tasks.c.awaits_open + 1)
    still_open = select(func.count()).select_from(some.correlate(tasks).subquery("open")).scalar_subquery()
    ready = (
        select(tasks.c.task_id, tasks.c.run_id)
        .where(condition, tasks.c.awaits_open.is_not(None), tasks.c.worker_id.is_(None))
        .where(or_(tasks.c.due_at.is_(None), tasks.c.due_at > func.now()))
        .where(still_open <= tasks.c.awaits_open)
        .cte("ready")
    )
    free = (
        select(tasks.c.task_id)
        .join(ready, ready.c.task_id == tasks.c.task_id)
        .where(tasks.c.worker_id.is_(None))
        .with_for_update(of=tasks, skip_locked=True)
        .cte("free")
    )
    woken = (
        update(tasks)
        .values(due_at=func.now())
        .where(tasks.c.task_id == free.c.task_id)
        .returning(tasks.c.task_id)
        .cte("woken")
    )
    is_woken = woken.c.task_id.is_not(None).label("is_woken")
    return select(ready.c.run_id, is_woken).outerjoin(woken, woken.c.task_id == ready.c.task_id)


@functools.cache
def payloads(names: TableNames) -> Executable:
    """Select the inputs of runs. Parameters: the list `run_ids`."""
    run = tables_of(names).execution_runs
    payload = cast(run.c.payload, Text).label("payload")
    return select(run.c.run_id, payload).where(run.c.run_id == any_(array_of("run_ids", UUID)))


@functools.cache
def attempts(names: TableNames) -> Executable:
    """Select how many attempts of steps failed. Parameters: the `rows_of` lists `run_id` and `name`."""
    failed = tables_of(names).step_attempts
    given = rows_of("given", run_id=UUID, name=TEXT)
    return (
        select(failed.c.run_id, failed.c.name, func.max(failed.c.attempt).label("attempts"))
        .join(given, (given.c.run_id == failed.c.run_id) & (given.c.name == failed.c.name))
        .group_by(failed.c.run_id, failed.c.name)
    )
