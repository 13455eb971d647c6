"""What keeps a worker from writing that does not hold the task any more."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import CTE, bindparam, func, select

from zart_sqla.models.mapping import tables_of
from zart_sqla.statements.arrays import UUID

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, FromClause

    from zart_sqla.table_names import TableNames


def alive(names: TableNames) -> CTE:
    """Return the worker's own row, kept from being deleted until the transaction ends.

    This is the fence. Whoever takes over a worker's tasks deletes its row first; so a transaction that holds this
    lock is over before they are taken, and one that comes later finds no row and writes nothing. A heartbeat changes
    no key, so it does not wait. A process that is stopped in the middle must not hold the lock for ever, hence the
    limit on its idleness.
    """
    workers = tables_of(names).workers
    return (
        select(
            workers.c.worker_id,
            func.set_config("idle_in_transaction_session_timeout", "10s", True).label("limited"),  # noqa: FBT003
        )
        .where(workers.c.worker_id == bindparam("me", type_=UUID))
        .with_for_update(read=True, key_share=True)
        .cte("me")
    )


def mine(names: TableNames, turn: FromClause, *columns: ColumnElement[Any], against_end_only: bool = False) -> CTE:
    """Select, and lock, those of the given tasks that the worker `me` still holds.

    It passes over what somebody else has locked, such as an app that cancels an execution in a transaction of its
    own: the others that are written in the same batch must not wait for that.

    Args:
        names: the tables.
        turn: which tasks, with the tokens of their holders.
        *columns: what else to select.
        against_end_only: lock them only against being deleted or given to somebody else. An offer of an event, in a
            transaction of the app's own, then locks nobody out.
    """
    tasks = tables_of(names).tasks
    me = alive(names)
    is_mine = (tasks.c.task_id == turn.c.task_id) & (tasks.c.attempt == turn.c.attempt)
    return (
        select(tasks.c.task_id, tasks.c.run_id, tasks.c.started_at, *columns)
        .join(turn, is_mine)
        .join(me, me.c.worker_id == tasks.c.worker_id)
        .with_for_update(of=tasks, skip_locked=True, read=against_end_only, key_share=against_end_only)
        .cte("mine")
    )
