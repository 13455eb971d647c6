"""A worker process: `python -m examples.flights.worker`, with DATABASE_URL and FLIGHTS_INBOX in the environment.

It stops when its standard input ends. The kernel sees to that when the driver dies, however it dies.
"""

import asyncio
import logging
import os
import sys
from contextlib import suppress
from typing import Final

from examples.flights.database import Session, connect
from examples.flights.models import zart
from examples.flights.workflow import registry
from zart_sqla import PostgresScheduler, Worker, WorkerConfig

TASKS: Final = 8  # days at once: two connections each would be the most, fewer make them take turns
CONNECTIONS: Final = 10


async def main() -> None:
    """Work until the standard input ends, or the process is told to stop."""
    engine = connect(os.environ["DATABASE_URL"], pool_size=CONNECTIONS)
    scheduler = PostgresScheduler(engine, names=zart.names)
    worker = Worker(scheduler, registry, WorkerConfig(max_concurrent_tasks=TASKS), sessionmaker=Session)
    working = asyncio.ensure_future(worker.run())
    asyncio.get_running_loop().add_reader(sys.stdin, working.cancel)  # gracefully
    with suppress(asyncio.CancelledError):
        await working
    await engine.dispose()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(process)6d %(levelname)-8s %(name)s: %(message)s")
    asyncio.run(main())
