"""The first of several children, also in `def` workflows, while workers are killed: who was the first stays it."""

import random
from pathlib import Path
from typing import Any, LiteralString

import pytest

from tests.worker.processes.stage import Stage, eventually, stage
from tests.worker.test_processes_crash import kill_one

QUICK = {"heartbeat_interval": "200ms"}
"""Settings with which the dead are noticed sooner than by default."""

GIVEN_UP: LiteralString = """
SELECT name FROM zart_steps s JOIN zart_execution_runs r USING (run_id)
WHERE execution_id = %s AND s.error ->> 'category' = 'step_cancelled' ORDER BY name
"""


def given_up(play: Stage, execution_id: str) -> list[str]:
    """Return the children of an execution that were given up."""
    return [row["name"] for row in play.database.execute(GIVEN_UP, execution_id)]


def noted(play: Stage, execution_id: str, label: str) -> list[str]:
    """Return which children a workflow has noted as the first under this label, in that order."""
    names: LiteralString = """
        SELECT name FROM zart_steps JOIN zart_execution_runs USING (run_id)
        WHERE execution_id = %s AND kind = 'step' AND starts_with(name, %s) ORDER BY position
    """
    return [row["name"].removeprefix(label) for row in play.database.execute(names, execution_id, label)]


def ended(play: Stage) -> set[str]:
    """Return the steps that have come to their end somewhere."""
    return {entry.step for entry in play.ledger.entries() if entry.event == "ended"}


@pytest.mark.parametrize("task", ["script", "script_thread"])
async def test_when_all_are_done(task: str, migrated_url: str, tmp_path: Path) -> None:
    """The worker is killed after the first was chosen and when all are done: the first is still the first."""
    lines = ["any f hold:1:late,hold:1:soon", "wait between gate", "fan g note:3", "first h 1,tell:1,hold:1:never"]
    async with stage(migrated_url, tmp_path) as play, play.manned(2, **QUICK):
        handle = await play.start(*lines, "wait last gate-2", execution_id="one", task=task)
        await play.began("hold-f-0", times=2)
        play.open("soon")
        victim = play.find(await play.began("between"))
        play.open("late")
        await eventually(lambda: {("one", "hold-f-0"), ("one", "hold-f-0#2")} <= play.recorded())
        victim.kill()
        await play.began("between", times=2)
        play.check()
        play.open("gate")
        play.find(await play.began("last")).kill()
        await play.began("last", times=2)
        play.open("gate-2")
        assert await handle.result(timeout="30s") == 5
        assert noted(play, "one", "f-") == ["hold-f-0#2"]
        assert noted(play, "one", "h-") == ["tell-h-0"]
        assert given_up(play, "one") == ["hold-h-0"]
        assert "hold-h-0" not in ended(play)


RACES = [
    "race r tell:3,deposit:2",
    "nap b 600ms",
    "first f 2,tell:3,hold:2:never",
    "fan g note:3,deposit:2,fail:1",
    "any h note:1,hold:1:never",
    "block_thread z 0",
]
"""Five that are each the first once; two out of five; all of six; one of two, of which the other is left open."""


def check_races(play: Stage, execution_id: str) -> None:
    """Check what one execution that has raced as above has noted and recorded."""
    entrants = {f"tell-r-{number}" for number in range(3)} | {f"deposit-r-{number}" for number in range(2)}
    order = noted(play, execution_id, "r-")
    assert [int(name[0]) for name in order] == [4, 3, 2, 1, 0]
    assert {name[2:] for name in order} == entrants
    (won,) = noted(play, execution_id, "f-")
    winners, tellers = won.split("+"), {f"tell-f-{number}" for number in range(3)}
    assert len(winners) == len(set(winners) & tellers) == 2
    lost = set(given_up(play, execution_id))
    assert {"hold-f-0", "hold-f-1"} <= lost
    assert lost - {"hold-f-0", "hold-f-1"} <= tellers - set(winners)  # the third was done in time, or not
    assert noted(play, execution_id, "failed-") == ["fail-g-0"]
    assert noted(play, execution_id, "h-") == ["note-h-0"]


@pytest.mark.slow
async def test_at_random_instants(migrated_url: str, tmp_path: Path) -> None:
    """Children race while workers are killed: each turn sees the same first ones, and the others end, done or not."""
    chance = random.Random(1)
    async with stage(migrated_url, tmp_path) as play:
        runs = [(f"run-{number}", RACES) for number in range(32)]
        handles: list[Any] = await play.scheduler.start_many("script", runs[:16])
        handles += await play.scheduler.start_many("script_thread", runs[16:])
        async with play.manned(3, **QUICK, max_crashes=50):
            for _ in range(8):
                await kill_one(play, chance)
            assert [await handle.result(timeout="60s") for handle in handles] == [len(RACES)] * 32
        for handle in handles:
            check_races(play, handle.execution_id)
        assert not ended(play) & {"hold-f-0", "hold-f-1", "hold-h-0"}
        assert play.database.value("SELECT count(*) FROM deposits") == 32 * 4
        await eventually(lambda: not play.database.execute("SELECT * FROM zart_tasks"))
