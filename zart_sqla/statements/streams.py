"""Streams: emitting values into them, and following them."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Text,
    bindparam,
    case,
    cast,
    false,
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

from zart_sqla.models.mapping import tables_of
from zart_sqla.statements.arrays import INTEGER, TEXT, TIMESTAMP_TZ, UUID, rows_of
from zart_sqla.statements.fences import mine

if TYPE_CHECKING:
    from sqlalchemy import CTE, ColumnElement, Executable, Select

    from zart_sqla.table_names import TableNames

_FOLLOWED: Final = literal_column("INTERVAL '30 seconds'", INTERVAL)
_RENEWED: Final = literal_column("INTERVAL '15 seconds'", INTERVAL)
_SETTLED: Final = literal_column("INTERVAL '100 milliseconds'", INTERVAL)


@functools.cache
def emit(names: TableNames) -> Executable:
    """Add values to streams, with their checkpoints, for runs whose tasks a worker holds; tell those who follow.

    A checkpoint that is there already adds nothing. The task is locked against its end, so no value comes after that
    of its run, and no two workers number the values of one execution at the same time.
    Parameters: `me`, `channel` and `rows_of` lists; `number` is the order of the values. Returns: `(run_id, name)`
    of those whose tasks it still held and nobody has locked.
    """
    t = tables_of(names)
    given = rows_of(
        "given",
        task_id=UUID,
        attempt=INTEGER,
        number=INTEGER,
        name=TEXT,
        position=INTEGER,
        began_at=TIMESTAMP_TZ,
        stream=TEXT,
        value=TEXT,
    )
    carried = (given.c.number, given.c.name, given.c.position, given.c.began_at, given.c.stream, given.c.value)
    held = mine(names, given, *carried, against_end_only=True)
    checkpoints = select(
        held.c.run_id, held.c.name, literal("emit", Text), held.c.position, literal(1), held.c.began_at
    )
    recorded = (
        pg_insert(t.steps)
        .from_select(["run_id", "name", "kind", "position", "attempts", "started_at"], checkpoints)
        .on_conflict_do_nothing(index_elements=[t.steps.c.run_id, t.steps.c.name])
        .returning(t.steps.c.run_id, t.steps.c.name)
        .cte("recorded")
    )
    run = t.execution_runs
    # It is a column, not a join: that would be planned for the few rows that are expected of an INSERT, and compare
    # each row with each; of this PostgreSQL makes a hash.
    is_new = tuple_(held.c.run_id, held.c.name).in_(select(recorded.c.run_id, recorded.c.name))
    done = (
        select(
            *(held.c.run_id, held.c.name, held.c.number, held.c.stream, held.c.value),
            run.c.execution_id,
            (run.c.followed_until > func.now()).label("is_followed"),
            is_new.label("is_new"),
        )
        .join(run, run.c.run_id == held.c.run_id)
        .cte("done")
    )
    items = insert(t.stream_items).from_select(
        ["execution_id", "stream", "seq", "run_id", "value"], _numbered(names, done)
    )
    news = func.pg_notify(bindparam("channel", type_=Text), cast(done.c.run_id, Text))
    told = case((done.c.is_new & done.c.is_followed, news))
    return select(done.c.run_id, done.c.name, told).add_cte(items.cte("items"))


def _numbered(names: TableNames, done: CTE) -> Select[Any]:
    """Select the new values as items: each stream's numbers go on, in the order of the values.

    The last number of a stream is looked up for the first of its values only. For the others that would have to pass
    over the items that this very statement has inserted.
    """
    by_stream = [done.c.execution_id, done.c.stream]
    rank = func.row_number().over(partition_by=by_stream, order_by=done.c.number)
    new = select(done, rank.label("rank")).where(done.c.is_new).subquery("new")
    known = tables_of(names).stream_items
    last = (
        select(known.c.seq)
        .where(known.c.execution_id == new.c.execution_id, known.c.stream == new.c.stream)
        .order_by(known.c.seq.desc())
        .limit(1)
        .scalar_subquery()
    )
    ranked = select(new, case((new.c.rank == 1, func.coalesce(last, -1))).label("last")).subquery("ranked")
    before = func.max(ranked.c.last).over(partition_by=[ranked.c.execution_id, ranked.c.stream])
    number, value = before + ranked.c.rank, cast(ranked.c.value, JSON)
    columns: list[ColumnElement[Any]] = [ranked.c.execution_id, ranked.c.stream, number, ranked.c.run_id, value]
    return select(*columns)


@functools.cache
def read(names: TableNames) -> Executable:
    """Select items of a stream from an offset on, and whether the execution's current run has ended.

    It sees both at one moment: if the run has ended, no more items will come than it can see.
    Parameters: `id`, `name`, `offset`, `limit`, and `size`, how many bytes are enough: what comes after those is left
    for another time. Returns: `(run_id, has_ended, seq, value, total)`, with the bytes so far; a row without `seq` if
    there is no item; no row if there is no such execution.
    """
    t = tables_of(names)
    size = func.pg_column_size(t.stream_items.c.value)
    some = (
        select(t.stream_items.c.seq, t.stream_items.c.value, size.label("size"))
        .where(
            t.stream_items.c.execution_id == t.executions.c.execution_id,
            t.stream_items.c.stream == bindparam("name", type_=Text),
            t.stream_items.c.seq >= bindparam("offset", type_=BigInteger),
        )
        .order_by(t.stream_items.c.seq)
        .limit(bindparam("limit", type_=INTEGER))
        .lateral("some")
    )
    total = func.sum(some.c.size).over(order_by=some.c.seq)
    listed = (
        select(
            t.executions.c.run_id,
            t.execution_runs.c.outcome.is_not(None).label("has_ended"),
            some.c.seq,
            cast(some.c.value, Text).label("value"),
            some.c.size,
            total.label("total"),
        )
        .select_from(t.executions)
        .join(t.execution_runs, t.execution_runs.c.run_id == t.executions.c.run_id)
        .outerjoin(some, true())
        .where(t.executions.c.execution_id == bindparam("id", type_=Text))
        .subquery("listed")
    )
    is_wanted = or_(listed.c.seq.is_(None), listed.c.total - listed.c.size < bindparam("size", type_=INTEGER))
    wanted = (listed.c.run_id, listed.c.has_ended, listed.c.seq, listed.c.value, listed.c.total)
    return select(*wanted).where(is_wanted).order_by("seq")


@functools.cache
def follow(names: TableNames) -> Executable:
    """Ask that what an execution's current run emits from now on be notified, for a while; and its end.

    The row is written only if nobody else has asked just before.
    Parameters: `id`. Returns: `(run_id, was_followed)`, whether somebody had asked a moment ago or earlier; no row if
    it has ended.
    """
    t = tables_of(names)
    run = t.execution_runs
    # What was being emitted as the mark was made is not notified: neither to whoever made it, nor to others.
    is_settled = run.c.followed_until <= func.now() + _FOLLOWED - _SETTLED
    run_id = select(t.executions.c.run_id).where(t.executions.c.execution_id == bindparam("id", type_=Text))
    current = (
        select(run.c.run_id, ((run.c.followed_until > func.now()) & is_settled).label("was_followed"))
        .where(run.c.run_id == run_id.scalar_subquery(), run.c.outcome.is_(None))
        .cte("current")
    )
    marked = (
        update(run)
        .values(is_awaited=True, followed_until=func.now() + _FOLLOWED)
        .where(run.c.run_id == select(current.c.run_id).scalar_subquery(), run.c.outcome.is_(None))
        .where(or_(run.c.followed_until.is_(None), run.c.followed_until < func.now() + _RENEWED))
    )
    was_followed = func.coalesce(current.c.was_followed, false())
    return select(current.c.run_id, was_followed.label("was_followed")).add_cte(marked.cte("marked"))
