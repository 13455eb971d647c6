"""What tests of the store do again and again: start executions, register workers, claim, finish, and age things."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

from sqlalchemy import Table, func, select, update

from tests.store.connections import Database
from zart_sqla import ExecutionInfo
from zart_sqla.models.mapping import Tables, tables_of
from zart_sqla.records import ClaimedTask, ErrorRecord, NewExecution, RecordedStep, StepKind
from zart_sqla.store import executions, tasks, workers
from zart_sqla.store.tasks import RunToFinish, RunToRenew, StepToRecord, TaskToPutDown

LEASE = 30.0
GRACE = 14.0
ERROR = ErrorRecord(error_type="ValueError", message="no", step="charge", attempts=2, category="step_failed")


def new(execution_id: str, **options: Any) -> NewExecution:
    """Return an execution that is to be started."""
    known: dict[str, Any] = {"run_id": uuid4(), "task_name": "task", "payload": "1"}
    return NewExecution(execution_id=execution_id, **known | options)


async def start(database: Database, *execution_ids: str, **options: Any) -> list[UUID]:
    """Start executions, one after another, and return their runs."""
    runs: list[UUID] = []
    for execution_id in execution_ids:
        runs += await database.run(executions.insert, [new(execution_id, **options)])
    return runs


async def register(database: Database, *, lock_key: int | None = None, lease_seconds: float = LEASE) -> UUID:
    """Register a worker."""
    worker = uuid4()
    await database.run(workers.register, worker, hostname="here", pid=1, lock_key=lock_key, lease_seconds=lease_seconds)
    return worker


async def claim(database: Database, worker: UUID, limit: int = 100, **options: Any) -> list[ClaimedTask]:
    """Return what the worker gets."""
    known: dict[str, Any] = {"task_names": ["task"], "queues": None} | options
    claimed, _ = await database.run(tasks.claim, worker, limit=limit, **known)
    return claimed


async def claim_one(database: Database, worker: UUID | None = None, execution_id: str = "order-1") -> ClaimedTask:
    """Start an execution and have it claimed, by a new worker if none is named."""
    await start(database, execution_id)
    (claimed,) = await claim(database, worker or await register(database))
    return claimed


async def record(database: Database, worker: UUID, claimed: ClaimedTask, *names: str) -> int:
    """Record checkpoints with these names; return how many were written."""
    steps = [StepToRecord(claimed, step(name, position)) for position, name in enumerate(names)]
    return await database.run(tasks.record_steps, worker, steps)


def step(name: str, position: int = 0, result: str = "1") -> RecordedStep:
    """Return a checkpoint."""
    return RecordedStep(name=name, kind=StepKind.STEP, position=position, result=result)


async def renew(database: Database, worker: UUID, *claimed: ClaimedTask) -> dict[UUID, UUID]:
    """Let runs be followed by new ones; return the new run of each that was."""
    wanted = [RunToRenew(one, uuid4(), "2") for one in claimed]
    done = await database.run(tasks.renew, worker, wanted)
    return {one.task.run_id: one.run_id for one in wanted if one.task.task_id in done}


async def finish(database: Database, worker: UUID, claimed: ClaimedTask, error: ErrorRecord | None = None) -> bool:
    """End the run; return whether the worker still held it."""
    ended = RunToFinish(claimed, None if error else '"done"', error)
    return await database.run(tasks.finish, worker, [ended]) == {claimed.task_id}


async def put_down(database: Database, worker: UUID, claimed: ClaimedTask, **options: Any) -> bool:
    """Free the task; return whether the worker still held it."""
    known: dict[str, Any] = {"due_at": None, "is_waiting": False, "retries": 0} | options
    return claimed.task_id in await database.run(tasks.put_down, worker, [TaskToPutDown(claimed, **known)])


async def info(database: Database, execution_id: str = "order-1") -> ExecutionInfo:
    """Return an execution."""
    return (await database.run(executions.find, [execution_id]))[execution_id]


async def rows(database: Database, table: Callable[[Tables], Table]) -> list[dict[str, Any]]:
    """Return all rows of a table."""
    found = await database.run(
        lambda connection, names: connection.execute(select(table(tables_of(names)))).mappings().all()
    )
    return [dict(row) for row in found]


async def kill(database: Database, worker: UUID) -> None:
    """Let the worker's lease have run out."""

    def expire(connection: Any, names: Any) -> None:
        table = tables_of(names).workers
        past = func.now() - timedelta(seconds=1)
        connection.execute(update(table).values(lease_until=past).where(table.c.worker_id == worker))

    await database.run(expire)


async def make_due(database: Database, *, later: timedelta = timedelta(0)) -> None:
    """Let all free tasks be due now, or so much later."""

    def change(connection: Any, names: Any) -> None:
        table = tables_of(names).tasks
        connection.execute(update(table).values(due_at=func.now() + later).where(table.c.worker_id.is_(None)))

    await database.run(change)
