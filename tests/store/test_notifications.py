"""Notifications: who is told of what, when a transaction commits."""

import asyncio
from collections.abc import Iterator
from uuid import UUID, uuid4

import psycopg
import pytest

from tests.store.connections import Database, is_blocked
from tests.store.crew import ERROR, GRACE, claim, claim_one, finish, kill, register, renew, start
from tests.store.test_streams import age_mark, item
from zart_sqla import TableNames
from zart_sqla.store import executions, streams, tasks, workers

END = "no more"


class Ear:
    """Hears what is notified on the channels of some tables."""

    def __init__(self, connection: "psycopg.Connection[tuple[object, ...]]", names: TableNames) -> None:
        self._connection = connection
        self._names = names
        for channel in (names.done_channel, names.work_channel):
            connection.execute(f'LISTEN "{channel}"'.encode())

    def heard(self) -> list[tuple[str, str]]:
        """Return what has been notified since the last time, each as the kind of channel and its payload."""
        self._connection.execute("SELECT pg_notify(%s, %s)", (self._names.work_channel, END))
        found: list[tuple[str, str]] = []
        for one in self._connection.notifies(timeout=10):
            if one.payload == END:
                break
            found.append(("done" if one.channel == self._names.done_channel else "work", one.payload))
        return found


@pytest.fixture
def ear(migrated_url: str) -> Iterator[Ear]:
    """Listen to the database."""
    with psycopg.connect(migrated_url, autocommit=True) as connection:
        yield Ear(connection, TableNames())


async def test_end_of_a_run_that_is_awaited(database: Database, ear: Ear) -> None:
    """Its end is told, whichever it is, with the run's id; that of another is not."""
    worker = await register(database)
    runs = await start(database, "done", "failed", "cancelled", "unawaited")
    for name, run_id in zip(("done", "failed", "cancelled"), runs[:3], strict=True):
        assert await database.run(executions.await_end, name) == run_id
    done, failed, _, unawaited = await claim(database, worker)
    assert ear.heard() == []
    await finish(database, worker, unawaited)
    assert ear.heard() == []
    await finish(database, worker, done)
    await finish(database, worker, failed, ERROR)
    assert ear.heard() == [("done", str(done.run_id)), ("done", str(failed.run_id))]


async def test_cancelled(database: Database, ear: Ear) -> None:
    """A cancel is told to those who wait, and to the worker that runs it, if one does."""
    worker = await register(database)
    claimed = await claim_one(database, worker)
    (idle,) = await start(database, "idle")
    await database.run(executions.cancel, "order-1")
    assert ear.heard() == [("done", str(claimed.run_id)), ("work", f"cancel {claimed.run_id}")]
    await database.run(executions.cancel, "idle")
    assert ear.heard() == [("done", str(idle))]
    await database.run(executions.cancel, "idle")
    assert ear.heard() == []


async def test_await_end(database: Database) -> None:
    """Only a run that has not ended can be awaited, in whatever state it is, and more than once."""
    worker = await register(database)
    claimed = await claim_one(database, worker)
    for _ in range(2):
        assert await database.run(executions.await_end, "order-1") == claimed.run_id
    assert await finish(database, worker, claimed)
    assert await database.run(executions.await_end, "order-1") is None
    assert await database.run(executions.await_end, "unknown") is None


async def test_await_end_of_a_resumed_run(database: Database, ear: Ear) -> None:
    """The new run is awaited anew."""
    worker = await register(database)
    claimed = await claim_one(database, worker)
    await database.run(executions.await_end, "order-1")
    await finish(database, worker, claimed, ERROR)
    run_id = uuid4()
    await database.run(executions.resume, "order-1", run_id)
    assert await database.run(executions.await_end, "order-1") == run_id
    ear.heard()
    (again,) = await claim(database, worker)
    await finish(database, worker, again)
    assert ear.heard() == [("done", str(run_id))]


async def test_renewed_run(database: Database, ear: Ear) -> None:
    """Its end is told if it is awaited. For the next run that has to be asked anew, and so it is for its items."""
    worker = await register(database)
    claimed = await claim_one(database, worker)
    await database.run(executions.await_end, "order-1")
    await database.run(streams.follow, "order-1")
    await renew(database, worker, claimed)
    assert ear.heard() == [("done", str(claimed.run_id))]
    (second,) = await claim(database, worker)
    await database.run(streams.emit, worker, [item(second)])
    await renew(database, worker, second)
    assert ear.heard() == []
    (third,) = await claim(database, worker)
    assert await database.run(executions.await_end, "order-1") == third.run_id
    await finish(database, worker, third)
    assert ear.heard() == [("done", str(third.run_id))]


async def test_await_end_of_a_run_that_is_renewed(database: Database) -> None:
    """Whoever asks as the run ends and another begins waits for that commit, and has marked neither."""
    worker = await register(database)
    claimed = await claim_one(database, worker)
    async with database.connected() as link:
        await link.run(tasks.renew, worker, [tasks.RunToRenew(claimed, uuid4(), "2")])
        asking = asyncio.create_task(database.run(executions.await_end, "order-1"))
        assert await is_blocked(asking, database)
        await link.commit()
    assert await asking is None
    assert await database.run(executions.await_end, "order-1") != claimed.run_id


async def test_await_end_does_not_hold_up_claims(database: Database) -> None:
    """A task whose run is being marked as awaited can be claimed."""
    worker = await register(database)
    await start(database, "order-1")
    async with database.connected() as link:
        await link.run(executions.await_end, "order-1")
        assert len(await claim(database, worker)) == 1
        await link.commit()


async def test_failed_for_its_crashes(database: Database, ear: Ear) -> None:
    """The end of a run that took down too many workers is told."""
    dead, alive = await register(database), await register(database)
    claimed = await claim_one(database, dead)
    await database.run(executions.await_end, "order-1")
    await kill(database, dead)
    await database.run(workers.bury, alive, grace_seconds=GRACE)
    await database.run(workers.take_over, [dead], max_crashes=1)
    assert ear.heard() == [("done", str(claimed.run_id))]


async def test_taken_over(database: Database, ear: Ear) -> None:
    """A take-over that ends nothing tells nobody."""
    dead, alive = await register(database), await register(database)
    await claim_one(database, dead)
    await database.run(executions.await_end, "order-1")
    await kill(database, dead)
    await database.run(workers.bury, alive, grace_seconds=GRACE)
    await database.run(workers.take_over, [dead], max_crashes=2)
    assert ear.heard() == []


async def test_rolled_back(database: Database, ear: Ear) -> None:
    """What is rolled back is not told."""
    await start(database, "order-1")
    async with database.connected() as link:
        await link.run(executions.cancel, "order-1")
        await link.run(executions.notify_work)
    assert ear.heard() == []


async def test_notify_work(database: Database, ear: Ear) -> None:
    """Workers are woken on their channel, once a transaction."""
    async with database.connected() as link:
        await link.run(executions.notify_work)
        await link.run(executions.notify_work)
        await link.commit()
    assert ear.heard() == [("work", "")]


async def test_run_ids_are_all_that_is_told(database: Database, ear: Ear) -> None:
    """A payload is a run's id, however long or strange the execution's own is."""
    await start(database, "\N{GRINNING FACE}" * 500)
    await database.run(executions.cancel, "\N{GRINNING FACE}" * 500)
    ((_, payload),) = ear.heard()
    assert str(UUID(payload)) == payload


async def test_items_of_a_run_that_is_followed(database: Database, ear: Ear) -> None:
    """What it emits is told once a transaction, and once; if nobody follows, or not any more, nothing is."""
    worker = await register(database)
    claimed = await claim_one(database, worker)
    news = [("done", str(claimed.run_id))]
    await database.run(streams.emit, worker, [item(claimed, "a")])
    await database.run(executions.await_end, "order-1")
    await database.run(streams.emit, worker, [item(claimed, "b")])
    assert ear.heard() == []
    await database.run(streams.follow, "order-1")
    await database.run(streams.emit, worker, [item(claimed, "c"), item(claimed, "d"), item(claimed, "e", stream="x")])
    assert ear.heard() == news
    await database.run(streams.emit, worker, [item(claimed, "c")])
    assert ear.heard() == []
    await age_mark(database, 31)
    await database.run(streams.emit, worker, [item(claimed, "f")])
    assert ear.heard() == []
    await finish(database, worker, claimed)
    assert ear.heard() == news
