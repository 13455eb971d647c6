"""`run_workflow`: a workflow from its start to its end, without a database and without waiting."""

import asyncio
import time
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from tests.testing import shop
from zart_sqla import (
    ConfigError,
    EventTimeout,
    ExecutionFailed,
    ExecutionTimeout,
    InvalidDataError,
    NotInWorkflowError,
    Retry,
    RetryExhausted,
    StepFailed,
    capture,
    context,
    durable,
    schedule,
    sleep,
    step,
    trx,
    wait_any,
    wait_first_n,
    wait_for_event,
)
from zart_sqla.testing import WorkflowStuck, run_workflow, run_workflow_sync

PAYMENT = shop.Payment(Decimal("5.00"), "R-7")


async def test_gives_the_output() -> None:
    """A workflow with steps, retries, a sleep and an event gives its output, in no time."""
    began = time.monotonic()
    assert await run_workflow(shop.order, "42", events=[("paid", PAYMENT)]) == (
        "parcel of 42 is on its way, paid by R-7"
    )
    assert time.monotonic() - began < 10


async def test_without_a_decorator() -> None:
    """An object with a method `run` is a workflow too, and so is a workflow without input."""

    class Onboarding:
        async def run(self, data: dict[str, int]) -> int:
            return data["x"] + 1

    @durable
    async def nothing() -> str:
        return "nothing"

    assert await run_workflow(Onboarding(), {"x": 1}) == 2
    assert await run_workflow(nothing) == "nothing"


async def test_plain_workflow() -> None:
    """A `def` workflow runs in a thread, with its waits skipped."""
    assert await run_workflow(shop.sync_order, "42") == "parcel of 42"


def test_in_a_plain_test() -> None:
    """A plain test has a call without `await`."""
    assert run_workflow_sync(shop.sync_order, "42") == "parcel of 42"
    assert run_workflow_sync(shop.order, "42", events=[("paid", PAYMENT)]).endswith("R-7")


async def test_clock_moves_on() -> None:
    """By the workflow's clock each wait takes as long as it says."""
    assert await run_workflow(shop.times) == [timedelta(days=1), timedelta(hours=12), timedelta(days=3)]


async def test_deadline() -> None:
    """A deadline passes by the same clock: the body fails at it, and the step of `on_failure` runs."""
    assert await run_workflow(shop.too_late, "42") == "refunded: DeadlineExceeded"


async def test_deadline_without_on_failure() -> None:
    """A deadline that passes raises its error, and `context()` tells when it is."""
    deadlines: list[Any] = []

    @durable(timeout="1h")
    async def long() -> None:
        deadlines.append(context().deadline)
        await sleep("long", "2h")

    with pytest.raises(ExecutionTimeout, match="3600 s"):
        await run_workflow(long)
    assert len(set(deadlines)) == 1


async def test_later_event() -> None:
    """An event that comes later is taken if it is in time; if it is late, the wait times out."""
    assert (await run_workflow(shop.order, "42", events=[("paid", PAYMENT, "3d")])).endswith("R-7")
    assert (await run_workflow(shop.order, "42", events=[("paid", PAYMENT, "4d")])).endswith("nobody")


async def test_events_in_order() -> None:
    """Events of one name are taken in the order in which they are given; those of others stay."""

    @durable
    async def listen() -> list[Any]:
        return [await wait_for_event("a"), await wait_for_event("b"), await wait_for_event("a")]

    assert await run_workflow(listen, events=[("a", 1), ("a", {"x": 2}, "1d"), ("b", 3, "2d")]) == [1, 3, {"x": 2}]


async def test_nobody_offers() -> None:
    """A run that waits for an event which nobody offers fails the test at once, and says for which."""

    @durable
    async def listen() -> None:
        await wait_for_event("paid")

    with pytest.raises(WorkflowStuck, match="'paid', which nobody offers"):
        await run_workflow(listen)


async def test_endless(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that goes on for ever fails the test."""
    monkeypatch.setattr("zart_sqla.testing.run.MAX_TURNS", 10)

    @durable
    async def tick() -> None:
        while True:
            await sleep("tick", "1h")

    with pytest.raises(WorkflowStuck, match="10 turns"):
        await run_workflow(tick)


async def test_raises_the_step_error() -> None:
    """What a step failed with comes out as itself: declared, with its cause, or exhausted."""

    @step(retry=Retry.fixed(2, "1d"))
    async def fail() -> None:
        raise ConnectionError("no line")

    @step
    async def crash() -> None:
        raise KeyError("x")

    @durable("fails")
    async def fails(how: str) -> None:
        await {"declined": shop.charge("42", 5000), "exhausted": fail(), "failed": crash()}[how]

    with pytest.raises(shop.Declined, match="too much"):
        await run_workflow(fails, "declined")
    with pytest.raises(RetryExhausted) as exhausted:
        await run_workflow(fails, "exhausted")
    assert exhausted.value.attempts == 3
    with pytest.raises(StepFailed) as failed:
        await run_workflow(fails, "failed")
    assert isinstance(failed.value.cause, KeyError)


async def test_raises_the_body_error() -> None:
    """What a body raises comes out as itself, when its own retries are used up; an exit as a failure."""
    attempts: list[int] = []

    @durable(retry=Retry.fixed(2, "1h"))
    async def fails(how: str) -> None:
        attempts.append(context().attempt)
        if how == "exit":
            raise SystemExit(3)
        raise LookupError(how)

    with pytest.raises(LookupError, match="nothing"):
        await run_workflow(fails, "nothing")
    assert attempts == [1, 2, 3]
    with pytest.raises(ExecutionFailed, match="SystemExit"):
        await run_workflow(fails, "exit")


async def test_event_timeout_comes_out() -> None:
    """A wait that times out and is not caught fails the run with its error."""

    @durable
    async def listen() -> None:
        await wait_for_event("paid", timeout="7d")

    with pytest.raises(EventTimeout):
        await run_workflow(listen, events=[("other", 1)])


async def test_side_by_side() -> None:
    """Gathered steps, scheduled ones, and the sleeps of a body's own tasks all come to their end."""
    assert await run_workflow(shop.side_by_side, 2) == [
        "parcel of g0",
        "parcel of g1",
        "Ok(value='parcel of s0')",
        "Ok(value='parcel of s1')",
    ]


async def test_choices() -> None:
    """`wait_any` and `wait_first_n` go on with the first, and those that are given up do not run."""

    @durable
    async def choose() -> list[str]:
        first, rest = await wait_any([schedule(shop.pack.call("a")), schedule(shop.ship("b"))])
        some = await wait_first_n([*rest, schedule(shop.pack.call("c"))], 1)
        return [str(first), *map(str, some)]

    assert await run_workflow(choose) == ["Ok(value='parcel of a')", "Ok(value='parcel of c')"]


async def test_scheduled_retry() -> None:
    """A scheduled step has its own retries, whose delays are skipped while the run waits for it."""

    @durable
    async def far() -> str:
        return await schedule(shop.ship("x"))

    assert await run_workflow(far) == "x is on its way"


async def test_trx_needs_a_database() -> None:
    """Without a database, `trx()` says what to pass."""

    @step
    async def write() -> None:
        await trx()

    @durable
    async def book() -> None:
        await write()

    with pytest.raises(StepFailed, match="pass engine=") as failed:
        await run_workflow(book)
    assert isinstance(failed.value.cause, NotInWorkflowError)


async def test_refuses() -> None:
    """What is no workflow, no event or no input of the workflow is refused before anything runs."""

    async def stray(data: str, more: str) -> None: ...

    with pytest.raises(ConfigError, match="workflow"):
        await run_workflow(stray, "x")  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="events"):
        await run_workflow(shop.order, "42", events=["paid"])  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="delay of an event"):
        await run_workflow(shop.order, "42", events=[("paid", 1, "soon")])
    with pytest.raises(InvalidDataError, match="the event 'paid'"):
        await run_workflow(shop.order, "42", events=[("paid", object())])
    with pytest.raises(InvalidDataError, match="the input of 'order'"):
        await run_workflow(shop.order, 42)  # type: ignore[misc]
    with pytest.raises(ConfigError, match="engine or sessionmaker"):
        await run_workflow(shop.order, "42", engine="postgresql://localhost")  # type: ignore[call-overload]


async def test_cancelled() -> None:
    """The test's own cancellation reaches what the run does, and nothing is left behind."""
    started = asyncio.Event()
    ended: list[str] = []

    @step
    async def hold() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("held")

    @durable
    async def held() -> None:
        await hold()

    running = asyncio.create_task(run_workflow(held))
    await started.wait()
    running.cancel()
    await asyncio.wait({running})
    assert running.cancelled()
    assert ended == ["held"]


async def test_capture_runs_once() -> None:
    """A value that is captured is the same in every turn."""
    calls: list[int] = []

    def count() -> int:
        calls.append(1)
        return len(calls)

    @durable
    async def look() -> int:
        value: int = await capture("count", count)
        await sleep("day", "1d")
        return value

    assert await run_workflow(look) == 1
    assert calls == [1]
