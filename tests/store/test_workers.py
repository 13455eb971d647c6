"""Workers: who lives, who has died, and what becomes of their tasks."""

import json
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import func, literal_column, select, update
from sqlalchemy.dialects.postgresql import INTERVAL

from tests.store.connections import Database
from tests.store.crew import GRACE, LEASE, claim, claim_one, finish, info, kill, put_down, record, register, rows, start
from zart_sqla.models.mapping import tables_of
from zart_sqla.records import ErrorRecord
from zart_sqla.statements import workers as statements
from zart_sqla.store import executions, tasks, workers
from zart_sqla.store.workers import Beat, Orphan


async def beat(database: Database, worker: UUID, *running: tuple[UUID, int]) -> Beat:
    """Say that the worker lives."""
    return await database.run(workers.beat, worker, running=running, lease_seconds=LEASE, grace_seconds=GRACE)


async def bury(database: Database, worker: UUID) -> list[UUID]:
    """Bury the dead; return who they were."""
    return [one.worker_id for one in await database.run(workers.bury, worker, grace_seconds=GRACE)]


async def take_over(database: Database, *dead: UUID, max_crashes: int = 3) -> list[Orphan]:
    """Free the tasks of the dead."""
    return await database.run(workers.take_over, list(dead), max_crashes=max_crashes)


async def silence(database: Database, worker: UUID, seconds: float) -> None:
    """Let the worker's last heartbeat be so long ago."""

    def age(connection: Any, names: Any) -> None:
        table = tables_of(names).workers
        then = func.now() - timedelta(seconds=seconds)
        connection.execute(update(table).values(heartbeat_at=then).where(table.c.worker_id == worker))

    await database.run(age)


@pytest.fixture
def _warm_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the server have been up for long enough to trust that a lock which is gone is gone for good."""
    monkeypatch.setattr(statements, "_SERVER_WARM_UP", literal_column("INTERVAL '0 seconds'", INTERVAL))
    _forget_statements()
    yield
    _forget_statements()


def _forget_statements() -> None:
    statements.beat.cache_clear()
    statements.bury.cache_clear()


async def test_register(database: Database) -> None:
    """A worker has a row until it is unregistered."""
    worker = await register(database, lock_key=2**62)
    (row,) = await rows(database, lambda tables: tables.workers)
    assert (row["worker_id"], row["hostname"], row["pid"], row["lock_key"]) == (worker, "here", 1, 2**62)
    assert row["lease_until"] - row["started_at"] == timedelta(seconds=LEASE)
    await database.run(workers.set_lock, worker, None)
    assert (await rows(database, lambda tables: tables.workers))[0]["lock_key"] is None
    assert await database.run(workers.unregister, worker) == 0
    assert await rows(database, lambda tables: tables.workers) == []


async def test_register_tells_the_time(database: Database) -> None:
    """A worker learns the time by the database's clock."""
    now = await database.run(workers.register, uuid4(), hostname="x", pid=1, lock_key=None, lease_seconds=1.5)
    (row,) = await rows(database, lambda tables: tables.workers)
    assert row["started_at"] == now


async def test_unregister_frees_what_is_left(database: Database) -> None:
    """A worker that leaves frees what it still holds; that is no crash."""
    worker, other = await register(database), await register(database)
    await start(database, "a", "b")
    await claim(database, worker)
    assert await database.run(workers.unregister, worker) == 2
    assert [(one.attempt, one.crashes) for one in await claim(database, other)] == [(2, 0), (2, 0)]


async def test_beat(database: Database) -> None:
    """A beat moves the lease, and tells that nothing is lost."""
    worker = await register(database, lease_seconds=1)
    claimed = await claim_one(database, worker)
    answer = await beat(database, worker, (claimed.task_id, claimed.attempt))
    assert (answer.is_alive, answer.lost, answer.has_dead) == (True, frozenset(), False)
    (row,) = await rows(database, lambda tables: tables.workers)
    assert (row["heartbeat_at"], row["lease_until"]) == (answer.now, answer.now + timedelta(seconds=LEASE))


async def test_beat_of_a_buried_worker(database: Database) -> None:
    """A worker that was taken for dead hears so, and that all it runs is lost."""
    worker, other = await register(database), await register(database)
    claimed = await claim_one(database, worker)
    await kill(database, worker)
    assert await bury(database, other) == [worker]
    await take_over(database, worker)
    answer = await beat(database, worker, (claimed.task_id, claimed.attempt))
    assert (answer.is_alive, answer.lost) == (False, frozenset({claimed.task_id}))
    assert [row["worker_id"] for row in await rows(database, lambda tables: tables.workers)] == [other]


async def test_beat_tells_what_is_lost(database: Database) -> None:
    """Tasks that were cancelled, put down or claimed anew are lost; those that are held are not."""
    worker = await register(database)
    await start(database, "held", "cancelled", "free", "again", "done")
    by_id = {one.execution_id: one for one in await claim(database, worker)}
    await database.run(executions.cancel, "cancelled")
    await finish(database, worker, by_id["done"])
    await put_down(database, worker, by_id["again"])
    (again,) = await claim(database, worker)
    await put_down(database, worker, by_id["free"])
    running = [(one.task_id, one.attempt) for one in by_id.values()]
    answer = await beat(database, worker, *running, (again.task_id, again.attempt), (uuid4(), 1))
    lost = {by_id[name].task_id for name in ("cancelled", "free", "again", "done")}
    assert lost < answer.lost
    assert len(answer.lost) == 5
    assert by_id["held"].task_id not in answer.lost


async def test_dead_by_lease(database: Database) -> None:
    """A worker whose lease ran out is dead, and a beat of another one tells so."""
    worker, other = await register(database), await register(database)
    assert await bury(database, other) == []
    await kill(database, worker)
    assert (await beat(database, other)).has_dead
    assert not (await beat(database, worker)).has_dead
    await kill(database, worker)
    assert await bury(database, worker) == []  # nobody buries itself
    assert await bury(database, other) == [worker]
    assert not (await beat(database, other)).has_dead


@pytest.mark.usefixtures("_warm_server")
async def test_dead_by_lock(database: Database) -> None:
    """A worker whose lock is gone is dead as soon as it has been silent for the grace, long before its lease."""
    other = await register(database)
    async with database.connected() as link:
        assert await link.call(lambda connection: workers.lock(connection, 77))
        worker = await register(database, lock_key=77)
        await silence(database, worker, GRACE + 1)
        assert await bury(database, other) == []
        await silence(database, worker, 0)
        await link.commit()
        await link.call(lambda connection: connection.invalidate())
    assert await bury(database, other) == []
    await silence(database, worker, GRACE + 1)
    assert (await beat(database, other)).has_dead
    assert await bury(database, other) == [worker]


async def test_lock_that_is_gone_after_a_restart(database: Database) -> None:
    """Right after a start of the server it says nothing that a worker from before has no lock."""
    other, worker = await register(database), await register(database, lock_key=78)
    await silence(database, worker, GRACE + 1)

    def start_before_the_server(connection: Any, names: Any) -> None:
        table = tables_of(names).workers
        before = func.pg_postmaster_start_time() - timedelta(minutes=1)
        connection.execute(update(table).values(started_at=before).where(table.c.worker_id == worker))

    await database.run(start_before_the_server)

    def seconds_up(connection: Any, _names: Any) -> float:
        uptime = func.now() - func.pg_postmaster_start_time()
        return float(connection.scalar(select(func.extract("epoch", uptime))))

    is_warm = await database.run(seconds_up) > 10
    assert (await bury(database, other) == [worker]) == is_warm


async def test_worker_without_lock(database: Database) -> None:
    """Behind a pooler that keeps no session only the lease counts."""
    other, worker = await register(database), await register(database)
    await silence(database, worker, LEASE * 10)
    assert await bury(database, other) == []


async def test_lock_is_taken_once(database: Database) -> None:
    """Another session cannot take a lock that is held, and neither sees another key's."""
    async with database.connected() as one, database.connected() as other:
        for key in (1, 2**40, 2**62, -5):
            assert await one.call(partial(workers.lock, lock_key=key))
            assert not await other.call(partial(workers.lock, lock_key=key))
            assert await other.call(partial(workers.lock, lock_key=key + 1000))


async def test_take_over(database: Database) -> None:
    """The tasks of the dead are due at once, with a crash counted; those of the living stay where they are."""
    dead, alive = await register(database), await register(database)
    claimed = await claim_one(database, dead, "a")
    await claim_one(database, alive, "b")
    await kill(database, dead)
    await bury(database, alive)
    assert await take_over(database, dead) == [Orphan(claimed.task_id, "a", 1, is_failed=False)]
    assert await take_over(database, dead) == []
    (again,) = await claim(database, alive)
    assert (again.execution_id, again.attempt, again.crashes, again.started_at) == ("a", 2, 1, claimed.started_at)


async def crash(database: Database, times: int, *, is_making_progress: bool = False) -> list[Orphan]:
    """Let so many workers die with the task, one after another; return what became of it each time."""
    undertaker = await register(database)
    found: list[Orphan] = []
    for number in range(times):
        worker = await register(database)
        (claimed,) = await claim(database, worker)
        if is_making_progress:
            await record(database, worker, claimed, f"step-{number}")
        await kill(database, worker)
        await bury(database, undertaker)
        found += await take_over(database, worker)
    return found


async def test_crashes_without_progress(database: Database) -> None:
    """A run that takes down so many workers without getting anywhere fails."""
    (run_id,) = await start(database, "order-1")
    assert await crash(database, 3) == [
        Orphan(run_id, "order-1", 1, is_failed=False),
        Orphan(run_id, "order-1", 2, is_failed=False),
        Orphan(run_id, "order-1", 3, is_failed=True),
    ]
    failed = await info(database)
    assert (failed.status, failed.started_at is not None, failed.completed_at is not None) == ("failed", True, True)
    assert failed.error is not None
    assert (failed.error["error_type"], failed.error["attempts"]) == ("WorkerCrashed", 3)
    assert "3 workers in a row died while they ran it" in failed.error["message"]
    assert await rows(database, lambda tables: tables.tasks) == []


async def test_crashes_with_progress(database: Database) -> None:
    """A checkpoint starts the count anew."""
    await start(database, "order-1")
    assert [one.crashes for one in await crash(database, 5, is_making_progress=True)] == [1] * 5
    assert (await info(database)).status == "scheduled"


async def test_crashes_and_a_turn_that_ends(database: Database) -> None:
    """A turn that ends by itself starts the count anew too."""
    await start(database, "order-1")
    await crash(database, 2)
    worker = await register(database)
    (claimed,) = await claim(database, worker)
    assert claimed.crashes == 2
    await put_down(database, worker, claimed)
    assert [one.crashes for one in await crash(database, 1)] == [1]


async def test_failed_for_its_crashes_and_resumed(database: Database) -> None:
    """Such a run can be resumed like any other that failed."""
    await start(database, "order-1")
    await crash(database, 3)
    assert await database.run(executions.resume, "order-1", uuid4())
    assert (await info(database)).status == "scheduled"
    assert [one.crashes for one in await crash(database, 1)] == [1]


@pytest.mark.parametrize("is_committed", [True, False])
async def test_take_over_beside_an_open_cancellation(is_committed: bool, database: Database) -> None:  # noqa: FBT001
    """An app that cancels in a transaction of its own holds up nobody; what it lets go is found later."""
    dead, alive = await register(database), await register(database)
    await start(database, "order-1", "order-2")
    await claim(database, dead, limit=2)
    await kill(database, dead)
    await bury(database, alive)
    async with database.connected() as link:
        assert await link.run(executions.cancel, "order-1")
        assert [one.execution_id for one in await take_over(database, dead)] == ["order-2"]
        assert await database.run(workers.has_orphans)
        await (link.commit() if is_committed else link.rollback())
    left = [] if is_committed else ["order-1"]
    assert [one.execution_id for one in await take_over(database)] == left
    assert not await database.run(workers.has_orphans)
    assert (await info(database)).status == ("cancelled" if is_committed else "scheduled")


@pytest.mark.parametrize("is_committed", [True, False])
async def test_unregister_beside_an_open_cancellation(is_committed: bool, database: Database) -> None:  # noqa: FBT001
    """A worker that leaves does not wait for it either."""
    leaving = await register(database)
    await start(database, "order-1", "order-2")
    await claim(database, leaving, limit=2)
    async with database.connected() as link:
        assert await link.run(executions.cancel, "order-1")
        assert await database.run(workers.unregister, leaving) == 1
        await (link.commit() if is_committed else link.rollback())
    assert await database.run(workers.has_orphans) is not is_committed
    left = [] if is_committed else [("order-1", 0)]  # nobody has crashed
    assert [(one.execution_id, one.crashes) for one in await take_over(database, max_crashes=1)] == left


async def test_two_undertakers(database: Database) -> None:
    """Of two that bury at the same time, one does; the other does not wait."""
    dead = await register(database)
    one, other = await register(database), await register(database)
    await kill(database, dead)
    async with database.connected() as link:
        assert len(await link.run(workers.bury, one, grace_seconds=GRACE)) == 1
        assert await bury(database, other) == []
        await link.commit()
    assert await bury(database, other) == []


async def test_crash_error_is_a_record(database: Database) -> None:
    """The error of a crash can be read back like any other."""
    await start(database, "order-1")
    await crash(database, 3)
    (run,) = await rows(database, lambda tables: tables.execution_runs)
    assert ErrorRecord(**run["error"]).category == "crash"
    ending = await database.run(executions.ending, "order-1")
    assert ending is not None
    assert ending.error == ErrorRecord(**json.loads(json.dumps(run["error"])))


async def test_nothing_is_lost(database: Database) -> None:
    """Whatever was claimed before a burial is found by the take-over after it."""
    dead, alive = await register(database), await register(database)
    await start(database, *"abcdef")
    await claim(database, dead, limit=4)
    await kill(database, dead)
    await bury(database, alive)
    assert sorted(one.execution_id for one in await take_over(database)) == ["a", "b", "c", "d"]
    found, _ = await database.run(tasks.claim, alive, task_names=["task"], queues=None, limit=9)
    assert sorted(one.execution_id for one in found) == list("abcdef")
