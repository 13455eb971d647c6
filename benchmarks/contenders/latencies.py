"""The workload `latency`: runs of one step, one after the other, beside others that are started at some rate."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks.contenders.common import Meter, Options

TICK_SECONDS = 0.05
PATIENCE_SECONDS = 300.0


async def measure(
    options: Options,
    meter: Meter,
    run: Callable[[], Awaitable[int]],
    start_others: Callable[[int], Awaitable[Any]],
) -> None:
    """Measure from the start of a run to the beginning of its step, and to its result.

    Args:
        options: `units` tells how many are measured, `rate` how many others are started a second.
        meter: tells both, in milliseconds.
        run: starts a run of one step, and returns, once its starter sees that it has ended, when the step began, in
            nanoseconds.
        start_others: starts that many runs that do nothing.
    """
    load = asyncio.create_task(_load(options.rate, start_others))
    to_step, to_result = list[float](), list[float]()
    async with asyncio.timeout(PATIENCE_SECONDS):  # where it cannot keep up, it takes longer and longer
        for measured in range(-max(1, options.units // 10), options.units):  # the first ones warm it up
            if measured == 0:
                meter.begin()
            began = time.monotonic_ns()
            stepped = await run()
            ended = time.monotonic_ns()
            if measured >= 0:
                to_step.append((stepped - began) / 1e6)
                to_result.append((ended - began) / 1e6)
    meter.end(options.units, to_step=to_step, to_result=to_result)
    load.cancel()
    await asyncio.gather(load, return_exceptions=True)


async def _load(rate: float, start: Callable[[int], Awaitable[Any]]) -> None:
    """Start runs at this rate."""
    began, started = time.monotonic(), 0
    while rate:
        await asyncio.sleep(TICK_SECONDS)
        due = int((time.monotonic() - began) * rate) - started
        if due:
            await start(due)
        started += due
