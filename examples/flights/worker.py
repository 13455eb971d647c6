"""What runs in a worker process. Any number of them can run, on any number of machines."""

import asyncio
import logging
import multiprocessing
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

from examples.flights.database import Session, connect
from examples.flights.models import zart
from examples.flights.workflow import registry
from zart_sqla import PostgresScheduler, Worker, WorkerConfig

CONFIG: Final = WorkerConfig(
    max_concurrent_tasks=8,  # days at once
    max_crashes=1000,  # here a worker's death is never the fault of the days that it was at
)
CONNECTIONS: Final = 10


def run_worker(environment: Mapping[str, str], log: Path) -> None:
    """Work until told to stop, by SIGTERM or by the death of the process that started this one."""
    os.setsid()  # Ctrl-C is for the driver, which then stops the workers
    os.environ.update(environment)
    logging.basicConfig(filename=log, level=logging.INFO, format="%(asctime)s %(process)d %(levelname)s %(message)s")
    asyncio.run(_work())


async def _work() -> None:
    engine = connect(os.environ["DATABASE_URL"], pool_size=CONNECTIONS)
    scheduler = PostgresScheduler(engine, names=zart.names)
    working = asyncio.ensure_future(Worker(scheduler, registry, CONFIG, sessionmaker=Session).run())
    if (parent := multiprocessing.parent_process()) is not None:
        asyncio.get_running_loop().add_reader(parent.sentinel, working.cancel)  # gracefully
    with suppress(asyncio.CancelledError):
        await working
    await engine.dispose()
