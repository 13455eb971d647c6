"""Groups, and workers that are killed, stopped or sent home: each child is done once, and the run goes on."""

import random
import signal
from pathlib import Path

import pytest

from tests.worker.processes.stage import Stage, eventually, stage
from tests.worker.test_processes_crash import kill_one
from zart_sqla import ExecutionHandle

QUICK = {"heartbeat_interval": "200ms"}
"""Settings with which the dead are noticed sooner than by default."""

PATIENT = {"lease_timeout": "300s", "poll_interval": "300s"}
"""Settings with which a worker that merely waits finds nothing before the test is over."""


def held_by(play: Stage, worker: str) -> set[str]:
    """Return the steps that have begun in this worker, and not ended."""
    entries = [entry for entry in play.ledger.entries() if entry.worker == worker]
    ended = {entry.step for entry in entries if entry.event == "ended"}
    return {entry.step for entry in entries} - ended


async def group_is_held(play: Stage, count: int) -> None:
    """Return when so many of the children that wait for a gate have begun, and those that do not are recorded."""
    await eventually(lambda: sum(entry.step.startswith("hold") for entry in play.ledger.entries()) >= count)
    await eventually(lambda: len([step for _, step in play.recorded() if step.startswith("note-")]) >= count)


async def test_the_worker_of_children(migrated_url: str, tmp_path: Path) -> None:
    """The children that ran in a killed worker run again elsewhere; no other does, and no other step."""
    async with stage(migrated_url, tmp_path) as play:
        await play.workers(2, **QUICK, max_concurrent_tasks=8)
        handle = await play.start("note a", "fan f note:6,hold:6:gate", "note z", execution_id="one")
        await group_is_held(play, 6)
        victim = play.ledger.began("hold-f-0")[0].worker
        lost = held_by(play, victim)
        play.find(victim).kill()
        await play.began("hold-f-0", times=2)
        play.check()
        play.open("gate")
        assert await handle.result(timeout="30s") == 3
        names = ["a", "z", *(f"{kind}-f-{number}" for kind in ("note", "hold") for number in range(6))]
        assert {name: len(play.ledger.began(name)) for name in names} == {
            name: 2 if name in lost else 1 for name in names
        }


async def test_the_worker_of_the_run(migrated_url: str, tmp_path: Path) -> None:
    """The worker in which the body goes on is killed while a second group runs: nothing recorded runs again."""
    async with stage(migrated_url, tmp_path) as play:
        await play.workers(2, **QUICK)
        handle = await play.start("fan f note:5", "wait between gate", "fan g note:5", execution_id="one")
        play.find(await play.began("between")).kill()
        await play.began("between", times=2)
        play.check()
        play.open("gate")
        assert await handle.result(timeout="30s") == 3
        children = [f"note-{label}-{number}" for label in "fg" for number in range(5)]
        assert [len(play.ledger.began(child)) for child in children] == [1] * 10


async def test_right_after_the_last_child(migrated_url: str, tmp_path: Path) -> None:
    """The worker that ended the last child is killed before it has woken the run: whoever takes over does that."""
    async with stage(migrated_url, tmp_path) as play:
        await play.workers(2, **QUICK)
        handle = await play.start("fan f hold:1:gate", "note z", execution_id="one")
        victim = play.find(await play.began("hold-f-0"))
        await eventually(lambda: play.database.value("SELECT bool_or(awaits_open = 0) FROM zart_tasks"))
        with play.database.changed("SELECT 1 FROM zart_tasks WHERE step IS NULL FOR UPDATE"):  # it passes over the run
            play.open("gate")
            await eventually(lambda: ("one", "hold-f-0") in play.recorded())
            victim.kill()
        assert await handle.result(timeout="30s") == 2
        assert len(play.ledger.began("hold-f-0")) == 1


async def until_due(play: Stage, handle: ExecutionHandle[object]) -> None:
    """Return when the run's group has begun, and the run waits for it."""
    await play.began("hold-f-3", handle.execution_id)
    await eventually(lambda: play.database.value("SELECT bool_or(awaits_open = 0) FROM zart_tasks WHERE step IS NULL"))


@pytest.mark.parametrize("patience", ["60s", "200ms"])
async def test_a_worker_that_leaves(patience: str, migrated_url: str, tmp_path: Path) -> None:
    """Children may finish, or go back to the queue; others go on with them, and with the run, without a poll."""
    async with stage(migrated_url, tmp_path) as play:
        leaving = await play.worker(**PATIENT, shutdown_timeout=patience)
        handle = await play.start("note a", "fan f hold:4:gate", "note z", execution_id="one")
        await until_due(play, handle)
        await play.worker(**PATIENT)
        leaving.signal(signal.SIGTERM)
        if patience == "60s":
            await eventually(lambda: "stops" in leaving.log)
        else:
            await play.began("hold-f-0", times=2)
        play.open("gate")
        assert await handle.result(timeout="30s") == 3
        assert [entry.worker for entry in play.ledger.began("z")] == ["worker-1"]
        times = 1 if patience == "60s" else 2
        assert [len(play.ledger.began(f"hold-f-{number}")) for number in range(4)] == [times] * 4
        await eventually(lambda: not leaving.is_running)
        assert leaving.exit_code == 0


@pytest.mark.slow
async def test_past_the_lease(migrated_url: str, tmp_path: Path) -> None:
    """Another worker takes the children over; when the stopped one goes on, it can write none of them."""
    lease = {"lease_timeout": "5s"}
    async with stage(migrated_url, tmp_path) as play:
        stopped = await play.worker(**lease)
        handle = await play.start("note a", "fan f hold:4:gate,note:4", "wait z last", execution_id="one")
        await until_due(play, handle)
        other = await play.worker(**lease)
        stopped.freeze()
        for number in range(4):
            assert await play.began(f"hold-f-{number}", times=2) == other.name
        play.open("gate")
        await play.began("z")
        stopped.thaw()
        await eventually(lambda: "taken for dead" in stopped.log)
        play.check()
        play.open("last")
        assert await handle.result(timeout="60s") == 3
        assert [entry.worker for entry in play.ledger.began("z")] == [other.name]
        assert [len(play.ledger.began(f"note-f-{number}")) for number in range(4)] == [1] * 4


@pytest.mark.slow
async def test_a_child_that_takes_its_worker_down(migrated_url: str, tmp_path: Path) -> None:
    """It fails as a step after so many crashes, with the reason; its siblings are done, and the run goes on."""
    async with stage(migrated_url, tmp_path) as play:
        handle = await play.start("fan f die:1,note:5,deposit:5", "note z", execution_id="one")
        async with play.manned(2, **QUICK):
            assert await handle.result(timeout="60s") == 2
        assert len(play.ledger.began("die-f-0")) == 5
        steps = {step.name: step for step in await handle.steps()}
        crashed = steps.pop("die-f-0")
        assert crashed.error is not None
        assert crashed.error["error_type"] == "WorkerCrashed"
        assert (crashed.error["step"], crashed.attempts) == ("die-f-0", 5)
        assert {step.status for step in steps.values()} == {"completed"}
        assert len(steps) == 5 + 5 + 2  # with the note that the body makes of the failure, and the last one
        assert play.database.value("SELECT count(*) FROM deposits") == 5


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
async def test_at_random_instants(seed: int, migrated_url: str, tmp_path: Path) -> None:
    """Many groups come to their end, each child once, while workers are killed at random instants."""
    chance = random.Random(seed)
    lines = ["note a", "fan f note:6,deposit:2", "nap b 300ms", "fan g note:1,deposit:3", "fan h note:20", "note c"]
    async with stage(migrated_url, tmp_path) as play:
        await play.scheduler.start_many("script", [(f"run-{number}", lines) for number in range(60)])
        async with play.manned(3, **QUICK, max_concurrent_tasks=10, max_crashes=50):
            for _ in range(10):
                await kill_one(play, chance)
            await play.completed(60)
        assert play.database.value("SELECT count(*) FROM deposits") == 300
        assert play.database.value("SELECT count(*) FROM zart_steps WHERE kind = 'child' AND error IS NULL") == 1920
        assert play.database.execute("SELECT * FROM zart_tasks") == []


NESTED = ["fan f note:3,deposit:2,hold:1:gate", "first g 1,tell:2,hold:1:never", "block_thread z 0"]
"""What children do that have groups of their own."""


SIDES = ["note-x-0-0", "deposit-x-1-0", "note-x-2-0", "hold-x-2-0", "deposit-y-0-0"]
"""What is done beside them, one after the other under `x`, and beside four that wait for the gate under `y`."""

COMMANDS = {"note", "deposit", "hold"}
"""How the names of all of these begin."""


def check_nested(play: Stage, execution_id: str) -> None:
    """Check that each child of each group is recorded once, in the execution in which it belongs."""
    sides = {step for one, step in play.recorded() if one == execution_id and step.split("-")[0] in COMMANDS}
    assert sides == {f"hold-y-0-{number}" for number in range(4)} | set(SIDES)
    for child in ("script", "script_thread", "parent-0"):
        names = [step for one, step in play.recorded() if one == f"{execution_id}-{child}"]
        children = {step for step in names if not step.startswith(("tell", "g-", "wait_first_n"))}
        assert children == {"note-f-0", "note-f-1", "note-f-2", "deposit-f-0", "deposit-f-1", "hold-f-0", "z"}
        assert [step for step in names if step.startswith("g-")] in (["g-tell-g-0"], ["g-tell-g-1"])


async def test_nested(migrated_url: str, tmp_path: Path) -> None:
    """Groups in tasks of the body's own, and in children of theirs, over two workers: each child runs once."""
    async with stage(migrated_url, tmp_path) as play:
        await play.workers(2, **QUICK, max_concurrent_tasks=5)
        handle = await play.scheduler.start("nested", NESTED, execution_id="one")
        await eventually(lambda: sum(entry.step.startswith("hold") for entry in play.ledger.entries()) == 8)
        assert play.ledger.workers() == {"worker-0", "worker-1"}  # for a worker has five slots
        play.open("gate")
        assert await handle.result(timeout="30s") == [3, 3, 3, 3, 1]
        check_nested(play, "one")
        assert set(play.ledger.begun().values()) == {1}


@pytest.mark.slow
async def test_nested_at_random_instants(migrated_url: str, tmp_path: Path) -> None:
    """The same while workers are killed: each child is recorded once, and all of them come to their end."""
    chance = random.Random(3)
    async with stage(migrated_url, tmp_path) as play:
        play.open("gate")
        handles = await play.scheduler.start_many("nested", [(f"run-{number}", NESTED) for number in range(10)])
        async with play.manned(2, **QUICK, max_crashes=50):
            for _ in range(8):
                await kill_one(play, chance)
            assert [await handle.result(timeout="60s") for handle in handles] == [[3, 3, 3, 3, 1]] * 10
        for handle in handles:
            check_nested(play, handle.execution_id)
        assert play.database.value("SELECT count(*) FROM deposits") == 10 * (2 + 3 * 2)
        await eventually(lambda: not play.database.execute("SELECT * FROM zart_tasks"))
