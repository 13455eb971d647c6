"""Several worker processes that drain a queue together."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable

from benchmarks.contenders import common
from benchmarks.contenders.common import Meter, Options


async def drain(url: str, options: Options, meter: Meter, units: int, is_done: Callable[[], Awaitable[object]]) -> None:
    """Have as many processes as asked for drain what is there.

    Args:
        url: of the database.
        options: `processes` and the `concurrency` of each.
        meter: measures from the moment in which all of them are let go.
        units: how much is drained.
        is_done: whether nothing is left.
    """
    settings = {"concurrency": options.concurrency, "more": dict(options.more)}
    workers = [common.prepare("work", url, **settings) for _ in range(options.processes)]
    meter.begin()
    began = time.monotonic()
    for worker in workers:
        common.let_go(worker)
    await common.until(is_done)
    seconds = time.monotonic() - began
    for worker in workers:
        common.stop(worker)
    meter.end(units, seconds)
