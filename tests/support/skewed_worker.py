"""A worker whose clock is wrong by some hours: `python -m tests.support.skewed_worker URL HOURS`, until SIGTERM."""

import asyncio
import datetime as dt
import sys
import time

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


async def work(url: str) -> None:
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

    @step(retry=Retry.fixed(1, "600ms"))
    async def flaky() -> int:
        if not context().is_retry:
            raise OSError
        return 1

    @durable(TIMED, timeout="30m", retry=Retry.fixed(1, "600ms"))
    async def timed() -> list[str]:
        first = await now("first")
        await sleep("nap", "600ms")
        await flaky()
        if not context().is_retry:
            raise RuntimeError
        deadline = context().deadline
        return [str(first), str(await now("last")), str(deadline)]

    registry = TaskRegistry()
    registry.register(timed)
    async with await PostgresScheduler.connect(url) as scheduler:
        await Worker(scheduler, registry, WorkerConfig(max_tasks_per_poll=1)).run()


if __name__ == "__main__":
    shift_clock(float(sys.argv[2]))
    asyncio.run(work(sys.argv[1]))
