"""Events: offering them to executions, and taking them."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from sqlalchemy import (
    JSON,
    Text,
    bindparam,
    case,
    cast,
    exists,
    func,
    literal,
    null,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import insert as pg_insert

from zart_sqla.models.mapping import tables_of
from zart_sqla.statements.arrays import INTEGER, TEXT, TIMESTAMP_TZ, UUID, rows_of
from zart_sqla.statements.fences import alive
from zart_sqla.statements.steps import COLUMNS, completed

if TYPE_CHECKING:
    from sqlalchemy import Executable

    from zart_sqla.table_names import TableNames


@functools.cache
def offer(names: TableNames) -> Executable:
    """Insert an event for an execution whose current run has not ended, and wake the run if it awaits the event.

    The count on the task tells a turn that is under way of the event; see `tasks.put_down`. It locks the task first,
    so the events of one execution are numbered in the order in which they are committed.
    Parameters: `id`, `event`, `unique_id`, `value`. Returns: `(is_new, is_free)`: whether no event of this id was there
    before, and whether no worker holds the run; no row if there is no such run.
    """
    t = tables_of(names)
    execution_id, name = bindparam("id", type_=Text), bindparam("event", type_=Text)
    event_id = bindparam("unique_id", type_=Text)
    is_same = (t.events.c.execution_id == execution_id) & (t.events.c.event_id == event_id)
    known = exists().select_from(t.events).where(is_same)
    is_awaited = t.tasks.c.worker_id.is_(None) & t.tasks.c.awaits.contains(func.to_jsonb(name)) & ~known
    told = (
        update(t.tasks)
        .values(
            signals=t.tasks.c.signals + case((known, 0), else_=1),
            due_at=case((is_awaited, func.now()), else_=t.tasks.c.due_at),
        )
        .where(t.tasks.c.task_id == t.executions.c.run_id, t.executions.c.execution_id == execution_id)
        .returning(t.executions.c.execution_id, (t.tasks.c.worker_id.is_(None)).label("is_free"))
        .cte("told")
    )
    inserted = (
        pg_insert(t.events)
        .from_select(
            ["execution_id", "name", "event_id", "payload"],
            select(told.c.execution_id, name, event_id, cast(bindparam("value", type_=Text), JSON)),
        )
        .on_conflict_do_nothing(
            index_elements=["execution_id", "event_id"], index_where=t.events.c.event_id.is_not(None)
        )
        .returning(t.events.c.event_seq)
        .cte("inserted")
    )
    return select(exists(select(inserted.c.event_seq)).label("is_new"), told.c.is_free)


@functools.cache
def take(names: TableNames) -> Executable:
    """Take, for each wait of runs whose tasks a worker holds, the first event of its name that is still there.

    Several waits of one run for the same name get one event after the other. Each event is the result of its wait.
    Parameters: `me` and `rows_of` lists. Returns: `(run_id, name, result)` of the waits that got one.
    """
    t = tables_of(names)
    me = alive(names)
    given = rows_of(
        "given",
        task_id=UUID,
        attempt=INTEGER,
        name=TEXT,
        position=INTEGER,
        started_at=TIMESTAMP_TZ,
        wake_at=TIMESTAMP_TZ,
        event=TEXT,
    )
    is_mine = (t.tasks.c.task_id == given.c.task_id) & (t.tasks.c.attempt == given.c.attempt)
    is_same = (t.steps.c.run_id == t.tasks.c.run_id) & (t.steps.c.name == given.c.name)
    # It is a scalar subquery for the same reason as `steps.is_recorded`: an EXISTS reads all steps of each run.
    done_at = select(t.steps.c.completed_at).where(is_same).scalar_subquery()
    rank = func.row_number().over(
        partition_by=[t.tasks.c.run_id, given.c.event], order_by=[given.c.started_at, given.c.name]
    )
    waits = (
        select(
            t.tasks.c.run_id,
            t.execution_runs.c.execution_id,
            given.c.name,
            given.c.position,
            given.c.started_at,
            given.c.wake_at,
            given.c.event,
            rank.label("rank"),
        )
        .join(t.tasks, is_mine)
        .join(me, me.c.worker_id == t.tasks.c.worker_id)
        .join(t.execution_runs, t.execution_runs.c.run_id == t.tasks.c.run_id)
        .where(done_at.is_(None))
        .cte("waits")
    )
    first = (
        select(t.events.c.event_seq, t.events.c.payload)
        .where(
            t.events.c.execution_id == waits.c.execution_id,
            t.events.c.name == waits.c.event,
            t.events.c.taken_at.is_(None),
        )
        .order_by(t.events.c.event_seq)
        .offset(waits.c.rank - 1)
        .limit(1)
        .lateral("first")
    )
    met = select(waits, first.c.event_seq, first.c.payload).join(first, true()).cte("met")
    taken = (
        update(t.events)
        .values(run_id=met.c.run_id, taken_at=func.now())
        .where(t.events.c.event_seq == met.c.event_seq)
        .cte("taken")
    )
    rows = select(
        met.c.run_id,
        met.c.name,
        literal("event", Text),
        met.c.position,
        literal(1),
        met.c.payload,
        cast(null(), JSON),
        met.c.started_at,
        met.c.wake_at,
        func.now(),
    )
    inserted = pg_insert(t.steps).from_select([*COLUMNS, "completed_at"], rows)
    return (
        completed(names, inserted)
        .returning(t.steps.c.run_id, t.steps.c.name, cast(t.steps.c.result, Text).label("result"))
        .add_cte(taken)
    )
