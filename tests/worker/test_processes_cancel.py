"""Cancelling what runs in other processes: the notification interrupts it, for with these settings nothing else can."""

from pathlib import Path

import pytest

from tests.worker.processes.stage import PATIENCE, Stage, eventually, stage
from zart_sqla import ExecutionStatus

DEAF = {"lease_timeout": "600s", "heartbeat_interval": "200s", "poll_interval": "600s"}
"""A worker that looks for nothing by itself before the test has lost its patience."""

assert PATIENCE < 100


def seen(play: Stage, event: str) -> set[tuple[str, str, str]]:
    """Return of which executions and in which workers this has happened to steps that stand until interrupted."""
    entries = [entry for entry in play.ledger.entries() if entry.event == event]
    return {(entry.execution_id, entry.step, entry.worker) for entry in entries if entry.step.startswith("stand")}


async def cancel(play: Stage, *execution_ids: str, standing: int) -> None:
    """Cancel the first of these executions when so many steps stand, and see that all of them are interrupted."""
    await eventually(lambda: len(seen(play, "began")) == standing)
    await play.scheduler.handle(execution_ids[0]).cancel()
    await eventually(lambda: seen(play, "interrupted") == seen(play, "began"))
    assert {execution_id for execution_id, *_ in seen(play, "began")} <= set(execution_ids)
    assert len(seen(play, "began")) == standing
    assert {await play.scheduler.handle(name).status() for name in execution_ids} == {ExecutionStatus.CANCELLED}
    assert play.database.execute("SELECT * FROM zart_tasks") == []


@pytest.mark.parametrize(("line", "standing"), [("stand stand-a", 1), ("gather a stand:3", 3)])
async def test_steps(line: str, standing: int, migrated_url: str, tmp_path: Path) -> None:
    """A step that runs in another process is interrupted, and so are those that run side by side with it."""
    async with stage(migrated_url, tmp_path) as play:
        await play.worker(**DEAF)
        await play.start(line, execution_id="one")
        await cancel(play, "one", standing=standing)


async def test_scheduled_children(migrated_url: str, tmp_path: Path) -> None:
    """The children of a group are interrupted in all workers that are at them."""
    async with stage(migrated_url, tmp_path) as play:
        await play.workers(2, **DEAF, max_concurrent_tasks=2)
        await play.start("fan f stand:4", execution_id="one")
        await cancel(play, "one", standing=4)
        assert {worker for *_, worker in seen(play, "interrupted")} == {"worker-0", "worker-1"}


async def test_child_executions(migrated_url: str, tmp_path: Path) -> None:
    """The executions that a workflow has started, and their groups, are interrupted in all workers that are at them."""
    scripts = [["stand stand-a"], ["stand stand-b"], ["fan f stand:2"]]
    async with stage(migrated_url, tmp_path) as play:
        await play.workers(2, **DEAF, max_concurrent_tasks=2)
        await play.scheduler.start("parent", scripts, execution_id="one")
        await cancel(play, "one", "one-0", "one-1", "one-2", standing=4)
        assert {worker for *_, worker in seen(play, "interrupted")} == {"worker-0", "worker-1"}
