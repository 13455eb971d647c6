"""Streams: numbered without gaps, each value once, only by who holds the run; and read from any offset on."""

import asyncio
import json
import random
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import update

from tests.store.connections import Database, is_blocked
from tests.store.crew import ERROR, GRACE, claim, claim_one, finish, info, kill, put_down, register, renew, rows, start
from zart_sqla.models.mapping import tables_of
from zart_sqla.records import ClaimedTask, NewEvent, RecordedStep, StepKind, StreamPosition
from zart_sqla.store import events, executions, streams, tasks, workers
from zart_sqla.store.streams import ItemToEmit, StreamPage

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
ENOUGH = 1000


def item(
    claimed: ClaimedTask, name: str = "progress", value: object = 1, *, stream: str = "progress", position: int = 0
) -> ItemToEmit:
    """Return a value to be emitted, with a checkpoint of this name."""
    step = RecordedStep(name=name, kind=StepKind.EMIT, position=position, started_at=BEGAN)
    return ItemToEmit(claimed, step, stream, json.dumps(value))


async def emit(database: Database, worker: UUID, *items: ItemToEmit) -> list[str]:
    """Emit values in one statement; return the names of the checkpoints that are recorded."""
    return sorted(name for _, name in await database.run(streams.emit, worker, items))


async def emit_many(database: Database, worker: UUID, claimed: ClaimedTask, count: int) -> None:
    """Emit so many numbers."""
    await emit(database, worker, *(item(claimed, f"progress#{number}", number) for number in range(count)))


async def items(database: Database) -> list[tuple[str, str, int, Any]]:
    """Return all items: execution, stream, number and value."""
    found = await rows(database, lambda tables: tables.stream_items)
    assert all(one["emitted_at"] is not None for one in found)
    return sorted((one["execution_id"], one["stream"], one["seq"], one["value"]) for one in found)


async def recorded(database: Database) -> set[str]:
    """Return the names of all checkpoints."""
    return {one["name"] for one in await rows(database, lambda tables: tables.steps)}


def at(offset: int = 0, stream: str = "progress", execution_id: str = "order-1") -> StreamPosition:
    """Return where somebody is who reads."""
    return StreamPosition(execution_id=execution_id, stream=stream, offset=offset)


def page(claimed: ClaimedTask, *values: str, has_ended: bool = False) -> StreamPage:
    """Return the last page of what there is to read while this run is the execution's current one."""
    return StreamPage(claimed.run_id, list(values), is_last=True, has_ended=has_ended)


async def read(database: Database, *args: Any, **options: Any) -> StreamPage:
    """Return a page."""
    found = await database.run(streams.read, at(*args, **options))
    assert found is not None
    return found


# Emitting --------------------------------------------------------------------------------------------------------


async def test_emit(database: Database) -> None:
    """An item and its checkpoint are written together."""
    worker = await register(database)
    claimed = await claim_one(database, worker)
    assert await emit(database, worker, item(claimed, value={"done": 3})) == ["progress"]
    (row,) = await rows(database, lambda tables: tables.stream_items)
    assert (row["execution_id"], row["stream"], row["seq"], row["value"]) == ("order-1", "progress", 0, {"done": 3})
    assert row["run_id"] == claimed.run_id
    (step,) = await rows(database, lambda tables: tables.steps)
    assert (step["run_id"], step["name"], step["kind"], step["position"]) == (claimed.run_id, "progress", "emit", 0)
    assert (step["attempts"], step["result"], step["error"], step["started_at"]) == (1, None, None, BEGAN)
    assert step["completed_at"] is not None
    (found,) = await database.run(executions.steps_of, "order-1")
    assert (found.name, found.kind, found.status, found.result) == ("progress", StepKind.EMIT, "completed", None)


async def test_several_at_once(database: Database) -> None:
    """In one statement each stream of each execution gets its own numbers, in the order of the values."""
    worker = await register(database)
    one, other = await claim_one(database, worker), await claim_one(database, worker, "order-2")
    await emit(database, worker, item(one, "a", "a0", stream="a"), item(other, "a", "x0", stream="a"))
    batch = [
        item(other, "a#2", "x1", stream="a", position=9),
        item(one, "b", "b0", stream="b", position=7),
        item(one, "a#3", "a1", stream="a", position=5),
        item(one, "a#2", "a2", stream="a", position=3),
        item(other, "a#3", "x2", stream="a", position=1),
    ]
    assert await emit(database, worker, *batch) == ["a#2", "a#2", "a#3", "a#3", "b"]
    assert await items(database) == [
        *(("order-1", "a", number, f"a{number}") for number in range(3)),
        ("order-1", "b", 0, "b0"),
        *(("order-2", "a", number, f"x{number}") for number in range(3)),
    ]


async def test_again(database: Database) -> None:
    """What is recorded already adds nothing, and leaves no gap; also if it comes beside what is new."""
    worker = await register(database)
    claimed = await claim_one(database, worker)
    for _ in range(2):
        assert await emit(database, worker, item(claimed, "progress", 0)) == ["progress"]
    batch = [item(claimed, name, value) for name, value in (("progress", 7), ("progress#2", 1), ("progress#3", 2))]
    for _ in range(2):
        assert await emit(database, worker, *batch) == ["progress", "progress#2", "progress#3"]
    assert await items(database) == [("order-1", "progress", number, number) for number in range(3)]
    assert len(await rows(database, lambda tables: tables.steps)) == 3


async def test_again_before_the_first_is_committed(database: Database) -> None:
    """A write that is repeated, while the first is still under way on a lost connection, waits and adds nothing."""
    worker = await register(database)
    claimed = await claim_one(database, worker)
    for is_committed, number in ((False, 0), (True, 1)):
        async with database.connected() as link:
            assert await link.run(streams.emit, worker, [item(claimed, f"a{number}", number)])
            waiting = asyncio.create_task(emit(database, worker, item(claimed, f"a{number}", number)))
            assert await is_blocked(waiting, database)
            await (link.commit() if is_committed else link.rollback())
        assert await waiting == [f"a{number}"]
    assert await items(database) == [("order-1", "progress", number, number) for number in range(2)]


async def test_values_and_names_come_through(database: Database) -> None:
    """Values and names of any kind are what they were."""
    worker = await register(database)
    claimed = await claim_one(database, worker, "order-%_/:'\"🎉")
    names = ["%", "_", "a/b:c", "'\"", "🎉" * 100, "progress#2"]
    values = [None, [1, {"a": None}], "Zoë 🎉", 2**70, 0.1, "x" * 100_000]
    batch = [
        item(claimed, f"step {number}", value, stream=stream)
        for number, (stream, value) in enumerate(zip(names, values, strict=True))
    ]
    await emit(database, worker, *batch)
    for stream, value in zip(names, values, strict=True):
        page = await read(database, 0, stream, execution_id=claimed.execution_id)
        assert [json.loads(one) for one in page.values] == [value]


async def test_fence(database: Database) -> None:
    """Who does not hold the task writes neither item nor checkpoint; of a batch, the others are written."""
    worker, other = await register(database), await register(database)
    claimed, gone = await claim_one(database, worker), await claim_one(database, worker, "order-2")
    assert await emit(database, other, item(claimed)) == []
    assert await emit(database, uuid4(), item(claimed)) == []
    await put_down(database, worker, gone)
    (again,) = await claim(database, worker)
    assert again.task_id == gone.task_id
    assert await emit(database, worker, item(gone, "old"), item(claimed, "good"), item(again, "new", 2)) == [
        "good",
        "new",
    ]
    assert await items(database) == [("order-1", "progress", 0, 1), ("order-2", "progress", 0, 2)]
    assert await recorded(database) == {"good", "new"}


async def test_a_worker_that_died(database: Database) -> None:
    """What it left behind stays; it can write no more, and who takes over goes on counting."""
    dead, worker = await register(database), await register(database)
    claimed = await claim_one(database, dead)
    await emit(database, dead, item(claimed, "progress", 0))
    await kill(database, dead)
    await database.run(workers.bury, worker, grace_seconds=GRACE)
    await database.run(workers.take_over, [], max_crashes=5)
    assert await emit(database, dead, item(claimed, "progress#2", "late")) == []
    (again,) = await claim(database, worker)
    assert await emit(database, worker, item(again, "progress", 0), item(again, "progress#2", 1))
    assert await items(database) == [("order-1", "progress", number, number) for number in range(2)]


async def test_a_run_that_ends_meanwhile(database: Database) -> None:
    """A cancel waits for a value that is being written: whoever sees the end sees all that was emitted before."""
    worker = await register(database)
    claimed = await claim_one(database, worker)
    async with database.connected() as link:
        assert await link.run(streams.emit, worker, [item(claimed)])
        cancelling = asyncio.create_task(database.run(executions.cancel, "order-1"))
        assert await is_blocked(cancelling, database)
        assert await read(database) == page(claimed)
        await link.commit()
    assert await cancelling
    assert await read(database) == page(claimed, "1", has_ended=True)
    assert await emit(database, worker, item(claimed, "late")) == []


@pytest.mark.parametrize("is_committed", [True, False])
async def test_a_cancel_that_is_not_committed(database: Database, is_committed: bool) -> None:  # noqa: FBT001
    """Nobody waits for an app that is about to cancel a run: its value is passed over, and others are written."""
    worker = await register(database)
    claimed, other = await claim_one(database, worker), await claim_one(database, worker, "order-2")
    async with database.connected() as link:
        assert await link.run(executions.cancel, "order-1")
        batch = [item(claimed, "a", 0), item(other, "b", 0), item(claimed, "c", 1)]
        assert await emit(database, worker, *batch) == ["b"]
        assert await database.run(tasks.held, worker, [claimed]) == {claimed.task_id}
        await (link.commit() if is_committed else link.rollback())
    assert await emit(database, worker, *batch) == (["b"] if is_committed else ["a", "b", "c"])
    of_first = [] if is_committed else [("order-1", "progress", number, number) for number in range(2)]
    assert await items(database) == [*of_first, ("order-2", "progress", 0, 0)]


async def test_an_offer_that_is_not_committed(database: Database) -> None:
    """An app that is about to offer an event locks nobody out."""
    worker = await register(database)
    claimed = await claim_one(database, worker)
    async with database.connected() as link:
        await link.run(events.offer, NewEvent(execution_id="order-1", name="paid", payload="1"))
        assert await emit(database, worker, item(claimed)) == ["progress"]
        await link.commit()
    assert len(await items(database)) == 1


async def test_resumed_run(database: Database) -> None:
    """It goes on counting in the streams of the execution, and does not emit again what the failed run did."""
    worker = await register(database)
    claimed = await claim_one(database, worker)
    await emit(database, worker, item(claimed, "progress", 0), item(claimed, "progress#2", 1))
    await finish(database, worker, claimed, ERROR)
    run_id = uuid4()
    assert await database.run(executions.resume, "order-1", run_id)
    (again,) = await claim(database, worker)
    history = (await database.run(tasks.journal, [run_id]))[run_id]
    assert {(one.name, one.kind) for one in history.steps} == {("progress", "emit"), ("progress#2", "emit")}
    await emit(database, worker, item(again, "progress#2", "again"), item(again, "progress#3", 2))
    assert await items(database) == [("order-1", "progress", number, number) for number in range(3)]
    found = await rows(database, lambda tables: tables.stream_items)
    assert {one["seq"]: one["run_id"] for one in found} == {0: claimed.run_id, 1: claimed.run_id, 2: run_id}


async def test_many_at_once(database: Database) -> None:
    """As many as a batch holds are numbered without gaps, of one run as of many."""
    worker = await register(database)
    await start(database, *(f"order-{number}" for number in range(ENOUGH)))
    claimed = await claim(database, worker, ENOUGH)
    assert len(await emit(database, worker, *(item(one) for one in claimed))) == ENOUGH
    await emit(database, worker, *(item(claimed[0], f"a{number}", number) for number in range(ENOUGH)))
    found = await rows(database, lambda tables: tables.stream_items)
    execution_id = claimed[0].execution_id
    numbers = sorted((one["seq"], one["value"]) for one in found if one["execution_id"] == execution_id)
    assert numbers == [(0, 1), *((number + 1, number) for number in range(ENOUGH))]
    assert len(found) == 2 * ENOUGH


# Reading ---------------------------------------------------------------------------------------------------------


async def test_read(database: Database) -> None:
    """A page has what is there from an offset on, and tells whether the execution has ended."""
    worker = await register(database)
    claimed = await claim_one(database, worker)
    assert await read(database) == page(claimed)
    await emit_many(database, worker, claimed, 3)
    await emit(database, worker, item(claimed, "other", 9, stream="other"))
    assert await read(database) == page(claimed, "0", "1", "2")
    assert await read(database, 2) == page(claimed, "2")
    assert await read(database, 3) == await read(database, 2**63 - 1) == page(claimed)
    assert await finish(database, worker, claimed)
    assert await read(database, 1) == page(claimed, "1", "2", has_ended=True)
    assert await read(database, 0, "nothing") == page(claimed, has_ended=True)
    assert await database.run(streams.read, at(execution_id="nobody")) is None


async def test_read_over_runs(database: Database) -> None:
    """A page has what all runs have emitted, and tells which run is the current one: that has not ended."""
    worker = await register(database)
    claimed = await claim_one(database, worker)
    for number in range(3):
        await emit(database, worker, item(claimed, "progress", number))
        assert await renew(database, worker, claimed)
        (claimed,) = await claim(database, worker)
    assert await read(database, 1) == page(claimed, "1", "2")


async def test_pages(database: Database) -> None:
    """No more is read at once than so many items, or so many bytes; but one item, however large it is."""
    worker = await register(database)
    claimed = await claim_one(database, worker)
    await emit_many(database, worker, claimed, streams.PAGE_ITEMS + 1)
    full = await read(database)
    assert (len(full.values), full.is_last) == (streams.PAGE_ITEMS, False)
    assert await read(database, streams.PAGE_ITEMS) == page(claimed, page_end())
    large = [noise(number) for number in range(3)]
    await emit(database, worker, *(item(claimed, one[:20], one, stream="large") for one in large))
    for offset, one in enumerate(large):
        found = await read(database, offset, "large")
        assert ([json.loads(value) for value in found.values], found.is_last) == ([one], False)
    assert await read(database, 3, "large") == page(claimed)


def page_end() -> str:
    """Return the last item of a stream that is one item longer than a page."""
    return str(streams.PAGE_ITEMS)


def noise(seed: int) -> str:
    """Return text that fills a page, also when it is compressed."""
    return random.Random(seed).randbytes(streams.PAGE_BYTES).hex()


# Following -------------------------------------------------------------------------------------------------------


async def run_row(database: Database) -> dict[str, Any]:
    """Return the one run that there is."""
    (found,) = await rows(database, lambda tables: tables.execution_runs)
    return found


async def age_mark(database: Database, seconds: float) -> None:
    """Let the mark of the one that follows be so much older."""
    await database.run(_age_mark, seconds)


def _age_mark(connection: Any, names: Any, seconds: float) -> None:
    runs = tables_of(names).execution_runs
    older = runs.c.followed_until - timedelta(seconds=seconds)
    connection.execute(update(runs).values(followed_until=older))


async def test_follow(database: Database) -> None:
    """The first who follows marks the run for half a minute; others find the mark, and renew it when half is over."""
    worker = await register(database)
    claimed = await claim_one(database, worker)
    found = await database.run(streams.follow, "order-1")
    assert found is not None
    assert (found.run_id, found.was_followed) == (claimed.run_id, False)
    assert (await run_row(database))["is_awaited"] is True
    await age_mark(database, 1)
    marked = await run_row(database)
    again = await database.run(streams.follow, "order-1")
    assert again is not None
    assert again.was_followed
    assert await run_row(database) == marked
    for seconds, was_followed in ((20, True), (31, False)):
        await age_mark(database, seconds)
        older = await run_row(database)
        again = await database.run(streams.follow, "order-1")
        assert again is not None
        assert again.was_followed is was_followed
        assert (await run_row(database))["followed_until"] > older["followed_until"]
    assert await finish(database, worker, claimed)
    ended = await run_row(database)
    assert await database.run(streams.follow, "order-1") is None
    assert await run_row(database) == ended
    assert await database.run(streams.follow, "nobody") is None


async def test_follow_at_the_same_moment(database: Database) -> None:
    """Who finds a mark that was made just before may miss what that one misses, until it is a moment old."""
    await start(database, "order-1")
    async with database.connected() as link:  # in a transaction time stands still
        for seconds, was_followed in ((0.0, False), (0.0, False), (0.05, False), (0.05, True)):
            await link.run(_age_mark, seconds)
            found = await link.run(streams.follow, "order-1")
            assert found is not None
            assert found.was_followed is was_followed


async def test_follow_a_resumed_run(database: Database) -> None:
    """The new run is not followed because the old one was."""
    worker = await register(database)
    claimed = await claim_one(database, worker)
    await database.run(streams.follow, "order-1")
    await finish(database, worker, claimed, ERROR)
    run_id = uuid4()
    await database.run(executions.resume, "order-1", run_id)
    found = await database.run(streams.follow, "order-1")
    assert found is not None
    assert (found.run_id, found.was_followed) == (run_id, False)
    assert (await info(database)).run_id == run_id


async def test_follow_while_the_run_ends(database: Database) -> None:
    """Whoever begins to follow as the run ends waits for that commit, and then sees the end."""
    worker = await register(database)
    claimed = await claim_one(database, worker)
    async with database.connected() as link:
        await link.run(tasks.finish, worker, [tasks.RunToFinish(claimed, "1", None)])
        following = asyncio.create_task(database.run(streams.follow, "order-1"))
        assert await is_blocked(following, database)
        await link.commit()
    await following
    assert (await read(database)).has_ended


async def test_follow_while_the_run_is_renewed(database: Database) -> None:
    """Whoever begins to follow as the run ends and another begins waits for that commit, and then sees that one."""
    worker = await register(database)
    claimed = await claim_one(database, worker)
    async with database.connected() as link:
        await link.run(tasks.renew, worker, [tasks.RunToRenew(claimed, uuid4(), "2")])
        following = asyncio.create_task(database.run(streams.follow, "order-1"))
        assert await is_blocked(following, database)
        await link.commit()
    found = await following
    assert found is not None
    assert found.run_id == claimed.run_id
    assert (await read(database)).run_id != claimed.run_id
