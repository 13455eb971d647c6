"""Workers that are killed: what they had recorded stays, the rest runs again elsewhere, and all ends once."""

from pathlib import Path

from tests.worker.processes.stage import stage


async def test_killed_in_a_step(migrated_url: str, tmp_path: Path) -> None:
    """Another worker runs the step again, and none of those before it."""
    async with stage(migrated_url, tmp_path) as play:
        await play.workers(2)
        handle = await play.start("note a", "hold b gate", "note c", execution_id="one")
        play.find(await play.began("b")).kill()
        await play.began("b", times=2)
        play.open("gate")
        assert await handle.result(timeout="30s") == 3
        assert [len(play.ledger.began(step)) for step in "abc"] == [1, 2, 1]
