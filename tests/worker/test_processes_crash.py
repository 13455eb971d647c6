"""Workers that are killed: what they had recorded stays, the rest runs again elsewhere, and all ends once."""

import asyncio
import random
import signal
from pathlib import Path

import pytest

from tests.worker.processes.stage import Stage, eventually, stage
from zart_sqla import ExecutionFailed, ExecutionStatus

QUICK = {"heartbeat_interval": "200ms"}
"""Settings with which the dead are noticed sooner than by default."""


async def test_in_a_step(migrated_url: str, tmp_path: Path) -> None:
    """With default settings, another worker soon runs the step again, and none of those before it."""
    async with stage(migrated_url, tmp_path) as play:
        await play.workers(2)
        handle = await play.start("note a", "hold b gate", "note c", execution_id="one")
        play.find(await play.began("b")).kill()
        await play.began("b", times=2, within=20)
        play.open("gate")
        assert await handle.result(timeout="30s") == 3
        assert [len(play.ledger.began(step)) for step in "abc"] == [1, 2, 1]


@pytest.mark.parametrize("task", ["script", "script_thread"])
async def test_between_two_steps(task: str, migrated_url: str, tmp_path: Path) -> None:
    """What was recorded before the kill does not run again; its results are there."""
    async with stage(migrated_url, tmp_path) as play:
        await play.workers(2, **QUICK)
        handle = await play.start(
            "block_thread a 0", "wait between gate", "block_thread c 0", execution_id="one", task=task
        )
        play.find(await play.began("between")).kill()
        play.open("gate")
        assert await handle.result(timeout="30s") == 3
        assert [len(play.ledger.began(step)) for step in ("a", "between", "c")] == [1, 2, 1]


@pytest.mark.parametrize(
    ("task", "command"), [("script", "deposit"), ("script", "deposit_thread"), ("script_thread", "deposit_thread")]
)
async def test_in_a_transaction(task: str, command: str, migrated_url: str, tmp_path: Path) -> None:
    """What a killed step has inserted is gone; the step inserts it again, and it is there once."""
    async with stage(migrated_url, tmp_path) as play:
        await play.workers(2, **QUICK)
        handle = await play.start(f"{command} deposit-0 gate", execution_id="one", task=task)
        holder = play.find(await play.began("deposit-0"))
        await eventually(lambda: any(entry.event == "inserted" for entry in play.ledger.entries()))
        holder.kill()
        await play.began("deposit-0", times=2)
        assert play.database.execute("SELECT * FROM deposits") == []
        play.open("gate")
        await handle.result(timeout="30s")
        assert play.database.value("SELECT count(*) FROM deposits") == 1


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
async def test_one_after_the_other(seed: int, migrated_url: str, tmp_path: Path) -> None:
    """Hundreds of runs complete, each once, while workers are killed at random instants."""
    chance = random.Random(seed)
    lines = ["note a", "deposit deposit-b", "nap c 300ms", "deposit_thread deposit-d", "nap e 600ms", "note f"]
    async with stage(migrated_url, tmp_path) as play:
        await play.scheduler.start_many("script", [(f"run-{number}", lines) for number in range(200)])
        settings = {**QUICK, "max_concurrent_tasks": 10, "max_crashes": 50}
        async with play.manned(3, **settings):
            for _ in range(10):
                await kill_one(play, chance)
            await play.completed(200)
        assert play.database.value("SELECT count(*) FROM deposits") == 400


async def kill_one(play: Stage, chance: random.Random) -> None:
    """Kill a worker at a random instant; check that nothing is half written, and that nothing recorded runs again."""
    recorded, seen = play.recorded(), len(play.ledger.entries())
    await asyncio.sleep(chance.uniform(0, 0.5))  # the instant of the kill is what is random here
    registered = await eventually(lambda: [w for w in play.crew.workers if w.is_running and play.worker_id(w)])
    victim = chance.choice(registered)
    if chance.random() < 0.3:
        victim.signal(signal.SIGTERM)
        await asyncio.sleep(chance.uniform(0, 0.1))  # as is the instant of its farewell
    victim.kill()
    play.check()
    assert play.ledger.repeated(recorded, after=seen) == []


@pytest.mark.slow
@pytest.mark.parametrize("fault", ["die", "leave"])
async def test_too_often(fault: str, migrated_url: str, tmp_path: Path) -> None:
    """A task that takes down every worker is failed after five, with the reason; its neighbours complete."""
    async with stage(migrated_url, tmp_path) as play:
        innocent = [(f"innocent-{number}", ["note a", "nap b 400ms", "note c"]) for number in range(10)]
        await play.scheduler.start_many("script", innocent)
        killer = await play.start(f"{fault} blow", execution_id="killer")
        async with play.manned(2, **QUICK):
            with pytest.raises(ExecutionFailed, match="5 workers") as failure:
                await killer.result(timeout="60s")
            assert failure.value.error_type == "WorkerCrashed"
            await play.completed(10)
        assert len(play.ledger.began("blow")) == 5


async def test_progress_counts_anew(migrated_url: str, tmp_path: Path) -> None:
    """A run that loses a worker at each of its steps goes on, for it gets somewhere each time."""
    async with stage(migrated_url, tmp_path) as play:
        handle = await play.start(*(f"die_once s{number}" for number in range(4)), execution_id="unlucky")
        async with play.manned(2, **QUICK, max_crashes=2):
            assert await handle.result(timeout="60s") == 4
        assert await handle.status() == ExecutionStatus.COMPLETED
        assert len(play.ledger.entries()) == 8
