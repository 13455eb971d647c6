"""The workflow: load a day's flights, find the delays, wait for corrections, write the summary."""

import asyncio
from dataclasses import asdict, dataclass
from datetime import date
from typing import Final

from sqlalchemy import func, insert, select
from sqlalchemy.orm import InstrumentedAttribute

from examples.flights.database import Session
from examples.flights.dataset import read_day
from examples.flights.models import AirportDelay, CarrierDelay, DaySummary, Flight
from zart_sqla import TaskRegistry, context, durable, gather, sleep, step, trx

TIME_FOR_CORRECTIONS: Final = "2s"  # in earnest a night: it would cost no more than this


@dataclass(frozen=True)
class Delays:
    """The delays of one carrier or airport on one day: sums over its flights, in minutes."""

    code: str
    flights: int
    cancelled: int
    departure_delay: int
    arrival_delay: int


@durable("flights-of-a-day")
async def summarise(day: date) -> int:
    """Take a day from the inbox to its summary, and return how many flights there were."""
    await load(day)
    carriers, airports = await gather(carrier_delays(day), airport_delays(day))
    await sleep("corrections", TIME_FOR_CORRECTIONS)
    return await write_summary(day, carriers, airports)


@step
async def load(day: date) -> int:
    """Insert the day's flights. They and the checkpoint of this step commit together, or neither does."""
    flights = await asyncio.to_thread(read_day, day)
    session = await trx()
    await session.execute(insert(Flight), [{"day": day, **flight} for flight in flights])
    return len(flights)


@step
async def carrier_delays(day: date) -> list[Delays]:
    """Return the day's delays of each carrier."""
    return await _delays(day, Flight.carrier)


@step
async def airport_delays(day: date) -> list[Delays]:
    """Return the day's delays at each airport."""
    return await _delays(day, Flight.origin)


@step
async def write_summary(day: date, carriers: list[Delays], airports: list[Delays]) -> int:
    """Write the day's summary, which refers to this execution, and return how many flights there were."""
    summary = DaySummary(
        day=day,
        flights=sum(delays.flights for delays in carriers),
        execution_id=context().execution_id,
        carriers=[CarrierDelay(**asdict(delays)) for delays in carriers],
        airports=[AirportDelay(**asdict(delays)) for delays in airports],
    )
    session = await trx()
    session.add(summary)
    return summary.flights


async def _delays(day: date, key: InstrumentedAttribute[str]) -> list[Delays]:
    never_departed = func.count() - func.count(Flight.dep_time)
    statement = (
        select(key, func.count(), never_departed, func.sum(Flight.dep_delay), func.sum(Flight.arr_delay))
        .where(Flight.day == day)
        .group_by(key)
    )
    async with Session() as session:
        rows = await session.execute(statement)
    return [
        Delays(code, flights, cancelled, departure_delay or 0, arrival_delay or 0)
        for code, flights, cancelled, departure_delay, arrival_delay in rows
    ]


registry = TaskRegistry()
registry.register(summarise)
