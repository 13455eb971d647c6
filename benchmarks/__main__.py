"""Measure how fast one worker process drains runs and groups, and how soon an idle worker starts a new run."""

import argparse
import asyncio
import json
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import func, select, text

from benchmarks.workflows import STEPS, five_steps, group, read_clock
from zart_sqla import PostgresScheduler
from zart_sqla.embedded import embedded_server
from zart_sqla.models import tables_of

POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Drain:
    """What it took to drain a queue of runs."""

    runs: int
    seconds: float
    commits: int

    @property
    def steps_per_second(self) -> float:
        """The rate, from the first claim to the last finish, by the database's clock."""
        return self.runs * STEPS / self.seconds


@contextmanager
def worker_process(url: str, concurrency: int) -> Generator[dict[str, int]]:
    """Run one worker process; at the end, fill what is yielded with what it counted."""
    command = [sys.executable, "-m", "benchmarks.worker", url, "--concurrency", str(concurrency)]
    counts: dict[str, int] = {}
    worker = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield counts
    finally:
        worker.send_signal(signal.SIGTERM)
        output, _ = worker.communicate()
        counts.update(json.loads(output or "{}"))


async def commits_so_far(scheduler: PostgresScheduler) -> int:
    """Return how many transactions the server has committed in this database, as far as it has counted them."""
    async with scheduler.engine.connect() as connection:
        await connection.execute(text("SELECT pg_stat_clear_snapshot()"))
        commits = text("SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()")
        return int(await connection.scalar(commits) or 0)


async def drain(scheduler: PostgresScheduler, runs: int) -> Drain:
    """Have a worker drain that many runs of five steps."""
    before = await commits_so_far(scheduler)
    handles = await scheduler.start_many(five_steps, [(None, number) for number in range(runs)])
    tables = tables_of(scheduler.names)
    ids = [handle.execution_id for handle in handles]
    ended = tables.execution_runs
    while True:
        async with scheduler.engine.connect() as connection:
            left = await connection.scalar(select(func.count()).select_from(tables.tasks))
        if not left:
            break
        await asyncio.sleep(POLL_SECONDS)
    took = func.extract("epoch", func.max(ended.c.completed_at) - func.min(ended.c.started_at))
    async with scheduler.engine.connect() as connection:
        seconds = await connection.scalar(select(took).where(ended.c.execution_id.in_(ids)))
    await asyncio.sleep(1)  # until the server has counted what its idle sessions did
    return Drain(runs, float(seconds or 0), await commits_so_far(scheduler) - before)


async def start_latency(scheduler: PostgresScheduler) -> float:
    """Return how many milliseconds pass from the call of `start` to the first line of the body."""
    began = time.monotonic_ns()
    handle = await scheduler.start(read_clock)
    return (await handle.result(timeout="30s") - began) / 1e6


async def group_rate(scheduler: PostgresScheduler, children: int) -> float:
    """Return how many children a second a group has, from the first claim of its run to its end."""
    handle = await scheduler.start(group, children)
    if await handle.result(timeout="10m") != children:
        raise RuntimeError(f"of {children} children some failed")
    info = await handle.info()
    assert info.started_at is not None  # noqa: S101 - it has completed
    assert info.completed_at is not None  # noqa: S101
    return children / (info.completed_at - info.started_at).total_seconds()


async def measure(url: str, options: argparse.Namespace) -> None:
    """Measure, and print the figures."""
    async with await PostgresScheduler.connect(url) as scheduler:
        await scheduler.migrate()
        with worker_process(url, options.concurrency) as counts:
            await start_latency(scheduler)  # the worker is there now
            latencies = [await start_latency(scheduler) for _ in range(options.starts)]
            drains = [await drain(scheduler, options.runs) for _ in range(options.repetitions)]
        with worker_process(url, options.concurrency) as group_counts:
            await start_latency(scheduler)
            groups = [await group_rate(scheduler, options.children) for _ in range(options.repetitions)]
    children = options.children * options.repetitions
    report([*rows_of_drains(latencies, drains, counts), *rows_of_groups(groups, children, group_counts)])


def rows_of_drains(latencies: list[float], drains: list[Drain], counts: dict[str, int]) -> list[tuple[str, str]]:
    """Return the figures of drains and starts."""
    rates = sorted(each.steps_per_second for each in drains)
    steps = sum(each.runs * STEPS for each in drains)
    commits = sum(each.commits for each in drains)
    return [
        ("drain: steps/s, median (min, max)", spread(rates)),
        ("drain: runs/s, median", f"{statistics.median(rates) / STEPS:,.0f}"),
        ("commits per step, all sessions", f"{commits / steps:.4f}"),
        ("statements per step, worker's pool", f"{counts.get('statements', 0) / steps:.4f}"),
        ("start to body, ms: median", f"{statistics.median(latencies):.1f}"),
        ("start to body, ms: p99", f"{statistics.quantiles(latencies, n=100)[98]:.1f}"),
    ]


def rows_of_groups(rates: list[float], children: int, counts: dict[str, int]) -> list[tuple[str, str]]:
    """Return the figures of groups."""
    return [
        ("group: children/s, median (min, max)", spread(sorted(rates))),
        ("statements per child, worker's pool", f"{counts.get('statements', 0) / children:.4f}"),
    ]


def spread(rates: list[float]) -> str:
    """Return the median of sorted figures, and the least and the greatest."""
    return f"{statistics.median(rates):,.0f} ({rates[0]:,.0f}, {rates[-1]:,.0f})"


def report(rows: list[tuple[str, str]]) -> None:
    """Print the figures."""
    for name, figure in rows:
        print(f"{name:<40}{figure:>28}")


def main() -> None:
    """Start a server unless there is one, and measure on it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--url", help="a PostgreSQL to measure on; default: an embedded one, fsync on")
    parser.add_argument("--runs", type=int, default=2000, help="how many five-step runs a drain has")
    parser.add_argument("--children", type=int, default=10_000, help="how many children a group has")
    parser.add_argument("--concurrency", type=int, default=500, help="how many runs are under way at once")
    parser.add_argument("--repetitions", type=int, default=7, help="how many drains, and how many groups")
    parser.add_argument("--starts", type=int, default=200, help="how many single starts")
    options = parser.parse_args()
    if options.url:
        asyncio.run(measure(options.url, options))
        return
    with embedded_server() as url:
        asyncio.run(measure(url, options))


if __name__ == "__main__":
    main()
