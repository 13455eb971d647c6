"""`handle.history()`: what is recorded of a run, as those who replay it read it."""

import pytest

from tests.support.waiting import eventually
from tests.support.working import scheduler_on, until, working
from zart_sqla import (
    ExecutionHistory,
    ExecutionNotFound,
    ExecutionStatus,
    NonDeterminismError,
    Retry,
    SyncScheduler,
    context,
    durable,
    schedule,
    sleep,
    step,
)
from zart_sqla.testing import replay


@step
async def add(number: int) -> int:
    """Add one."""
    return number + 1


@step(retry=Retry.fixed(3, "1h"))
async def later(number: int) -> int:
    """Fail for now."""
    raise ConnectionError(str(number))


@durable("sums")
async def sums(number: int) -> int:
    """Add, and wait in three ways."""
    first = await add(number)
    handle = schedule(later(first))
    await sleep("day", "1d")
    return await handle


@durable(retry=Retry.fixed(3, "1h"))
async def unlucky() -> None:
    """Fail in the body."""
    raise LookupError(context().attempt)


async def test_of_a_waiting_run(migrated_url: str) -> None:
    """It has the input as it was given, the checkpoints, the failed attempts and the open children."""
    async with working(migrated_url, sums) as scheduler:
        handle = await scheduler.start(sums, 1, execution_id="sums-1")
        await until(handle, ExecutionStatus.WAITING)

        async def has_failed() -> bool:
            return bool((await handle.history()).recorded.attempts)

        await eventually(has_failed)
        history = await handle.history()
    assert (history.execution_id, history.task_name, history.payload) == ("sums-1", "sums", "1")
    assert {step.name: step.result for step in history.recorded.steps} == {"add": "2", "day": None}
    assert (history.recorded.attempts, history.recorded.children) == ({"later": 1}, {"later": 1})
    again = ExecutionHistory.from_json(history.to_json())
    assert again == history
    await replay(sums, again)

    @durable("sums")
    async def other(number: int) -> None:
        await sleep("day", "1d")

    with pytest.raises(NonDeterminismError, match="'add' is recorded, but the code called 'day'"):
        await replay(other, again)


async def test_of_a_retried_body(migrated_url: str) -> None:
    """It has how often the body was retried."""
    async with working(migrated_url, unlucky) as scheduler:
        handle = await scheduler.start(unlucky)
        await until(handle, ExecutionStatus.WAITING)
        assert (await handle.history()).retries == 1


async def test_before_and_without(migrated_url: str) -> None:
    """An execution that nobody has taken up has an empty history; one that is not there has none."""
    async with scheduler_on(migrated_url) as scheduler:
        handle = await scheduler.start("sums", 1)
        history = await handle.history()
        assert (history.status, list(history.recorded.steps)) == (ExecutionStatus.SCHEDULED, [])
        assert history.started_at == (await handle.info()).created_at
        with pytest.raises(ExecutionNotFound):
            await scheduler.handle("nothing").history()


def test_sync(migrated_url: str) -> None:
    """A sync app has it without `await`."""
    scheduler = SyncScheduler.connect(migrated_url)
    handle = scheduler.start("sums", {"x": 1})
    assert handle.history().payload == '{"x":1}'
    scheduler.close()
