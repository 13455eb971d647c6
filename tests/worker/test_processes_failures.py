"""`on_failure`, and workers that are killed in it: the body is over, and what follows is done once, to its end."""

import random
from pathlib import Path
from typing import LiteralString

import pytest

from tests.worker.processes.stage import Stage, eventually, stage
from tests.worker.test_processes_crash import kill_one
from zart_sqla import ExecutionFailed, ExecutionHandle, StepKind

QUICK = {"heartbeat_interval": "200ms"}
"""Settings with which the dead are noticed sooner than by default."""


def is_over_before(play: Stage, body: str, after: str) -> bool:
    """Return whether in each execution the body had come so far for the last time before what follows began."""
    last: dict[str, int] = {}
    first: dict[str, int] = {}
    for index, entry in enumerate(play.ledger.entries()):
        if entry.step == body:
            last[entry.execution_id] = index
        elif entry.step == after:
            first.setdefault(entry.execution_id, index)
    assert last.keys() == first.keys()
    return all(last[one] < first[one] for one in last)


async def kill_whoever_began(play: Stage, step: str, *, times: int = 1) -> None:
    """Kill the worker in which a step has begun so many times; return when it has begun once more."""
    play.find(await play.began(step, times=times)).kill()
    await play.began(step, times=times + 1)
    play.check()


GROUP = ["note-f-0", "note-f-1", "note-f-2"]
"""Those of a group that do not wait for a gate."""


async def test_at_each_stage(migrated_url: str, tmp_path: Path) -> None:
    """Its worker is killed in a step, in a group and in a transaction of what follows the failure."""
    body = ["note a", "scatter s hold:1:never", "compute tail 0", "fail b"]
    after = ["note c", "hold d one", "fan f note:3,hold:1:two", "deposit deposit-e three", "note f"]
    async with stage(migrated_url, tmp_path) as play, play.manned(2, **QUICK):
        handle = await play.scheduler.start("mended", [body, after], execution_id="one")
        for step, gate, before in (("d", "one", ["c"]), ("hold-f-0", "two", GROUP), ("deposit-e", "three", ["d"])):
            await eventually(lambda: {("one", name) for name in before} <= play.recorded())  # noqa: B023 - at once
            await kill_whoever_began(play, step)
            await kill_whoever_began(play, step, times=2)
            assert play.database.execute("SELECT * FROM deposits") == []
            play.open(gate)
        assert await handle.result(timeout="30s") == "StepFailure: b"
        begun = {step: times for (_, step), times in play.ledger.begun().items() if step not in {"tail", "hold-s-0"}}
        assert begun == dict.fromkeys(begun, 1) | {"d": 3, "hold-f-0": 3, "deposit-e": 3}
        assert is_over_before(play, "tail", "c")
        assert [step.name for step in await handle.steps() if step.kind is StepKind.FAILURE] == ["on_failure"]
        assert play.database.value("SELECT count(*) FROM deposits") == 1
        assert not [entry for entry in play.ledger.entries() if (entry.step, entry.event) == ("hold-s-0", "ended")]


BODIES = {
    "StepFailure: b": ["note a", "deposit deposit-a", "scatter s hold:2:never", "compute tail 0", "fail b"],
    "BodyError: b": ["fan a note:2,deposit:1", "nap b 600ms", "compute tail 0", "raise b"],
}
"""What fails, by what `on_failure` is told."""

AFTER = ["note c", "fan f note:4,deposit:2", "nap g 600ms", "deposit deposit-h", "gather i note:2,deposit:1", "note j"]


GIVEN_UP: LiteralString = """
SELECT count(*) FROM zart_steps WHERE name LIKE 'hold-s-%' AND error ->> 'category' = 'step_cancelled'
"""
"""How many of the children were given up that a body had scheduled before it failed."""


async def ending(handle: ExecutionHandle[str]) -> str:
    """Return what an execution has come to."""
    try:
        return await handle.result(timeout="60s")
    except ExecutionFailed as failure:
        return failure.message


@pytest.mark.slow
async def test_at_random_instants(migrated_url: str, tmp_path: Path) -> None:
    """Runs fail while workers are killed: what follows is done once, and decides whether they complete or fail."""
    chance = random.Random(1)
    expected: dict[str, str] = {}
    async with stage(migrated_url, tmp_path) as play:
        handles = []
        for number in range(32):
            told, body = list(BODIES.items())[number % 2]
            after, expected[f"run-{number}"] = (AFTER, told) if number % 4 < 2 else ([*AFTER, "raise again"], "again")
            handles.append(await play.scheduler.start("mended", [body, after], execution_id=f"run-{number}"))
        async with play.manned(3, **QUICK, max_crashes=50):
            for _ in range(8):
                await kill_one(play, chance)
            assert {handle.execution_id: await ending(handle) for handle in handles} == expected
        assert is_over_before(play, "tail", "c")
        assert play.database.value("SELECT count(*) FROM zart_steps WHERE kind = 'failure'") == 32
        assert play.database.value(GIVEN_UP) == 16 * 2
        assert play.database.value("SELECT count(*) FROM deposits") == 32 * 5
        assert play.database.value("SELECT count(*) FROM zart_steps WHERE name = 'j'") == 32
        await eventually(lambda: not play.database.execute("SELECT * FROM zart_tasks"))
