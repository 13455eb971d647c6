"""The program of a driver: an app that starts executions, offers them events, cancels them and waits for their results.

It never ends by itself; it is killed, and another one takes its place. What the database has told it is in the diary.
"""

import asyncio
import json
import logging
import os
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import asyncpg
from sqlalchemy import make_url, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from tests.chaos.cases import KINDS, Case, case_of
from tests.chaos.diary import Diary
from tests.worker.processes import program, workflows
from zart_sqla import (
    ExecutionAlreadyExists,
    ExecutionCancelled,
    ExecutionFailed,
    ExecutionFinished,
    ExecutionHandle,
    PostgresScheduler,
)

T = TypeVar("T")

OUTAGES = (SQLAlchemyError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError)
"""What an app gets while the database is away."""


async def insist(call: Callable[[], Awaitable[T]]) -> T:
    """Return what the call gives, once the database is there."""
    while True:
        with suppress(*OUTAGES):
            return await call()
        await asyncio.sleep(random.uniform(0.05, 0.5))  # as an app does that tries again


class Driver:
    """Does with executions what their cases say.

    Args:
        scheduler: the client.
        diary: where it writes what it was told.
        seed: the seed of the cases.
    """

    def __init__(self, scheduler: PostgresScheduler, diary: Diary, seed: int) -> None:
        self._scheduler = scheduler
        self._diary = diary
        self._seed = seed

    async def play(self, execution_id: str) -> None:
        """Start an execution, do what it needs, and see it end."""
        case = case_of(self._seed, execution_id)
        handle: ExecutionHandle[Any] = self._scheduler.handle(execution_id)
        await insist(lambda: self._start(case, execution_id))
        self._diary.write("started", execution_id)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.attend(case, handle))
            tasks.create_task(self._see(handle))
            if case.emitted:
                tasks.create_task(self._follow(handle))

    async def attend(self, case: Case, handle: ExecutionHandle[Any], *, in_time: bool = True) -> None:
        """Offer the execution the events that it needs, and cancel it, as far as the case says so."""
        with suppress(ExecutionFinished):
            if case.events:
                await asyncio.sleep(case.offer_after if in_time else 0)
            for name in case.events:
                await insist(lambda name=name: handle.offer_event(name, 1, event_id=name))  # type: ignore[misc]
                self._diary.write("offered", handle.execution_id, event=name)
            if case.cancel_after is not None:
                await asyncio.sleep(case.cancel_after if in_time else 0)
                await insist(handle.cancel)
                self._diary.write("cancelled", handle.execution_id)

    async def _start(self, case: Case, execution_id: str) -> None:
        """Start it; what was started by a call whose answer was lost counts."""
        with suppress(ExecutionAlreadyExists):
            if not case.has_order:
                await self._scheduler.start(case.workflow, case.data, execution_id=execution_id)
                return
            async with AsyncSession(self._scheduler.engine) as session, session.begin():
                order = text("INSERT INTO orders (execution_id) VALUES (:id)")
                await session.execute(order, {"id": execution_id})
                await self._scheduler.start(case.workflow, case.data, execution_id=execution_id, session=session)

    async def _see(self, handle: ExecutionHandle[Any]) -> None:
        seen: dict[str, Any] = {"outcome": "completed"}
        try:
            seen["result"] = await insist(handle.result)
        except ExecutionFailed as error:
            seen = {"outcome": "failed", "error": error.message}
        except ExecutionCancelled:
            seen = {"outcome": "cancelled"}
        self._diary.write("saw", handle.execution_id, **seen)

    async def _follow(self, handle: ExecutionHandle[Any]) -> None:
        """Read its stream to the end; where the database was away, go on from there."""
        reader = handle.stream("progress", str)
        read: list[str] = []

        async def go_on() -> None:
            async for value in reader:
                read.append(value)  # noqa: PERF401 - what was read before it breaks off counts

        await insist(go_on)
        self._diary.write("read", handle.execution_id, values=read)


async def main() -> None:
    """Drive so many executions at once until killed."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(name)s %(levelname)s %(message)s")
    name = os.environ[workflows.NAME]
    settings = json.loads(os.environ[program.CONFIG])
    engine = create_async_engine(
        make_url(os.environ["DATABASE_URL"]).set(drivername="postgresql+asyncpg"),
        pool_size=4,
        max_overflow=0,
        connect_args={"server_settings": {"application_name": name}},
    )
    diary = Diary(Path(os.environ[workflows.FOLDER]))
    driver = Driver(PostgresScheduler(engine), diary, settings["seed"])
    chance = random.Random(f"{settings['seed']} {name}")
    ids = (f"{chance.choice(list(KINDS))}-{name.replace('-', '')}.{number}" for number in range(10**9))

    async def play_all() -> None:
        for execution_id in ids:
            await driver.play(execution_id)

    async with asyncio.TaskGroup() as tasks:
        for _ in range(settings["at_once"]):
            tasks.create_task(play_all())
