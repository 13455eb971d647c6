"""A crowded database: a million runs that have ended, and a hundred thousand that have not.

The runs are numbered. Those up to `ENDED` have ended, each with a step; then come, in this order, those that sleep,
wait for an event, are due, are held by workers, and wait for children. The first two kinds are of another task than all
others. Ids sort by the number, as those of the product sort by the time.
"""

from typing import Any
from uuid import UUID

import psycopg
from psycopg import sql

from zart_sqla import TableNames
from zart_sqla.models import tables_of
from zart_sqla.records import Child, ClaimedTask

ENDED = 1_000_000
SLEEPING = ENDED + 40_000
LISTENING = SLEEPING + 30_000
DUE = LISTENING + 20_000
HELD = DUE + 9_000
WAITING = HELD + 1_000
FAILED = ENDED - 99

LONG_RUN = DUE + 1
"""A run of ten thousand steps, which has emitted ten thousand values, and for which a thousand events have come."""
WIDE_RUN = DUE + 2
"""A run that has scheduled ten thousand children."""
PARENT = DUE + 10
"""A run that has started ten executions, which sleep. So did the run that is `FAILED`."""
SUSPECT = LISTENING + 3
"""A run that is due, and with which workers have died."""
DEAD_WORKER = 90
"""One whose lease is over; it holds a hundred tasks."""


def uuid_of(number: int) -> UUID:
    """Return the id of the run, or the worker, of this number."""
    return UUID(int=number)


def execution_of(number: int) -> str:
    """Return the execution of the run of this number."""
    return f"order-{number:07}"


def held(number: int, **options: Any) -> ClaimedTask:
    """Return the task of a run, as the worker has it that holds it."""
    known: dict[str, Any] = {
        "task_id": uuid_of(number),
        "run_id": uuid_of(number),
        "execution_id": execution_of(number),
        "task_name": "order",
        "queue": "default",
        "attempt": 1,
        "retries": 0,
        "payload": "1",
        "started_at": None,
        "claimed_at": None,
    }
    return ClaimedTask(**known | options)


def child(number: int) -> Child:
    """Return a new child."""
    return Child(name=f"new-{number}", position=number, call='{"step": "work"}')


_ERROR = (
    '{"error_type": "ValueError", "message": "no", "step": null, "attempts": 1, "category": "error", "state": null}'
)
_NAMES = {
    "all": sql.SQL("generate_series(1, {}) n").format(WAITING),
    "open": sql.SQL("generate_series({}, {}) n").format(ENDED + 1, WAITING),
    "run": sql.SQL("lpad(to_hex(n), 32, '0')::uuid"),
    "execution": sql.SQL("'order-' || lpad(n::text, 7, '0')"),
    "task": sql.SQL("CASE WHEN n BETWEEN {} AND {} THEN 'reminder' ELSE 'order' END").format(ENDED + 1, LISTENING),
    "created_at": sql.SQL("now() - ({} - n) * interval '1 second'").format(WAITING),
    "starter": sql.SQL("CASE (n - {} + 9) / 10 WHEN 1 THEN {} WHEN 2 THEN {} END").format(ENDED, PARENT, FAILED),
    "is_listening": sql.SQL("n BETWEEN {} AND {}").format(SLEEPING + 1, LISTENING),
    "is_due": sql.SQL("n BETWEEN {} AND {}").format(LISTENING + 1, DUE),
    "is_held": sql.SQL("n BETWEEN {} AND {}").format(DUE + 1, HELD),
    "holder": sql.SQL("lpad(to_hex((n - {} + 99) / 100), 32, '0')::uuid").format(DUE),
    "ended": sql.Literal(ENDED),
    "sleeping": sql.Literal(SLEEPING),
    "listening": sql.Literal(LISTENING),
    "due": sql.Literal(DUE),
    "held": sql.Literal(HELD),
    "waiting": sql.Literal(WAITING),
    "dead": sql.Literal(DEAD_WORKER),
    "wide": sql.Literal(WIDE_RUN),
    "suspect": sql.Literal(SUSPECT),
    "long_run": sql.Literal(uuid_of(LONG_RUN)),
    "long_execution": sql.Literal(execution_of(LONG_RUN)),
    "error": sql.SQL("{}::json").format(_ERROR),
}
_FILL = (
    """
    INSERT INTO zart_workers (worker_id, hostname, pid, heartbeat_at, lease_until)
    SELECT {run}, 'here', n, now() + interval '1 hour',
        now() + CASE n WHEN {dead} THEN interval '-1 minute' ELSE interval '2 hours' END
    FROM generate_series(1, 1000) n
    """,
    """
    INSERT INTO zart_executions (execution_id, task_name, queue, run_id, parent_id, is_bound, created_at)
    SELECT {execution}, {task}, 'default', {run},
        'order-' || {starter}, {starter} IS NOT NULL, {created_at}
    FROM {all}
    """,
    """
    INSERT INTO zart_execution_runs (run_id, execution_id, run_index, trigger, payload, outcome, result, error,
        created_at, started_at, completed_at)
    SELECT {run}, {execution}, 0, 'initial', '{{"amount": 10}}', outcome,
        CASE outcome WHEN 'completed' THEN '"paid"'::json END, CASE outcome WHEN 'failed' THEN {error} END,
        {created_at}, CASE WHEN n <= {ended} THEN now() END, CASE WHEN n <= {ended} THEN now() END
    FROM {all}, LATERAL (SELECT CASE WHEN n <= {ended} THEN
        CASE n % 100 WHEN 1 THEN 'failed' WHEN 2 THEN 'cancelled' ELSE 'completed' END END AS outcome) ending
    """,
    """
    INSERT INTO zart_steps (run_id, name, kind, position, attempts, result, started_at, completed_at, wake_at)
    SELECT {run}, CASE WHEN {is_listening} THEN 'wait' ELSE 'charge' END,
        CASE WHEN {is_listening} THEN 'event' ELSE 'step' END, 0, 1,
        CASE WHEN {is_listening} THEN NULL ELSE '"payment"'::json END, now(),
        CASE WHEN {is_listening} THEN NULL ELSE now() - interval '1 hour' END,
        CASE WHEN {is_listening} THEN now() + interval '1 day' END
    FROM {all}
    UNION ALL
    SELECT {long_run}, 'step-' || n, 'step', n, 1, '1'::json, now(), now() - interval '1 hour', NULL::timestamptz
    FROM generate_series(1, 10000) n
    """,
    """
    INSERT INTO zart_step_attempts (run_id, name, attempt, error, started_at)
    SELECT {run}, 'charge', 1, {error}, now() FROM generate_series(1, 100000) n
    UNION ALL
    SELECT {run}, CASE n % 2 WHEN 0 THEN '' ELSE 'ship' END, 1, {error}, now() FROM {open}
    """,
    """
    INSERT INTO zart_tasks (task_id, run_id, task_name, queue, due_at, is_waiting, worker_id, attempt, started_at,
        claimed_at, awaits, awaits_open, parent_run_id, crashes)
    SELECT {run}, {run}, {task}, 'default',
        CASE WHEN n <= {sleeping} OR ({is_listening} AND n % 2 = 0) THEN now() + (n - {ended} + 3600) * interval '1 s'
            WHEN {is_due} OR {is_held} THEN now() - ({waiting} - n) * interval '1 ms' END,
        n <= {listening} OR n > {held}, CASE WHEN {is_held} THEN {holder} END,
        CASE WHEN {is_due} THEN 0 ELSE 1 END, now(), now(),
        CASE WHEN {is_listening} THEN '["paid"]'::jsonb END, CASE WHEN n > {held} THEN 0 END,
        lpad(to_hex({starter}), 32, '0')::uuid, CASE n WHEN {suspect} THEN 2 ELSE 0 END
    FROM {open}
    """,
    """
    INSERT INTO zart_tasks (task_id, run_id, task_name, queue, due_at, worker_id, attempt, started_at, claimed_at,
        parent_run_id, step, position, call)
    SELECT md5(n || '/' || child)::uuid, {run}, 'order', 'default', now(),
        CASE WHEN child % 2 = 1 THEN lpad(to_hex(child / 2 + 2), 32, '0')::uuid END, 1, now(), now(), {run},
        'child-' || child, child, '{{"step": "work"}}'
    FROM (SELECT n, child FROM generate_series({held} + 1, {waiting}) n, generate_series(1, 5) child
        UNION ALL SELECT {wide}, child FROM generate_series(1, 1000) child
        UNION ALL SELECT {wide}, 2 * child FROM generate_series(501, 5000) child) open_children
    """,
    """
    INSERT INTO zart_events (execution_id, name, event_id, payload, run_id, taken_at)
    SELECT {execution}, 'paid', 'payment-' || n, '1'::json, {run}, now() FROM generate_series(1, 100000) n
    UNION ALL
    SELECT {execution}, 'shipped', 'parcel-' || n, '1'::json, NULL::uuid, NULL::timestamptz
    FROM generate_series({sleeping} + 1, {sleeping} + 5000) n
    UNION ALL
    SELECT {long_execution}, 'paid', 'payment-' || n, '1'::json, NULL, NULL FROM generate_series(1, 1000) n
    """,
    """
    INSERT INTO zart_stream_items (execution_id, stream, seq, run_id, value)
    SELECT {execution}, 'progress', item, {run}, '1'::json FROM generate_series(1, 2000) n, generate_series(0, 49) item
    UNION ALL
    SELECT {long_execution}, 'progress', item, {long_run}, '1' FROM generate_series(0, 9999) item
    """,
)


def fill(url: str) -> None:
    """Fill the tables of a migrated database, and have the planner know what is in them."""
    tables = map(sql.Identifier, tables_of(TableNames()).tasks.metadata.tables)
    with psycopg.connect(url) as connection:
        # A table that is emptied in the same transaction is filled without WAL, where `wal_level` is minimal.
        connection.execute(sql.SQL("TRUNCATE {}").format(sql.SQL(", ").join(tables)))
        for statement in _FILL:
            connection.execute(sql.SQL(statement).format(**_NAMES))
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("ANALYZE")
