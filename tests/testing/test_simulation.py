"""`Simulation`: a run that a test looks at, and leads through its time."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from tests.testing import shop
from zart_sqla import ConfigError, ExecutionStatus, durable, now, sleep, step, wait_for_event
from zart_sqla.testing import Simulation, override

START = datetime(2031, 5, 6, tzinfo=UTC)


async def test_looks() -> None:
    """After the end it tells the steps, the failed attempts, the calls, the turns and the time."""
    run = Simulation(shop.order, "42", now=START, events=[("paid", shop.Payment(Decimal(1), "R"))])
    assert run.turns == 0
    assert await run.result() == "parcel of 42 is on its way, paid by R"
    assert run.status is ExecutionStatus.COMPLETED
    assert list(run.steps) == ["charge", "settle", "pack", "ship", "paid"]
    assert [(one.step, one.attempt, one.error.error_type) for one in run.failed_attempts] == [
        ("ship", 1, "ConnectionError"),
        ("ship", 2, "ConnectionError"),
    ]
    assert run.calls == {"charge": 1, "pack": 1, "ship": 3}
    assert run.turns == 4
    assert run.now == START + timedelta(hours=36)


async def test_result_again() -> None:
    """To ask for the output again gives it again, and runs nothing."""
    run = Simulation(shop.sync_order, "42")
    assert await run.result() == await run.result()
    assert run.calls == {"pack": 1}


async def test_leads() -> None:
    """A test can let the run go on until it waits, let time pass, and offer events on the way."""
    run = Simulation(shop.order, "42")
    await run.run_until_waiting()
    assert (run.status, list(run.steps)) == (ExecutionStatus.WAITING, ["charge", "settle"])
    await run.advance("23h")
    assert "pack" not in run.steps
    await run.advance("1h")
    assert "pack" in run.steps
    assert run.awaits == frozenset()
    await run.advance("12h")
    assert run.awaits == {"paid"}
    run.offer_event("paid", {"amount": "1.5", "reference": "R"})
    assert run.status is ExecutionStatus.SCHEDULED
    assert (await run.result()).endswith("paid by R")
    assert run.awaits == frozenset()


async def test_advance_far() -> None:
    """Much time at once brings all that comes due in it, each at its own moment."""
    run = Simulation(shop.order, "42", now=START)
    await run.advance("100d")
    assert run.status is ExecutionStatus.COMPLETED
    assert run.now == START + timedelta(days=100)
    assert (await run.result()).endswith("paid by nobody")


async def test_step_that_offers() -> None:
    """A fake can offer the event that its step brings about."""

    @step
    async def send_invoice() -> None: ...

    @durable
    async def bill() -> int:
        await send_invoice()
        value: int = await wait_for_event("paid", int)
        return value

    run = Simulation(bill)
    with override(send_invoice, with_=lambda: run.offer_event("paid", 7)):
        assert await run.result() == 7


async def test_failed() -> None:
    """A run that failed says so, and raises its error each time."""

    @durable
    async def fail() -> None:
        raise ValueError("no")

    run = Simulation(fail)
    for _ in range(2):
        with pytest.raises(ValueError, match="no"):
            await run.result()
    assert run.status is ExecutionStatus.FAILED


async def test_clock_stands_while_it_works() -> None:
    """Time passes only in waits: two readings without one are the same."""

    @durable
    async def look() -> bool:
        first = await now("first")
        await sleep("nothing", 0)
        return first == await now("second")

    assert await Simulation(look).result()


def test_refuses_a_naive_time() -> None:
    """A clock has a time zone."""
    with pytest.raises(ConfigError, match="with a time zone"):
        Simulation(shop.order, "42", now=datetime(2030, 1, 1))  # noqa: DTZ001 - that is what is refused
