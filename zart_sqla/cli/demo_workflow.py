"""The workflow of `zart demo`: an order that is checked, paid, shipped and announced.

Beside it each step writes one row in a ledger, in a transaction of its own and before it does anything else. So what
was begun is known whatever became of it, and can be compared with what zart_sqla recorded.
"""

import asyncio
import functools
import os
import random
from dataclasses import dataclass
from typing import Final

from sqlalchemy import (
    TIMESTAMP,
    BigInteger,
    Column,
    Identity,
    Integer,
    MetaData,
    Table,
    Text,
    func,
    insert,
)
from sqlalchemy.ext.asyncio import AsyncEngine

from zart_sqla.client.engines import autocommit, make_engine
from zart_sqla.config import DATABASE_URL_VARIABLE, PoolConfig, environment_variable
from zart_sqla.runtime.handlers import TaskRegistry, durable
from zart_sqla.runtime.steps import step
from zart_sqla.runtime.transactions import trx
from zart_sqla.runtime.waits import sleep
from zart_sqla.table_names import TableNames

STEPS: Final = ("validate", "reserve", "charge", "ship", "notify")


@dataclass(frozen=True)
class DemoTables:
    """The tables of the application.

    Attributes:
        metadata: what they are in.
        charges: the payments. Nothing in this table keeps an order from being charged twice.
        ledger: each step that was begun.
    """

    metadata: MetaData
    charges: Table
    ledger: Table


@functools.cache
def demo_tables(names: TableNames) -> DemoTables:
    """Return the application's tables, named like ours so that several demos can share a database."""
    metadata = MetaData(schema=names.schema)
    charges = Table(
        f"{names.prefix}demo_charges",
        metadata,
        Column("charge_id", BigInteger, Identity(), primary_key=True),
        Column("order_id", Text, nullable=False),
        Column("cents", Integer, nullable=False),
    )
    ledger = Table(
        f"{names.prefix}demo_ledger",
        metadata,
        Column("entry_id", BigInteger, Identity(), primary_key=True),
        Column("order_id", Text, nullable=False),
        Column("step", Text, nullable=False),
        Column("pid", Integer, nullable=False),
        Column("begun_at", TIMESTAMP(timezone=True), nullable=False, server_default=func.clock_timestamp()),
    )
    return DemoTables(metadata, charges, ledger)


@dataclass
class Order:
    """What is ordered."""

    order_id: str
    cents: int


@durable("demo-order")
async def fulfil(order: Order) -> str:
    """Fulfil an order."""
    await validate(order)
    await reserve(order)
    charge_id = await charge(order)
    await sleep("packing", "1s")
    await ship(order)
    await notify(order)
    return f"order {order.order_id} is on its way, paid with charge {charge_id}"


@step
async def validate(order: Order) -> None:
    """Check the address."""
    await _begin("validate", order)
    await _work(0.1, 0.3)


@step
async def reserve(order: Order) -> None:
    """Put the goods aside."""
    await _begin("reserve", order)
    await _work(0.1, 0.4)


@step
async def charge(order: Order) -> int:
    """Take the money: the row and the checkpoint commit together, or neither does."""
    await _begin("charge", order)
    charges = demo_tables(TableNames.from_env_or_default()).charges
    session = await trx()
    row = insert(charges).values(order_id=order.order_id, cents=order.cents).returning(charges.c.charge_id)
    charge_id: int = (await session.execute(row)).scalar_one()
    await _work(0.2, 0.5)  # who is killed here has charged nothing
    return charge_id


@step
async def ship(order: Order) -> None:
    """Hand the parcel over."""
    await _begin("ship", order)
    await _work(0.1, 0.4)


@step
async def notify(order: Order) -> None:
    """Tell the customer."""
    await _begin("notify", order)
    await _work(0.05, 0.2)


registry: Final = TaskRegistry()
registry.register(fulfil)


async def _begin(name: str, order: Order) -> None:
    ledger = demo_tables(TableNames.from_env_or_default()).ledger
    async with _ledger_engine().connect() as connection:
        await connection.execute(insert(ledger).values(order_id=order.order_id, step=name, pid=os.getpid()))


async def _work(shortest: float, longest: float) -> None:
    await asyncio.sleep(random.uniform(shortest, longest))  # noqa: S311 - no secret


@functools.cache
def _ledger_engine() -> AsyncEngine:
    url = environment_variable(DATABASE_URL_VARIABLE) or ""
    return autocommit(make_engine(url, PoolConfig(max_connections=4, min_connections=0)))
