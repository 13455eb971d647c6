"""The worker processes of a demo: real ones, killed without warning."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import zart_sqla
from zart_sqla.config import DATABASE_URL_VARIABLE, environment_with
from zart_sqla.table_names import PREFIX_VARIABLE

if TYPE_CHECKING:
    from asyncio.subprocess import Process
    from collections.abc import Sequence

    from zart_sqla.cli.database import Database

CONCURRENCY: Final = 8
_STOP_SECONDS: Final = 10.0


@dataclass(eq=False)
class CrewMember:
    """One worker process.

    Attributes:
        process: the process.
        is_killed: whether it was killed.
        held: how many orders it was at when it was killed.
    """

    process: Process
    is_killed: bool = False
    held: int = 0

    @property
    def pid(self) -> int:
        """The process's id."""
        return self.process.pid

    @property
    def is_alive(self) -> bool:
        """Whether it still runs."""
        return self.process.returncode is None and not self.is_killed


class Crew:
    """Keeps so many workers at work, whatever becomes of them.

    Args:
        database: where they work.
        size: how many.
        log: the file in which they log.

    Attributes:
        size: how many.
        members: all that were ever started.
    """

    def __init__(self, database: Database, size: int, log: Path) -> None:
        self._database = database
        self.size = size
        self._log = log
        self.members: list[CrewMember] = []

    @property
    def alive(self) -> Sequence[CrewMember]:
        """Those that run."""
        return [member for member in self.members if member.is_alive]

    @property
    def kills(self) -> int:
        """How many were killed."""
        return sum(member.is_killed for member in self.members)

    @property
    def died(self) -> int:
        """How many ended by themselves, which none should."""
        return sum(not member.is_killed and not member.is_alive for member in self.members)

    async def fill_up(self) -> None:
        """Start workers until there are enough."""
        while len(self.alive) < self.size:
            self.members.append(CrewMember(await self._start()))

    async def kill(self, member: CrewMember, *, held: int) -> None:
        """Kill a worker: it gets no chance to do anything about it."""
        member.is_killed, member.held = True, held
        member.process.kill()
        await member.process.wait()

    async def stop(self) -> None:
        """Stop all workers, and kill those that do not end."""
        for member in self.alive:
            with contextlib.suppress(ProcessLookupError):
                member.process.send_signal(signal.SIGTERM)
        waits = [asyncio.ensure_future(member.process.wait()) for member in self.alive]
        if waits:
            await asyncio.wait(waits, timeout=_STOP_SECONDS)
        for member in self.alive:
            with contextlib.suppress(ProcessLookupError):
                member.process.kill()
        for member in self.members:
            await member.process.wait()

    def complaints(self, lines: int) -> str:
        """Return the end of what they logged."""
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-lines:])

    async def _start(self) -> Process:
        # The input is a pipe to this process, so that no worker outlives it. In a session of its own, no worker is
        # stopped by the Ctrl-C that stops this process: it is stopped by this process.
        with self._log.open("a") as log:
            return await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "zart_sqla.cli", "worker", "zart_sqla.cli.demo_workflow:registry"),
                *("--concurrency", str(CONCURRENCY), "--pool-size", str(CONCURRENCY + 4)),
                *("--log-level", "warning", "--tethered"),
                cwd=Path(zart_sqla.__file__).parents[1],
                env=environment_with(
                    **{DATABASE_URL_VARIABLE: self._database.url, PREFIX_VARIABLE: self._database.names.prefix}
                ),
                stdin=asyncio.subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
