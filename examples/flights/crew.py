"""The worker processes, one of which dies every now and then."""

import asyncio
import multiprocessing
import random
import signal
from collections.abc import Mapping
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Final

from examples.flights.worker import run_worker

# A new worker is forked from a process that has all modules loaded, so it works within milliseconds.
_PROCESSES: Final = multiprocessing.get_context("forkserver")
_STOP_SECONDS: Final = 20.0


class WorkerFailedError(Exception):
    """A worker ended though nobody killed it.

    Attributes:
        status: its exit status.
        last_words: the end of the workers' log.
    """

    def __init__(self, status: int | None, last_words: str) -> None:
        self.status = status
        self.last_words = last_words
        super().__init__(f"a worker ended by itself, with exit status {status}; the log ends so:\n{last_words}")


class Crew:
    """Worker processes. Each is replaced at once when it is killed, and all are stopped when `run` is cancelled.

    Args:
        size: how many there are.
        kill_every: after how many seconds one of them is killed, again and again; 0 for never.
        environment: their environment variables, beside those of this process.
        log: the file that they log to.

    Attributes:
        kills: how many have been killed.
    """

    def __init__(self, size: int, *, kill_every: float, environment: Mapping[str, str], log: Path) -> None:
        self._size = size
        self._kill_every = kill_every
        self._environment = dict(environment)
        self._log = log
        self._living = set[ForkServerProcess]()
        self.kills = 0

    async def run(self) -> None:
        """Keep the workers running until cancelled.

        Raises:
            ExceptionGroup: of the `WorkerFailedError` of a worker that nobody killed.
        """
        _PROCESSES.set_forkserver_preload([run_worker.__module__])
        async with asyncio.TaskGroup() as group:
            for _ in range(self._size):
                group.create_task(self._keep_one())
            if self._kill_every:
                group.create_task(self._kill())

    async def _keep_one(self) -> None:
        while True:
            status = await self._run_one()
            if status != -signal.SIGKILL:
                raise WorkerFailedError(status, self._log.read_text()[-4000:])

    async def _run_one(self) -> int | None:
        worker = _PROCESSES.Process(target=run_worker, args=(self._environment, self._log))
        worker.start()
        self._living.add(worker)
        try:
            await _end_of(worker)
        finally:
            self._living.discard(worker)
            await _stop(worker)
        return worker.exitcode

    async def _kill(self) -> None:
        while True:
            await asyncio.sleep(self._kill_every)
            if self._living:
                random.choice(list(self._living)).kill()
                self.kills += 1


async def _end_of(worker: ForkServerProcess) -> None:
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(worker.sentinel, ended.set)
    try:
        await ended.wait()
    finally:
        loop.remove_reader(worker.sentinel)


async def _stop(worker: ForkServerProcess) -> None:
    if worker.is_alive():
        worker.terminate()
        try:
            await asyncio.wait_for(_end_of(worker), _STOP_SECONDS)
        except TimeoutError:
            worker.kill()
    worker.join()
