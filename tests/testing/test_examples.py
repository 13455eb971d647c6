"""The example workflows of the project survive a crash at every step: a kit that is used on ourselves."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import date
from pathlib import Path

import pytest
from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncEngine

from examples.flights import database, models, workflow
from zart_sqla import PostgresScheduler, TableNames
from zart_sqla.cli import demo_workflow
from zart_sqla.testing import crash_at_every_step

DAY = date(2013, 1, 1)
COLUMNS = (
    "carrier,tailnum,origin,dest,flight,distance,air_time,"
    "sched_dep_time,dep_time,dep_delay,sched_arr_time,arr_time,arr_delay"
)
FLIGHTS = """
UA,N14228,EWR,IAH,1545,1400,227,515,517,2,819,830,11
UA,N24211,LGA,IAH,1714,1416,227,529,533,4,830,850,20
AA,NA,JFK,MIA,1141,1089,NA,540,NA,NA,850,NA,NA
"""


@pytest.fixture
async def engine(migrated_url: str) -> AsyncIterator[AsyncEngine]:
    """Yield the engine of an app, on a database with zart's tables and an execution."""
    engine = database.connect(migrated_url, pool_size=5)
    await PostgresScheduler(engine).start(workflow.summarise, DAY, execution_id="test")
    yield engine
    await engine.dispose()


async def test_flights(engine: AsyncEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each flight, each sum and the summary are there once, whatever the worker dies of."""
    (tmp_path / f"{DAY}.csv").write_text(COLUMNS + FLIGHTS)
    monkeypatch.setenv("FLIGHTS_INBOX", str(tmp_path))
    tables = [models.CarrierDelay, models.AirportDelay, models.DaySummary, models.Flight]
    async with engine.begin() as connection:
        own = [models.Base.metadata.tables[table.__tablename__] for table in tables]
        await connection.run_sync(models.Base.metadata.create_all, tables=own)
    found: list[list[int | None]] = []

    async def count_and_empty() -> None:
        async with engine.begin() as connection:
            found.append([await connection.scalar(select(func.count()).select_from(table)) for table in tables])
            for table in tables:
                await connection.execute(delete(table))

    report = await crash_at_every_step(
        workflow.summarise, DAY, sessionmaker=database.Session, before_each=count_and_empty
    )
    await count_and_empty()
    assert report.output == 3
    assert Counter(map(tuple, found)) == {(0, 0, 0, 0): 1, (2, 3, 1, 3): len(report.points) + 1}
    assert max(report.calls.values()) == 2


async def test_demo(engine: AsyncEngine, migrated_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The demonstration's order is charged once, whatever the worker dies of."""

    async def work(shortest: float, longest: float) -> None:
        await asyncio.sleep(0)

    monkeypatch.setenv("DATABASE_URL", migrated_url)
    monkeypatch.setattr(demo_workflow, "_work", work)
    tables = demo_workflow.demo_tables(TableNames.default())
    async with engine.begin() as connection:
        await connection.run_sync(tables.metadata.create_all)
    charged: list[int | None] = []

    async def count_and_empty() -> None:
        async with engine.begin() as connection:
            charged.append(await connection.scalar(select(func.count()).select_from(tables.charges)))
            await connection.execute(delete(tables.charges))

    def same(one: str, other: str) -> bool:
        return one.partition("charge")[0] == other.partition("charge")[0]  # a charge that is rolled back leaves a gap

    demo_workflow._ledger_engine.cache_clear()
    try:
        report = await crash_at_every_step(
            demo_workflow.fulfil,
            demo_workflow.Order("order-1", 500),
            engine=engine,
            before_each=count_and_empty,
            same=same,
        )
        await count_and_empty()
    finally:
        await demo_workflow._ledger_engine().dispose()
        demo_workflow._ledger_engine.cache_clear()
    assert report.calls == dict.fromkeys(demo_workflow.STEPS, 2)
    assert charged == [0] + [1] * (len(report.points) + 1)
