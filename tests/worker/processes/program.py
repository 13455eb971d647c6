"""The program of a worker under test: `DATABASE_URL` and the variables that `Crew.spawn` sets tell it what to do."""

import asyncio
import contextlib
import json
import logging
import os
from typing import Any

from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from tests.worker.processes import points, workflows
from zart_sqla import PostgresScheduler, Worker, WorkerConfig

CONFIG = "ZART_TEST_WORKER_CONFIG"
WORKFLOWS = "ZART_TEST_WORKER_WORKFLOWS"
DIES = "ZART_TEST_WORKER_DIES"


async def main() -> None:
    """Work until stopped."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    logging.captureWarnings(capture=True)
    # The server then tells which connections are this worker's.
    options: dict[str, Any] = {"server_settings": {"application_name": os.environ[workflows.NAME]}}
    if dies := json.loads(os.environ[DIES]):
        options["connection_class"] = points.arm(*dies)
    engine = create_async_engine(
        make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+asyncpg"),
        pool_size=5,
        connect_args=options,
    )
    registry = workflows.registry(json.loads(os.environ[WORKFLOWS]))
    config = WorkerConfig(**json.loads(os.environ[CONFIG]))
    async with PostgresScheduler(engine) as scheduler:
        await Worker(scheduler, registry, config).run()
    with contextlib.suppress(TimeoutError):  # it may be cut off, and SQLAlchemy takes its leave of each connection
        async with asyncio.timeout(2):
            await engine.dispose()


if __name__ == "__main__":
    asyncio.run(main())
