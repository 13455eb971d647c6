"""Real schedulers and workers for the tests of an app, on a database of the test's own."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, Final, Protocol

from zart_sqla.client.scheduler import PostgresScheduler
from zart_sqla.config import PoolConfig, WorkerConfig
from zart_sqla.runtime.handlers import Durable, TaskRegistry
from zart_sqla.worker.worker import Worker

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from sqlalchemy.ext.asyncio import async_sessionmaker

    from zart_sqla.table_names import TableNames

_POOL: Final = PoolConfig(max_connections=10, min_connections=0)
_CONFIG: Final[dict[str, Any]] = {"poll_interval": "1s", "shutdown_timeout": "5s"}


class WorkerFactory(Protocol):
    """Starts workers for a test."""

    async def __call__(
        self,
        *workflows: Durable[Any, Any] | TaskRegistry,
        sessionmaker: async_sessionmaker[Any] | None = None,
        **config: Any,
    ) -> Worker:
        """Start a worker, on an engine of its own; it stops when the test ends.

        Args:
            *workflows: what it runs: `@durable` functions, or the app's registry alone.
            sessionmaker: what makes the sessions of `trx()`.
            **config: settings of `WorkerConfig`. Default: it polls each second, and stops within five.
        """
        ...


@asynccontextmanager
async def scheduler_on(url: str, names: TableNames) -> AsyncGenerator[PostgresScheduler]:
    """Give a scheduler with an engine of its own."""
    async with await PostgresScheduler.connect_with_pool(url, _POOL, names=names) as scheduler:
        yield scheduler


@asynccontextmanager
async def workers_on(url: str, names: TableNames) -> AsyncGenerator[WorkerFactory]:
    """Give what starts workers, and stop them afterwards."""
    async with AsyncExitStack() as stack:

        async def start(
            *workflows: Durable[Any, Any] | TaskRegistry,
            sessionmaker: async_sessionmaker[Any] | None = None,
            **config: Any,
        ) -> Worker:
            scheduler = await stack.enter_async_context(scheduler_on(url, names))
            worker = Worker(
                scheduler, _registry_of(*workflows), WorkerConfig(**_CONFIG | config), sessionmaker=sessionmaker
            )
            return await stack.enter_async_context(worker)

        yield start


def _registry_of(*workflows: Durable[Any, Any] | TaskRegistry) -> TaskRegistry:
    """Return the registry that was given, or one of the functions.

    Raises:
        ConfigError: one is neither.
    """
    if len(workflows) == 1 and isinstance(workflows[0], TaskRegistry):
        return workflows[0]
    registry = TaskRegistry()
    for workflow in workflows:
        registry.register(workflow)  # type: ignore[arg-type]  # it refuses what is no workflow
    return registry
