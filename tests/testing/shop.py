"""The workflows that the kit is tried on."""

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from itertools import pairwise
from typing import Any

from zart_sqla import (
    EventTimeout,
    Retry,
    capture,
    context,
    durable,
    gather,
    now,
    random,
    schedule,
    sleep,
    step,
    sync,
    uuid,
    wait,
    wait_for_event,
)
from zart_sqla.runtime.failures import Failure


@dataclass
class Payment:
    """What is paid."""

    amount: Decimal
    reference: str


@dataclass
class Declined(Exception):
    """The card is declined."""

    reason: str


@step(raises=Declined)
async def charge(order_id: str, cents: int) -> str:
    """Take the money."""
    if cents > 1000:
        raise Declined("too much")
    return f"{order_id} paid {cents}"


@step
def pack(order_id: str) -> str:
    """Pack the goods."""
    return f"parcel of {order_id}"


@step(retry=Retry.fixed(2, "6h"))
async def ship(parcel: str) -> str:
    """Hand the parcel over, at the third attempt."""
    if context().attempt < 3:
        raise ConnectionError("no courier")
    return f"{parcel} is on its way"


@durable("order", timeout="10d")
async def order(order_id: str) -> str:
    """Do everything that a workflow can do once."""
    await charge(order_id, 500)
    await sleep("settle", "24h")
    parcel = await pack.call(order_id)
    shipped = await ship(parcel)
    try:
        paid = (await wait_for_event("paid", Payment, timeout="2d")).reference
    except EventTimeout:
        paid = "nobody"
    return f"{shipped}, paid by {paid}"


@durable
def sync_order(order_id: str) -> str:
    """Order in a plain function."""
    sync.sleep("settle", "24h")
    return pack(order_id)


@durable
async def side_by_side(count: int) -> list[str]:
    """Pack in three ways side by side: gathered, scheduled, and in tasks of the body's own."""
    gathered = await gather(*(pack.call(f"g{number}") for number in range(count)))
    handles = [schedule(pack.call(f"s{number}")) for number in range(count)]
    scheduled = [str(answer) for answer in await wait(handles)]
    async with asyncio.TaskGroup() as tasks:
        for number in range(count):
            tasks.create_task(late(number))
    return [*gathered, *scheduled]


async def late(number: int) -> None:
    """Pack after a while, in a task."""
    await sleep(f"nap-{number}", f"{number + 1}h")
    await pack.call(f"t{number}").named(f"late-{number}")


@durable
async def values() -> list[Any]:
    """Return what no two runs see alike, unless they share it."""
    there = await capture("there", lambda: object.__hash__(object()))
    return [(await now("now")).isoformat(), await random("random"), str(await uuid("uuid")), there]


@durable
async def times() -> list[timedelta]:
    """Return how long the waits took by the clock."""
    marks: list[datetime] = [await now("0")]
    await sleep("day", "24h")
    marks.append(await now("1"))
    await ship("x")
    marks.append(await now("2"))
    try:
        await wait_for_event("never", timeout="3d")
    except EventTimeout:
        marks.append(await now("3"))
    return [later - earlier for earlier, later in pairwise(marks)]


async def refund(order_id: str, failure: Failure) -> str:
    """Give the money back."""
    await charge(order_id, -500)
    return f"refunded: {type(failure).__name__}"


@durable(timeout="2h", on_failure=refund)
async def too_late(order_id: str) -> str:
    """Sleep for longer than there is time."""
    await sleep("long", "3h")
    return order_id
