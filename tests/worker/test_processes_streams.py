"""Streams, and workers that are killed as they emit: whoever follows gets every value once, in order."""

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest

from tests.worker.processes.stage import Stage, eventually, stage
from tests.worker.test_processes_executions import kill_at_random
from zart_sqla import ExecutionHandle

QUICK = {"heartbeat_interval": "200ms"}
"""Settings with which the dead are noticed sooner than by default."""


def emitted(play: Stage) -> list[str]:
    """Return what was emitted into the one stream that there is."""
    rows = play.database.execute("SELECT value FROM zart_stream_items WHERE stream = 'progress' ORDER BY seq")
    return [row["value"] for row in rows]


async def follow(handle: ExecutionHandle[Any], *, patience: int) -> list[str]:
    """Follow the stream with one reader after the other, each for so many values."""
    values: list[str] = []
    offset = 0
    while True:
        reader = handle.stream("progress", str, offset=offset)
        async for value in reader:
            values.append(value)
            if len(values) % patience == 0:
                break
        else:
            return values
        offset = reader.offset


async def test_between_two_values(migrated_url: str, tmp_path: Path) -> None:
    """The worker is killed behind a value: the next one goes on with the next value."""
    lines = ["emit progress a", "wait between gate", "emit progress b", "emit progress c"]
    async with stage(migrated_url, tmp_path) as play:
        await play.workers(2, **QUICK)
        handle = await play.start(*lines, execution_id="one")
        following = asyncio.create_task(follow(handle, patience=2))
        victim = play.find(await play.began("between"))
        assert emitted(play) == ["a"]
        victim.kill()
        await play.began("between", times=2)
        play.check()
        assert emitted(play) == ["a"]
        play.open("gate")
        assert await asyncio.wait_for(following, 30) == ["a", "b", "c"]


@pytest.mark.slow
async def test_at_random_instants(migrated_url: str, tmp_path: Path) -> None:
    """Workers are killed again and again while they emit, and readers are restarted: nothing is lost or repeated."""
    chance = random.Random(1)
    numbers = [str(number) for number in range(150)]
    lines = [line for number in numbers for line in (f"emit progress {number}", "nap pause 15ms")]
    async with stage(migrated_url, tmp_path) as play:
        handles = await play.scheduler.start_many("script", [(f"run-{number}", lines) for number in range(10)])
        following = [asyncio.create_task(follow(handle, patience=7)) for handle in handles]
        async with play.manned(2, **QUICK, max_crashes=50):
            for _ in range(15):
                await asyncio.sleep(chance.uniform(0, 0.6))  # the instant of the kill is what is random here
                registered = await eventually(lambda: [one for one in play.crew.workers if play.worker_id(one)])
                chance.choice(registered).kill()
            await play.completed(len(handles))
            seen = await asyncio.wait_for(asyncio.gather(*following), 60)
    assert seen == [numbers] * len(handles)


@pytest.mark.slow
async def test_over_many_runs(migrated_url: str, tmp_path: Path) -> None:
    """Workers are killed while run follows run: the stream has the values of all of them, in order, without a gap."""
    values = [f"{number}-{part}" for number in range(41) for part in range(3)]
    async with stage(migrated_url, tmp_path) as play:
        handles = await play.scheduler.start_many("relay", [(f"run-{number}", [0, 40]) for number in range(5)])
        following = [
            asyncio.create_task(follow(handle, patience=patience)) for handle in handles for patience in (7, 500)
        ]
        async with play.manned(2, **QUICK, max_crashes=50):
            await kill_at_random(play, random.Random(2), asyncio.create_task(play.completed(5 * 41)))
        seen = await asyncio.wait_for(asyncio.gather(*following), 60)
    assert seen == [values] * 10
