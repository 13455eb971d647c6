"""One chaos run: faults for so long, then peace until all has ended, then the conclusion."""

import asyncio
import random
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import LiteralString

from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import create_async_engine

from tests.chaos.arena import Arena, Connection, arena, beside, connected, now
from tests.chaos.cases import case_of, is_started_by_driver
from tests.chaos.checker import Checker, Violation
from tests.chaos.diary import Diary
from tests.chaos.drivers import OUTAGES, Driver
from tests.chaos.injector import Injector
from tests.chaos.plan import plan
from tests.chaos.rates import Rates
from tests.chaos.server import Server
from tests.chaos.summary import Findings, Summary, summarise
from tests.chaos.timeline import timeline
from zart_sqla import PostgresScheduler

PATIENCE_SECONDS = 180.0
"""How long all that is under way may take to end, after the faults have stopped."""

TOLD = 2
"""Of how many runs the timeline is printed, for each thing that must not be."""

GATES = ("gate",)
"""All steps that wait for these go on at once."""

OPEN: LiteralString = "SELECT execution_id FROM zart_execution_runs WHERE outcome IS NULL"
LEFT: LiteralString = """
SELECT (SELECT count(*) FROM zart_tasks) + greatest(0, (SELECT count(*) FROM zart_workers) - $1)
"""
"""How many tasks there are, and workers that are dead and not buried yet."""


@dataclass
class ChaosRun:
    """A run under way.

    Attributes:
        arena: who takes part.
        checker: who looks.
        seconds: for how long there are faults.
        findings: what is noted.
    """

    arena: Arena
    checker: Checker
    seconds: float
    findings: Findings = field(default_factory=Findings)

    async def run(self) -> Summary:
        """Do the whole of it."""
        injector = Injector(self.arena, self.findings.faults)
        began = now()
        async with beside(self.arena.man(self.arena.posts)), beside(self._watch()):
            await injector.run(plan(self.arena.seed, self.seconds, owns_server=self.arena.server.is_own))
            await asyncio.sleep(max(0.0, began + self.seconds - now()))  # the run lasts as long as it is told to
            await self.arena.heal()
            say("the faults are over")
        for post in self.arena.drivers:
            post.process.kill()
        async with beside(self.arena.man(self.arena.workers)), beside(self._watch()):
            await self._settle()
        await self._dismiss()
        self._note(await self.checker.conclude())
        return await self._tell(began)

    async def _settle(self) -> None:
        """Do what drivers have left undone, and return when all has ended."""
        url = make_url(self.arena.server.url).set(drivername="postgresql+asyncpg")
        engine = create_async_engine(url, pool_size=4, max_overflow=0)
        async with PostgresScheduler(engine) as scheduler:
            driver = Driver(scheduler, Diary(self.arena.folder), self.arena.seed)
            async with connected(self.arena.server.url) as connection:
                for row in await connection.fetch(OPEN):
                    if is_started_by_driver(name := row["execution_id"]):
                        await driver.attend(case_of(self.arena.seed, name), scheduler.handle(name), in_time=False)
                await self._wait_for_the_end(connection)
        await engine.dispose()

    async def _wait_for_the_end(self, connection: Connection) -> None:
        deadline = now() + PATIENCE_SECONDS
        while left := await connection.fetchval(LEFT, len(self.arena.workers)):
            if now() > deadline:
                say(f"{left} tasks and dead workers are left after {PATIENCE_SECONDS:g} s")
                return
            await asyncio.sleep(0.2)

    async def _dismiss(self) -> None:
        """Have the workers stop in order, and return when they have."""
        for post in self.arena.workers:
            post.process.signal(signal.SIGTERM)
        while any(post.process.is_running for post in self.arena.workers):  # noqa: ASYNC110 - other processes end
            await asyncio.sleep(0.05)

    async def _watch(self) -> None:
        """Look at random moments, until cancelled."""
        while True:
            await asyncio.sleep(random.uniform(0.2, 3))
            try:
                found = await self.checker.glance()
            except OUTAGES:
                continue  # it cannot be looked now
            self.findings.glances += 1
            self._note(found)

    def _note(self, found: Sequence[Violation]) -> None:
        known = {violation.problem for violation in self.findings.violations}
        for violation in found:
            if violation.problem not in known:
                self.findings.violations.append(violation)
                say(f"VIOLATION {violation}")

    async def _tell(self, began: float) -> Summary:
        async with connected(self.arena.server.url) as connection:
            rates = await Rates.read(connection)
            say("\nruns that ended, per second, in windows of 5 s around each fault:")
            say("\n".join(rates.told(self.findings.faults, began)))
            for violation in self.findings.violations:
                say(f"\n{violation}")
                for run_id in violation.run_ids[:TOLD]:
                    say(await timeline(connection, run_id, self.findings.faults))
            return await summarise(
                connection,
                self.findings,
                seed=self.arena.seed,
                seconds=self.seconds,
                server="own" if self.arena.server.is_own else "given",
            )


def say(line: str) -> None:
    """Tell whoever looks on."""
    print(line, flush=True)  # noqa: T201  it is a command


async def run(server: Server, folder: Path, seed: int, seconds: float) -> Summary:
    """Make a chaos run on a server, in an empty database."""
    async with await PostgresScheduler.connect(server.url) as scheduler:
        await scheduler.migrate()
    checker = Checker(server.url, folder, seed)
    await checker.install()
    for gate in GATES:
        (folder / f"{gate}.gate").touch()
    async with arena(server, folder, seed) as made:
        return await ChaosRun(made, checker, seconds).run()
