"""The worker processes, one of which dies every now and then."""

import asyncio
import os
import random
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Final

ROOT: Final = Path(__file__).parents[2]
_COMMAND: Final = (sys.executable, "-m", "examples.flights.worker")
_STOP_SECONDS: Final = 20.0


class WorkerFailedError(Exception):
    """A worker ended though nobody killed it."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(f"a worker ended by itself, with exit status {status}")


class Crew:
    """Worker processes. Each is replaced at once when it is killed, and all are stopped when `run` is cancelled.

    Args:
        size: how many there are.
        kill_every: after how many seconds one of them is killed, again and again; 0 for never.
        environment: their environment variables, beside those of this process.
        log: where they write what they have to say.

    Attributes:
        kills: how many have been killed.
    """

    def __init__(self, size: int, *, kill_every: float, environment: Mapping[str, str], log: IO[bytes]) -> None:
        self._size = size
        self._kill_every = kill_every
        self._environment = {**os.environ, **environment}
        self._log = log
        self._living = set[asyncio.subprocess.Process]()
        self.kills = 0

    async def run(self) -> None:
        """Keep the workers running until cancelled.

        Raises:
            ExceptionGroup: of the `WorkerFailedError` of a worker that nobody killed.
        """
        async with asyncio.TaskGroup() as group:
            for _ in range(self._size):
                group.create_task(self._keep_one())
            if self._kill_every:
                group.create_task(self._kill())

    async def _keep_one(self) -> None:
        while True:
            status = await self._run_one()
            if status != -signal.SIGKILL:
                raise WorkerFailedError(status)

    async def _run_one(self) -> int:
        worker = await asyncio.create_subprocess_exec(
            *_COMMAND,
            cwd=ROOT,
            env=self._environment,
            start_new_session=True,  # Ctrl-C is for the driver, which then stops the workers
            stdin=asyncio.subprocess.PIPE,
            stdout=self._log,
            stderr=self._log,
        )
        self._living.add(worker)
        try:
            return await worker.wait()
        finally:
            self._living.discard(worker)
            await _stop(worker)

    async def _kill(self) -> None:
        while True:
            await asyncio.sleep(self._kill_every)
            if self._living:
                random.choice(list(self._living)).kill()
                self.kills += 1


async def _stop(worker: asyncio.subprocess.Process) -> None:
    if worker.returncode is None:
        worker.terminate()
        try:
            await asyncio.wait_for(worker.wait(), _STOP_SECONDS)
        except TimeoutError:
            worker.kill()
            await worker.wait()
