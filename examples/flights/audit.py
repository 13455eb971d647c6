"""Compares every table with the file, row by row and sum by sum. It shares no code with the workflow."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from examples.flights.dataset import MISSING, NUMBERS, TEXTS, Row, read_file
from examples.flights.models import AirportDelay, CarrierDelay, DaySummary, Flight, zart

_COLUMNS = (*TEXTS, *NUMBERS)
_Figures = tuple[Any, ...]


@dataclass
class Audit:
    """What the comparison came to.

    Attributes:
        rows: how many flights the table has.
        summaries: how many rows the summaries have, by table.
        sums: how many sums were compared.
        problems: what differs.
    """

    rows: int = 0
    summaries: dict[str, int] = field(default_factory=dict[str, int])
    sums: int = 0
    problems: list[str] = field(default_factory=list[str])

    def compare(self, what: str, found: Iterable[_Figures], expected: Iterable[_Figures]) -> None:
        """Note what is missing, and what is there too often or should not be there."""
        there, wanted = Counter(found), Counter(expected)
        for problem, rows in (("missing", wanted - there), ("not in the file, or there twice", there - wanted)):
            if rows:
                example = next(iter(rows))
                self.problems.append(f"{what}: {rows.total():,} rows {problem}, such as {example}")


async def audit(session: AsyncSession, months: int) -> Audit:
    """Compare the tables with the first `months` of the file."""
    result = Audit()
    days = list[_Figures]()
    delays: dict[str, list[_Figures]] = {"carrier": [], "origin": []}
    for day, rows in read_file(months):
        result.compare(f"flights of {day}", await _flights(session, day), map(_as_text, rows))
        days.append((day, len(rows), "completed"))
        for key, figures in delays.items():
            figures.extend(_delays_in_file(day, rows, key))
    result.rows = await session.scalar(select(func.count()).select_from(Flight)) or 0
    if result.rows != (wanted := sum(flights for _, flights, _ in days)):
        result.problems.append(f"flights: {result.rows:,} rows, {wanted:,} in the file")
    await _compare_summaries(session, result, days)
    await _compare_delays(session, result, CarrierDelay, delays["carrier"])
    await _compare_delays(session, result, AirportDelay, delays["origin"])
    return result


async def _flights(session: AsyncSession, day: date) -> list[_Figures]:
    columns = [getattr(Flight, name) for name in _COLUMNS]
    rows = await session.execute(select(*columns).where(Flight.day == day))
    return [tuple(MISSING if value is None else str(value) for value in row) for row in rows]


def _as_text(row: Row) -> _Figures:
    return tuple(row[name] for name in _COLUMNS)


def _delays_in_file(day: date, rows: Sequence[Row], key: str) -> list[_Figures]:
    groups = defaultdict[str, list[Row]](list)
    for row in rows:
        groups[row[key]].append(row)
    return [(day, code, *_figures(of_code)) for code, of_code in groups.items()]


def _figures(rows: Sequence[Row]) -> tuple[int, int, int, int]:
    def total(column: str) -> int:
        return sum(int(row[column]) for row in rows if row[column] != MISSING)

    cancelled = sum(row["dep_time"] == MISSING for row in rows)
    return len(rows), cancelled, total("dep_delay"), total("arr_delay")


async def _compare_summaries(session: AsyncSession, result: Audit, expected: list[_Figures]) -> None:
    statement = select(DaySummary.day, DaySummary.flights, zart.Execution.status).outerjoin(DaySummary.execution)
    found = [tuple(row) for row in await session.execute(statement)]
    result.compare(DaySummary.__tablename__, found, expected)
    result.summaries[DaySummary.__tablename__] = len(found)
    result.sums += len(expected)


async def _compare_delays(
    session: AsyncSession, result: Audit, model: type[CarrierDelay | AirportDelay], expected: list[_Figures]
) -> None:
    figures = (model.flights, model.cancelled, model.departure_delay, model.arrival_delay)
    statement = select(DaySummary.day, model.code, *figures).join(DaySummary, model.summary_id == DaySummary.id)
    found = [tuple(row) for row in await session.execute(statement)]
    result.compare(model.__tablename__, found, expected)
    result.summaries[model.__tablename__] = len(found)
    result.sums += len(figures) * len(expected)
