"""Starts an execution for each day and waits for all of them, while workers come and go.

The driver itself can be stopped and started again on the same database: the executions have ids of their own, so those
that exist go on, and those that do not are started.
"""

import asyncio
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from sqlalchemy import func, select

from examples.flights.audit import Audit, audit
from examples.flights.crew import Crew
from examples.flights.database import Session, connect
from examples.flights.dataset import INBOX_VARIABLE, fill_inbox
from examples.flights.models import Flight, zart
from examples.flights.workflow import summarise
from zart_sqla import ExecutionHandle, PostgresScheduler

ROOT: Final = Path(__file__).parents[2]
_CONNECTIONS: Final = 10
_PROGRESS_SECONDS: Final = 2.0
_TAKEOVER: Final = re.compile(r"took over (\d+) task")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be done.

    Attributes:
        url: the database.
        months: how many months of the year.
        workers: how many worker processes.
        kill_every: after how many seconds one of them is killed, again and again; 0 for never.
        patience: after how many seconds the days that have not ended count as failed.
        log: where the workers write what they have to say.
    """

    url: str
    months: int
    workers: int
    kill_every: float
    patience: float
    log: Path


@dataclass(frozen=True, kw_only=True)
class Report:
    """What came of it.

    Attributes:
        audit: the comparison of the tables with the file.
        failures: the errors of executions that did not complete.
        kills: how many workers were killed.
        takeovers: how often an execution lost its worker and was taken over by another one.
        seconds: how long the executions took together.
    """

    audit: Audit
    failures: list[BaseException]
    kills: int
    takeovers: int
    seconds: float


def migrate(url: str) -> None:
    """Bring the tables of the app and of zart_sqla into the database, as a deployment would.

    Raises:
        subprocess.CalledProcessError: Alembic refuses, and has said why.
    """
    command = (sys.executable, "-m", "alembic", "-c", "examples/flights/alembic.ini", "upgrade", "heads")
    subprocess.run(command, cwd=ROOT, env={**os.environ, "DATABASE_URL": url}, check=True)  # noqa: S603 - our own


async def drive(plan: Plan) -> Report:
    """Run the days, then compare the tables with the file."""
    engine = connect(plan.url, pool_size=_CONNECTIONS)
    try:
        async with PostgresScheduler(engine, names=zart.names) as scheduler:
            return await _drive(plan, scheduler)
    finally:
        await engine.dispose()


async def _drive(plan: Plan, scheduler: PostgresScheduler) -> Report:
    plan.log.write_text("")
    with TemporaryDirectory(prefix="flights-inbox-") as inbox:
        days = fill_inbox(Path(inbox), plan.months)
        environment = {"DATABASE_URL": plan.url, INBOX_VARIABLE: inbox}
        crew = Crew(plan.workers, kill_every=plan.kill_every, environment=environment, log=plan.log)
        began = time.monotonic()
        executions = [(f"flights-{day}", day) for day in days]
        handles = await scheduler.start_many(summarise, executions, on_conflict="return")
        outcomes = await _results(handles, crew, plan.patience)
        seconds = time.monotonic() - began
    print(f"{seconds:6.1f} s  comparing the tables with the file")
    async with Session() as session:
        compared = await audit(session, plan.months)
    return Report(
        audit=compared,
        failures=[outcome for outcome in outcomes if isinstance(outcome, BaseException)],
        kills=crew.kills,
        takeovers=sum(map(int, _TAKEOVER.findall(plan.log.read_text()))),
        seconds=seconds,
    )


async def _results(handles: Sequence[ExecutionHandle[int]], crew: Crew, patience: float) -> list[int | BaseException]:
    """Return what the executions end in, while the crew works on them."""
    async with asyncio.TaskGroup() as group:
        beside = [group.create_task(crew.run()), group.create_task(_show_progress(crew))]
        results = (handle.result(timeout=patience) for handle in handles)
        outcomes = await asyncio.gather(*results, return_exceptions=True)
        for task in beside:
            task.cancel()
    return outcomes


async def _show_progress(crew: Crew) -> None:
    began = time.monotonic()
    loaded = select(func.count()).select_from(Flight)
    status = zart.Execution.status
    days = select(status, func.count()).where(zart.Execution.task_name == summarise.name).group_by(status)
    while True:
        async with Session() as session:
            flights = await session.scalar(loaded)
            shown = ", ".join(f"{count} {name}" for name, count in await session.execute(days.order_by(status)))
        print(
            f"{time.monotonic() - began:6.1f} s  {flights:>7,} flights; days: {shown}; {crew.kills} kills", flush=True
        )
        await asyncio.sleep(_PROGRESS_SECONDS)
