"""A worker whose clock is wrong by some hours, until SIGTERM: `python -m tests.support.skewed_worker URL HOURS GATE`.

Its runs begin with a step that takes until there is a file `GATE`. It runs four at once.
"""

import asyncio
import datetime as dt
import os
import sys
import time
from pathlib import Path

TIMED = "timed"


def shift_clock(hours: float) -> None:
    """Have this process believe that it is so much later. It must be called before anything else is imported."""
    shift = dt.timedelta(hours=hours)
    read_time = time.time

    class Shifted(dt.datetime):
        """A `datetime` that reads the wrong clock."""

        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> "Shifted":
            return super().now(tz) + shift

        @classmethod
        def utcnow(cls) -> "Shifted":
            return super().now(dt.UTC).replace(tzinfo=None) + shift

    time.time = lambda: read_time() + shift.total_seconds()
    dt.datetime = Shifted  # type: ignore[misc]


def is_there(file: Path) -> bool:
    """Return whether the file exists."""
    return file.exists()


async def work(url: str, gate: Path) -> None:
    """Run the worker."""
    from zart_sqla import (  # noqa: PLC0415 - they must not see the right clock
        PostgresScheduler,
        Retry,
        TaskRegistry,
        Worker,
        WorkerConfig,
        context,
        durable,
        now,
        sleep,
        step,
    )

    @step("process-{turn}")
    async def process(turn: str) -> int:
        while not is_there(gate):  # noqa: ASYNC110 - another process makes it
            await asyncio.sleep(0.01)
        return os.getpid()

    @step(retry=Retry.fixed(1, "600ms"))
    async def flaky() -> int:
        if not context().is_retry:
            raise OSError
        return 1

    @durable(TIMED, timeout="30m", retry=Retry.fixed(1, "600ms"))
    async def timed() -> tuple[list[str], list[int]]:
        first = await now("first")
        turns = [await process("first")]
        await sleep("nap", "600ms")
        turns.append(await process("second"))
        await flaky()
        if not context().is_retry:
            raise RuntimeError
        deadline = context().deadline
        return [str(first), str(await now("last")), str(deadline)], [*turns, await process("last")]

    registry = TaskRegistry()
    registry.register(timed)
    async with await PostgresScheduler.connect(url) as scheduler:
        await Worker(scheduler, registry, WorkerConfig(max_tasks_per_poll=1, max_concurrent_tasks=4)).run()


if __name__ == "__main__":
    shift_clock(float(sys.argv[2]))
    asyncio.run(work(sys.argv[1], Path(sys.argv[3])))
