"""The writer: a poisoned row in a batch fails alone, and the rest of the batch is committed."""

import asyncio

import pytest
from sqlalchemy import text

from tests.support.waiting import PATIENCE, eventually
from tests.support.working import count_rows, working
from zart_sqla import (
    ExecutionFailed,
    ExecutionStatus,
    InvalidDataError,
    PostgresScheduler,
    Retry,
    StepFailed,
    context,
    durable,
    emit,
    sleep,
    step,
)

CROWD = 400
POISONED = frozenset({0, 7, 199, 200, CROWD - 1})

REFUSALS = {
    "steps": text("ALTER TABLE zart_steps ADD CHECK (result::text <> '\"poison\"')"),
    "outputs": text("ALTER TABLE zart_execution_runs ADD CHECK (result::text <> '\"poison\"')"),
    "attempts": text("ALTER TABLE zart_step_attempts ADD CHECK (error::text NOT LIKE '%poison%')"),
    "items": text("ALTER TABLE zart_stream_items ADD CHECK (value::text <> '\"poison\"')"),
    "waits": text("ALTER TABLE zart_steps ADD CHECK (name <> 'poison')"),
}


class Crowd:
    """Lets all executions of a test go on at the same moment, so that what they write comes in one batch."""

    def __init__(self) -> None:
        self.arrived = 0
        self.let_go = asyncio.Event()

    async def gather(self, number: int) -> str:
        """Wait for the others; return what this execution is to write."""
        self.arrived += 1
        await self.let_go.wait()
        return "poison" if number in POISONED else "good"

    async def release(self) -> None:
        """Let all go on, once they are all here."""
        await eventually(lambda: self.arrived, CROWD)
        self.let_go.set()


async def refuse(scheduler: PostgresScheduler, what: str) -> None:
    """Have PostgreSQL refuse rows with poison in them."""
    async with scheduler.engine.begin() as connection:
        await connection.execute(REFUSALS[what])


async def test_poisoned_checkpoints(migrated_url: str) -> None:
    """A checkpoint that PostgreSQL refuses fails its step; hundreds beside it are committed."""
    crowd = Crowd()

    @step
    async def write(number: int) -> str:
        return await crowd.gather(number)

    @durable
    async def order(number: int) -> str:
        try:
            return await write(number)
        except StepFailed as error:
            return error.error_type

    async with working(migrated_url, order, max_concurrent_tasks=CROWD) as scheduler:
        await refuse(scheduler, "steps")
        handles = await scheduler.start_many(order, [(None, number) for number in range(CROWD)])
        await crowd.release()
        results = [await handle.result(timeout=PATIENCE) for handle in handles]
    assert results == ["InvalidDataError" if number in POISONED else "good" for number in range(CROWD)]


async def test_poisoned_outputs(migrated_url: str) -> None:
    """An output that PostgreSQL refuses fails its run; hundreds beside it complete."""
    crowd = Crowd()

    @durable
    async def order(number: int) -> str:
        return await crowd.gather(number)

    async with working(migrated_url, order, max_concurrent_tasks=CROWD) as scheduler:
        await refuse(scheduler, "outputs")
        handles = await scheduler.start_many(order, [(None, number) for number in range(CROWD)])
        await crowd.release()
        for number, handle in enumerate(handles):
            if number in POISONED:
                with pytest.raises(ExecutionFailed, match=r"InvalidDataError: .* check constraint"):
                    await handle.result(timeout=PATIENCE)
            else:
                assert await handle.result(timeout=PATIENCE) == "good"
        assert (await count_rows(scheduler))["tasks"] == 0


async def test_poisoned_items(migrated_url: str) -> None:
    """A value that PostgreSQL refuses is refused by its call, without a checkpoint; hundreds beside it are emitted."""
    crowd = Crowd()

    @durable
    async def order(number: int) -> str:
        try:
            await emit("progress", await crowd.gather(number))
        except InvalidDataError:
            return "refused"
        return "emitted"

    async with working(migrated_url, order, max_concurrent_tasks=CROWD) as scheduler:
        await refuse(scheduler, "items")
        handles = await scheduler.start_many(order, [(None, number) for number in range(CROWD)])
        await crowd.release()
        results = [await handle.result(timeout=PATIENCE) for handle in handles]
        counted = await count_rows(scheduler)
    assert results == ["refused" if number in POISONED else "emitted" for number in range(CROWD)]
    assert counted["steps"] == counted["stream_items"] == CROWD - len(POISONED)


async def test_poisoned_waits(migrated_url: str) -> None:
    """A sleep or a failed attempt that PostgreSQL refuses fails its run; others wait and go on."""

    @step(retry=Retry.fixed(1, 0))
    async def flaky(text: str) -> str:
        if not context().is_retry:
            raise ValueError(text)
        return text

    @durable
    async def retrier(text: str) -> str:
        return await flaky(text)

    @durable
    async def sleeper(text: str) -> str:
        await sleep(text, "600ms")
        return text

    async with working(migrated_url, retrier, sleeper, workers=2) as scheduler:
        for what in ("attempts", "waits"):
            await refuse(scheduler, what)
        for workflow in (retrier, sleeper):
            handles = await scheduler.start_many(workflow, [(None, text) for text in ("good", "poison", "better")])
            with pytest.raises(ExecutionFailed, match=r"InvalidDataError: .* check constraint"):
                await handles[1].result(timeout=PATIENCE)
            assert [await handles[index].result(timeout=PATIENCE) for index in (0, 2)] == ["good", "better"]
            assert await handles[1].status() is ExecutionStatus.FAILED
        assert (await count_rows(scheduler))["tasks"] == 0
