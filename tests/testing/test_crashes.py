"""`crash_at_every_step`: a workflow ends alike whatever its worker dies of."""

import asyncio
from decimal import Decimal
from typing import Any

import pytest

from tests.testing import shop
from zart_sqla import Durable, Retry, durable, random, sleep, step, wait_for_event
from zart_sqla.testing import CrashInconsistency, WorkflowStuck, crash_at_every_step

PAID = [("paid", shop.Payment(Decimal(1), "R"))]


async def test_every_point() -> None:
    """The worker dies before and after each write, in waits too, and a step runs twice at most."""
    report = await crash_at_every_step(shop.order, "42", events=PAID)
    assert report.output == "parcel of 42 is on its way, paid by R"
    assert report.error is None
    written = (
        "the checkpoint of step 'charge'",
        "the checkpoint of sleep 'settle'",
        "the checkpoint of step 'pack'",
        "the failed attempt 1 of step 'ship'",
        "the wait of the run",
        "the failed attempt 2 of step 'ship'",
        "the wait of the run",
        "the checkpoint of step 'ship'",
        "the event 'paid'",
        "the end of the run",
    )
    assert [point.place for point in report.points] == [
        f"{side} {what} was written" for what in written for side in ("before", "after")
    ]
    assert report.calls == {"charge": 2, "pack": 2, "ship": 4}
    assert report.points[0].calls == {"charge": 2, "pack": 1, "ship": 3}
    assert report.points[1].calls == {"charge": 1, "pack": 1, "ship": 3}


@pytest.mark.parametrize(
    ("workflow", "data"),
    [
        (shop.sync_order, "42"),
        (shop.side_by_side, 3),
        (shop.values, None),
        (shop.times, None),
        (shop.too_late, "42"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
async def test_every_kind(workflow: Durable[Any, Any], data: object) -> None:
    """Workflows with threads, children, tasks, captured values and deadlines all end alike."""
    report = await crash_at_every_step(workflow, data)
    assert report.error is None
    assert max(report.calls.values()) <= (4 if "ship" in report.calls else 2)


async def test_failure() -> None:
    """A workflow that fails has to fail alike."""

    @durable
    async def fails() -> None:
        await shop.pack.call("42")
        await shop.charge("42", 5000)

    report = await crash_at_every_step(fails)
    assert report.output is None
    assert report.error is not None
    assert (report.error.error_type, report.error.step) == ("Declined", "charge")


async def test_finds_state_outside() -> None:
    """A body that keeps something beside its record is found, with the point and both ends."""
    seen: list[int] = []

    @durable
    async def count() -> int:
        seen.append(1)
        await shop.pack.call("42")
        await sleep("day", "1d")
        return len(seen)

    with pytest.raises(CrashInconsistency) as found:
        await crash_at_every_step(count, before_each=seen.clear)
    assert found.value.place == "before the checkpoint of step 'pack' was written"
    assert (found.value.expected, found.value.actual) == ("returns 2", "returns 3")


async def test_finds_another_branch() -> None:
    """A body that takes another branch on replay is found, and the steps are named."""
    turns: list[int] = []

    @durable
    async def branch() -> None:
        turns.append(1)
        if len(turns) % 2:
            await shop.pack.call("a").named("left")
        else:
            await shop.pack.call("a").named("right")

    with pytest.raises(CrashInconsistency, match="'left' is recorded, but the code called 'right'"):
        await crash_at_every_step(branch, before_each=turns.clear)


async def test_finds_a_run_that_gets_nowhere() -> None:
    """A run that only a crash makes wait for ever is found."""
    turns: list[int] = []

    @durable
    async def listen() -> None:
        turns.append(1)
        await shop.pack.call("a")
        if len(turns) > 1:
            await wait_for_event("never")

    with pytest.raises(CrashInconsistency, match="got nowhere: it waits for the event 'never'"):
        await crash_at_every_step(listen, before_each=turns.clear)


async def test_stuck_without_a_crash() -> None:
    """A run that gets nowhere by itself says so."""

    @durable
    async def listen() -> None:
        await wait_for_event("never")

    with pytest.raises(WorkflowStuck):
        await crash_at_every_step(listen)


async def test_before_each() -> None:
    """What the steps have changed can be brought back before each run, also by an `async def`."""
    stock = {"a": 1}

    async def refill() -> None:
        await asyncio.sleep(0)
        stock["a"] = 1

    @step
    async def take() -> int:
        stock["a"] = 0
        return stock["a"]

    @durable
    async def sell() -> int:
        return await take()

    report = await crash_at_every_step(sell, before_each=refill)
    assert (report.output, report.calls) == (0, {"take": 2})


async def test_same() -> None:
    """A test can tell what of the output counts."""
    numbers: list[int] = []

    @step
    async def draw() -> int:
        numbers.append(1)
        return len(numbers)

    @durable
    async def drawn() -> dict[str, int]:
        return {"drawn": await draw()}

    report = await crash_at_every_step(drawn, same=lambda one, other: one.keys() == other.keys())
    assert report.output == {"drawn": 1}


async def test_body_retry() -> None:
    """The retries of a body count alike with and without a crash."""

    @durable(retry=Retry.fixed(3, "1h"))
    async def unlucky() -> float:
        drawn = await random("drawn")
        raise LookupError(str(drawn))

    report = await crash_at_every_step(unlucky)
    assert report.error is not None
    assert report.error.attempts == 4
