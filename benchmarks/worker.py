"""One worker process, which counts the statements that it sends."""

import argparse
import json
import sys
from collections import Counter

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from benchmarks.workflows import registry
from zart_sqla import PostgresScheduler, Worker, WorkerConfig
from zart_sqla.worker.process import make_runner


def count_statements(engine: AsyncEngine) -> Counter[str]:
    """Return a counter of what goes to the server through the engine's pool."""
    counts: Counter[str] = Counter()

    def on_statement(*_arguments: object) -> None:
        counts["statements"] += 1

    event.listen(engine.sync_engine, "before_cursor_execute", on_statement)
    return counts


async def work(url: str, concurrency: int) -> None:
    """Work until a signal comes, then print what was counted as a line of JSON."""
    config = WorkerConfig(max_concurrent_tasks=concurrency, max_tasks_per_poll=concurrency)
    async with await PostgresScheduler.connect(url) as scheduler:
        counts = count_statements(scheduler.engine)
        await Worker(scheduler, registry, config).run()
    json.dump(counts, sys.stdout)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("--concurrency", type=int, default=500)
    options = parser.parse_args()
    with make_runner() as runner:
        runner.run(work(options.url, options.concurrency))
