"""What can be asked of the queue and its workers."""

from datetime import timedelta

import pytest
from sqlalchemy import delete

from tests.store.connections import Database
from tests.store.crew import LEASE, claim, kill, make_due, register, start
from zart_sqla.models.mapping import tables_of
from zart_sqla.store import diagnosis


async def test_workers(database: Database) -> None:
    """Each worker is listed with what it holds and for how long it counts as alive."""
    busy, dead = await register(database, lock_key=1), await register(database)
    await start(database, "a", "b")
    await claim(database, busy)
    await kill(database, dead)
    first, second = await database.run(diagnosis.workers)
    assert (first.worker_id, first.hostname, first.pid, first.has_lock, first.tasks) == (busy, "here", 1, True, 2)
    assert first.is_alive
    assert first.lease_seconds == pytest.approx(LEASE, abs=20)
    assert (second.worker_id, second.has_lock, second.tasks, second.is_alive) == (dead, False, 0, False)


async def test_overdue(database: Database) -> None:
    """Tasks that nobody takes are counted for each name and queue, the longest waiting first."""
    assert await database.run(diagnosis.overdue, 0) == []
    await start(database, "a", task_name="old")
    await make_due(database, later=-timedelta(hours=1))
    await start(database, "b", "c", queue="slow")
    assert [(one.task_name, one.queue, one.tasks) for one in await database.run(diagnosis.overdue, 0)] == [
        ("old", "default", 1),
        ("task", "slow", 2),
    ]
    (old,) = await database.run(diagnosis.overdue, 1800)
    assert old.seconds == pytest.approx(3600, abs=60)
    worker = await register(database)
    await claim(database, worker, task_names=["old"])
    assert await database.run(diagnosis.overdue, 1800) == []


async def test_lost(database: Database) -> None:
    """A run that has not ended and has no task would be found."""
    await start(database, *"abc")
    assert await database.run(diagnosis.lost, 2) == diagnosis.Lost(0, [])
    await database.run(lambda connection, names: connection.execute(delete(tables_of(names).tasks)))
    assert await database.run(diagnosis.lost, 2) == diagnosis.Lost(3, ["a", "b"])


async def test_backend(database: Database) -> None:
    """A connection tells which of the server's processes answers on it."""
    async with database.connected() as one, database.connected() as other:
        assert await one.call(diagnosis.backend) != await other.call(diagnosis.backend)
