"""The app's tables, and those of zart_sqla beside them in the same metadata.

None of them has a unique constraint but on its generated id: a row that was written twice would be there twice.
"""

from datetime import date

from sqlalchemy import ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from zart_sqla import TableNames, zart_models


class Base(DeclarativeBase):
    """What all models of the app have in common."""


zart = zart_models(TableNames.default(), metadata=Base.metadata)


class Flight(Base):
    """A flight, its columns named as in the file: local times such as 517 for 5:17, delays in minutes."""

    __tablename__ = "flights"

    id: Mapped[int] = mapped_column(primary_key=True)
    day: Mapped[date] = mapped_column(index=True)
    carrier: Mapped[str]
    flight: Mapped[int]
    tailnum: Mapped[str | None]
    origin: Mapped[str]
    dest: Mapped[str]
    distance: Mapped[int]
    air_time: Mapped[int | None]
    sched_dep_time: Mapped[int]
    dep_time: Mapped[int | None]
    dep_delay: Mapped[int | None]
    sched_arr_time: Mapped[int]
    arr_time: Mapped[int | None]
    arr_delay: Mapped[int | None]


class DaySummary(Base):
    """What became of a day's flights, and the execution that found it out."""

    __tablename__ = "day_summaries"

    id: Mapped[int] = mapped_column(primary_key=True)
    day: Mapped[date]
    flights: Mapped[int]
    execution_id: Mapped[str] = mapped_column(ForeignKey(zart.Execution.execution_id), index=True)

    execution = relationship(zart.Execution)
    carriers: Mapped[list["CarrierDelay"]] = relationship(back_populates="summary")
    airports: Mapped[list["AirportDelay"]] = relationship(back_populates="summary")


class DelayColumns:
    """The delays of one carrier or airport on one day: sums over its flights, in minutes."""

    id: Mapped[int] = mapped_column(primary_key=True)
    summary_id: Mapped[int] = mapped_column(ForeignKey(DaySummary.id), index=True)
    code: Mapped[str]
    flights: Mapped[int]
    cancelled: Mapped[int]
    departure_delay: Mapped[int]
    arrival_delay: Mapped[int]


class CarrierDelay(DelayColumns, Base):
    """The delays of a carrier's flights."""

    __tablename__ = "carrier_delays"

    summary: Mapped[DaySummary] = relationship(back_populates="carriers")


class AirportDelay(DelayColumns, Base):
    """The delays of the flights from an airport."""

    __tablename__ = "airport_delays"

    summary: Mapped[DaySummary] = relationship(back_populates="airports")
