"""Events, and workers that are killed as they take them: each event is taken once, and none is lost."""

import asyncio
import random
from pathlib import Path
from typing import Any, LiteralString

import pytest

from tests.worker.processes.stage import Stage, eventually, stage
from zart_sqla import ExecutionHandle

QUICK = {"heartbeat_interval": "200ms"}
"""Settings with which the dead are noticed sooner than by default."""


def results(play: Stage, execution_id: str) -> list[object]:
    """Return the values of the events that an execution has taken, in the order of its waits."""
    rows = play.database.execute(
        "SELECT result FROM zart_steps WHERE kind = 'event' AND completed_at IS NOT NULL"
        " AND run_id = (SELECT run_id FROM zart_executions WHERE execution_id = %s) ORDER BY position",
        execution_id,
    )
    return [row["result"] for row in rows]


async def test_after_an_event_was_taken(migrated_url: str, tmp_path: Path) -> None:
    """The worker that an event woke is killed in that turn: the next one has the event, and leaves the other alone."""
    async with stage(migrated_url, tmp_path) as play:
        await play.workers(2, **QUICK)
        handle = await play.start("expect paid", "wait between gate", "expect paid", execution_id="one")
        await eventually(lambda: ("one", "paid") in play.recorded())
        await handle.offer_event("paid", 1)
        victim = play.find(await play.began("between"))
        await handle.offer_event("paid", 2)
        victim.kill()
        await play.began("between", times=2)
        play.check()
        assert results(play, "one") == [1]
        play.open("gate")
        assert await handle.result(timeout="30s") == 3
        assert results(play, "one") == [1, 2]


async def remaining(play: Stage, handle: ExecutionHandle[Any]) -> float:
    """Return in how many seconds an execution's wait times out, when it waits."""
    left: LiteralString = """
        SELECT extract(epoch FROM s.wake_at - clock_timestamp())::float8 AS seconds
        FROM zart_steps s JOIN zart_execution_runs USING (run_id) WHERE execution_id = %s AND name = 'paid'
    """
    await eventually(lambda: (handle.execution_id, "paid") in play.recorded())
    (row,) = play.database.execute(left, handle.execution_id)
    return float(row["seconds"])


@pytest.mark.slow
async def test_race_with_the_deadline(migrated_url: str, tmp_path: Path) -> None:
    """Events come at the deadlines of waits while workers are killed: each is taken in time or too late, and once."""
    chance = random.Random(2)
    async with stage(migrated_url, tmp_path) as play:

        async def race(number: int) -> object:
            limit = "8h" if number == 1 else f"{chance.randint(1000, 3000)}ms"
            lines = ["note a", f"expect paid {limit}", "deposit deposit-b", "note c"]
            handle = await play.start(*lines, execution_id=f"run-{number}")
            left = await remaining(play, handle)
            if number == 0:
                await play.began("late-paid", handle.execution_id)
            elif limit != "8h":
                await asyncio.sleep(max(0, left + chance.uniform(-0.3, 0.3)))  # the instant of the offer is random
            await handle.offer_event("paid", number)
            return await handle.result(timeout="60s")

        async with play.manned(3, **QUICK, max_crashes=50):
            racing = asyncio.gather(*(race(number) for number in range(40)))
            while not racing.done():
                await asyncio.sleep(chance.uniform(0, 0.6))  # as is that of the kill
                registered = await eventually(lambda: [one for one in play.crew.workers if play.worker_id(one)])
                chance.choice(registered).kill()
            assert await racing == [4] * 40
        late = {one for one, step in play.ledger.begun() if step == "late-paid"}
        assert 0 < len(late) < 40
        for number in range(40):
            name = f"run-{number}"
            assert results(play, name) == ([None, number] if name in late else [number])
        assert play.database.value("SELECT count(*) FROM deposits") == 40


@pytest.mark.slow
async def test_at_random_instants(migrated_url: str, tmp_path: Path) -> None:
    """Runs are woken by events while workers are killed: each run gets its own events, in order, each once."""
    chance = random.Random(1)
    lines = ["note a", "expect paid", "note b", "expect paid", "expect paid", "note c"]
    async with stage(migrated_url, tmp_path) as play:
        handles = await play.scheduler.start_many("script", [(f"run-{number}", lines) for number in range(40)])

        async def offer_all() -> None:
            for value in range(3):
                for handle in chance.sample(handles, len(handles)):
                    await handle.offer_event("paid", value)
                    await asyncio.sleep(chance.uniform(0, 0.04))  # the instant of the offer is what is random here

        async with play.manned(2, **QUICK, max_crashes=50):
            offering = asyncio.create_task(offer_all())
            while not offering.done():
                await asyncio.sleep(chance.uniform(0, 0.6))  # as is that of the kill
                registered = await eventually(lambda: [one for one in play.crew.workers if play.worker_id(one)])
                chance.choice(registered).kill()  # a takeover may pass over what an offer has locked: no check here
            await offering
            await play.completed(40)
        for handle in handles:
            assert results(play, handle.execution_id) == [0, 1, 2]
