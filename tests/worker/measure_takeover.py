"""Measure how soon the work of a killed worker runs again: `python -m tests.worker.measure_takeover`.

All settings are the defaults. There are two workers and a server of their own; the one that runs the step is killed
with SIGKILL, a new one takes its place, and so on. Times are from the kill to the step's second beginning.
"""

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from pathlib import Path

from tests.support.postgres import private_server
from tests.worker.processes.stage import Stage, stage
from zart_sqla import PostgresScheduler, WorkerConfig

BEAT_SECONDS = WorkerConfig().heartbeat_seconds


async def take_over(play: Stage, execution_id: str) -> float:
    """Return how long it took for another worker to take up a killed one's step."""
    handle = await play.start(f"hold {execution_id} {execution_id}", execution_id=execution_id)
    holder = play.find(await play.began(execution_id))
    await asyncio.sleep(random.uniform(0, BEAT_SECONDS))  # so that the kill falls anywhere between two heartbeats
    killed_at = time.monotonic()
    holder.kill()
    await play.began(execution_id, times=2)
    again = play.ledger.began(execution_id)[1]
    play.open(execution_id)
    await handle.result(timeout="60s")
    return again.at - killed_at


async def measure(kills: int, url: str, folder: Path) -> list[float]:
    """Return the times of so many kills."""
    async with await PostgresScheduler.connect(url) as scheduler:
        await scheduler.migrate()
    seconds: list[float] = []
    async with stage(url, folder) as play:
        await play.workers(2)
        for number in range(kills):
            seconds.append(await take_over(play, f"run-{number}"))
            print(f"{seconds[-1]:6.2f} s", flush=True)  # noqa: T201
            await play.worker()
    return seconds


def main() -> None:
    """Print the time of each kill, and their median."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--postgres", type=int, default=18, help="the server's major version")
    arguments = parser.parse_args()
    with private_server(arguments.postgres, {}) as server, tempfile.TemporaryDirectory() as folder:
        seconds = asyncio.run(measure(arguments.kills, server.get_uri(), Path(folder)))
    print(f"median of {len(seconds)}: {statistics.median(seconds):.2f} s, longest {max(seconds):.2f} s")  # noqa: T201


if __name__ == "__main__":
    main()
