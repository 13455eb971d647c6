"""Costs, counted and not timed: statements, commits and connections. See also the table of `test_costs_table`."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg
import pytest
from sqlalchemy import select

from tests.support.traffic import Traffic, traffic
from tests.support.waiting import PATIENCE, eventually
from tests.support.working import let_time_pass, scheduler_on, until, worker_on, working
from zart_sqla import (
    ExecutionCancelled,
    ExecutionHandle,
    ExecutionStatus,
    PostgresScheduler,
    Retry,
    context,
    durable,
    emit,
    gather,
    schedule,
    sleep,
    step,
    trx,
    wait,
    wait_for_event,
)
from zart_sqla.client import streams

TRANSACTION = ["BEGIN", "COMMIT"]
JOURNAL = "CAST(zart_steps.result AS TEXT)"
"""What only the query has that reads what there is of runs."""


@step
async def number_step(number: int) -> int:
    """Give a small value."""
    return number


@step(retry=Retry.fixed(5, 0))
async def flaky_step() -> None:
    """Fail twice."""
    if context().attempt <= 2:
        raise OSError


@step
async def trx_step() -> None:
    """Have a transaction."""
    await trx()


@durable
async def steps_in_a_row(count: int) -> int:
    """Run steps one after the other."""
    for number in range(count):
        await number_step(number)
    return count


@durable
async def steps_side_by_side(count: int) -> int:
    """Run steps side by side, 500 at a time, and once more all of them in a replay."""
    for first in range(0, count, 500):
        await gather(*(number_step(number) for number in range(first, min(first + 500, count))))
    await sleep("night", "1h")
    return count


@durable
async def children(count: int) -> None:
    """Run steps as tasks of their own."""
    await wait([schedule(number_step(number)) for number in range(count)])


@durable
async def sleeper() -> None:
    """Sleep for longer than a turn stays in the process."""
    await sleep("nap", "600ms")


@durable
async def listener(count: int) -> None:
    """Wait for so many events."""
    for _ in range(count):
        await wait_for_event("paid")


@durable
async def counter(count: int) -> None:
    """Emit so many values."""
    for number in range(count):
        await emit("progress", number)


@durable
async def retrier() -> None:
    """Have a step that fails twice."""
    await flaky_step()


@durable
async def writer() -> None:
    """Have a step with a transaction of its own."""
    await trx_step()


@dataclass
class Watch:
    """A quiet worker, and an eye on what is said to the database.

    Attributes:
        scheduler: the app's scheduler.
        said: what was said.
        outside: a connection whose statements are not counted.
    """

    scheduler: PostgresScheduler
    said: Traffic
    outside: asyncpg.Connection

    async def count(self, doing: Callable[[], Awaitable[object]]) -> tuple[int, list[str]]:
        """Return the statements and transactions that it takes to start something and run it to its end."""
        self.said.clear()
        await doing()
        await eventually(self.is_idle)
        return len(self.said.statements), list(self.said.transactions)

    async def is_idle(self) -> bool:
        """Tell whether the queue is empty, and all that was said of it is on record."""
        is_empty = await self.outside.fetchval("SELECT NOT EXISTS (SELECT FROM zart_tasks)")
        return is_empty is True and self.said.is_settled


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[asyncpg.Connection]:
    """Yield a connection from outside."""
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


@asynccontextmanager
async def watched(url: str) -> AsyncIterator[Watch]:
    """Yield the watch on a worker that has nothing to do yet."""
    workflows = (steps_in_a_row, steps_side_by_side, children, sleeper, listener, counter, retrier, writer)
    async with connected(url) as outside:
        with traffic() as said:
            async with working(url, *workflows, max_concurrent_tasks=1000, max_tasks_per_poll=1000) as scheduler:
                watch = Watch(scheduler, said, outside)
                await eventually(lambda: said.is_settled and said.has_swept)
                await watch.count(lambda: scheduler.start(steps_in_a_row, 1))
                yield watch


async def test_one_run(migrated_url: str) -> None:
    """A run of n steps costs n + 4 statements: start, wake-up, claim, each step, finish. None has a BEGIN."""
    async with watched(migrated_url) as watch:
        for steps in (0, 1, 11, 200):
            cost = await watch.count(lambda: watch.scheduler.start(steps_in_a_row, steps))  # noqa: B023 - awaited at once
            assert cost == (steps + 4, [])


async def test_start(migrated_url: str) -> None:
    """A start is a statement without a transaction and a wake-up; in the app's transaction, it adds one statement."""
    with traffic() as said:
        async with scheduler_on(migrated_url) as scheduler:
            await scheduler.list_executions()  # a first connection asks the server this and that
            said.clear()
            await scheduler.start("order", 1)
            await scheduler.wake_ups.flush()
            assert (len(said.statements), said.transactions) == (2, [])
            async with scheduler.engine.begin() as connection:
                await connection.execute(select(1))
                said.clear()
                await scheduler.start("order", 1, session=connection)
                assert len(said.statements) == 2  # with the notification
                assert said.transactions == []


async def test_starts_share_statements(migrated_url: str) -> None:
    """Thousands of starts are one statement, and wake-ups that come at once are one notification."""
    with traffic() as said:
        async with scheduler_on(migrated_url) as scheduler:
            await scheduler.list_executions()
            said.clear()
            await scheduler.start_many("order", [(None, number) for number in range(5000)])
            await scheduler.wake_ups.flush()
            kinds = Counter(statement.split()[0] for statement in said.statements)
            assert kinds == {"WITH": 1, "SELECT": 1, "SAVEPOINT": 1, "RELEASE": 1}
            assert said.transactions == TRANSACTION


async def test_suspending(migrated_url: str) -> None:
    """A sleep costs one transaction of two statements, and a claim and a journal when it is over."""
    async with watched(migrated_url) as watch:
        statements, transactions = await watch.count(lambda: watch.scheduler.start(sleeper))
        assert transactions == TRANSACTION
        start_claim_finish, put_down, claim_and_journal, spare_claims = 4, 2, 2, 2
        assert statements - start_claim_finish - put_down - claim_and_journal in range(spare_claims + 1)


async def test_event_that_is_there(migrated_url: str) -> None:
    """An event that is there costs an offer, which is a statement and a wake-up, and a statement."""
    async with watched(migrated_url) as watch, watch.scheduler.engine.connect() as connection:
        await connection.execute(select(1))

        async def offer_and_start(count: int) -> None:
            handle = await watch.scheduler.start(listener, count, session=connection)
            for number in range(count):
                await handle.offer_event("paid", number, session=connection)
            await connection.commit()

        start_claim_finish, offer_and_take = 4, 3
        for count in (0, 1, 10):
            statements, _ = await watch.count(lambda: offer_and_start(count))  # noqa: B023 - awaited at once
            assert statements == start_claim_finish + count * offer_and_take


async def test_waiting_for_an_event(migrated_url: str) -> None:
    """A wait costs a transaction of two statements; the event an offer, a claim, a journal and a statement."""
    async with watched(migrated_url) as watch:

        async def wait_and_offer() -> None:
            handle = await watch.scheduler.start(listener, 1)
            await until_waiting(watch)
            await handle.offer_event("paid", 1)

        statements, transactions = await watch.count(wait_and_offer)
        assert transactions == TRANSACTION
        start_claim_finish, put_down, offer, claim_and_journal, take, spare_claims = 4, 2, 2, 2, 1, 3
        expected = start_claim_finish + put_down + offer + claim_and_journal + take
        assert statements - expected in range(spare_claims + 1)


async def test_emitting(migrated_url: str) -> None:
    """A value costs a statement without a transaction, as a step does, and two rows: whether anybody follows or not."""
    async with watched(migrated_url) as watch:
        for count in (1, 10, 100):
            cost = await watch.count(lambda: watch.scheduler.start(counter, count))  # noqa: B023 - awaited at once
            assert cost == (count + 4, [])
        rows = "SELECT (SELECT count(*) FROM zart_stream_items), (SELECT count(*) FROM zart_steps WHERE kind = 'emit')"
        assert [tuple(row) for row in await watch.outside.fetch(rows)] == [(111, 111)]
        assert not await watch.outside.fetchval("SELECT bool_or(is_awaited) FROM zart_execution_runs")


@pytest.mark.parametrize(("is_new", "statements"), [(True, 1), (False, 2)], ids=["just started", "by its id"])
async def test_waiting_for_a_result(migrated_url: str, *, is_new: bool, statements: int) -> None:
    """A wait for a result is a look, unless it was just started, and a mark, and a look when the run has ended."""
    async with waited_for(migrated_url) as (said, handle, cancel):
        waited = handle if is_new else handle._scheduler.handle(handle.execution_id)
        waiting = asyncio.create_task(waited.result(timeout=PATIENCE))
        await eventually(lambda: said.answered, statements)
        assert len(said.statements) == statements
        await handle.cancel()
        with pytest.raises(ExecutionCancelled):
            await waiting
        assert len(said.statements) == statements + cancel + 1


async def test_following(migrated_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who follows a stream looks, marks and looks again, and looks when there is news. In between nothing is said."""
    monkeypatch.setattr(streams, "SECOND_LOOK_SECONDS", PATIENCE)
    async with waited_for(migrated_url) as (said, handle, cancel):
        waiting = asyncio.create_task(anext(handle.stream("progress"), None))
        await eventually(lambda: said.answered, 3)
        assert len(said.statements) == 3
        await handle.cancel()
        assert await waiting is None
        assert len(said.statements) == 3 + cancel + 1


@asynccontextmanager
async def waited_for(url: str) -> AsyncIterator[tuple[Traffic, ExecutionHandle[Any], int]]:
    """Yield an execution that nobody runs, an eye on what is said, and how many statements its cancellation is."""
    with traffic() as said:
        async with scheduler_on(url) as scheduler:
            one, other = await scheduler.start_many("order", [(None, 1), (None, 2)])
            await scheduler.wake_ups.flush()
            await scheduler.ends.listen()
            said.clear()
            await one.cancel()
            cancel = len(said.statements)
            said.clear()
            yield said, other, cancel


async def test_emits_share_commits(migrated_url: str) -> None:
    """Hundreds of runs that emit at the same time share their statements and commits."""
    async with watched(migrated_url) as watch:
        many = [(None, 5)] * 500
        statements, transactions = await watch.count(lambda: watch.scheduler.start_many(counter, many))
        assert statements < 100
        assert len(transactions) < 60


async def until_waiting(watch: Watch) -> None:
    """Wait until all executions wait, without a statement that counts."""
    query = "SELECT bool_and(is_waiting AND worker_id IS NULL) FROM zart_tasks"
    await eventually(lambda: watch.outside.fetchval(query), expected=True)


async def test_failed_attempts(migrated_url: str) -> None:
    """A failed attempt costs a statement."""
    async with watched(migrated_url) as watch:
        assert await watch.count(lambda: watch.scheduler.start(retrier)) == (1 + 2 + 4, [])


async def test_step_with_a_transaction(migrated_url: str) -> None:
    """A checkpoint in the step's own transaction costs a statement, and the commit that the step needs anyway."""
    async with watched(migrated_url) as watch:
        assert await watch.count(lambda: watch.scheduler.start(writer)) == (1 + 4, TRANSACTION)


async def test_runs_share_commits(migrated_url: str) -> None:
    """Hundreds of runs that go on at the same time share their claims, checkpoints and finishes."""
    async with watched(migrated_url) as watch:
        many = [(None, 5)] * 500
        statements, transactions = await watch.count(lambda: watch.scheduler.start_many(steps_in_a_row, many))
        assert statements < 100
        assert len(transactions) < 60


async def test_ten_thousand_steps(migrated_url: str) -> None:
    """A run of 10,000 steps costs in proportion, and a replay of it one query."""
    async with watched(migrated_url) as watch:
        watch.said.clear()
        handle = await watch.scheduler.start(steps_side_by_side, 10_000)
        await until(handle, ExecutionStatus.WAITING)
        assert len([one for one in watch.said.statements if "INSERT INTO zart_steps" in one]) < 200
        assert await watch.outside.fetchval("SELECT count(*) FROM zart_steps") == 10_002
        watch.said.clear()
        await let_time_pass(watch.scheduler)
        assert await handle.result(timeout=PATIENCE) == 10_000
        assert [one for one in watch.said.statements if "INSERT INTO zart_steps" in one] == []
        assert len([one for one in watch.said.statements if JOURNAL in one]) == 1


async def test_children(migrated_url: str) -> None:
    """A group costs a bounded number of statements, however many children it has, as long as a worker has slots."""
    async with watched(migrated_url) as watch:
        for count in (1, 10, 100, 900):
            statements, transactions = await watch.count(lambda: watch.scheduler.start(children, count))  # noqa: B023 - awaited at once
            start_claim_finish, add_and_notify, put_down, claim_and_payload, record_and_remove = 4, 2, 1, 2, 2
            look, claim_and_journal, more_batches = 1, 2, 11  # two looks may be one: of the run and of its last child
            expected = start_claim_finish + add_and_notify + put_down + claim_and_payload + record_and_remove
            assert statements - expected - look - claim_and_journal in range(more_batches + 1)
            assert len(transactions) <= 2 * 3 + more_batches


async def test_a_large_group(migrated_url: str) -> None:
    """Children share claims, commits and looks, though there are more of them than slots; the journal is read once."""
    async with watched(migrated_url) as watch:
        statements, transactions = await watch.count(lambda: watch.scheduler.start(children, 5_000))
        assert statements < 150
        assert len(transactions) < 80
        assert len([one for one in watch.said.statements if JOURNAL in one]) == 1


COUNT_UPDATES = """
CREATE TABLE updates (of_table text, is_child boolean, worker_id uuid, rows bigint);
CREATE FUNCTION count_tasks() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO updates SELECT 'tasks', step IS NOT NULL, worker_id, count(*) FROM changed GROUP BY 2, 3;
    RETURN NULL;
END $$;
CREATE FUNCTION count_others() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO updates SELECT TG_ARGV[0], false, NULL, count(*) FROM changed HAVING count(*) > 0;
    RETURN NULL;
END $$;
CREATE TRIGGER count_updates AFTER UPDATE ON zart_tasks
    REFERENCING NEW TABLE AS changed EXECUTE FUNCTION count_tasks();
CREATE TRIGGER count_updates AFTER UPDATE ON zart_execution_runs
    REFERENCING NEW TABLE AS changed EXECUTE FUNCTION count_others('runs');
CREATE TRIGGER count_updates AFTER UPDATE ON zart_executions
    REFERENCING NEW TABLE AS changed EXECUTE FUNCTION count_others('executions');
"""
"""Have the database count which rows are updated, and which worker claims how many children."""


async def test_ten_thousand_children(migrated_url: str) -> None:
    """A group of 10,000 on two workers is done, and hardly writes the run's own rows: nobody queues for them."""
    async with working(migrated_url, children, workers=2) as scheduler, connected(migrated_url) as outside:
        await outside.execute(COUNT_UPDATES)
        handle = await scheduler.start(children, 10_000)
        await handle.result(timeout=3 * PATIENCE)  # coverage makes it slow
        done = "SELECT count(*) FROM zart_steps WHERE kind = 'child' AND error IS NULL AND attempts = 1"
        assert await outside.fetchval(done) == 10_000
        assert await outside.fetchval("SELECT count(*) FROM zart_tasks") == 0
        own = await outside.fetch("SELECT of_table, sum(rows) FROM updates WHERE NOT is_child GROUP BY 1")
        claimed = await outside.fetch("SELECT sum(rows) FROM updates WHERE is_child GROUP BY worker_id")
    counts = {str(table): int(count) for table, count in own}
    assert counts.pop("tasks") in range(5, 13)  # added in five batches, claimed, put down, woken and claimed again
    assert counts.pop("runs") in range(2, 9)  # somebody asks for the end, and again after a while, and that comes
    assert counts == {}
    assert sum(count for (count,) in claimed) == 10_000
    assert len(claimed) == 2


async def test_idle_worker(migrated_url: str) -> None:
    """An idle worker says at most one thing a second and one a minute; it has one connection besides the pool's."""
    async with connected(migrated_url) as outside:
        with traffic() as said:
            async with worker_on(migrated_url, sleeper, poll_interval="5s"):
                await eventually(lambda: [one for one in said.statements if "GROUP BY zart_tasks.task_name" in one])
                began = time.monotonic()
                said.clear()
                await eventually(lambda: len(said.beats) >= 4)
                seconds = time.monotonic() - began
                assert len(said.beats) + len(said.statements) <= seconds + 1
                assert said.transactions == []
                assert await connections(outside) == 1 + 1  # what the poller used is back in the pool
        await eventually(lambda: connections(outside), 0)


async def connections(outside: asyncpg.Connection) -> int:
    """Return how many other connections the database has."""
    count = await outside.fetchval(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )
    return int(count)


async def test_one_connection_besides_the_pool(migrated_url: str) -> None:
    """A busy worker, and waiting for results in its process, cost one connection besides the pool's."""
    async with connected(migrated_url) as outside, worker_on(migrated_url, steps_in_a_row) as worker:
        scheduler = worker._scheduler
        handles = await scheduler.start_many(steps_in_a_row, [(None, 3)] * 50)
        for handle in handles:
            await handle.result(timeout=PATIENCE)
        pool = scheduler.engine.pool
        await eventually(pool.checkedout, 0)  # type: ignore[attr-defined]
        assert await connections(outside) == pool.checkedin() + 1  # type: ignore[attr-defined]
