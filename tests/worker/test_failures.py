"""Bodies and steps that end badly: the error is recorded, the lease is freed, the worker lives."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest

from tests.support.waiting import PATIENCE, eventually
from tests.support.working import count_rows, let_time_pass, until, worker_on, working
from zart_sqla import (
    BodyError,
    DeadlineExceeded,
    ExecutionFailed,
    ExecutionHandle,
    ExecutionStatus,
    Failure,
    PostgresScheduler,
    RetriesExhausted,
    Retry,
    StepFailure,
    context,
    durable,
    gather,
    sleep,
    step,
)


def recurse(depth: int) -> int:
    """Recurse for ever."""
    return recurse(depth + 1) + 1


def leave() -> None:
    """Ask the process to end."""
    raise SystemExit(3)


def run_out_of_memory() -> None:
    """Fail as an allocation does."""
    raise MemoryError


def cancel_oneself() -> None:
    """Raise the error that the loop uses for cancellation, of one's own accord."""
    raise asyncio.CancelledError("by myself")


class Unorthodox(BaseException):
    """An error that no `except Exception` catches."""


def raise_unorthodox() -> None:
    """Raise it."""
    raise Unorthodox("neither fish nor flesh")


def raise_group() -> None:
    """Raise several errors at once, some of which no `except Exception` catches."""
    raise BaseExceptionGroup("both", [Unorthodox("one"), ValueError("two")])


class Unprintable(Exception):
    """An error whose text cannot be had."""

    def __str__(self) -> str:
        raise RuntimeError


def raise_unprintable() -> None:
    """Raise it."""
    raise Unprintable


def raise_unstorable_text() -> None:
    """Raise an error whose text PostgreSQL cannot hold as it is."""
    raise ValueError("nul \x00, surrogate \ud800" + "!" * 100_000)


class Unstorable:
    """Something that JSON does not know."""


def return_no_json() -> Any:
    """Return something that is not JSON."""
    return Unstorable()


BAD: dict[str, Callable[[], Any]] = {
    "SystemExit": leave,
    "MemoryError": run_out_of_memory,
    "RecursionError": lambda: recurse(0),
    "CancelledError": cancel_oneself,
    "Unorthodox": raise_unorthodox,
    "BaseExceptionGroup": raise_group,
    "Unprintable": raise_unprintable,
    "ValueError": raise_unstorable_text,
    "InvalidDataError": return_no_json,
}


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Keep the log of failures out of the tests' reports: xdist cannot transmit lone surrogates."""
    caplog.set_level(logging.CRITICAL, "zart_sqla")


async def failure_of(handle: ExecutionHandle[Any]) -> dict[str, Any]:
    """Return what the execution failed with, as data, once it has."""
    with pytest.raises(ExecutionFailed):
        await handle.result(timeout=PATIENCE)
    error = (await handle.info()).error
    assert error is not None
    return error


async def nothing_is_left(scheduler: PostgresScheduler) -> None:
    """Wait until no task is left, held or due."""
    await eventually(lambda: count_rows(scheduler), {**(await count_rows(scheduler)), "tasks": 0})


async def test_bodies_that_end_badly(migrated_url: str) -> None:
    """However a body ends, its error is recorded, its lease is freed and its worker lives."""

    @durable
    async def body(name: str) -> Any:
        return BAD[name]()

    @durable
    def plain_body(name: str) -> Any:
        return BAD[name]()

    @durable
    async def good() -> str:
        return "alive"

    async with working(migrated_url, body, plain_body, good) as scheduler:
        for workflow in (body, plain_body):
            for name in BAD:
                error = await failure_of(await scheduler.start(workflow, name))
                assert (name, error["error_type"], error["step"]) == (name, name, None)
        assert await (await scheduler.start(good)).result(timeout=PATIENCE) == "alive"
        await nothing_is_left(scheduler)


async def test_steps_that_end_badly(migrated_url: str) -> None:
    """However a step ends, its error is recorded as its own, its lease is freed and its worker lives."""

    @step
    async def async_step(name: str) -> Any:
        return BAD[name]()

    @step
    def plain_step(name: str) -> Any:
        return BAD[name]()

    @durable
    async def alone(name: str) -> Any:
        return await async_step(name)

    @durable
    async def threaded(name: str) -> Any:
        return await plain_step.call(name)

    @durable
    async def side_by_side(name: str) -> Any:
        return await gather(async_step(name), plain_step.call(name))

    async with working(migrated_url, alone, threaded, side_by_side) as scheduler:
        for workflow in (alone, threaded, side_by_side):
            for name in BAD:
                error = await failure_of(await scheduler.start(workflow, name))
                expected = "plain_step" if workflow is threaded else "async_step"
                assert (name, error["error_type"], error["step"]) == (name, name, expected)
        await nothing_is_left(scheduler)


async def test_text_of_errors(migrated_url: str) -> None:
    """An error's text is kept as far as PostgreSQL can hold it, and bounded in length."""

    @durable
    async def body() -> None:
        raise_unstorable_text()

    async with working(migrated_url, body) as scheduler:
        error = await failure_of(await scheduler.start(body))
    assert error["message"].startswith("nul \\x00, surrogate \\ud800!!!")
    assert 60_000 < len(error["message"]) < 70_000


async def test_body_that_swallows_everything(migrated_url: str) -> None:
    """A body that catches what ends its turn still sleeps, wakes and completes; nothing is recorded in between."""
    ran: Counter[str] = Counter()

    @step
    async def after() -> int:
        ran["after"] += 1
        return 7

    @durable
    async def stubborn() -> int:
        ran["turn"] += 1
        try:
            await sleep("nap", "1h")
        except BaseException:  # noqa: BLE001 - the point of this test
            ran["swallowed"] += 1
        return await after()

    @durable
    async def very_stubborn() -> int:
        ran["turn"] += 1
        for _ in range(3):
            try:
                await sleep("nap", "1h")
                return await after()
            except BaseException:  # noqa: BLE001 - the point of this test
                ran["swallowed"] += 1
        return 0

    async with working(migrated_url, stubborn, very_stubborn, workers=2) as scheduler:
        for workflow, swallowed in ((stubborn, 1), (very_stubborn, 3)):
            ran.clear()
            handle = await scheduler.start(workflow)
            await until(handle, ExecutionStatus.WAITING)
            assert ran == {"turn": 1, "swallowed": swallowed}
            await let_time_pass(scheduler)
            assert await handle.result(timeout=PATIENCE) == 7
            assert ran == {"turn": 2, "swallowed": swallowed, "after": 1}


async def test_body_is_retried(migrated_url: str) -> None:
    """An error of the body's own runs the body again, with its steps kept; context() tells the attempt."""
    ran: Counter[str] = Counter()

    @step
    async def once() -> int:
        ran["once"] += 1
        return ran["once"]

    @durable(retry=Retry.fixed(2, "1h"))
    async def flaky() -> list[int]:
        value = await once()
        me = context()
        if me.attempt < 3:
            raise OSError(f"attempt {me.attempt}")
        return [value, me.attempt, me.max_attempts]

    async with working(migrated_url, flaky, workers=2) as scheduler:
        handle = await scheduler.start(flaky)
        for attempts in (1, 2):
            await eventually(lambda: attempts_of_body(scheduler), attempts)
            await until(handle, ExecutionStatus.WAITING)
            await let_time_pass(scheduler)
        assert await handle.result(timeout=PATIENCE) == [1, 3, 3]
    assert ran == {"once": 1}


async def attempts_of_body(scheduler: PostgresScheduler) -> int:
    """Return how many failed attempts are recorded."""
    return (await count_rows(scheduler))["step_attempts"]


async def test_body_retry_exhausted(migrated_url: str) -> None:
    """A body that fails on every attempt fails the run, with the number of attempts and the last error."""

    @durable(retry=Retry.exponential(2, "1ms"))
    async def hopeless() -> None:
        raise OSError(f"attempt {context().attempt}")

    async with working(migrated_url, hopeless) as scheduler:
        error = await failure_of(await scheduler.start(hopeless))
    assert error == {"error_type": "OSError", "message": "attempt 3", "step": None, "attempts": 3}


async def test_body_retry_is_not_for_steps(migrated_url: str) -> None:
    """The retry of the body does not cover what comes out of a step."""
    turns: list[int] = []

    @step(raises=LookupError)
    async def explode(*, declared: bool) -> None:
        raise LookupError if declared else ValueError

    @durable(retry=Retry.fixed(5, 0))
    async def doomed(declared: bool) -> None:  # noqa: FBT001 - a workflow's one argument
        turns.append(context().attempt)
        await explode(declared=declared)

    async with working(migrated_url, doomed) as scheduler:
        for declared in (False, True):
            error = await failure_of(await scheduler.start(doomed, declared))
            assert (error["step"], error["attempts"]) == ("explode", 1)
    assert turns == [1, 1]


async def test_kinds_of_failure(migrated_url: str) -> None:
    """`on_failure` is told which of the four kinds it is, and what it returns is the output."""
    told: dict[str, Failure] = {}

    @step
    async def explode() -> None:
        raise ValueError("boom")

    @step(raises=LookupError)
    async def decline() -> None:
        raise LookupError("declined")

    @step(retry=Retry.fixed(1, 0))
    async def explode_often() -> None:
        raise ValueError("boom, boom")

    @step(timeout="20ms")
    async def hang() -> None:
        await asyncio.Event().wait()

    @step
    async def tidy(kind: str) -> str:
        return f"tidied {kind}"

    async def handle_failure(data: str, failure: Failure) -> str:
        told[data] = failure
        return await tidy(data)

    async def fail_by_itself() -> None:
        raise KeyError("body")

    ways: dict[str, Callable[[], Awaitable[object]]] = {
        "step": explode,
        "declared": decline,
        "retries": explode_often,
        "step timeout": hang,
        "deadline": asyncio.Event().wait,
        "sleeping deadline": partial(sleep, "too long", "1h"),
        "body": fail_by_itself,
    }

    @durable(timeout="1h", on_failure=handle_failure)
    async def doomed(kind: str) -> str:
        await ways[kind]()
        return "unreachable"

    @durable(timeout="200ms", on_failure=handle_failure)
    async def late(kind: str) -> str:
        await ways[kind]()
        return "unreachable"

    async with working(migrated_url, doomed, late, workers=2) as scheduler:
        handles = [
            await scheduler.start(late if "deadline" in kind else doomed, kind, execution_id=kind) for kind in ways
        ]
        results = [await handle.result(timeout=PATIENCE) for handle in handles]
        assert results == [f"tidied {kind}" for kind in ways]
        assert {await handle.status() for handle in handles} == {ExecutionStatus.COMPLETED}
    too_late = DeadlineExceeded("'late' had not ended 0.2 s after its first turn began")
    assert told == {
        "step": StepFailure("explode", "ValueError", "boom", 1),
        "declared": StepFailure("decline", "LookupError", "declined", 1),
        "retries": RetriesExhausted("explode_often", "ValueError", "boom, boom", 2),
        "step timeout": StepFailure("hang", "StepTimeout", "it had not ended after 0.02 s", 1),
        "deadline": too_late,
        "sleeping deadline": too_late,
        "body": BodyError("KeyError", "'body'", 1),
    }


async def test_failure_without_handler_at_the_deadline(migrated_url: str) -> None:
    """An execution that passes its timeout fails with ExecutionTimeout, asleep or not, and its step is cancelled."""
    seen: list[str] = []

    @step
    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    @durable(timeout="100ms")
    async def slow() -> None:
        await hang()

    @durable(timeout="700ms")
    async def sleepy() -> None:
        await sleep("night", "1d")

    @durable(timeout="100ms", retry=Retry.fixed(1_000_000, "1ms"))
    async def stubborn() -> None:
        raise OSError("again")

    async with working(migrated_url, slow, sleepy, stubborn, workers=2) as scheduler:
        for workflow in (slow, sleepy, stubborn):
            error = await failure_of(await scheduler.start(workflow))
            assert (error["error_type"], error["step"]) == ("ExecutionTimeout", None)
    assert seen == ["cancelled"]


async def test_on_failure_raises(migrated_url: str) -> None:
    """What `on_failure` raises is the run's error; a plain function works too, and its steps have checkpoints."""

    def give_up(data: int, failure: Failure) -> int:
        raise RuntimeError(f"gave up on {data}: {failure}")

    @durable(on_failure=give_up)
    async def doomed(data: int) -> int:
        raise KeyError(data)

    async with working(migrated_url, doomed) as scheduler:
        error = await failure_of(await scheduler.start(doomed, 5))
    assert error["error_type"] == "RuntimeError"
    assert error["message"].startswith("gave up on 5: BodyError(")


async def test_on_failure_goes_on_in_another_turn(migrated_url: str) -> None:
    """`on_failure` may sleep: the next turn goes on with it, and runs neither the body nor its steps again."""
    ran: Counter[str] = Counter()

    @step
    async def book() -> str:
        ran["book"] += 1
        return "booked"

    @step
    async def cancel_booking() -> str:
        ran["cancel_booking"] += 1
        return "refunded"

    async def compensate(_data: None, failure: Failure) -> str:
        ran["compensate"] += 1
        first = await cancel_booking()
        await sleep("settle", "1h")
        return f"{first}, {await book()} after {failure}"

    @durable(on_failure=compensate)
    async def trip() -> str:
        ran["trip"] += 1
        await book()
        raise KeyError("hotel")

    async with worker_on(migrated_url, trip), working(migrated_url, trip) as scheduler:
        handle = await scheduler.start(trip)
        await until(handle, ExecutionStatus.WAITING)
        await let_time_pass(scheduler)
        result = await handle.result(timeout=PATIENCE)
    assert result.startswith("refunded, booked after BodyError(error_type='KeyError'")
    assert ran == {"trip": 1, "book": 2, "compensate": 2, "cancel_booking": 1}
