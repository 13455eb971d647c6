"""Many runs that wait: what they cost a worker's memory, and how fast they go on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from benchmarks.contenders import common
from benchmarks.contenders.common import Meter, Options

LOOK_SECONDS = 0.25
SETTLED_SECONDS = 2.0
PATIENCE_SECONDS = 1800.0
LEAST_SLEEP_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class Waiting:
    """How a contender's runs wait.

    Attributes:
        warm_up: has the worker do as much as it can at once, but wait for nothing.
        start: starts the runs.
        all_wait: whether all of them wait.
        wake: wakes them, or returns at the moment at which they wake.
        all_ended: whether all of them have ended.
        still_wait: whether none has woken. If the first ones woke before the last ones slept, it is done once more.
    """

    warm_up: Callable[[], Awaitable[Any]]
    start: Callable[[], Awaitable[Any]]
    all_wait: Callable[[], Awaitable[object]]
    wake: Callable[[], Awaitable[Any]]
    all_ended: Callable[[], Awaitable[object]]
    still_wait: Callable[[], bool] = lambda: True


async def measure(url: str, options: Options, meter: Meter, waiting: Waiting) -> None:
    """Have a worker process run them until they wait, weigh it, and wake them."""
    worker = common.spawn("work", url, concurrency=options.concurrency, more=dict(options.more))
    try:
        await waiting.warm_up()
        await asyncio.sleep(SETTLED_SECONDS)
        before = common.memory_bytes(worker.pid)
        meter.begin()
        put_down = await _put_down(waiting)
        after = common.memory_bytes(worker.pid)
        began = time.monotonic()
        woken_at = await waiting.wake()
        await common.until(waiting.all_ended, seconds=PATIENCE_SECONDS, every=LOOK_SECONDS)
        seconds = time.monotonic() - (woken_at or began)
    finally:
        common.stop(worker)
    meter.end(
        options.units,
        seconds,
        seconds_until_all_wait=put_down,
        memory_before=before,
        memory_after=after,
        bytes_per_waiting_run=(after - before) / options.units,
    )


async def _put_down(waiting: Waiting) -> float:
    """Return how many seconds it took until all of them waited, and have them wait a little longer."""
    while True:
        began = time.monotonic()
        await waiting.start()
        await common.until(waiting.all_wait, seconds=PATIENCE_SECONDS, every=LOOK_SECONDS)
        seconds = time.monotonic() - began
        await asyncio.sleep(SETTLED_SECONDS)
        if waiting.still_wait():
            return seconds
        await common.until(waiting.all_ended, seconds=PATIENCE_SECONDS, every=LOOK_SECONDS)


class Alarm:
    """A moment at which all that sleep are to wake.

    Args:
        seconds: how long it takes to put all of them to sleep, most probably.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds + LEAST_SLEEP_SECONDS
        self._at = 0.0

    def set(self) -> float:
        """Return the moment, in seconds since the epoch."""
        self._at = time.monotonic() + self._seconds
        return time.time() + self._seconds

    def is_ahead(self) -> bool:
        """Tell whether the moment is still to come; if not, the next one is further away."""
        if time.monotonic() < self._at:
            return True
        self._seconds *= 3
        return False

    async def wait(self) -> float:
        """Wait for the moment, and return it by the clock that all processes of a machine share."""
        await asyncio.sleep(max(0.0, self._at - time.monotonic()))
        return self._at
