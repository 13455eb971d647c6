"""Real workers in the test's own process, each on an engine of its own, and time that can be made to pass."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from sqlalchemy import func, select, update

from tests.support.waiting import eventually
from zart_sqla import (
    ExecutionHandle,
    ExecutionStatus,
    PoolConfig,
    PostgresScheduler,
    TableNames,
    TaskRegistry,
    Worker,
    WorkerConfig,
)
from zart_sqla.models.mapping import tables_of

CONFIG: dict[str, Any] = {"poll_interval": "60s", "shutdown_timeout": "5s"}
"""Workers poll so rarely that nothing in a test can rely on it."""


def registry_of(*workflows: Any) -> TaskRegistry:
    """Return a registry of durable functions, and of pairs of a name and a handler."""
    registry = TaskRegistry()
    for workflow in workflows:
        registry.register(*(workflow if isinstance(workflow, tuple) else (workflow,)))
    return registry


@asynccontextmanager
async def scheduler_on(url: str, *, names: TableNames | None = None) -> AsyncIterator[PostgresScheduler]:
    """Yield a scheduler with an engine of its own."""
    pool = PoolConfig(max_connections=10, min_connections=0)
    async with await PostgresScheduler.connect_with_pool(url, pool, names=names) as scheduler:
        yield scheduler


@asynccontextmanager
async def worker_on(url: str, *workflows: Any, names: TableNames | None = None, **config: Any) -> AsyncIterator[Worker]:
    """Yield a worker that runs these workflows, on a scheduler of its own."""
    async with (
        scheduler_on(url, names=names) as scheduler,
        Worker(scheduler, registry_of(*workflows), WorkerConfig(**CONFIG | config)) as worker,
    ):
        yield worker


@asynccontextmanager
async def working(
    url: str, *workflows: Any, workers: int = 1, names: TableNames | None = None, **config: Any
) -> AsyncIterator[PostgresScheduler]:
    """Yield the scheduler of an app whose workers, on schedulers of their own, run these workflows."""
    async with AsyncExitStack() as stack:
        for _ in range(workers):
            await stack.enter_async_context(worker_on(url, *workflows, names=names, **config))
        yield await stack.enter_async_context(scheduler_on(url, names=names))


async def until(handle: ExecutionHandle[Any], status: ExecutionStatus) -> None:
    """Wait until the execution stands there."""
    await eventually(handle.status, status)


async def let_time_pass(scheduler: PostgresScheduler) -> None:
    """Let every sleep and every delay of the executions that wait now be over."""
    tables = tables_of(scheduler.names)
    steps, tasks = tables.steps.c, tables.tasks.c
    async with scheduler.engine.begin() as connection:
        await connection.execute(update(tables.steps).values(wake_at=func.now()).where(steps.wake_at > func.now()))
        await connection.execute(update(tables.tasks).values(due_at=func.now()).where(tasks.worker_id.is_(None)))
        await connection.execute(select(func.pg_notify(scheduler.names.work_channel, "")))


async def count_rows(scheduler: PostgresScheduler) -> dict[str, int]:
    """Return how many rows each table has that belongs to executions."""
    tables = tables_of(scheduler.names)
    counted = {}
    async with scheduler.engine.connect() as connection:
        of_runs = (tables.execution_runs, tables.tasks, tables.steps, tables.step_attempts, tables.stream_items)
        for table in (tables.executions, *of_runs):
            name = table.name.removeprefix(scheduler.names.prefix)
            counted[name] = await connection.scalar(select(func.count()).select_from(table)) or 0
    return counted


async def count_awaited(scheduler: PostgresScheduler) -> int:
    """Return how many executions wait, and are waited for."""
    tables = tables_of(scheduler.names)
    runs, tasks = tables.execution_runs, tables.tasks
    both = runs.join(tasks, tasks.c.run_id == runs.c.run_id)
    query = select(func.count()).select_from(both).where(runs.c.is_awaited, tasks.c.is_waiting)
    async with scheduler.engine.connect() as connection:
        return await connection.scalar(query) or 0
