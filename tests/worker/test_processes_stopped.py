"""Workers that stand still and go on: a slow one keeps its work, one that stood too long cannot write any more."""

import asyncio
import random
from pathlib import Path

import psycopg
import pytest

from tests.worker.processes.stage import eventually, stage

pytestmark = pytest.mark.slow

LEASE = {"lease_timeout": "5s"}


@pytest.mark.parametrize("ends_first", ["the other", "the stopped one"])
async def test_past_its_lease(ends_first: str, migrated_url: str, tmp_path: Path) -> None:
    """Another worker takes over; the stopped one cannot write when it goes on, and works on under a new id."""
    async with stage(migrated_url, tmp_path) as play:
        stopped = await play.worker(**LEASE)
        handle = await play.start("note a", "hold b gate", "note c", execution_id="one")
        await play.began("b")
        old_id = play.worker_id(stopped)
        other = await play.worker(**LEASE)
        stopped.freeze()
        assert await play.began("b", times=2) == other.name
        if ends_first == "the other":
            play.open("gate")
            assert await handle.result(timeout="60s") == 3
        stopped.thaw()
        new_id = await eventually(lambda: play.worker_id(stopped))
        assert new_id != old_id
        play.open("gate")
        assert await handle.result(timeout="60s") == 3
        assert [entry.worker for entry in play.ledger.began("c")] == [other.name]
        other.kill()
        assert await (await play.start("note d", execution_id="two")).result(timeout="60s") == 1
        assert [entry.worker for entry in play.ledger.began("d")] == [stopped.name]
        assert play.worker_id(stopped) == new_id


async def test_within_its_lease(migrated_url: str, tmp_path: Path) -> None:
    """A worker that stands still for a while is not taken for dead: its connection is there."""
    async with stage(migrated_url, tmp_path) as play:
        stopped = await play.worker()
        handle = await play.start("hold a gate", execution_id="one")
        await play.began("a")
        worker_id = play.worker_id(stopped)
        other = await play.worker()
        stopped.freeze()
        await eventually(
            lambda: play.database.value(
                """
                SELECT min(heartbeat_at) FILTER (WHERE pid = %s) + INTERVAL '4 s' < max(heartbeat_at) FROM zart_workers
                """,
                stopped.pid,
            )
        )
        stopped.thaw()
        play.open("gate")
        await handle.result(timeout="60s")
        assert [entry.worker for entry in play.ledger.began("a")] == [stopped.name]
        assert play.worker_id(stopped) == worker_id
        assert "dead" not in other.log


async def test_slower_than_the_lease(migrated_url: str, tmp_path: Path) -> None:
    """No handler is so slow, nor so greedy, that its worker loses it: heartbeats do not depend on handlers."""
    async with stage(migrated_url, tmp_path) as play:
        workers = await play.workers(4, **LEASE, max_concurrent_tasks=1)
        ids = {play.worker_id(worker) for worker in workers}
        handles = [
            await play.start(f"{command} {command} 7", execution_id=f"{task}-{command}", task=task)
            for task, command in (
                ("script", "block"),
                ("script", "compute"),
                ("script", "block_thread"),
                ("script_thread", "compute"),
            )
        ]
        for handle in handles:
            assert await handle.result(timeout="60s") == 1
        assert len(play.ledger.entries()) == 2 * len(handles)
        assert {play.worker_id(worker) for worker in workers} == ids


async def test_in_a_commit(migrated_url: str, tmp_path: Path) -> None:
    """A worker that stops in the middle of its writer's transaction does not hold up its own takeover for ever."""
    async with stage(migrated_url, tmp_path) as play, await blocker(migrated_url) as blocking:
        stopped = await play.worker(**LEASE)
        await play.start("note a", "nap slow 1h", execution_id="one")
        await eventually(
            lambda: play.database.execute(
                "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'"
            )
        )
        other = await play.worker(**LEASE)
        stopped.freeze()
        await blocking.close()
        await eventually(lambda: ("one", "slow") in play.recorded())
        await eventually(lambda: play.database.value("SELECT is_waiting FROM zart_tasks"))
        writer = play.database.value("SELECT writer FROM audit WHERE kind = 'checkpoint' AND detail = 'slow'")
        assert writer == other.name
        stopped.thaw()
        await eventually(lambda: play.worker_id(stopped))


async def blocker(url: str) -> psycopg.AsyncConnection:
    """Make whoever records a step named `slow` wait until the connection that is returned is closed."""
    connection = await psycopg.AsyncConnection.connect(url, autocommit=True)
    await connection.execute("SELECT pg_advisory_lock(42)")
    await connection.execute(
        """
        CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM pg_advisory_xact_lock_shared(42);
            RETURN NEW;
        END $$;
        CREATE TRIGGER wait BEFORE INSERT ON zart_steps FOR EACH ROW WHEN (NEW.name = 'slow') EXECUTE FUNCTION wait();
        """
    )
    return connection


@pytest.mark.parametrize("seed", [1])
async def test_at_random_instants(seed: int, migrated_url: str, tmp_path: Path) -> None:
    """Workers that stop and go on at any time, within their leases and past them: all runs complete, each once."""
    chance = random.Random(seed)
    lines = [
        "note a",
        "deposit deposit-b",
        "nap c 300ms",
        "note d",
        "nap e 600ms",
        "deposit_thread deposit-f",
        "note g",
    ]
    async with stage(migrated_url, tmp_path) as play:
        workers = await play.workers(3, lease_timeout="2s", poll_interval="1s", max_concurrent_tasks=5, max_crashes=50)
        await play.scheduler.start_many("script", [(f"run-{number}", lines) for number in range(100)])
        for _ in range(8):
            stopped = chance.choice(workers)
            stopped.freeze()
            await asyncio.sleep(chance.uniform(0, 4))  # the length of the stop is what is random here
            play.check()
            stopped.thaw()
        await play.completed(100)
