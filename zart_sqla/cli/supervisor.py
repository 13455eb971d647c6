"""Several worker processes: started, watched, restarted when they die, and stopped together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from zart_sqla.cli.exits import DONE, FAILED, SIGNALLED

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Sequence

logger: Final = logging.getLogger("zart_sqla.supervisor")

_HURRY_SECONDS: Final = 8.0  # a hurried worker takes up to five
_FIRST_PAUSE_SECONDS: Final = 0.2
_LONGEST_PAUSE_SECONDS: Final = 30.0
_GRACEFUL: Final = (DONE, -signal.SIGTERM)  # the latter before it could handle the signal
_HEALTHY_SECONDS: Final = 10.0
"""A process that lived for so long is restarted without a pause when it dies."""


def supervise(arguments: Sequence[str], processes: int) -> int:
    """Run so many worker processes until SIGTERM or SIGINT, and return the exit code.

    The first signal is passed on, and each worker stops gracefully. The second makes them put back what they run, and
    those that do not end soon are killed. A worker whose supervisor dies stops gracefully: it is tethered to the
    supervisor by its standard input.

    Args:
        arguments: of `zart worker`, but for the number of processes.
        processes: how many.
    """
    return asyncio.run(Supervisor(arguments, processes).run())


@dataclass
class Pauses:
    """How long to wait before a process that died is started anew: longer each time it dies soon.

    Attributes:
        seconds: the next pause.
    """

    seconds: float = 0.0

    def after(self, lifetime: float) -> float:
        """Return the pause after a process that lived for so many seconds."""
        if lifetime >= _HEALTHY_SECONDS:
            self.seconds = 0.0
        pause = self.seconds
        self.seconds = min(max(2 * pause, _FIRST_PAUSE_SECONDS), _LONGEST_PAUSE_SECONDS)
        return pause


class Supervisor:
    """Keeps worker processes running.

    Args:
        arguments: of `zart worker`, but for the number of processes.
        processes: how many.
    """

    def __init__(self, arguments: Sequence[str], processes: int) -> None:
        self._arguments = tuple(arguments)
        self._processes = processes
        self._running: set[Process] = set()
        self._stopping = asyncio.Event()
        self._signals: list[int] = []

    async def run(self) -> int:
        """Keep them running until they are stopped, and return the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._handle, number)
        try:
            code = await self._check()
            if code != DONE or self._stopping.is_set():
                return DONE if self._stopping.is_set() else code
            codes = await asyncio.gather(*(self._keep_running(slot) for slot in range(self._processes)))
        finally:
            self._kill()
        if len(self._signals) > 1:
            return SIGNALLED + self._signals[1]
        return DONE if all(code in _GRACEFUL for code in codes) else FAILED

    async def _check(self) -> int:
        """Return the exit code of a process that sees whether a worker could start: one complaint, not one of each."""
        process = await self._start("--check", "--log-level", "warning")
        return await self._end_of(process)

    async def _keep_running(self, slot: int) -> int:
        """Run one process after the other, until the supervisor stops; return the exit code of the last."""
        pauses = Pauses()
        code = DONE
        while not self._stopping.is_set():
            started_at = time.monotonic()
            process = await self._start("--tethered")
            logger.info("worker %d of %d runs as process %d", slot + 1, self._processes, process.pid)
            code = await self._end_of(process)
            if self._stopping.is_set():
                break
            pause = pauses.after(time.monotonic() - started_at)
            logger.error(
                "worker %d of %d, process %d, %s; it is started anew in %.1f s",
                *(slot + 1, self._processes, process.pid, _ending(code), pause),
            )
            await self._wait(pause)
        return code

    async def _start(self, *options: str) -> Process:
        # A session of its own keeps the terminal's Ctrl-C from it: the supervisor passes signals on, once.
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "zart_sqla.cli", "worker", *self._arguments, *options),
            stdin=asyncio.subprocess.PIPE,
            stdout=None if "--check" not in options else asyncio.subprocess.DEVNULL,
            start_new_session=True,
        )
        self._running.add(process)
        if self._stopping.is_set():
            self._send(signal.SIGTERM)
        return process

    async def _end_of(self, process: Process) -> int:
        try:
            return await process.wait()
        finally:
            self._running.discard(process)

    async def _wait(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopping.wait(), seconds)

    def _handle(self, number: int) -> None:
        self._signals.append(number)
        self._stopping.set()
        count = len(self._signals)
        if count == 1:
            logger.info("stopping %d workers; a second signal does not wait for what they run", len(self._running))
        elif count == 2:  # noqa: PLR2004 - the second signal
            logger.warning("a second signal: what the workers run goes back to the queue")
            asyncio.get_running_loop().call_later(_HURRY_SECONDS, self._kill)
        else:
            self._kill()
        self._send(signal.SIGTERM)

    def _send(self, number: int) -> None:
        for process in list(self._running):
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(number)

    def _kill(self) -> None:
        self._send(signal.SIGKILL)


def _ending(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
