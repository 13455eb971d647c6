"""Create the tables.

Revision ID: zart_0001
Revises: nothing

"""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql

from zart_sqla.migrations.environment import create_schema, refuse_taken_names, revision_scope

if TYPE_CHECKING:
    from alembic.operations import Operations

    from zart_sqla.table_names import TableNames

revision = "zart_0001"
down_revision = None
branch_labels: tuple[str, ...] = ("zart",)
depends_on = None

TIMESTAMP = postgresql.TIMESTAMP(timezone=True)
NOW = sa.text("now()")
ZERO = sa.text("0")
FALSE = sa.text("false")

TABLES = ("executions", "execution_runs", "tasks", "steps", "step_attempts", "events", "stream_items", "workers")


def upgrade(operations: Operations | None = None, **_: object) -> None:
    op, names = revision_scope(operations)
    if names.schema is not None:
        create_schema(op, names.schema)
    refuse_taken_names(op, names, revision)
    create_executions(op, names)
    create_execution_runs(op, names)
    create_tasks(op, names)
    create_steps(op, names)
    create_step_attempts(op, names)
    create_events(op, names)
    create_stream_items(op, names)
    create_workers(op, names)


def downgrade(operations: Operations | None = None, **_: object) -> None:
    op, names = revision_scope(operations)
    for table in reversed(TABLES):
        op.drop_table(names.table(table), schema=names.schema)


def create_executions(op: Operations, names: TableNames) -> None:
    op.create_table(
        names.executions,
        sa.Column("execution_id", sa.Text, nullable=False),
        sa.Column("task_name", sa.Text, nullable=False),
        sa.Column("queue", sa.Text, nullable=False),
        sa.Column("run_id", sa.Uuid, nullable=False),
        sa.Column("parent_id", sa.Text, nullable=True),
        sa.Column("is_bound", sa.Boolean, server_default=FALSE, nullable=False),
        sa.Column("created_at", TIMESTAMP, server_default=NOW, nullable=False),
        sa.PrimaryKeyConstraint("execution_id", name=f"{names.executions}_pkey"),
        schema=names.schema,
        comment=f"zart_sqla schema revision {revision}",
    )
    op.create_index(
        f"{names.executions}_created_idx",
        names.executions,
        ["created_at", "execution_id"],
        schema=names.schema,
    )


def create_execution_runs(op: Operations, names: TableNames) -> None:
    op.create_table(
        names.execution_runs,
        sa.Column("run_id", sa.Uuid, nullable=False),
        sa.Column("execution_id", sa.Text, nullable=False),
        sa.Column("run_index", sa.Integer, nullable=False),
        sa.Column("trigger", sa.Text, nullable=False),
        sa.Column("payload", sa.JSON, nullable=False),
        sa.Column("outcome", sa.Text, nullable=True),
        sa.Column("result", sa.JSON, nullable=True),
        sa.Column("error", sa.JSON, nullable=True),
        sa.Column("handled", sa.JSON, nullable=True),
        sa.Column("created_at", TIMESTAMP, server_default=NOW, nullable=False),
        sa.Column("started_at", TIMESTAMP, nullable=True),
        sa.Column("completed_at", TIMESTAMP, nullable=True),
        sa.Column("is_awaited", sa.Boolean, server_default=FALSE, nullable=False),
        sa.Column("followed_until", TIMESTAMP, nullable=True),
        sa.PrimaryKeyConstraint("run_id", name=f"{names.execution_runs}_pkey"),
        sa.UniqueConstraint("execution_id", "run_index", name=f"{names.execution_runs}_index_key"),
        _one_of("outcome", ("completed", "failed", "cancelled"), f"{names.execution_runs}_outcome_check"),
        _one_of("trigger", ("initial", "resume", "continue"), f"{names.execution_runs}_trigger_check"),
        schema=names.schema,
    )


def create_tasks(op: Operations, names: TableNames) -> None:
    op.create_table(
        names.tasks,
        sa.Column("task_id", sa.Uuid, nullable=False),
        sa.Column("run_id", sa.Uuid, nullable=False),
        sa.Column("task_name", sa.Text, nullable=False),
        sa.Column("queue", sa.Text, nullable=False),
        sa.Column("due_at", TIMESTAMP, nullable=True),
        sa.Column("is_waiting", sa.Boolean, server_default=FALSE, nullable=False),
        sa.Column("worker_id", sa.Uuid, nullable=True),
        sa.Column("attempt", sa.Integer, server_default=ZERO, nullable=False),
        sa.Column("retries", sa.Integer, server_default=ZERO, nullable=False),
        sa.Column("crashes", sa.Integer, server_default=ZERO, nullable=False),
        sa.Column("started_at", TIMESTAMP, nullable=True),
        sa.Column("claimed_at", TIMESTAMP, nullable=True),
        sa.Column("signals", sa.Integer, server_default=ZERO, nullable=False),
        sa.Column("awaits", postgresql.JSONB, nullable=True),
        sa.Column("awaits_open", sa.Integer, nullable=True),
        sa.Column("has_cleanup", sa.Boolean, server_default=FALSE, nullable=False),
        sa.Column("parent_run_id", sa.Uuid, nullable=True),
        sa.Column("step", sa.Text, nullable=True),
        sa.Column("position", sa.Integer, nullable=True),
        sa.Column("call", sa.JSON, nullable=True),
        sa.PrimaryKeyConstraint("task_id", name=f"{names.tasks}_pkey"),
        schema=names.schema,
    )
    _create_partial_index(op, names, "tasks", "due_at", name="due", where="worker_id IS NULL")
    _create_partial_index(op, names, "tasks", "due_at", name="suspect", where="worker_id IS NULL AND crashes >= 2")
    _create_partial_index(op, names, "tasks", "worker_id", name="worker", where="worker_id IS NOT NULL")
    _create_partial_index(op, names, "tasks", "parent_run_id", name="parent", where="parent_run_id IS NOT NULL")
    _create_partial_index(op, names, "tasks", "run_id", name="group", where="awaits_open IS NOT NULL")


def create_steps(op: Operations, names: TableNames) -> None:
    op.create_table(
        names.steps,
        sa.Column("run_id", sa.Uuid, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("position", sa.Integer, nullable=True),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("result", sa.JSON, nullable=True),
        sa.Column("error", sa.JSON, nullable=True),
        sa.Column("started_at", TIMESTAMP, nullable=True),
        sa.Column("completed_at", TIMESTAMP, server_default=NOW, nullable=True),
        sa.Column("wake_at", TIMESTAMP, nullable=True),
        sa.PrimaryKeyConstraint("run_id", "name", name=f"{names.steps}_pkey"),
        _one_of(
            "kind",
            (
                "step",
                "sleep",
                "capture",
                "event",
                "emit",
                "child",
                "choice",
                "execution",
                "result",
                "failure",
                "cancellation",
            ),
            f"{names.steps}_kind_check",
        ),
        schema=names.schema,
    )


def create_step_attempts(op: Operations, names: TableNames) -> None:
    op.create_table(
        names.step_attempts,
        sa.Column("run_id", sa.Uuid, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("attempt", sa.Integer, autoincrement=False, nullable=False),
        sa.Column("error", sa.JSON, nullable=False),
        sa.Column("started_at", TIMESTAMP, nullable=False),
        sa.Column("failed_at", TIMESTAMP, server_default=NOW, nullable=False),
        sa.PrimaryKeyConstraint("run_id", "name", "attempt", name=f"{names.step_attempts}_pkey"),
        schema=names.schema,
    )


def create_events(op: Operations, names: TableNames) -> None:
    op.create_table(
        names.events,
        sa.Column("event_seq", sa.BigInteger, sa.Identity(always=True), nullable=False),
        sa.Column("execution_id", sa.Text, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("event_id", sa.Text, nullable=True),
        sa.Column("payload", sa.JSON, nullable=False),
        sa.Column("offered_at", TIMESTAMP, server_default=NOW, nullable=False),
        sa.Column("run_id", sa.Uuid, nullable=True),
        sa.Column("taken_at", TIMESTAMP, nullable=True),
        sa.PrimaryKeyConstraint("event_seq", name=f"{names.events}_pkey"),
        schema=names.schema,
    )
    op.create_index(
        f"{names.events}_id_key",
        names.events,
        ["execution_id", "event_id"],
        unique=True,
        schema=names.schema,
        postgresql_where=sa.text("event_id IS NOT NULL"),
    )
    op.create_index(
        f"{names.events}_offered_idx",
        names.events,
        ["execution_id", "name", "event_seq"],
        schema=names.schema,
        postgresql_where=sa.text("taken_at IS NULL"),
    )


def create_stream_items(op: Operations, names: TableNames) -> None:
    op.create_table(
        names.stream_items,
        sa.Column("execution_id", sa.Text, nullable=False),
        sa.Column("stream", sa.Text, nullable=False),
        sa.Column("seq", sa.BigInteger, autoincrement=False, nullable=False),
        sa.Column("run_id", sa.Uuid, nullable=False),
        sa.Column("value", sa.JSON, nullable=False),
        sa.Column("emitted_at", TIMESTAMP, server_default=NOW, nullable=False),
        sa.PrimaryKeyConstraint("execution_id", "stream", "seq", name=f"{names.stream_items}_pkey"),
        schema=names.schema,
    )


def create_workers(op: Operations, names: TableNames) -> None:
    op.create_table(
        names.workers,
        sa.Column("worker_id", sa.Uuid, nullable=False),
        sa.Column("hostname", sa.Text, nullable=False),
        sa.Column("pid", sa.Integer, nullable=False),
        sa.Column("lock_key", sa.BigInteger, nullable=True),
        sa.Column("started_at", TIMESTAMP, server_default=NOW, nullable=False),
        sa.Column("heartbeat_at", TIMESTAMP, server_default=NOW, nullable=False),
        sa.Column("lease_until", TIMESTAMP, nullable=False),
        sa.PrimaryKeyConstraint("worker_id", name=f"{names.workers}_pkey"),
        schema=names.schema,
    )


def _one_of(column: str, values: tuple[str, ...], name: str) -> sa.CheckConstraint:
    return sa.CheckConstraint(f"{column} IN ({', '.join(map(repr, values))})", name=name)


def _create_partial_index(op: Operations, names: TableNames, table: str, column: str, *, name: str, where: str) -> None:
    op.create_index(
        f"{names.table(table)}_{name}_idx",
        names.table(table),
        [column],
        schema=names.schema,
        postgresql_where=sa.text(where),
    )
