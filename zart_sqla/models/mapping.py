"""Mapped classes made from `TableNames`, in the app's own metadata or in one of ours."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    CheckConstraint,
    ColumnElement,
    Index,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    UniqueConstraint,
    case,
    literal,
    select,
)
from sqlalchemy.orm import class_mapper, column_property, foreign, registry, relationship

from zart_sqla.models.columns import (
    EventColumns,
    ExecutionColumns,
    ExecutionRunColumns,
    StepAttemptColumns,
    StepColumns,
    StreamItemColumns,
    TaskColumns,
    WorkerColumns,
)
from zart_sqla.models.revision import schema_comment
from zart_sqla.records import SUSPECT_CRASHES

if TYPE_CHECKING:
    from zart_sqla.table_names import TableNames

_CACHE_KEY = "zart_models"
OUTCOMES: Final = ("completed", "failed", "cancelled")
TRIGGERS: Final = ("initial", "resume", "continue")
STEP_KINDS: Final = (
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
)


@dataclass(frozen=True, kw_only=True)
class ZartModels:
    """The mapped classes of one set of tables.

    Attributes:
        names: the names they were made from.
        metadata: the metadata that their tables are in.
    """

    names: TableNames
    metadata: MetaData
    Execution: type[ExecutionColumns]
    ExecutionRun: type[ExecutionRunColumns]
    Task: type[TaskColumns]
    Step: type[StepColumns]
    StepAttempt: type[StepAttemptColumns]
    Event: type[EventColumns]
    StreamItem: type[StreamItemColumns]
    Worker: type[WorkerColumns]


def zart_models(names: TableNames, *, metadata: MetaData) -> ZartModels:
    """Return the mapped classes whose tables have these names, made once for each metadata.

    The tables become part of `metadata`, so foreign keys, relationships and queries of the app's own models can name
    them, and Alembic's autogenerate compares them. They are created by the migrations of zart_sqla, not by
    `metadata.create_all()` alone: that would leave out the record of their revision.

    Args:
        names: the names of the tables.
        metadata: the metadata to put them in, such as the app's `Base.metadata`.
    """
    made: dict[TableNames, ZartModels] = metadata.info.setdefault(_CACHE_KEY, {})
    if names not in made:
        made[names] = _make_models(names, metadata)
    return made[names]


@dataclass(frozen=True)
class Tables:
    """The tables of one set of names, for statements."""

    names: TableNames
    executions: Table
    execution_runs: Table
    tasks: Table
    steps: Table
    step_attempts: Table
    events: Table
    stream_items: Table
    workers: Table


@functools.cache
def tables_of(names: TableNames) -> Tables:
    """Return the tables of these names in a metadata of their own."""
    metadata = MetaData()
    zart_models(names, metadata=metadata)

    def table(name: str) -> Table:
        key = names.table(name)
        return metadata.tables[key if names.schema is None else f"{names.schema}.{key}"]

    return Tables(
        names,
        executions=table("executions"),
        execution_runs=table("execution_runs"),
        tasks=table("tasks"),
        steps=table("steps"),
        step_attempts=table("step_attempts"),
        events=table("events"),
        stream_items=table("stream_items"),
        workers=table("workers"),
    )


def run_status(runs: Table | Any, tasks: Table | Any) -> ColumnElement[str]:
    """Return the status of a run from its own row and that of its task, of which there is none when it has ended."""
    return case(
        (runs.c.outcome.is_not(None), runs.c.outcome),
        (tasks.c.worker_id.is_not(None), literal("running")),
        (tasks.c.is_waiting, literal("waiting")),
        else_=literal("scheduled"),
    )


def _make_models(names: TableNames, metadata: MetaData) -> ZartModels:
    mapping = registry(metadata=metadata)

    def mapped(mixin: type[Any], name: str, *constraints: Any, **attributes: Any) -> Any:
        table = names.table(name)
        options = {"schema": names.schema, "comment": schema_comment() if name == "executions" else None}
        primary_key = PrimaryKeyConstraint(name=f"{table}_pkey")
        body = {"__tablename__": table, "__table_args__": (primary_key, *constraints, options), **attributes}
        class_name = mixin.__name__.removesuffix("Columns")
        return mapping.mapped(type(class_name, (mixin,), {"__doc__": mixin.__doc__, "__module__": __name__, **body}))

    prefix = names.prefix
    execution = mapped(
        ExecutionColumns,
        "executions",
        Index(f"{prefix}executions_created_idx", "created_at", "execution_id"),
    )
    run = mapped(
        ExecutionRunColumns,
        "execution_runs",
        UniqueConstraint("execution_id", "run_index", name=f"{prefix}execution_runs_index_key"),
        _one_of("outcome", OUTCOMES, f"{prefix}execution_runs_outcome_check"),
        _one_of("trigger", TRIGGERS, f"{prefix}execution_runs_trigger_check"),
    )
    task = mapped(
        TaskColumns,
        "tasks",
        Index(f"{prefix}tasks_due_idx", "due_at", postgresql_where="worker_id IS NULL"),
        Index(
            f"{prefix}tasks_suspect_idx",
            "due_at",
            postgresql_where=f"worker_id IS NULL AND crashes >= {SUSPECT_CRASHES}",
        ),
        Index(f"{prefix}tasks_worker_idx", "worker_id", postgresql_where="worker_id IS NOT NULL"),
        Index(f"{prefix}tasks_parent_idx", "parent_run_id", postgresql_where="parent_run_id IS NOT NULL"),
        Index(f"{prefix}tasks_group_idx", "run_id", postgresql_where="awaits_open IS NOT NULL"),
    )
    step = mapped(StepColumns, "steps", _one_of("kind", STEP_KINDS, f"{prefix}steps_kind_check"))
    attempt = mapped(StepAttemptColumns, "step_attempts")
    event = mapped(
        EventColumns,
        "events",
        Index(
            f"{prefix}events_id_key",
            *("execution_id", "event_id"),
            unique=True,
            postgresql_where="event_id IS NOT NULL",
        ),
        Index(f"{prefix}events_offered_idx", "execution_id", "name", "event_seq", postgresql_where="taken_at IS NULL"),
    )
    item = mapped(StreamItemColumns, "stream_items")
    worker = mapped(WorkerColumns, "workers")

    _add_status(execution, run, task)
    _add_relationships(execution, run, step, attempt)
    return ZartModels(
        names=names,
        metadata=metadata,
        Execution=execution,
        ExecutionRun=run,
        Task=task,
        Step=step,
        StepAttempt=attempt,
        Event=event,
        StreamItem=item,
        Worker=worker,
    )


def _one_of(column: str, values: tuple[str, ...], name: str) -> CheckConstraint:
    return CheckConstraint(f"{column} IN ({', '.join(repr(value) for value in values)})", name=name)


def _add_status(execution: Any, run: Any, task: Any) -> None:
    runs, tasks = run.__table__.alias(), task.__table__.alias()
    status = run_status(runs, tasks)
    joined = select(status).select_from(runs.outerjoin(tasks, tasks.c.task_id == runs.c.run_id))
    for model in (execution, run):
        of_row = joined.where(runs.c.run_id == model.run_id).correlate(model.__table__).scalar_subquery()
        # The condition always holds. It is there to name the table: `select(Execution.status)` has no FROM otherwise.
        known = case((model.run_id.is_not(None), of_row))
        class_mapper(model, configure=False).add_property("status", column_property(known))


def _add_relationships(execution: Any, run: Any, step: Any, attempt: Any) -> None:
    """Connect the classes for reading. There are no foreign keys between the tables: each would cost every insert."""
    recorded = (step.completed_at, step.position)
    _relate(execution, "runs", run, execution.execution_id == foreign(run.execution_id), order_by=run.run_index)
    _relate(run, "execution", execution, foreign(run.execution_id) == execution.execution_id)
    _relate(run, "steps", step, run.run_id == foreign(step.run_id), order_by=recorded)
    same_step = (foreign(attempt.run_id) == step.run_id) & (foreign(attempt.name) == step.name)
    _relate(step, "failed_attempts", attempt, same_step, order_by=attempt.attempt)


def _relate(model: Any, name: str, target: Any, primaryjoin: Any, *, order_by: Any = False) -> None:
    related = relationship(target, primaryjoin=primaryjoin, order_by=order_by, viewonly=True)
    class_mapper(model, configure=False).add_property(name, related)
