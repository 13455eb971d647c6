"""Steps that are stuck in one worker, and give back what they hold before another one takes up the retry."""

from pathlib import Path
from typing import Any

from tests.support.working import let_time_pass
from tests.worker.processes.stage import Stage, eventually, stage
from zart_sqla import ExecutionHandle

QUICK = {"heartbeat_interval": "200ms"}
"""Settings with which the dead are noticed sooner than by default."""

STALLED = "SELECT count(*) FROM zart_step_attempts WHERE name = 's' AND error ->> 'error_type' = 'StepStalled'"
"""How many attempts were given up because they were stuck."""


def happened(play: Stage) -> list[tuple[str, str]]:
    """Return what happened to the step, each time with the worker in which that was."""
    return [(entry.worker, entry.event) for entry in play.ledger.entries() if entry.step == "s"]


async def retried(play: Stage, handle: ExecutionHandle[Any]) -> list[tuple[str, str]]:
    """Let the delay before the next attempt be over until the run has completed; return what happened since.

    An attempt that was stuck only because the machine stood still is made once more.
    """
    before = len(happened(play))
    while not (await handle.status()).is_terminal:
        await let_time_pass(play.scheduler)
    assert await handle.result() == 1
    return list(dict.fromkeys(happened(play)[before:]))


async def test_retry_elsewhere(migrated_url: str, tmp_path: Path) -> None:
    """An attempt is over when what it shields is; the next one, elsewhere, takes longer and shows that it gets on."""
    async with stage(migrated_url, tmp_path) as play:
        await play.worker(**QUICK, max_concurrent_tasks=2, queues=["default", "own"])
        handle = await play.start("stall s gate", execution_id="one")
        await play.began("s")
        await play.worker(**QUICK, queues=["default"])
        await eventually(lambda: happened(play)[2:] == [("worker-0", "is late")])
        witness = await play.scheduler.start("script", ["note w"], queue="own")
        await witness.result(timeout="30s")  # the same worker would have recorded before that that the attempt is over
        assert play.database.value(STALLED) == 0
        await play.scheduler.start_many("script", [(None, ["hold other never"])] * 2, queue="own")
        play.open("gate")
        await play.began("other", times=2)  # the first worker has no slot any more
        assert happened(play)[3:] == [("worker-0", "has given back")]
        assert play.database.value(STALLED) == 1
        assert await retried(play, handle) == [("worker-1", "began"), ("worker-1", "ended")]


async def test_killed_while_it_is_late(migrated_url: str, tmp_path: Path) -> None:
    """The worker is killed before the attempt is over: another one makes it again, and then the next one."""
    async with stage(migrated_url, tmp_path) as play:
        await play.workers(2, **QUICK)
        handle = await play.start("stall s gate", execution_id="one")
        victim = await play.began("s")
        other = {"worker-0": "worker-1", "worker-1": "worker-0"}[victim]
        await eventually(lambda: happened(play)[2:] == [(victim, "is late")])
        play.find(victim).kill()
        await eventually(lambda: happened(play)[5:] == [(other, "is late")])
        assert happened(play)[3] == (other, "began")
        assert play.database.value(STALLED) == 0
        play.open("gate")
        await eventually(lambda: play.database.value(STALLED))
        assert happened(play)[6:] == [(other, "has given back")]
        assert await retried(play, handle) == [(other, "began"), (other, "ended")]
