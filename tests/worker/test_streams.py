"""Streams with real workers: every value once, in order and without gaps, whatever happens beside it."""

import asyncio
from typing import Any, TypeVar

import pytest
from sqlalchemy import select, text

from tests.support.waiting import PATIENCE, eventually
from tests.support.working import let_time_pass, until, working
from zart_sqla import (
    ExecutionCancelled,
    ExecutionFailed,
    ExecutionStatus,
    InvalidDataError,
    NotInWorkflowError,
    PostgresScheduler,
    Retry,
    StepKind,
    StepStatus,
    StreamReader,
    context,
    continue_as_new,
    durable,
    emit,
    sleep,
    step,
    sync,
    wait_for_event,
)
from zart_sqla.models.mapping import tables_of

T = TypeVar("T")


@step
async def double(number: int) -> int:
    """Return twice the number."""
    return number * 2


@durable
async def count(number: int) -> int:
    """Emit so many values, with steps between them, and a sleep before the last."""
    for done in range(number):
        await double(done)
        if done == number - 1:
            await sleep("nap", "1h")
        await emit("progress", done)
    return number


async def items(scheduler: PostgresScheduler) -> list[tuple[str, int, Any]]:
    """Return all items: streams, numbers and values."""
    item = tables_of(scheduler.names).stream_items
    async with scheduler.engine.connect() as connection:
        query = select(item.c.stream, item.c.seq, item.c.value).order_by(item.c.stream, item.c.seq)
        return [tuple(row) for row in await connection.execute(query)]


async def test_over_several_turns(migrated_url: str) -> None:
    """A later turn, on whichever worker, goes on in the stream; each value is seen when its call has returned."""
    async with working(migrated_url, count, workers=2) as scheduler:
        handle = await scheduler.start(count, 4)
        await until(handle, ExecutionStatus.WAITING)
        assert await items(scheduler) == [("progress", number, number) for number in range(3)]
        await let_time_pass(scheduler)
        assert await handle.result(timeout=PATIENCE) == 4
        assert await items(scheduler) == [("progress", number, number) for number in range(4)]
        steps = [one for one in await handle.steps() if one.kind is StepKind.EMIT]
    assert [one.name for one in steps] == ["progress", "progress#2", "progress#3", "progress#4"]
    assert {(one.status, one.attempts, one.result) for one in steps} == {(StepStatus.COMPLETED, 1, None)}


async def test_side_by_side(migrated_url: str) -> None:
    """Tasks of the body's own emit into one stream, which keeps the order in which each of them does."""

    async def emit_some(letter: str) -> None:
        for number in range(20):
            await emit("all", f"{letter}{number:02}")
            await emit(letter, number)

    @durable
    async def order() -> None:
        async with asyncio.TaskGroup() as group:
            for letter in "abc":
                group.create_task(emit_some(letter))
        await asyncio.gather(*(emit("last", number) for number in range(5)))

    async with working(migrated_url, order) as scheduler:
        handle = await scheduler.start(order)
        await handle.result(timeout=PATIENCE)
        found = await items(scheduler)
    streams = {name: [(seq, value) for stream, seq, value in found if stream == name] for name, _, _ in found}
    assert [seq for seq, _ in streams["all"]] == list(range(60))
    for letter in "abc":
        assert streams[letter] == [(number, number) for number in range(20)]
        mine = [value for _, value in streams["all"] if value.startswith(letter)]
        assert mine == [f"{letter}{number:02}" for number in range(20)]
    assert streams["last"] == [(number, number) for number in range(5)]


async def test_plain_workflow(migrated_url: str) -> None:
    """A `def` workflow emits without await."""

    @durable
    def order(number: int) -> int:
        for done in range(number):
            sync.emit("progress", done)
        return number

    async with working(migrated_url, order) as scheduler:
        handle = await scheduler.start(order, 3)
        assert [value async for value in handle.stream("progress")] == [0, 1, 2]


async def test_body_that_is_retried(migrated_url: str) -> None:
    """A body that is run again after an error emits nothing twice."""

    @durable(retry=Retry.fixed(3, "10ms"))
    async def order() -> int:
        for number in range(3):
            await emit("progress", number)
            if context().attempt == number + 1:
                raise ValueError(number)
        return context().attempt

    async with working(migrated_url, order) as scheduler:
        handle = await scheduler.start(order)
        assert await handle.result(timeout=PATIENCE) == 4
        assert await items(scheduler) == [("progress", number, number) for number in range(3)]


async def test_values_that_are_refused(migrated_url: str) -> None:
    """What cannot be stored, or what the database refuses, is refused by the call, and nothing is written."""

    @durable
    async def order() -> list[str]:
        refused = []
        for value in (float("nan"), 13):
            try:
                await emit("progress", value)
            except InvalidDataError as error:
                refused.append(str(error))
        return refused

    async with working(migrated_url, order) as scheduler:
        async with scheduler.engine.begin() as connection:
            await connection.execute(text("ALTER TABLE zart_stream_items ADD CHECK (value::text <> '13')"))
        handle = await scheduler.start(order)
        refused = await handle.result(timeout=PATIENCE)
        assert len(refused) == 2
        assert await items(scheduler) == []
        assert await handle.steps() == []


async def test_in_a_step(migrated_url: str) -> None:
    """A step cannot emit: it may run twice."""

    @step(raises=NotInWorkflowError)
    async def tell() -> None:
        await emit("progress", 1)

    @durable
    async def order() -> None:
        await tell()

    async with working(migrated_url, order) as scheduler:
        handle = await scheduler.start(order)
        with pytest.raises(ExecutionFailed, match="not in a step such as 'tell'"):
            await handle.result(timeout=PATIENCE)
        assert await items(scheduler) == []


@pytest.mark.parametrize("is_committed", [True, False])
async def test_cancel_that_stays_open(is_committed: bool, migrated_url: str) -> None:  # noqa: FBT001
    """While an app is about to cancel a run in its transaction, the run's value waits, and nobody else's does."""
    go = asyncio.Event()

    @durable
    async def order(name: str) -> str:
        await go.wait()
        await emit("progress", name)
        return name

    async with working(migrated_url, order) as scheduler, scheduler.engine.connect() as connection:
        doomed = await scheduler.start(order, "doomed")
        other = await scheduler.start(order, "other")
        await until(doomed, ExecutionStatus.RUNNING)
        await doomed.cancel(session=connection)
        go.set()
        assert await other.result(timeout=PATIENCE) == "other"
        assert await items(scheduler) == [("progress", 0, "other")]
        if is_committed:
            await connection.commit()
            with pytest.raises(ExecutionCancelled):
                await doomed.result(timeout=PATIENCE)
        else:
            await connection.rollback()
            assert await doomed.result(timeout=PATIENCE) == "doomed"
        values = [value async for value in doomed.stream("progress")]
    assert values == ([] if is_committed else ["doomed"])


async def test_offer_that_stays_open(migrated_url: str) -> None:
    """An app that is about to offer an event keeps nobody from emitting."""
    go = asyncio.Event()

    @durable
    async def order() -> None:
        await go.wait()
        await emit("progress", 1)

    async with working(migrated_url, order) as scheduler, scheduler.engine.connect() as connection:
        handle = await scheduler.start(order)
        await until(handle, ExecutionStatus.RUNNING)
        await handle.offer_event("paid", session=connection)
        go.set()
        assert await anext(handle.stream("progress")) == 1
        await connection.commit()
        await handle.result(timeout=PATIENCE)


@durable
async def relay(state: list[int]) -> int:
    """Emit three values in each run, from the first number up to the last; wait for an event in the middle run."""
    number, last = state
    for part in range(3):
        await emit("progress", [number, part])
        if part == 1 and number == last // 2:
            await wait_for_event("go")
    if number < last:
        await continue_as_new([number + 1, last])
    return number


@pytest.mark.slow  # until the change of runs is notified to those who follow
async def test_over_many_runs(migrated_url: str) -> None:
    """The stream goes on from run to run without a gap, and so does who follows it, from any offset, to the end."""
    values = [[number, part] for number in range(21) for part in range(3)]

    async with working(migrated_url, relay, workers=2) as scheduler:
        handle = await scheduler.start(relay, [0, 20])
        reader, late = handle.stream("progress", list[int]), handle.stream("progress", list[int], offset=40)
        seen = [await anext(reader) for _ in range(32)]  # to where the run in the middle waits
        following = [asyncio.create_task(collect(one)) for one in (reader, late)]
        await until(handle, ExecutionStatus.WAITING)
        assert (await handle.info()).run_index == 10
        await handle.offer_event("go")
        assert seen + await following[0] == values
        assert await following[1] == values[40:]
        assert await handle.result(timeout=PATIENCE) == 20
        assert await items(scheduler) == [("progress", seq, value) for seq, value in enumerate(values)]


async def collect(reader: StreamReader[T]) -> list[T]:
    """Return what a reader gives to the end."""
    async with asyncio.timeout(PATIENCE):
        return [value async for value in reader]


async def test_hundreds_of_runs(migrated_url: str) -> None:
    """Hundreds of runs on two workers, each followed by somebody: everybody sees each value once, in order."""

    @durable
    async def order(number: int) -> int:
        for done in range(5):
            await emit("progress", [number, done])
        return number

    async with working(migrated_url, order, workers=2, max_concurrent_tasks=200) as scheduler:
        handles = await scheduler.start_many(order, [(None, number) for number in range(300)])

        async def follow(number: int) -> list[Any]:
            return [value async for value in handles[number].stream("progress")]

        async with asyncio.timeout(PATIENCE * 2):
            seen = await asyncio.gather(*(follow(number) for number in range(300)))
    assert seen == [[[number, done] for done in range(5)] for number in range(300)]


async def test_cancelled_while_it_emits(migrated_url: str) -> None:
    """Whoever has followed to the end has seen all that there is, however the cancel met the values."""

    @durable
    async def order() -> None:
        for done in range(100_000):
            await emit("progress", done)

    async with working(migrated_url, order, max_concurrent_tasks=20) as scheduler:
        handles = await scheduler.start_many(order, [(None, None)] * 10)

        async def follow(index: int) -> list[Any]:
            return [value async for value in handles[index].stream("progress", int)]

        following = [asyncio.create_task(follow(index)) for index in range(10)]
        for handle in handles:
            assert await anext(handle.stream("progress")) == 0
            await handle.cancel()
        seen = [await one for one in following]
        await eventually(lambda: is_quiet(scheduler))
        assert seen == [[value async for value in handle.stream("progress")] for handle in handles]
    assert seen == [list(range(len(values))) for values in seen]


async def is_quiet(scheduler: PostgresScheduler) -> bool:
    """Tell whether nothing is emitted any more."""
    before = len(await items(scheduler))
    await asyncio.sleep(0.05)
    return before == len(await items(scheduler))
