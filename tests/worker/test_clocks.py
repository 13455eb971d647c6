"""Workers whose clocks are hours apart: only the database's clock counts."""

import sys
from asyncio.subprocess import Process, create_subprocess_exec
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import func, select

from tests.support import skewed_worker
from tests.support.waiting import PATIENCE, eventually
from tests.support.working import let_time_pass, scheduler_on, until, working
from zart_sqla import ExecutionStatus, PostgresScheduler, durable, sleep
from zart_sqla.models.mapping import tables_of
from zart_sqla.worker.clock import DatabaseClock

ROOT = Path(__file__).parents[2]


@asynccontextmanager
async def skewed_by(hours: float, url: str, gate: Path) -> AsyncIterator[Process]:
    """Run a worker in a process whose clock is wrong."""
    command = ("-m", skewed_worker.__name__, url, str(hours), str(gate))
    process = await create_subprocess_exec(sys.executable, *command, cwd=ROOT)
    try:
        yield process
    finally:
        process.terminate()
        await process.wait()


async def count_held(scheduler: PostgresScheduler) -> int:
    """Return how many tasks are held by workers."""
    tasks = tables_of(scheduler.names).tasks
    async with scheduler.engine.connect() as connection:
        query = select(func.count()).select_from(tasks).where(tasks.c.worker_id.is_not(None))
        return await connection.scalar(query) or 0


async def test_workers_hours_apart(migrated_url: str, tmp_path: Path) -> None:
    """Sleeps, delays, timeouts and recorded times come out the same whichever worker makes the turn; both make some."""
    gate = tmp_path / "gate"
    async with scheduler_on(migrated_url) as scheduler, AsyncExitStack() as stack:
        handles = [await scheduler.start(skewed_worker.TIMED) for _ in range(8)]
        workers = [await stack.enter_async_context(skewed_by(hours, migrated_url, gate)) for hours in (-1, 1)]
        await eventually(lambda: count_held(scheduler), 8)  # four by each
        gate.touch()
        results, turns = zip(*[await handle.result(timeout=PATIENCE) for handle in handles], strict=True)
        assert Counter(first for first, *_ in turns) == {worker.pid: 4 for worker in workers}
        assert any(len(set(made)) == 2 for made in turns)  # some run has gone on in the other one
        infos = [await handle.info() for handle in handles]
        steps = [one for handle in handles for one in await handle.steps()]
    skew = timedelta(minutes=30)  # between right and wrong by an hour
    start = min(info.created_at for info in infos)
    for info, result in zip(infos, results, strict=True):
        first, last, deadline = map(datetime.fromisoformat, result)
        assert info.started_at is not None
        assert info.completed_at is not None
        assert deadline == info.started_at + timedelta(minutes=30)
        assert abs(first - info.started_at) < skew
        assert abs(last - info.completed_at) < skew
    for one in steps:
        assert one.started_at is not None
        assert one.completed_at is not None
        assert abs(one.started_at - start) < skew
        assert abs(one.completed_at - start) < skew


async def test_worker_whose_clock_is_late(migrated_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the answers took that tell it the time, what is due in the database is due for a turn."""
    turns = 0

    @durable
    async def order() -> None:
        nonlocal turns
        turns += 1
        await sleep("nap", "1h")

    on_time = DatabaseClock.set

    def late(self: DatabaseClock, now: datetime, *, asked_at: float) -> None:
        on_time(self, now - timedelta(minutes=1), asked_at=asked_at - 60)

    monkeypatch.setattr(DatabaseClock, "set", late)
    async with working(migrated_url, order) as scheduler:
        handle = await scheduler.start(order)
        await until(handle, ExecutionStatus.WAITING)
        await let_time_pass(scheduler)
        await handle.result(timeout=PATIENCE)
    assert turns == 2
