"""Cancelling: whatever an execution does just then, it is cancelled, and stays so."""

import asyncio
import threading
from collections import Counter
from typing import Any

import pytest

from tests.support.waiting import PATIENCE, eventually
from tests.support.working import count_rows, let_time_pass, scheduler_on, until, worker_on, working
from zart_sqla import (
    ExecutionCancelled,
    ExecutionFinished,
    ExecutionHandle,
    ExecutionNotFound,
    ExecutionStatus,
    PostgresScheduler,
    Retry,
    durable,
    gather,
    sleep,
    step,
    sync,
)
from zart_sqla.worker import liveness


class Interruption:
    """A place where a step stands until it is cancelled.

    Attributes:
        seen: what happened in the step.
        started: how many times it was entered.
    """

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.started = 0

    async def stand(self) -> None:
        """Wait for ever."""
        self.started += 1
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.seen.append("cancelled")
            raise


async def is_cancelled_for_good(scheduler: PostgresScheduler, handle: ExecutionHandle[Any]) -> None:
    """Check that the execution is cancelled, and that nothing is left that could change that."""
    assert await handle.status() is ExecutionStatus.CANCELLED
    with pytest.raises(ExecutionCancelled) as caught:
        await handle.result(timeout=PATIENCE)
    assert caught.value.execution_id == handle.execution_id
    info = await handle.info()
    assert info.completed_at is not None
    assert (info.result, info.error) == (None, None)
    assert (await count_rows(scheduler))["tasks"] == 0
    await let_time_pass(scheduler)
    await handle.cancel()  # again: it changes nothing
    assert await handle.info() == info
    with pytest.raises(ExecutionFinished):
        await handle.resume()


async def test_before_the_first_claim(migrated_url: str) -> None:
    """An execution that is cancelled before a worker takes it never runs."""
    ran: list[str] = []

    @durable
    async def quick(name: str) -> None:
        ran.append(name)

    async with scheduler_on(migrated_url) as scheduler:
        doomed = await scheduler.start(quick, "doomed")
        await doomed.cancel()
        async with worker_on(migrated_url, quick):
            await (await scheduler.start(quick, "other")).result(timeout=PATIENCE)
        await is_cancelled_for_good(scheduler, doomed)
        assert (await doomed.info()).started_at is None
    assert ran == ["other"]


async def test_during_a_step(migrated_url: str) -> None:
    """A running step sees CancelledError, and no further step starts."""
    place = Interruption()
    ran: Counter[str] = Counter()

    @step
    async def first() -> None:
        await place.stand()

    @step
    async def second() -> None:
        ran["second"] += 1

    @durable
    async def order() -> None:
        try:
            await first()
        finally:
            await second()

    async with working(migrated_url, order, workers=2) as scheduler:
        handle = await scheduler.start(order)
        await eventually(lambda: place.started)
        assert await handle.status() is ExecutionStatus.RUNNING
        await handle.cancel()
        await eventually(lambda: place.seen, ["cancelled"])
        await is_cancelled_for_good(scheduler, handle)
        assert await handle.steps() == []
    assert ran == {}
    assert place.started == 1


async def test_body_that_swallows_the_cancellation(migrated_url: str) -> None:
    """A body that catches its cancellation can do nothing more, and its worker goes on."""
    place = Interruption()
    ran: Counter[str] = Counter()

    @step
    async def first() -> None:
        await place.stand()

    @step
    async def second() -> int:
        ran["second"] += 1
        return 2

    @durable
    async def stubborn() -> int:
        for call in (first, second, second):
            try:
                await call()
            except BaseException:  # noqa: BLE001 - the point of this test
                ran["swallowed"] += 1
        return 1

    @durable
    async def other() -> int:
        return await second()

    async with working(migrated_url, stubborn, other, max_concurrent_tasks=1) as scheduler:
        handle = await scheduler.start(stubborn)
        await eventually(lambda: place.started)
        await handle.cancel()
        await eventually(lambda: ran["swallowed"], 3)
        await is_cancelled_for_good(scheduler, handle)
        assert ran == {"swallowed": 3}
        assert await (await scheduler.start(other)).result(timeout=PATIENCE) == 2


async def test_during_a_sleep(migrated_url: str) -> None:
    """A sleeper ends at once, and never wakes."""
    turns: list[str] = []

    @durable
    async def sleeper(name: str) -> None:
        turns.append(name)
        await sleep("night", "8h")

    async with working(migrated_url, sleeper, workers=2) as scheduler:
        doomed, other = await scheduler.start_many(sleeper, [("order_1", "doomed"), ("order-1", "other")])
        for handle in (doomed, other):
            await until(handle, ExecutionStatus.WAITING)
        await doomed.cancel()
        assert await other.status() is ExecutionStatus.WAITING
        await let_time_pass(scheduler)
        await other.result(timeout=PATIENCE)
        await is_cancelled_for_good(scheduler, doomed)
    assert sorted(turns) == ["doomed", "other", "other"]


async def test_during_a_retry_delay(migrated_url: str) -> None:
    """An execution that waits before the next attempt of a step makes none."""
    attempts: list[int] = []

    @step(retry=Retry.fixed(5, "1h"))
    async def flaky() -> None:
        attempts.append(1)
        raise OSError

    @durable
    async def order() -> None:
        await flaky()

    async with working(migrated_url, order, workers=2) as scheduler:
        handle = await scheduler.start(order)
        await until(handle, ExecutionStatus.WAITING)
        await handle.cancel()
        await is_cancelled_for_good(scheduler, handle)
    assert attempts == [1]


async def test_during_gather(migrated_url: str) -> None:
    """All steps that run side by side see CancelledError; those that were done stay recorded."""
    place = Interruption()

    @step
    async def stand() -> None:
        await place.stand()

    @step
    async def quick() -> int:
        return 1

    @durable
    async def order() -> None:
        await gather(stand(), quick(), stand(), stand())

    async with working(migrated_url, order, workers=2) as scheduler:
        handle = await scheduler.start(order)
        await eventually(lambda: place.started, 3)
        await eventually(lambda: count_steps(scheduler), 1)
        await handle.cancel()
        await eventually(lambda: place.seen, ["cancelled"] * 3)
        await is_cancelled_for_good(scheduler, handle)
        assert [one.name for one in await handle.steps()] == ["quick"]


async def count_steps(scheduler: PostgresScheduler) -> int:
    """Return how many checkpoints are recorded."""
    return (await count_rows(scheduler))["steps"]


async def test_plain_workflow(migrated_url: str) -> None:
    """A `def` workflow cannot be interrupted where it computes, but calls nothing more, and a waiting step ends."""
    place = Interruption()
    release = threading.Event()
    ran: Counter[str] = Counter()

    @step
    async def stand() -> None:
        await place.stand()

    @step
    def compute() -> None:
        ran["compute"] += 1
        release.wait(PATIENCE)

    @step
    def after() -> None:
        ran["after"] += 1

    @durable
    def waits() -> None:
        try:
            sync.gather(stand())
        except Exception:  # noqa: BLE001 - a body may do so
            ran["caught"] += 1
        after()

    @durable
    def computes() -> None:
        compute()
        ran["computed"] += 1
        after()

    async with working(migrated_url, waits, computes, workers=2) as scheduler:
        waiting, computing = await scheduler.start(waits), await scheduler.start(computes)
        await eventually(lambda: place.started and ran["compute"])
        await waiting.cancel()
        await computing.cancel()
        await eventually(lambda: place.seen, ["cancelled"])
        release.set()
        await is_cancelled_for_good(scheduler, waiting)
        await is_cancelled_for_good(scheduler, computing)
    assert ran == {"compute": 1}


async def test_after_the_end(migrated_url: str) -> None:
    """What has completed or failed cannot be cancelled; nor what does not exist."""

    @durable
    async def order(number: int) -> float:
        return 1 / number

    async with working(migrated_url, order) as scheduler:
        for number, status in ((1, ExecutionStatus.COMPLETED), (0, ExecutionStatus.FAILED)):
            handle = await scheduler.start(order, number)
            await until(handle, status)
            with pytest.raises(ExecutionFinished) as caught:
                await handle.cancel()
            assert (caught.value.execution_id, caught.value.status) == (handle.execution_id, status)
            assert await handle.status() is status
        with pytest.raises(ExecutionNotFound):
            await scheduler.handle("nobody").cancel()


async def test_cancel_in_the_apps_transaction(migrated_url: str) -> None:
    """A cancel joins the app's transaction: rolled back, it has not happened; committed, the step is interrupted."""
    place = Interruption()

    @step
    async def stand() -> None:
        await place.stand()

    @durable
    async def order() -> None:
        await stand()

    async with working(migrated_url, order, workers=2) as scheduler:
        handle = await scheduler.start(order)
        await eventually(lambda: place.started)
        async with scheduler.engine.connect() as connection:
            await handle.cancel(session=connection)
            await connection.rollback()
            assert await handle.status() is ExecutionStatus.RUNNING
            await handle.cancel(session=connection)
            await connection.commit()
        await eventually(lambda: place.seen, ["cancelled"])
        await is_cancelled_for_good(scheduler, handle)


is_committed = pytest.mark.parametrize("is_committed", [True, False])


@is_committed
@pytest.mark.parametrize("is_sleeper", [True, False])
async def test_cancel_in_a_transaction_that_stays_open(
    migrated_url: str,
    is_sleeper: bool,  # noqa: FBT001
    is_committed: bool,  # noqa: FBT001
) -> None:
    """An app that takes its time between cancel and commit holds up no other run of the worker."""
    gate = asyncio.Event()

    @durable
    async def order(kind: str) -> str:
        if kind == "held":
            await gate.wait()
        if is_sleeper:
            await sleep("night", "1s")
        return kind

    async with working(migrated_url, order) as scheduler:
        held = await scheduler.start(order, "held")
        await until(held, ExecutionStatus.RUNNING)
        async with scheduler.engine.connect() as connection:
            await held.cancel(session=connection)
            gate.set()
            other = await scheduler.start(order, "other")
            assert await other.result(timeout=PATIENCE) == "other"
            await (connection.commit() if is_committed else connection.rollback())
        if is_committed:
            await is_cancelled_for_good(scheduler, held)
        else:
            assert await held.result(timeout=PATIENCE) == "held"


@is_committed
async def test_stopping_beside_an_open_cancellation(
    migrated_url: str,
    is_committed: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A worker that stops leaves behind what the app has locked; another one takes it up when it is let go."""
    monkeypatch.setattr(liveness, "_SWEEP_SECONDS", 0.1)
    gate = asyncio.Event()

    @durable
    async def order() -> str:
        await gate.wait()
        return "done"

    async with working(migrated_url, order, heartbeat_interval="200ms") as scheduler:
        async with worker_on(migrated_url, order, queues=["own"], shutdown_timeout=0) as leaving:
            handle = await scheduler.start(order, queue="own")
            await until(handle, ExecutionStatus.RUNNING)
            async with scheduler.engine.connect() as connection:
                await handle.cancel(session=connection)
                await leaving.stop()
                await (connection.commit() if is_committed else connection.rollback())
        gate.set()
        if is_committed:
            await is_cancelled_for_good(scheduler, handle)
        else:
            assert await handle.result(timeout=PATIENCE) == "done"


async def test_completion_and_cancel_race(migrated_url: str) -> None:
    """Of a completion and a cancel at the same time exactly one wins, and it stays."""

    @durable
    async def quick(number: int) -> int:
        return number

    async with working(migrated_url, quick, workers=2) as scheduler:
        handles = await scheduler.start_many(quick, [(None, number) for number in range(60)])
        answers = await asyncio.gather(*(one.cancel() for one in handles), return_exceptions=True)
        statuses = [await one.status() for one in handles]
        for answer, status in zip(answers, statuses, strict=True):
            expected = ExecutionStatus.COMPLETED if isinstance(answer, ExecutionFinished) else ExecutionStatus.CANCELLED
            assert status is expected
        await eventually(lambda: count_rows(scheduler), {**(await count_rows(scheduler)), "tasks": 0})
        assert [await one.status() for one in handles] == statuses


async def test_failure_handling_is_not_for_cancellation(migrated_url: str) -> None:
    """Neither `on_failure` nor a retry of the body has a say in what was cancelled, whatever the body makes of it."""
    place = Interruption()
    called: list[object] = []

    @step(retry=Retry.fixed(5, 0, on=BaseException))
    async def stand() -> None:
        await place.stand()

    @durable(retry=Retry.fixed(5, 0), on_failure=lambda _data, failure: called.append(failure))
    async def order() -> None:
        try:
            await stand()
        except asyncio.CancelledError:
            called.append("body")
            raise ValueError("made an error of it") from None

    async with working(migrated_url, order, workers=2) as scheduler:
        handle = await scheduler.start(order)
        await eventually(lambda: place.started)
        await handle.cancel()
        await eventually(lambda: called)
        await is_cancelled_for_good(scheduler, handle)
    assert called == ["body"]
    assert place.started == 1
