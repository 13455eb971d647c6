"""Events, and workers that are killed as they take them: each event is taken once, and none is lost."""

import asyncio
import random
from pathlib import Path

import pytest

from tests.worker.processes.stage import Stage, eventually, stage

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
