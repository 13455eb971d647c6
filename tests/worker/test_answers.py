"""A step's error as a value, through the database: further steps follow, and each turn takes the same branch."""

from collections import Counter, defaultdict
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest

from tests.support.waiting import PATIENCE
from tests.support.working import let_time_pass, until, working
from zart_sqla import (
    Answer,
    BusinessErr,
    ExecutionFailed,
    ExecutionStatus,
    Ok,
    Retry,
    ZartErr,
    durable,
    outcome,
    sleep,
    step,
    step_or,
    step_or_else,
    sync,
)

CARDS = ("good", "expired", "lost")


@dataclass
class CardDeclined(Exception):
    """A declared error, with typed data."""

    reason: str
    limit: Decimal


@step("charge-{card}", raises=CardDeclined, retry=Retry.fixed(1, "5ms"))
async def charge(card: str) -> str:
    """Charge a card: a good one, an expired one, or one that nobody has thought of."""
    if card == "expired":
        raise CardDeclined(card, Decimal("9.90"))
    if card == "lost":
        raise LookupError(card)
    return "paid"


@step("{text}")
async def follow(text: str) -> str:
    """Be a step that follows."""
    return text


def describe(answer: Answer[str]) -> str:
    """Return which branch it is, with its data."""
    match answer:
        case Ok(payment):
            return payment
        case BusinessErr(CardDeclined(reason=reason, limit=limit)):
            return f"{reason} {limit * 2}"
        case BusinessErr(error):
            return repr(error)
        case ZartErr(error):
            return f"{type(error).__name__} {error.step} {error.attempts} {error.message}"


async def results_after_a_pause(url: str, order: Any) -> list[str]:
    """Return what the workflow gives for each of the cards, each after a sleep and in its second turn."""
    async with working(url, order, workers=2) as scheduler:
        handles = await scheduler.start_many(order, [(card, card) for card in CARDS])
        for handle in handles:
            await until(handle, ExecutionStatus.WAITING)
        await let_time_pass(scheduler)
        return [await handle.result(timeout=PATIENCE) for handle in handles]


async def test_outcome(migrated_url: str) -> None:
    """Each of the three branches goes on with steps and a sleep, and the second turn takes it again."""
    branches: dict[str, list[str]] = defaultdict(list)

    @durable
    async def order(card: str) -> str:
        branch = describe(await outcome(charge(card)))
        branches[card].append(await follow(branch))
        await sleep("pause", "1h")
        return await follow(f"then {branch}")

    expected = ["paid", "expired 19.80", "RetryExhausted charge-lost 2 lost"]
    assert await results_after_a_pause(migrated_url, order) == [f"then {branch}" for branch in expected]
    assert branches == {card: [branch] * 2 for card, branch in zip(CARDS, expected, strict=True)}


async def test_step_or(migrated_url: str) -> None:
    """So it is with a default."""
    values: dict[str, list[str]] = defaultdict(list)

    @durable
    async def order(card: str) -> str:
        values[card].append(await follow(await step_or(charge(card), "default")))
        await sleep("pause", "1h")
        return await follow("then " + values[card][-1])

    assert await results_after_a_pause(migrated_url, order) == ["then paid", "then default", "then default"]
    assert values == {"good": ["paid"] * 2, "expired": ["default"] * 2, "lost": ["default"] * 2}


async def test_step_or_else(migrated_url: str) -> None:
    """And with a function, whose own steps and sleep are the body's; a failure comes out as ever, and fails the run."""
    ran: Counter[str] = Counter()

    @step
    async def remind(reason: str, limit: Decimal) -> str:
        ran[reason] += 1
        return f"reminded of {limit}"

    async def wait_and_remind(error: CardDeclined) -> str:
        await sleep("pause", "1h")
        return await remind(error.reason, error.limit)

    @durable
    async def order(card: str) -> str:
        return await follow(await step_or_else(charge(card), wait_and_remind))

    async with working(migrated_url, order, workers=2) as scheduler:
        good, expired, lost = await scheduler.start_many(order, [(card, card) for card in CARDS])
        assert await good.result(timeout=PATIENCE) == "paid"
        with pytest.raises(ExecutionFailed, match="in step 'charge-lost': LookupError: lost"):
            await lost.result(timeout=PATIENCE)
        await until(expired, ExecutionStatus.WAITING)
        await let_time_pass(scheduler)
        assert await expired.result(timeout=PATIENCE) == "reminded of 9.90"
        names = [one.name for one in await expired.steps()]
    assert names == ["charge-expired", "pause", "remind", "reminded of 9.90"]
    assert ran == {"expired": 1}


async def test_def_workflow(migrated_url: str) -> None:
    """A `def` workflow takes the same branches in its thread."""

    @step("count-{text}")
    def count(text: str) -> str:
        return f"{text} {len(text)}"

    @durable
    def order(card: str) -> str:
        answer = sync.outcome(charge(card))
        value = sync.step_or(charge(card), "default")
        sync.sleep("pause", "1h")
        if isinstance(answer, ZartErr):
            return count(f"{value} {answer.error.error_type}")
        return count(value + sync.step_or_else(charge(card), lambda error: count(error.reason)))

    expected = ["paidpaid 8", "defaultexpired 7 16", "default LookupError 19"]
    assert await results_after_a_pause(migrated_url, order) == expected
