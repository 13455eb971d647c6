"""Starting executions: ids, conflicts, thousands at once."""

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

import pytest

from tests.support.traffic import traffic
from tests.support.waiting import PATIENCE
from tests.support.working import count_rows, let_time_pass, scheduler_on, until, worker_on, working
from zart_sqla import (
    ConfigError,
    ExecutionAlreadyExists,
    ExecutionStatus,
    InvalidDataError,
    PostgresScheduler,
    durable,
    sleep,
)


@durable
async def double(number: int) -> int:
    """Give twice the number."""
    return number * 2


@pytest.fixture
async def scheduler(migrated_url: str) -> AsyncIterator[PostgresScheduler]:
    """Yield a scheduler without workers."""
    async with scheduler_on(migrated_url) as made:
        yield made


async def test_generated_ids(scheduler: PostgresScheduler) -> None:
    """Without an id, an execution gets a UUID of version 7, which begins with the time."""
    ids = [(await scheduler.start(double, number)).execution_id for number in range(5)]
    many = await scheduler.start_many(double, [(None, 1), (None, 2)])
    ids += [handle.execution_id for handle in many]
    assert [UUID(one).version for one in ids] == [7] * 7
    assert len(set(ids)) == 7
    times = [UUID(one).int >> 80 for one in ids]
    assert times == sorted(times)


async def test_conflict_in_every_status(migrated_url: str) -> None:
    """The same id again is refused whatever state the first is in, with its status, and nothing runs twice."""
    ran: list[str] = []
    hold = asyncio.Event()

    @durable
    async def order(way: str) -> None:
        ran.append(way)
        if way == "failed":
            raise ValueError
        if way in ("waiting", "cancelled"):
            await sleep("night", "1h")
        if way == "running":
            await hold.wait()

    async with scheduler_on(migrated_url) as scheduler, worker_on(migrated_url, order):
        for status in ExecutionStatus:
            if status is not ExecutionStatus.SCHEDULED:
                handle = await scheduler.start(order, status, execution_id=status)
                await asyncio.sleep(0)
                if status is ExecutionStatus.CANCELLED:
                    await handle.cancel()
                await until(handle, status)
        await scheduler.start("unknown task", execution_id="scheduled")
        before = {one.execution_id: one for one in await scheduler.list_executions()}
        for status in ExecutionStatus:
            with pytest.raises(ExecutionAlreadyExists) as caught:
                await scheduler.start(order, "again", execution_id=status)
            assert (caught.value.execution_id, caught.value.status) == (status, status)
            assert f"already exists and is {status}; start with on_conflict='return'" in str(caught.value)
            existing = await scheduler.start(order, "again", execution_id=status, on_conflict="return")
            assert existing.execution_id == status
        assert {one.execution_id: one for one in await scheduler.list_executions()} == before
        hold.set()
        await until(scheduler.handle("running"), ExecutionStatus.COMPLETED)
    assert "again" not in ran
    assert len(ran) == len(set(ran))


async def test_many_starts_of_one_id_at_once(migrated_url: str) -> None:
    """Of many starts of one id at the same time exactly one succeeds, and it runs once."""
    ran: list[int] = []

    @durable
    async def order(number: int) -> int:
        ran.append(number)
        return number

    async with working(migrated_url, order, workers=2) as scheduler:
        starts = (scheduler.start(order, number, execution_id="one") for number in range(30))
        answers = await asyncio.gather(*starts, return_exceptions=True)
        refused = [answer for answer in answers if isinstance(answer, ExecutionAlreadyExists)]
        assert len(refused) == 29
        returned = await asyncio.gather(
            *(scheduler.start(order, 99, execution_id="two", on_conflict="return") for _ in range(10))
        )
        assert {await one.result(timeout=PATIENCE) for one in returned} == {99}
        await scheduler.handle("one").result(timeout=PATIENCE)
    assert len(ran) == 2


async def test_start_many(migrated_url: str) -> None:
    """Thousands of executions are started at once; their handles come in order."""
    async with working(migrated_url, double, workers=2) as scheduler:
        handles = await scheduler.start_many(double, [(f"order-{number}", number) for number in range(5001)])
        assert [handle.execution_id for handle in handles] == [f"order-{number}" for number in range(5001)]
        assert (await count_rows(scheduler))["executions"] == 5001
        for number in (0, 2500, 5000):
            assert await handles[number].result(timeout=PATIENCE) == 2 * number


async def test_start_many_conflict(scheduler: PostgresScheduler) -> None:
    """If one of many ids is taken, none is started; with on_conflict='return' the rest is."""
    await scheduler.start(double, 1, execution_id="order-5000")
    items = [(f"order-{number}", number) for number in range(5002)]
    with pytest.raises(ExecutionAlreadyExists) as caught:
        await scheduler.start_many(double, items)
    assert (caught.value.execution_id, caught.value.status) == ("order-5000", "scheduled")
    assert (await count_rows(scheduler))["executions"] == 1
    handles = await scheduler.start_many(double, items, on_conflict="return")
    assert len(handles) == 5002
    rows = await count_rows(scheduler)
    assert rows["executions"] == rows["execution_runs"] == rows["tasks"] == 5002
    assert (await handles[5000].info()).payload == 1


async def test_start_many_with_one_id_twice(scheduler: PostgresScheduler) -> None:
    """An id that comes twice in one call is a conflict too; with on_conflict='return' the first one counts."""
    twice = [("a", 1), ("b", 2), ("a", 3)]
    with pytest.raises(ExecutionAlreadyExists, match="'a' already exists"):
        await scheduler.start_many(double, twice)
    assert (await count_rows(scheduler))["executions"] == 0
    first, _, again = await scheduler.start_many(double, twice, on_conflict="return")
    assert (await first.info()).payload == (await again.info()).payload == 1


async def test_start_many_of_nothing(scheduler: PostgresScheduler) -> None:
    """To start none is nothing."""
    assert await scheduler.start_many(double, []) == []
    assert (await count_rows(scheduler))["executions"] == 0


async def test_start_many_refuses_all_for_one(scheduler: PostgresScheduler) -> None:
    """One input that does not fit, and none is started."""
    items = [(None, 1), (None, "two"), (None, 3)]
    with pytest.raises(InvalidDataError, match="the input of 'double'"):
        await scheduler.start_many(double, items)  # type: ignore[misc]
    assert (await count_rows(scheduler))["executions"] == 0


async def test_wrong_arguments(scheduler: PostgresScheduler) -> None:
    """What cannot be meant is refused before anything is written."""
    with pytest.raises(ConfigError, match="on_conflict"):
        await scheduler.start(double, 1, on_conflict="ignore")  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="workflow"):
        await scheduler.start(double.handler.function, 1)  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="notify"):
        PostgresScheduler(scheduler.engine, notify="never")  # type: ignore[arg-type]
    assert (await count_rows(scheduler))["executions"] == 0


async def test_notify_in_transaction(migrated_url: str) -> None:
    """notify='in_transaction' wakes workers by the commit itself: nothing has to be said after it."""
    with traffic() as said:
        async with worker_on(migrated_url, double), scheduler_on(migrated_url) as base:
            scheduler = PostgresScheduler(base.engine, notify="in_transaction")
            handle = await scheduler.start(double, 4)
            assert await handle.result(timeout=PATIENCE) == 8
            async with base.engine.connect() as connection:
                joined = await scheduler.start(double, 5, session=connection)
                said.clear()
                await connection.commit()
                assert await joined.result(timeout=PATIENCE) == 10
                assert not any("pg_notify" in one and one.startswith("SELECT") for one in said.statements)
            await scheduler.close()


async def test_payload_as_it_was_written(migrated_url: str) -> None:
    """A started execution shows its input, and does not run before its worker is there."""
    async with scheduler_on(migrated_url) as scheduler:
        handle = await scheduler.start(double, 21, execution_id="x", queue="slow")
        info = await handle.info()
        assert (info.execution_id, info.task_name, info.status) == ("x", "double", ExecutionStatus.SCHEDULED)
        assert (info.payload, info.result, info.error, info.queue) == (21, None, None, "slow")
        assert (info.run_index, info.started_at, info.completed_at) == (0, None, None)
        assert info.created_at.tzinfo is not None
        assert await handle.steps() == []
        await let_time_pass(scheduler)
        assert await handle.status() is ExecutionStatus.SCHEDULED
