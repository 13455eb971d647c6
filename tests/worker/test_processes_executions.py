"""Executions that workflows start, endless runs and `on_cancel`, while workers are killed: nothing is lost or twice."""

import asyncio
import random
from pathlib import Path
from typing import Any, LiteralString

import pytest

from tests.worker.processes.stage import Stage, eventually, stage
from zart_sqla import ExecutionHandle

QUICK = {"heartbeat_interval": "200ms"}
MOST_KILLS = 60
"""Settings with which the dead are noticed sooner than by default."""


async def kill_at_random(play: Stage, chance: random.Random, done: asyncio.Task[Any], *, most: float = 0.6) -> None:
    """Kill one worker after another, until the task is done or there were many: so slow machines get on as well."""
    for _ in range(MOST_KILLS):
        if done.done():
            break
        await asyncio.sleep(chance.uniform(0, most))  # the instant is what is random here
        registered = await eventually(lambda: [one for one in play.crew.workers if play.worker_id(one)])
        chance.choice(registered).kill()
    await done


async def all_of(handles: list[ExecutionHandle[Any]]) -> list[Any]:
    """Return the results of all."""
    return [await handle.result(timeout="60s") for handle in handles]


async def cancelled_and_cleaned(play: Stage, count: int) -> None:
    """Return when so many runs are cancelled, and what follows that is done."""
    await eventually(lambda: play.count("cancelled") >= count)
    await eventually(lambda: not play.database.execute("SELECT * FROM zart_tasks"))


async def test_right_after_a_start(migrated_url: str, tmp_path: Path) -> None:
    """The parent's worker is killed when it has started children: they are there once, and go on with the parent."""
    async with stage(migrated_url, tmp_path) as play:
        await play.workers(2, **QUICK)
        handle = await play.scheduler.start("parent", [["hold a gate"], ["note b"]], execution_id="one")
        victim = play.find(await play.began("started"))
        await play.began("a")
        victim.kill()
        play.open("gate")
        assert await handle.result(timeout="30s") == 2
        play.check()
        assert play.database.value("SELECT count(*) FROM zart_executions") == 3


async def test_childs_worker(migrated_url: str, tmp_path: Path) -> None:
    """The child's worker is killed while the parent waits: the child goes on elsewhere, and wakes the parent."""
    async with stage(migrated_url, tmp_path) as play:
        await play.workers(3, **QUICK)
        handle = await play.scheduler.start("parent", [["note a", "hold b gate"]], execution_id="one")
        for times in (1, 2):
            play.find(await play.began("b", times=times)).kill()
        await play.began("b", times=3)
        play.open("gate")
        assert await handle.result(timeout="30s") == 2
        assert len(play.ledger.began("a")) == 1


async def test_right_after_the_end_of_a_child(migrated_url: str, tmp_path: Path) -> None:
    """Whoever should have woken the parent is killed as the child ends: whoever takes over does it."""
    async with stage(migrated_url, tmp_path) as play:
        for number in range(5):
            worker = await play.worker(**QUICK)
            handle = await play.scheduler.start("parent", [[f"hold last-{number} gate-{number}"]])
            await play.began(f"last-{number}")
            ended = play.count("completed")
            play.open(f"gate-{number}")
            await eventually(lambda: play.count("completed") > ended)  # noqa: B023 - awaited at once
            worker.kill()
            play.check()
            other = await play.worker(**QUICK)
            assert await handle.result(timeout="30s") == 1
            other.kill()


async def test_frozen_parent(migrated_url: str, tmp_path: Path) -> None:
    """A worker that stands still past its lease starts nothing more when it goes on."""
    async with stage(migrated_url, tmp_path) as play:
        first = await play.worker(lease_timeout="1s", heartbeat_interval="300ms")
        handle = await play.scheduler.start("parent", [["note a"], ["nap b 1s"]], execution_id="one")
        await play.began("started")
        first.freeze()
        await play.worker(**QUICK)
        assert await handle.result(timeout="30s") == 2
        first.thaw()
        await eventually(lambda: play.worker_id(first))
        play.check()


@pytest.mark.slow
async def test_parents_at_random_instants(migrated_url: str, tmp_path: Path) -> None:
    """Families whose workers are killed all the time: each child is there once, and each parent has all results."""
    scripts = [["note a", "nap b 700ms", "note c"], ["note d"], ["nap e 600ms"]]
    async with stage(migrated_url, tmp_path) as play:
        handles = await play.scheduler.start_many("parent", [(f"run-{number}", scripts) for number in range(20)])
        async with play.manned(2, **QUICK, max_crashes=50):
            await kill_at_random(play, random.Random(1), asyncio.create_task(play.completed(80)))
            assert await all_of(handles) == [5] * 20
        assert play.database.value("SELECT count(*) FROM zart_executions") == 80


@pytest.mark.slow
async def test_endless_at_random_instants(migrated_url: str, tmp_path: Path) -> None:
    """Runs follow each other while workers are killed: each comes once, in order, and the child is the last one's."""
    async with stage(migrated_url, tmp_path) as play:
        handles = await play.scheduler.start_many("endless", [(f"run-{number}", [0, 150]) for number in range(5)])
        async with play.manned(2, **QUICK, max_crashes=50):
            running = asyncio.create_task(all_of(handles))
            await kill_at_random(play, random.Random(2), running, most=0.4)
            assert running.result() == [150] * 5
        infos = [await handle.info() for handle in handles]
        assert [info.run_index for info in infos] == [150] * 5
        assert play.database.value("SELECT count(*) FROM zart_steps WHERE name LIKE 'run-%'") == 151 * 5


@pytest.mark.slow
async def test_cancelled_at_random_instants(migrated_url: str, tmp_path: Path) -> None:
    """Endless runs are cancelled while workers are killed: their children go with them, and stay so."""
    chance = random.Random(3)
    async with stage(migrated_url, tmp_path) as play:
        handles = await play.scheduler.start_many("endless", [(f"run-{number}", [0, 10**9]) for number in range(10)])

        async def cancel_all() -> None:
            for handle in handles:
                await asyncio.sleep(chance.uniform(0, 0.5))  # the instant is what is random here
                await handle.cancel()

        async with play.manned(2, **QUICK, max_crashes=50):
            await play.began("run-3", times=10)
            await kill_at_random(play, chance, asyncio.create_task(cancel_all()))
            await cancelled_and_cleaned(play, 20)


async def have_come_to(play: Stage, index: int, handles: list[ExecutionHandle[Any]]) -> None:
    """Return when the executions have come to their runs of this number."""
    known: LiteralString = "SELECT count(*) FROM zart_execution_runs WHERE run_index = %s AND execution_id = ANY (%s)"
    names = [handle.execution_id for handle in handles]
    await eventually(lambda: play.database.value(known, index, names) == len(names))


ONCE: LiteralString = """
SELECT count(*) = max(run_index) + 1 AND count(*) = count(DISTINCT s.name)
FROM zart_execution_runs r LEFT JOIN zart_steps s USING (run_id) WHERE execution_id = %s
"""
"""Whether each run of a restless execution is there, with its one step."""


@pytest.mark.slow
async def test_left_at_random_instants(migrated_url: str, tmp_path: Path) -> None:
    """Parents are cancelled while workers are killed: a child that is to be left goes from run to run, to its end."""
    chance = random.Random(4)
    async with stage(migrated_url, tmp_path) as play:
        parents = await play.scheduler.start_many("guardian", [(f"run-{number}", None) for number in range(3)])
        left, bound = (
            [play.scheduler.handle(f"{parent.execution_id}-{kind}") for parent in parents] for kind in ("left", "bound")
        )

        async def cancel_all() -> list[int]:
            await have_come_to(play, 3, [*left, *bound])
            for parent in parents:
                await asyncio.sleep(chance.uniform(0, 0.5))  # the instant is what is random here
                await parent.cancel()
            reached = max([(await child.info()).run_index for child in left])
            await have_come_to(play, reached + 3, left)
            play.open("left")
            return await all_of(left)

        async with play.manned(2, **QUICK, max_crashes=50):
            running = asyncio.create_task(cancel_all())
            await kill_at_random(play, chance, running, most=0.4)
            await cancelled_and_cleaned(play, 6)
        assert play.count("cancelled") == 6
        assert {await one.status() for one in [*parents, *bound]} == {"cancelled"}
        assert [(await child.info()).run_index for child in left] == running.result()
        assert all(play.database.value(ONCE, child.execution_id) for child in left)


async def test_during_on_cancel(migrated_url: str, tmp_path: Path) -> None:
    """A worker that is killed in what follows a cancellation leaves it to another one, which goes on where it was."""
    async with stage(migrated_url, tmp_path) as play:
        await play.workers(3, **QUICK)
        lines = ["note a", "hold b gate", "note c"]
        play.open("gate")
        handle = await play.scheduler.start("undone", lines, execution_id="one")
        await eventually(lambda: ("one", "night") in play.recorded())
        (tmp_path / "gate.gate").unlink()
        await handle.cancel()
        play.find(await play.began("undo-b")).kill()
        play.find(await play.began("undo-b", times=2)).kill()
        await play.began("undo-b", times=3)
        play.check()
        play.open("gate")
        await cancelled_and_cleaned(play, 1)
        assert [len(play.ledger.began(f"undo-{step}")) for step in "abc"] == [1, 3, 1]
        assert await handle.status() == "cancelled"


async def test_on_cancel_that_kills(migrated_url: str, tmp_path: Path) -> None:
    """One that takes down each worker that tries it is given up, and the others of their runs are unharmed."""
    async with stage(migrated_url, tmp_path) as play, play.manned(1, **QUICK, max_crashes=3):
        handle = await play.scheduler.start("undone", ["die x"], execution_id="one")
        other = await play.scheduler.start("undone", ["note y"], execution_id="other")
        await eventually(lambda: {("one", "night"), ("other", "night")} <= play.recorded())
        ledger = play.ledger.path.read_text()
        await handle.cancel()
        await other.cancel()
        await cancelled_and_cleaned(play, 2)
        assert "undo-y" in play.ledger.path.read_text().removeprefix(ledger)
        assert await handle.status() == "cancelled"
