"""Workers beside each other: each task has one of them at a time, and only one that can and may do it."""

import asyncio
import threading
from collections import Counter
from contextlib import AsyncExitStack
from functools import partial
from uuid import UUID

import asyncpg
import pytest
from sqlalchemy import update

from tests.support.waiting import PATIENCE, eventually
from tests.support.working import let_time_pass, registry_of, scheduler_on, until, worker_on, working
from zart_sqla import (
    ConfigError,
    ExecutionStatus,
    Retry,
    SchemaOutdated,
    TableNames,
    TaskRegistry,
    Worker,
    context,
    durable,
    sleep,
    step,
    trx,
)
from zart_sqla.models.mapping import tables_of
from zart_sqla.records import SUSPECT_CRASHES
from zart_sqla.store.tasks import MAX_CLAIM


async def test_two_workers_one_task(migrated_url: str) -> None:
    """However many workers there are, each due task is run by one of them."""
    ran: Counter[int] = Counter()

    @durable
    async def quick(number: int) -> int:
        ran[number] += 1
        await asyncio.sleep(0)
        return number

    async with working(migrated_url, quick, workers=3, max_tasks_per_poll=7) as scheduler:
        handles = await scheduler.start_many(quick, [(None, number) for number in range(300)])
        results = [await handle.result(timeout=PATIENCE) for handle in handles]
    assert results == list(range(300))
    assert ran == Counter(range(300))


async def test_worker_without_the_handler_leaves_the_task(migrated_url: str) -> None:
    """In a rolling deploy, tasks of a new name wait for a worker that has it, and those of an old one go on."""
    ran_on: list[str] = []

    @durable
    async def old(number: int) -> None:
        ran_on.append(f"old {number}")

    @durable
    async def new(number: int) -> str:
        ran_on.append(f"new {number}")
        return "done"

    async with scheduler_on(migrated_url) as scheduler, worker_on(migrated_url, old):
        waiting = await scheduler.start(new, 1)
        await (await scheduler.start(old, 1)).result(timeout=PATIENCE)
        assert await waiting.status() is ExecutionStatus.SCHEDULED
        async with worker_on(migrated_url, new):
            assert await waiting.result(timeout=PATIENCE) == "done"
    assert ran_on == ["old 1", "new 1"]


async def test_queues(migrated_url: str) -> None:
    """A worker takes only tasks of the queues that it serves; one without a list takes all."""

    @durable
    async def where(name: str) -> str:
        return name

    async with scheduler_on(migrated_url) as scheduler:
        slow = await scheduler.start(where, "slow", queue="slow")
        mail = await scheduler.start(where, "mail", queue="mail")
        default = await scheduler.start(where, "default")
        async with worker_on(migrated_url, where, queues=["mail", "other"]):
            await mail.result(timeout=PATIENCE)
            assert {await one.status() for one in (slow, default)} == {ExecutionStatus.SCHEDULED}
        async with worker_on(migrated_url, where):
            for handle in (slow, default):
                await handle.result(timeout=PATIENCE)


async def test_queue_is_kept_over_turns(migrated_url: str) -> None:
    """What was started in a queue stays in it when it wakes, is retried or resumed."""

    @durable(retry=Retry.fixed(1, 0))
    async def nap() -> int:
        await sleep("nap", "1h")
        if context().attempt == 1:
            raise OSError
        return context().attempt

    async with scheduler_on(migrated_url) as scheduler, worker_on(migrated_url, nap, queues=["mail"]):
        handle = await scheduler.start(nap, queue="mail")
        await until(handle, ExecutionStatus.WAITING)
        await let_time_pass(scheduler)
        assert await handle.result(timeout=PATIENCE) == 2
        assert (await handle.info()).queue == "mail"


async def test_concurrency_is_limited(migrated_url: str) -> None:
    """A worker runs at most max_concurrent_tasks at once and claims no more; another takes the rest at once."""
    running = 0
    most = 0
    let_go = asyncio.Event()

    @durable
    async def crowd() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await let_go.wait()
        running -= 1

    async with scheduler_on(migrated_url) as scheduler, worker_on(migrated_url, crowd, max_concurrent_tasks=3):
        handles = await scheduler.start_many(crowd, [(None, None)] * 9)
        await eventually(lambda: running, 3)
        async with worker_on(migrated_url, crowd, max_concurrent_tasks=2, max_tasks_per_poll=1):
            await eventually(lambda: running, 5)
            statuses = [await handle.status() for handle in handles]
            assert Counter(statuses) == {ExecutionStatus.RUNNING: 5, ExecutionStatus.SCHEDULED: 4}
            let_go.set()
            for handle in handles:
                await handle.result(timeout=PATIENCE)
    assert most == 5


async def test_more_than_a_claim_takes(migrated_url: str) -> None:
    """A worker that has room for more tasks than a claim takes claims again at once, until all of them run."""
    count = MAX_CLAIM + MAX_CLAIM // 2
    arrived: Counter[int] = Counter()
    let_go = asyncio.Event()

    @durable
    async def stand(number: int) -> None:
        arrived[number] += 1
        await let_go.wait()

    async with working(migrated_url, stand, max_concurrent_tasks=count, max_tasks_per_poll=count) as scheduler:
        await scheduler.start_many(stand, [(None, number) for number in range(count)])
        await eventually(lambda: len(arrived) == count)
        let_go.set()
    assert arrived == Counter(range(count))


async def test_waiting_takes_no_slot(migrated_url: str) -> None:
    """A worker with one slot runs many that sleep."""

    @durable
    async def nap(number: int) -> int:
        await sleep("nap", "1h")
        return number

    async with working(migrated_url, nap, max_concurrent_tasks=1) as scheduler:
        handles = await scheduler.start_many(nap, [(None, number) for number in range(20)])
        for handle in handles:
            await until(handle, ExecutionStatus.WAITING)
        await let_time_pass(scheduler)
        assert [await handle.result(timeout=PATIENCE) for handle in handles] == list(range(20))


async def test_turns_move_between_workers(migrated_url: str) -> None:
    """A run whose worker stops while it waits goes on with any other, which knows all that was done."""
    ran_on: list[UUID] = []

    @step
    async def first() -> int:
        return 40

    @step
    async def second() -> int:
        return 2

    @durable
    async def order() -> int:
        value = await first()
        await sleep("pause", "1h")
        return value + await second()

    async with scheduler_on(migrated_url) as scheduler:
        async with worker_on(migrated_url, order) as worker:
            ran_on.append(worker.worker_id)
            handle = await scheduler.start(order)
            await until(handle, ExecutionStatus.WAITING)
        async with worker_on(migrated_url, order) as worker:
            ran_on.append(worker.worker_id)
            await let_time_pass(scheduler)
            assert await handle.result(timeout=PATIENCE) == 42
    assert len(set(ran_on)) == 2


@pytest.mark.parametrize("is_in_a_transaction", [True, False])
async def test_a_suspect_that_gets_somewhere(is_in_a_transaction: bool, migrated_url: str) -> None:  # noqa: FBT001
    """Of those that may have killed workers one begins; the next as soon as that has a checkpoint, not at its end."""
    began: list[int] = []
    go_on, end = asyncio.Event(), asyncio.Event()

    @step
    async def get_somewhere() -> None:
        if is_in_a_transaction:
            await trx()
        await go_on.wait()

    @durable
    async def order(number: int) -> None:
        began.append(number)
        await get_somewhere()
        await end.wait()

    async with scheduler_on(migrated_url) as scheduler:
        handles = await scheduler.start_many(order, [(None, number) for number in range(3)])
        tasks = tables_of(scheduler.names).tasks
        async with scheduler.engine.begin() as connection:
            await connection.execute(update(tasks).values(crashes=SUSPECT_CRASHES))
        async with worker_on(migrated_url, order):
            await eventually(lambda: began)
            await scheduler.start(order, 9)
            await eventually(lambda: 9 in began)  # so it has looked for more
            assert len(began) == 2
            go_on.set()
            await eventually(lambda: len(began) == 4)
            end.set()
            for handle in handles:
                await handle.result(timeout=PATIENCE)


async def test_stopping_hands_back(migrated_url: str) -> None:
    """A worker that stops lets what runs finish, then hands the rest back: at once claimable, no attempt spent."""
    attempts: Counter[int] = Counter()
    hanging = asyncio.Event()
    stopped = False

    @step(retry=Retry.none())
    async def hang() -> int:
        attempts[context().attempt] += 1
        hanging.set()
        if not stopped:
            await asyncio.Event().wait()
        return context().attempt

    @durable(retry=Retry.none())
    async def order() -> tuple[int, int]:
        return await hang(), context().attempt

    async with scheduler_on(migrated_url) as scheduler:
        async with AsyncExitStack() as stack:
            worker = await stack.enter_async_context(worker_on(migrated_url, order, shutdown_timeout="50ms"))
            handle = await scheduler.start(order)
            await hanging.wait()
            stopped = True
            await worker.stop()
            assert await handle.status() is ExecutionStatus.SCHEDULED
        async with worker_on(migrated_url, order):
            assert await handle.result(timeout=PATIENCE) == (1, 1)
    assert attempts == {1: 2}


async def test_stopping_lets_others_know(migrated_url: str) -> None:
    """What a stopping worker hands back is taken up by one that runs already, without waiting for its poll."""
    hanging = asyncio.Event()
    stopped = False

    @durable
    async def order() -> str:
        hanging.set()
        if not stopped:
            await asyncio.Event().wait()
        return "done"

    async with scheduler_on(migrated_url) as scheduler, AsyncExitStack() as stack:
        first = await stack.enter_async_context(worker_on(migrated_url, order, shutdown_timeout="50ms"))
        handle = await scheduler.start(order)
        await hanging.wait()
        await stack.enter_async_context(worker_on(migrated_url, order))
        stopped = True
        await first.stop()
        assert await handle.result(timeout=PATIENCE) == "done"


async def test_stopping_lets_finish(migrated_url: str) -> None:
    """A worker that stops claims nothing more, and what runs is recorded as it ends."""
    started, let_go = asyncio.Event(), asyncio.Event()

    @durable
    async def order(number: int) -> int:
        started.set()
        await let_go.wait()
        return number

    async with scheduler_on(migrated_url) as scheduler, worker_on(migrated_url, order) as worker:
        running = await scheduler.start(order, 1)
        await started.wait()
        stopping = asyncio.create_task(worker.stop())
        await asyncio.sleep(0)
        late = await scheduler.start(order, 2)
        let_go.set()
        await stopping
        assert await running.result(timeout=PATIENCE) == 1
        assert await late.status() is ExecutionStatus.SCHEDULED


async def test_stopping_with_a_stubborn_handler(migrated_url: str) -> None:
    """What ignores its cancellation is left behind: another worker does it, and it cannot write any more."""
    turns: list[str] = []
    hanging, go_on = asyncio.Event(), asyncio.Event()

    @step("{name}")
    async def write(name: str) -> str:
        return name

    @durable
    async def stubborn() -> str:
        turns.append("turn")
        if len(turns) > 1:
            return await write("second")
        hanging.set()
        while not go_on.is_set():
            try:
                await go_on.wait()
            except asyncio.CancelledError:
                turns.append("ignored")
        try:
            return await write("first")
        finally:
            turns.append("refused")

    async with scheduler_on(migrated_url) as scheduler, AsyncExitStack() as stack:
        first = await stack.enter_async_context(worker_on(migrated_url, stubborn, shutdown_timeout="10ms"))
        handle = await scheduler.start(stubborn)
        await hanging.wait()
        await stack.enter_async_context(worker_on(migrated_url, stubborn))
        await first.stop()
        assert await handle.result(timeout=PATIENCE) == "second"
        go_on.set()
        await eventually(lambda: "refused" in turns)
        assert [one.name for one in await handle.steps()] == ["second"]
    assert turns == ["turn", "ignored", "turn", "refused"]


async def test_stopping_with_a_thread_under_way(migrated_url: str) -> None:
    """A plain handler cannot be interrupted: it is left behind too, and what it calls afterwards is refused."""
    turns: list[str] = []
    hanging, go_on = threading.Event(), threading.Event()

    @step("{name}")
    def write(name: str) -> str:
        return name

    @durable
    def stubborn() -> str:
        turns.append("turn")
        if len(turns) > 1:
            return write("second")
        hanging.set()
        go_on.wait(PATIENCE)
        try:
            return write("first")
        finally:
            turns.append("refused")

    async with scheduler_on(migrated_url) as scheduler, AsyncExitStack() as stack:
        first = await stack.enter_async_context(worker_on(migrated_url, stubborn, shutdown_timeout="10ms"))
        handle = await scheduler.start(stubborn)
        await eventually(hanging.is_set)
        await stack.enter_async_context(worker_on(migrated_url, stubborn))
        await first.stop()
        assert await handle.result(timeout=PATIENCE) == "second"
        go_on.set()
        await eventually(lambda: "refused" in turns)
        assert [one.name for one in await handle.steps()] == ["second"]


async def test_workers_leave_no_trace(migrated_url: str) -> None:
    """A worker that has stopped is no more in the table of workers, and cannot run again."""

    @durable
    async def quick() -> None:
        return None

    async with scheduler_on(migrated_url) as scheduler:
        worker = Worker(scheduler, registry_of(quick))
        async with worker:
            await (await scheduler.start(quick)).result(timeout=PATIENCE)
        await worker.stop()
        workers = tables_of(scheduler.names).workers
        async with scheduler.engine.connect() as connection:
            assert (await connection.execute(workers.select())).all() == []
        with pytest.raises(ConfigError):
            await worker.__aenter__()


async def test_given_up_and_back(migrated_url: str) -> None:
    """A worker whose lease is over claims nothing, and begins nothing, until it is known to live again."""
    begun: Counter[str] = Counter()
    gate = asyncio.Event()

    @durable
    async def order(name: str) -> str:
        begun[name] += 1
        await gate.wait()
        return name

    async with worker_on(migrated_url, order) as worker:
        scheduler, machinery = worker._scheduler, worker._machinery
        assert machinery is not None
        await scheduler.start(order, "a", execution_id="a")
        await eventually(lambda: begun["a"] == 1)
        machinery._die()
        news = await scheduler.start(order, "b", execution_id="b")
        await eventually(lambda: not machinery._dispatcher.held)
        assert begun["b"] == 0
        gate.set()
        machinery._rise()
        assert await news.result(timeout=PATIENCE) == "b"
        assert await scheduler.handle("a").result(timeout=PATIENCE) == "a"
    assert begun == {"a": 2, "b": 1}


BLOCK = """
CREATE FUNCTION block() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(42);
    RETURN NEW;
END $$;
CREATE TRIGGER block BEFORE INSERT ON zart_steps FOR EACH ROW WHEN (NEW.name = 'slow') EXECUTE FUNCTION block();
SELECT pg_advisory_lock(42);
"""
"""Whoever records a step named `slow` waits until this connection lets go."""


WAITS = """
SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'
"""


async def test_writes_before_it_puts_back(migrated_url: str) -> None:
    """A worker that gives up its turns keeps a task for which it is writing until that is committed."""
    begun: Counter[str] = Counter()

    @step
    async def slow() -> None:
        begun["slow"] += 1

    @durable
    async def order() -> None:
        await slow()

    @durable
    async def news() -> None:
        begun["news"] += 1

    async with worker_on(migrated_url, order, news) as worker:
        scheduler, machinery = worker._scheduler, worker._machinery
        assert machinery is not None
        blocking = await asyncpg.connect(migrated_url)
        await blocking.execute(BLOCK)
        handle = await scheduler.start(order, execution_id="a")
        await eventually(partial(blocking.fetchval, WAITS), 1)
        machinery._die()
        await eventually(lambda: not machinery._dispatcher.held)
        machinery._rise()
        await scheduler.start(news, execution_id="b")
        await eventually(lambda: begun["news"])  # it has claimed, and before that it put back what it could
        assert await blocking.fetchval("SELECT array_agg(worker_id IS NOT NULL) FROM zart_tasks") == [True, True]
        await blocking.close()
        await handle.result(timeout=PATIENCE)
    assert begun == {"slow": 1, "news": 1}


async def test_refuses_to_start(database_url: str) -> None:
    """A worker without workflows is refused, and one that finds no tables names the command to run."""

    @durable
    async def quick() -> None:
        return None

    async with scheduler_on(database_url, names=TableNames.with_prefix("other_")) as scheduler:
        with pytest.raises(ConfigError, match="at least one workflow"):
            Worker(scheduler, TaskRegistry())
        with pytest.raises(SchemaOutdated) as caught:
            await Worker(scheduler, registry_of(quick)).run()
    for part in ('"other_executions"', "are missing", "alembic upgrade heads", "zart migrate"):
        assert part in str(caught.value)
