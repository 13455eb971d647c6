"""What happens after the SIGKILL of a worker process: the workloads `kill` and `resume`."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Awaitable, Callable
from typing import Any

from benchmarks.contenders import common, notes
from benchmarks.contenders.common import Meter, Options

PATIENCE_SECONDS = 150.0
SETTLED_SECONDS = 3.0
START_SECONDS = 1800.0


async def kill(url: str, options: Options, meter: Meter, start: Callable[[str], Awaitable[Any]]) -> None:
    """Have two workers, kill the one that has the run, and measure until the other one begins its step again.

    Args:
        url: of the database, which is prepared.
        options: `more["patience"]` tells for how many seconds to wait, unless for 150.
        meter: tells how many seconds it took, or None.
        start: starts a run whose only step notes in this file that it begins, and then sleeps for long.
    """
    with tempfile.NamedTemporaryFile() as file:
        workers = [common.spawn("work", url, concurrency=options.concurrency) for _ in range(2)]
        try:
            await start(file.name)
            await _noted(file.name, START_SECONDS)
            # The kill falls anywhere between two heartbeats.
            await asyncio.sleep(SETTLED_SECONDS + random.uniform(0, 2))  # noqa: S311 - no secret
            meter.begin()
            killed = time.monotonic()
            holder = notes.read(file.name)[0].pid
            common.stop(next(one for one in workers if one.pid == holder), signal.SIGKILL)
            again = await _noted_again(file.name, killed, options)
            meter.end(1, rerun_seconds=again)
        finally:
            _stop(workers)


async def resume(
    url: str, options: Options, meter: Meter, start: Callable[[str, int], Awaitable[Any]], **settings: Any
) -> None:
    """Kill a worker that has got on far in a run, and measure from a new one's start to the first step that it runs.

    Args:
        url: of the database, which is prepared.
        options: `units` tells how many steps are done before.
        meter: tells how many seconds it took, or None.
        start: starts a run of so many steps, and of one more, which notes in this file that it begins, and then sleeps
            for long.
        **settings: what the workers need to know beside.
    """
    with tempfile.NamedTemporaryFile() as file:
        workers = [common.spawn("work", url, concurrency=options.concurrency, more=settings)]
        try:
            await start(file.name, options.units)
            await _noted(file.name, START_SECONDS)
            common.stop(workers[0], signal.SIGKILL)
            process_began = time.monotonic()
            workers.append(common.prepare("work", url, concurrency=options.concurrency, more=settings))
            meter.begin()
            began = time.monotonic()
            common.let_go(workers[1])
            again = await _noted_again(file.name, began, options)
            whole = None if again is None else again + began - process_began
            meter.end(1, resume_seconds=again, with_imports_seconds=whole)
        finally:
            _stop(workers)


async def _noted(file: str, seconds: float) -> None:
    async def is_begun() -> bool:
        return bool(notes.read(file))

    await common.until(is_begun, seconds=seconds)


async def _noted_again(file: str, since: float, options: Options) -> float | None:
    """Return how long after that moment the second note was made, None if it is not in time."""

    async def is_begun_again() -> bool:
        return len(notes.read(file)) > 1

    try:
        await common.until(is_begun_again, seconds=options.more.get("patience", PATIENCE_SECONDS))
    except TimeoutError:
        return None
    return notes.read(file)[1].nanoseconds / 1e9 - since


def _stop(workers: list[subprocess.Popen[str]]) -> None:
    for worker in workers:
        if worker.poll() is None:
            common.stop(worker, signal.SIGKILL)
