"""Steps: each runs once, and a replay sees what the first time saw."""

import asyncio
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any
from uuid import UUID

import pytest

from tests.support.waiting import PATIENCE, eventually
from tests.support.working import let_time_pass, scheduler_on, until, worker_on, working
from zart_sqla import (
    ExecutionFailed,
    ExecutionHandle,
    ExecutionStatus,
    Retry,
    RetryExhausted,
    StepError,
    StepFailed,
    StepKind,
    StepStatus,
    StepTimeout,
    capture,
    context,
    durable,
    gather,
    now,
    random,
    sleep,
    step,
    uuid,
)


@dataclass(frozen=True)
class Receipt:
    """What a typed workflow gives."""

    number: UUID
    total: Decimal
    at: datetime


class CardDeclined(Exception):
    """A declared error, with data of its own."""

    reason: str

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(f"declined: {reason}")


async def test_two_steps_in_a_row(migrated_url: str) -> None:
    """Two steps in a row complete, and the result has its declared type."""

    @step
    async def double(number: int) -> int:
        return number * 2

    @durable
    async def twice(number: int) -> Receipt:
        total = await double(await double(number))
        return Receipt(UUID(int=7), Decimal(total), datetime(2026, 1, 2, tzinfo=UTC))

    async with working(migrated_url, twice, workers=2) as scheduler:
        handle = await scheduler.start(twice, 3)
        receipt = await handle.result(timeout=PATIENCE)
        assert receipt == Receipt(UUID(int=7), Decimal(12), datetime(2026, 1, 2, tzinfo=UTC))
        recorded = [(one.name, one.kind, one.status, one.attempts, one.result) for one in await handle.steps()]
    completed = (StepKind.STEP, StepStatus.COMPLETED, 1)
    assert recorded == [("double", *completed, 6), ("double#2", *completed, 12)]


async def test_replay_runs_nothing_again(migrated_url: str) -> None:
    """A turn after the first repeats no step, no capture and no chance, and sees the same values."""
    ran: Counter[str] = Counter()

    @step
    async def draw() -> float:
        ran["draw"] += 1
        return ran["draw"] / 3

    @step
    def draw_plainly() -> int:
        ran["draw_plainly"] += 1
        return ran["draw_plainly"]

    def look() -> datetime:
        ran["look"] += 1
        return datetime.now(UTC)

    seen: list[object] = []

    @durable
    async def wander() -> None:
        values: list[object] = [
            *await gather(draw(), draw_plainly.call(), draw().named("third")),
            await now("t"),
            await random("r"),
            await uuid("u"),
            await capture("c", look),
        ]
        seen.append(values)
        await sleep("a while", "1h")

    async with working(migrated_url, wander, workers=2) as scheduler:
        handle = await scheduler.start(wander)
        await until(handle, ExecutionStatus.WAITING)
        await let_time_pass(scheduler)
        await handle.result(timeout=PATIENCE)
    assert ran == {"draw": 2, "draw_plainly": 1, "look": 1}
    assert len(seen) == 2
    assert seen[0] == seen[1]


async def test_repeated_names_are_numbered(migrated_url: str) -> None:
    """The same name again becomes name#2, also where a call takes such a name for itself."""

    @step("part-{index}")
    async def part(index: int, *, note: str = "") -> str:
        return f"{context().step_name}{note}"

    @durable
    async def parts() -> list[str]:
        made = [await part(1), await part(2), await part(1, note="!"), await part(9).named("part-1#3")]
        return [*made, await part(1), *await gather(part(1), part(1))]

    async with working(migrated_url, parts) as scheduler:
        names = await (await scheduler.start(parts)).result(timeout=PATIENCE)
    assert names == [
        *("part-1", "part-2", "part-1#2!", "part-1#3"),
        *("part-1#4", "part-1#5", "part-1#6"),
    ]


async def test_failing_step_fails_the_run(migrated_url: str) -> None:
    """A step that fails without a retry fails the run, with the real error text, as an error and as data."""

    @step
    async def explode() -> None:
        raise LookupError("no such gröschen")

    @durable
    async def doomed() -> None:
        await explode()

    async with working(migrated_url, doomed) as scheduler:
        handle = await scheduler.start(doomed, execution_id="d")
        with pytest.raises(ExecutionFailed) as caught:
            await handle.result(timeout=PATIENCE)
        failed = caught.value
        assert (failed.execution_id, failed.error_type, failed.step) == ("d", "LookupError", "explode")
        assert failed.message == "no such gröschen"
        assert str(failed) == "execution 'd' failed in step 'explode': LookupError: no such gröschen"
        assert (await handle.info()).error == {
            "error_type": "LookupError",
            "message": "no such gröschen",
            "step": "explode",
            "attempts": 1,
        }
        (explosion,) = await handle.steps()
        assert (explosion.status, explosion.error) == (StepStatus.FAILED, (await handle.info()).error)


async def test_retry_until_it_works(migrated_url: str) -> None:
    """With fixed(3) and two failures a step runs three times, knows which attempt it is, and the run completes."""
    seen: list[tuple[int, int, bool]] = []

    @step(retry=Retry.fixed(3, "5ms"))
    async def flaky() -> int:
        me = context()
        seen.append((me.attempt, me.max_attempts, me.is_retry))
        if me.attempt < 3:
            raise ConnectionError("not yet")
        return me.attempt

    @durable
    async def patient() -> int:
        return await flaky()

    async with working(migrated_url, patient) as scheduler:
        handle = await scheduler.start(patient)
        assert await handle.result(timeout=PATIENCE) == 3
        assert [one.attempts for one in await handle.steps()] == [3]
    assert seen == [(1, 4, False), (2, 4, True), (3, 4, True)]


async def test_exhausted_retry(migrated_url: str) -> None:
    """An exhausted retry is RetryExhausted, with the number of attempts and the last error."""
    caught: list[RetryExhausted] = []

    @step(retry=Retry.exponential(2, "2ms", "4ms"))
    async def hopeless() -> None:
        raise OSError(f"down, attempt {context().attempt}")

    @durable
    async def optimist() -> None:
        try:
            await hopeless()
        except RetryExhausted as error:
            caught.append(error)
            raise

    async with working(migrated_url, optimist) as scheduler:
        handle = await scheduler.start(optimist)
        with pytest.raises(ExecutionFailed, match="down, attempt 3"):
            await handle.result(timeout=PATIENCE)
        error = (await handle.info()).error
    assert error == {"error_type": "OSError", "message": "down, attempt 3", "step": "hopeless", "attempts": 3}
    (exhausted,) = caught
    assert (exhausted.step, exhausted.attempts, exhausted.error_type) == ("hopeless", 3, "OSError")
    assert isinstance(exhausted.cause, OSError)


async def test_retry_is_for_some_errors_only(migrated_url: str) -> None:
    """`on` and `give_up_on` name the errors that are worth another attempt."""
    ran: Counter[str] = Counter()

    @step(retry=Retry.fixed(5, 0, on=OSError, give_up_on=FileNotFoundError))
    async def read(kind: str) -> None:
        ran[kind] += 1
        raise {"value": ValueError, "missing": FileNotFoundError, "broken": OSError}[kind]

    @durable
    async def reader(kind: str) -> str:
        try:
            await read(kind)
        except StepError as error:
            return type(error).__name__
        return ""

    async with working(migrated_url, reader) as scheduler:
        handles = await scheduler.start_many(reader, [(None, kind) for kind in ("value", "missing", "broken")])
        results = [await handle.result(timeout=PATIENCE) for handle in handles]
    assert results == ["StepFailed", "StepFailed", "RetryExhausted"]
    assert ran == {"value": 1, "missing": 1, "broken": 6}


async def test_long_retry_delay_suspends(migrated_url: str) -> None:
    """A retry with a long delay lets go of the run; another worker makes the next attempt, with the right number."""
    ran_on: list[tuple[str, int]] = []
    here = "first"

    @step(retry=Retry.fixed(2, "1h"))
    async def flaky() -> str:
        ran_on.append((here, context().attempt))
        if context().attempt < 2:
            raise ConnectionError("later")
        return here

    @durable
    async def patient() -> str:
        return await flaky()

    async with scheduler_on(migrated_url) as scheduler:
        async with worker_on(migrated_url, patient):
            handle = await scheduler.start(patient)
            await until(handle, ExecutionStatus.WAITING)
            (waiting,) = await handle.steps()
            assert (waiting.name, waiting.status, waiting.attempts) == ("flaky", StepStatus.WAITING, 1)
            assert waiting.error is not None
            assert waiting.error["message"] == "later"
        here = "second"
        async with worker_on(migrated_url, patient):
            await let_time_pass(scheduler)
            assert await handle.result(timeout=PATIENCE) == "second"
        (done,) = await handle.steps()
        assert (done.status, done.attempts) == (StepStatus.COMPLETED, 2)
    assert ran_on == [("first", 1), ("second", 2)]


async def test_exhausted_over_several_turns(migrated_url: str) -> None:
    """Attempts are counted over all turns of the run."""

    @step(retry=Retry.fixed(2, "1h"))
    async def hopeless() -> None:
        raise ConnectionError(f"attempt {context().attempt}")

    @durable
    async def patient() -> None:
        await hopeless()

    async with working(migrated_url, patient, workers=2) as scheduler:
        handle = await scheduler.start(patient)
        for attempts in (1, 2):
            await eventually(partial(waiting_attempts, handle), attempts)
            await let_time_pass(scheduler)
        with pytest.raises(ExecutionFailed, match="attempt 3"):
            await handle.result(timeout=PATIENCE)
        info = await handle.info()
        assert info.error is not None
        assert info.error["attempts"] == 3


async def waiting_attempts(handle: ExecutionHandle[Any]) -> int:
    """Return how many attempts the step made that the execution waits for."""
    if await handle.status() is not ExecutionStatus.WAITING:
        return 0
    return (await handle.steps())[-1].attempts


async def test_caught_error_takes_the_same_branch_on_replay(migrated_url: str) -> None:
    """A step's error that the body handles is followed by further steps, in each turn on the same branch."""
    ran: Counter[str] = Counter()
    errors: list[StepFailed] = []

    @step
    async def charge(times: int) -> None:
        ran["charge"] += 1
        raise ValueError("no funds")

    @step
    async def apologise() -> str:
        ran["apologise"] += 1
        return "sorry"

    @durable
    async def order() -> str:
        try:
            await charge(1)
        except StepFailed as error:
            errors.append(error)
            await sleep("cool down", "1h")
            return await apologise()
        return "paid"

    async with working(migrated_url, order, workers=2) as scheduler:
        handle = await scheduler.start(order)
        await until(handle, ExecutionStatus.WAITING)
        await let_time_pass(scheduler)
        assert await handle.result(timeout=PATIENCE) == "sorry"
        recorded = [(one.name, one.status) for one in await handle.steps()]
    assert ran == {"charge": 1, "apologise": 1}
    assert recorded == [
        ("charge", StepStatus.FAILED),
        ("cool down", StepStatus.COMPLETED),
        ("apologise", StepStatus.COMPLETED),
    ]
    first, replayed = errors
    assert str(first) == str(replayed) == "step 'charge' failed: ValueError: no funds"
    assert isinstance(first.cause, ValueError)
    assert replayed.cause is None


async def test_declared_error_is_itself_on_replay(migrated_url: str) -> None:
    """An error listed in raises= comes out of the await as itself, the first time and on replay, unretried."""
    caught: list[CardDeclined] = []
    attempts: list[int] = []

    @step(raises=CardDeclined, retry=Retry.fixed(3, 0))
    async def charge() -> None:
        attempts.append(context().attempt)
        raise CardDeclined("stolen")

    @durable
    async def order() -> str:
        try:
            await charge()
        except CardDeclined as error:
            caught.append(error)
            await sleep("cool down", "1h")
            return error.reason
        return "paid"

    async with working(migrated_url, order, workers=2) as scheduler:
        handle = await scheduler.start(order)
        await until(handle, ExecutionStatus.WAITING)
        await let_time_pass(scheduler)
        assert await handle.result(timeout=PATIENCE) == "stolen"
    assert attempts == [1]
    assert [(type(error), error.reason, str(error)) for error in caught] == [
        (CardDeclined, "stolen", "declined: stolen")
    ] * 2


async def test_uncaught_declared_error(migrated_url: str) -> None:
    """A declared error that the body does not handle fails the run under its own name."""

    @step(raises=CardDeclined)
    async def charge() -> None:
        raise CardDeclined("stolen")

    @durable
    async def order() -> None:
        await charge()

    async with working(migrated_url, order) as scheduler:
        handle = await scheduler.start(order)
        with pytest.raises(ExecutionFailed) as caught:
            await handle.result(timeout=PATIENCE)
    assert (caught.value.error_type, caught.value.message) == ("CardDeclined", "declined: stolen")
    assert caught.value.step == "charge"


async def test_step_timeout_is_final(migrated_url: str) -> None:
    """A step that runs for too long is cancelled, is a StepTimeout, and is not retried."""
    seen: list[str] = []

    @step(timeout="50ms", retry=Retry.fixed(3, 0))
    async def slow() -> None:
        seen.append("started")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    @durable
    async def order() -> str:
        try:
            await slow()
        except StepTimeout as error:
            await sleep("think", "1h")
            return f"{error.step} {error.attempts}"
        return ""

    async with working(migrated_url, order, workers=2) as scheduler:
        handle = await scheduler.start(order)
        await until(handle, ExecutionStatus.WAITING)
        await let_time_pass(scheduler)
        assert await handle.result(timeout=PATIENCE) == "slow 1"
    assert seen == ["started", "cancelled"]


async def test_timeout_error_of_the_step_itself_is_no_step_timeout(migrated_url: str) -> None:
    """A TimeoutError that the step raises itself is an error like others, and is retried."""
    attempts: list[int] = []

    @step(timeout="1m", retry=Retry.fixed(1, 0))
    async def call_out() -> None:
        attempts.append(context().attempt)
        raise TimeoutError("peer is slow")

    @durable
    async def order() -> None:
        await call_out()

    async with working(migrated_url, order) as scheduler:
        handle = await scheduler.start(order)
        with pytest.raises(ExecutionFailed, match="TimeoutError: peer is slow"):
            await handle.result(timeout=PATIENCE)
    assert attempts == [1, 2]


async def test_gather_ends_all_before_it_raises(migrated_url: str) -> None:
    """In gather each call has its own checkpoint, all come to their end, and the first error in order is raised."""
    ran: Counter[str] = Counter()

    @step("part-{index}", retry=Retry.fixed(2, "1ms"))
    async def part(index: int) -> int:
        ran[f"part-{index}"] += 1
        if index == 1 and context().attempt == 1:
            raise OSError("once")
        if index == 2:
            raise LookupError("always")
        return index

    @durable
    async def order() -> list[int]:
        try:
            await gather(part(0), part(2), part(1))
        except RetryExhausted as error:
            return [*await gather(part(3), part(4)), error.attempts]
        return []

    async with working(migrated_url, order) as scheduler:
        handle = await scheduler.start(order)
        assert await handle.result(timeout=PATIENCE) == [3, 4, 3]
        statuses = {one.name: one.status for one in await handle.steps()}
    assert ran == {"part-0": 1, "part-1": 2, "part-2": 3, "part-3": 1, "part-4": 1}
    assert [name for name, status in statuses.items() if status is StepStatus.FAILED] == ["part-2"]


async def test_gather_with_different_delays(migrated_url: str) -> None:
    """Where calls of a gather wait before their next attempts, what is done stays done."""
    ran: Counter[str] = Counter()

    @step("part-{index}", retry=Retry.fixed(1, "1h"))
    async def part(index: int) -> int:
        ran[f"part-{index}"] += 1
        if index and context().attempt == 1:
            raise OSError("once")
        return index

    @durable
    async def order() -> tuple[int, ...]:
        return await gather(part(0), part(1), part(2))

    async with working(migrated_url, order, workers=2) as scheduler:
        handle = await scheduler.start(order)
        await until(handle, ExecutionStatus.WAITING)
        await let_time_pass(scheduler)
        assert await handle.result(timeout=PATIENCE) == (0, 1, 2)
    assert ran == {"part-0": 1, "part-1": 2, "part-2": 2}


async def test_sleep_measured_by_the_database(migrated_url: str) -> None:
    """A sleep is recorded before it begins, shows as waiting, and ends by itself."""

    @durable
    async def sleeper() -> None:
        await sleep("short", "10ms")
        await sleep("long", "600ms")

    async with working(migrated_url, sleeper, workers=2) as scheduler:
        handle = await scheduler.start(sleeper)
        await until(handle, ExecutionStatus.WAITING)
        assert [(one.name, one.status) for one in await handle.steps()] == [
            ("short", StepStatus.COMPLETED),
            ("long", StepStatus.WAITING),
        ]
        await handle.result(timeout=PATIENCE)
        short, long = await handle.steps()
        info = await handle.info()
    assert (long.kind, long.status) == (StepKind.SLEEP, StepStatus.COMPLETED)
    assert short.completed_at is not None
    assert long.started_at is not None
    assert long.completed_at is not None
    assert info.completed_at is not None
    assert long.completed_at - long.started_at == timedelta(milliseconds=600)
    assert short.completed_at <= long.started_at < long.completed_at <= info.completed_at


async def test_tasks_of_the_bodys_own(migrated_url: str) -> None:
    """A body may run steps and sleeps in tasks of its own: what is recorded never runs again, whatever the order."""
    ran: Counter[str] = Counter()
    first_time = True

    @step("{name}")
    async def part(name: str) -> str:
        ran[name] += 1
        return name

    async def chain(name: str) -> str:
        await part(f"{name} before")
        await sleep(f"{name} nap", "1h")
        return await part(f"{name} after")

    @durable
    async def order() -> list[str]:
        nonlocal first_time
        names = ["a", "b", "c"] if first_time else ["c", "a", "b"]
        first_time = False
        chains = {}
        async with asyncio.TaskGroup() as group:
            for name in names:
                chains[name] = group.create_task(chain(name))
        return [chains[name].result() for name in "abc"] + [await part("end")]

    async with working(migrated_url, order, workers=2) as scheduler:
        handle = await scheduler.start(order)
        while not (await handle.status()).is_terminal:
            await let_time_pass(scheduler)
        assert await handle.result() == ["a after", "b after", "c after", "end"]
        names = [one.name for one in await handle.steps()]
    assert sorted(names) == sorted(
        [f"{name} {part}" for name in "abc" for part in ("before", "nap", "after")] + ["end"]
    )
    assert {name: times for name, times in ran.items() if name == "end"} == {"end": 1}


async def test_timeout_of_the_bodys_own(migrated_url: str) -> None:
    """A body may give a step less time than it would take, and go on with something else."""
    seen: list[str] = []

    @step
    async def slow() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            seen.append("interrupted")

    @step
    async def instead() -> str:
        return "something else"

    @durable
    async def order() -> str:
        try:
            async with asyncio.timeout(0.02):
                await slow()
        except TimeoutError:
            return await instead()
        return ""

    async with working(migrated_url, order) as scheduler:
        handle = await scheduler.start(order)
        assert await handle.result(timeout=PATIENCE) == "something else"
        assert [one.name for one in await handle.steps()] == ["instead"]
    assert seen == ["interrupted"]


async def test_declared_error_with_odd_data(migrated_url: str) -> None:
    """A declared error is kept whatever data it brings, as far as JSON can tell."""

    class Odd(Exception):
        """An error with all sorts of things in it."""

        def __init__(self, **things: object) -> None:
            self.things = things
            super().__init__("odd \x00")

    @step(raises=Odd)
    async def fail() -> None:
        raise Odd(nul="\x00", nothing=None, number=float("nan"), thing=object(), nested={"raw": b"\xff", "many": {1}})

    @durable
    async def order() -> list[str]:
        try:
            await fail()
        except Odd as error:
            await sleep("pause", "1h")
            return sorted(error.things)
        return []

    async with working(migrated_url, order, workers=2) as scheduler:
        handle = await scheduler.start(order)
        await until(handle, ExecutionStatus.WAITING)
        await let_time_pass(scheduler)
        assert await handle.result(timeout=PATIENCE) == ["nested", "nothing", "nul", "number", "thing"]
