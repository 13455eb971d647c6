"""Workers of different releases, on databases of different kinds."""

from pathlib import Path

import pytest

from tests.worker.processes.crew import crew
from tests.worker.processes.stage import Stage, eventually, stage

PATIENT = {"lease_timeout": "300s", "poll_interval": "300s"}


async def test_handler_on_one(migrated_url: str, tmp_path: Path) -> None:
    """A task waits for a worker that has its handler, and the others do their own work meanwhile."""
    async with stage(migrated_url, tmp_path) as play:
        old = await play.worker(**PATIENT, can=["script_thread"])
        new_task = await play.start("note a", execution_id="new")
        old_task = await play.start("block_thread b 0", execution_id="old", task="script_thread")
        await old_task.result(timeout="60s")
        assert await new_task.status() == "scheduled"
        assert "no handler" not in old.log
        assert old.is_running
        new = await play.worker(**PATIENT, can=["script"])
        await new_task.result(timeout="60s")
        assert [entry.worker for entry in play.ledger.began("a")] == [new.name]


async def test_handler_on_none(migrated_url: str, tmp_path: Path) -> None:
    """A worker says which tasks wait for a worker with another registry."""
    async with stage(migrated_url, tmp_path) as play:
        task = await play.start("note a", execution_id="new")
        worker = await play.worker(poll_interval="100ms", can=["script_thread"])
        await eventually(lambda: "1 tasks of 'script' in queue 'default' have been due" in worker.log)
        assert await task.status() == "scheduled"


async def test_handed_to_the_one_that_can(migrated_url: str, tmp_path: Path) -> None:
    """The work of a dead worker goes to the one that can do it, whoever takes it over."""
    async with stage(migrated_url, tmp_path) as play:
        first = await play.worker(can=["script"])
        handle = await play.start("note a", "hold b gate", execution_id="one")
        await play.began("b")
        await play.worker(can=["script_thread"], heartbeat_interval="200ms")
        first.kill()
        await eventually(lambda: play.database.value("SELECT worker_id IS NULL FROM zart_tasks"))
        play.open("gate")
        await play.worker(can=["script"])
        assert await handle.result(timeout="60s") == 2
        assert len(play.ledger.began("a")) == 1


async def test_schema_behind(database_url: str, tmp_path: Path) -> None:
    """A worker whose tables are not there yet refuses to start, and names the command that makes them."""
    with crew(database_url, tmp_path) as members:
        worker = members.spawn()
        await eventually(lambda: not worker.is_running)
    assert worker.exit_code == 1
    assert "SchemaOutdated" in worker.log
    assert "zart migrate" in worker.log


async def test_schema_ahead(migrated_url: str, tmp_path: Path) -> None:
    """A worker of the release before goes on while the tables are those of the next one."""
    async with stage(migrated_url, tmp_path) as play:
        play.database.execute("COMMENT ON TABLE zart_executions IS 'zart_sqla schema revision zart_9999'")
        await play.worker()
        assert await (await play.start("note a", execution_id="one")).result(timeout="60s") == 1


@pytest.mark.slow
@pytest.mark.parametrize("answer", [True, False])
async def test_pooler(answer: bool, migrated_url: str, tmp_path: Path) -> None:  # noqa: FBT001
    """Where no lock outlives a statement, as behind a transaction pooler, the lease alone tells who is dead."""
    async with stage(migrated_url, tmp_path) as play:
        forbid_locks(play, answer=answer)
        worker = await play.worker(lease_timeout="4s")
        assert play.database.value("SELECT lock_key IS NULL FROM zart_workers")
        handle = await play.start("note a", "hold b gate", execution_id="one")
        await play.began("b")
        other = await play.worker(lease_timeout="4s")
        worker.kill()
        left = play.database.value(
            "SELECT lease_until - now() > INTERVAL '2 s' FROM zart_workers WHERE pid = %s", worker.pid
        )
        assert left is True
        assert await play.began("b", times=2) == other.name
        play.open("gate")
        assert await handle.result(timeout="60s") == 2


def forbid_locks(play: Stage, *, answer: bool) -> None:
    """Have sessions find a function that takes no lock where they look for the one that does."""
    play.database.execute(
        f"""
        CREATE FUNCTION pg_try_advisory_lock(bigint) RETURNS boolean LANGUAGE sql AS 'SELECT {answer}';
        DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET search_path = public, pg_catalog', current_database()); END $$
        """
    )
