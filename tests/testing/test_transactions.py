"""`trx()` in a simulated run: a real transaction, which ends as the checkpoint does."""

from collections.abc import AsyncIterator

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, Text, func, insert, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

from zart_sqla import NotInWorkflowError, Retry, StepFailed, context, durable, gather, schedule, step, sync, trx
from zart_sqla.testing import crash_at_every_step, run_workflow

metadata = MetaData()
bookings = Table("bookings", metadata, Column("booking_id", Integer, primary_key=True), Column("name", Text))


class OwnSession(AsyncSession):
    """A session of the app's own kind."""


@step
async def book(name: str) -> str:
    """Book once, whatever happens."""
    session = await trx()
    await session.execute(insert(bookings).values(name=name))
    return type(session).__name__


@step(retry=Retry.fixed(1, "1h"))
async def book_late(name: str) -> None:
    """Book, and fail the first time."""
    session = await trx()
    await session.execute(insert(bookings).values(name=name))
    if context().attempt == 1:
        raise ConnectionError


@step
def book_plainly(name: str) -> None:
    """Book in a thread."""
    sync.trx().execute(insert(bookings).values(name=name))


@durable
async def travel() -> str:
    """Book in sequence, in a thread, side by side, after a failure, and on any worker."""
    kind = await book("there")
    await book_plainly.call("plane")
    await gather(book("hotel"), book("car"))
    await book_late("back")
    return f"{kind} {await schedule(book('train'))}"


@pytest.fixture
async def engine(database_url: str) -> AsyncIterator[AsyncEngine]:
    """Yield the engine of an app with a table."""
    engine = create_async_engine(database_url.replace("postgresql:", "postgresql+asyncpg:"))
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
    yield engine
    await engine.dispose()


async def names(engine: AsyncEngine) -> list[str]:
    """Return what is booked."""
    async with engine.connect() as connection:
        return [str(name) for name in await connection.scalars(select(bookings.c.name).order_by(bookings.c.name))]


BOOKED = ["back", "car", "hotel", "plane", "there", "train"]


async def test_commits(engine: AsyncEngine) -> None:
    """What steps write is there afterwards, once, and what a failed attempt wrote is not."""
    assert await run_workflow(travel, engine=engine) == "AsyncSession AsyncSession"
    assert await names(engine) == BOOKED


async def test_own_sessions(engine: AsyncEngine) -> None:
    """Sessions are made by the app's own sessionmaker, which names the database as well."""
    sessionmaker = async_sessionmaker(engine, class_=OwnSession)
    assert await run_workflow(travel, sessionmaker=sessionmaker) == "OwnSession OwnSession"
    assert await names(engine) == BOOKED


async def test_exactly_once(engine: AsyncEngine) -> None:
    """Wherever the worker dies, each row is there once: it commits with the checkpoint, or not at all."""
    booked: list[list[str]] = []

    async def empty() -> None:
        booked.append(await names(engine))
        async with engine.begin() as connection:
            await connection.execute(text("TRUNCATE bookings"))

    report = await crash_at_every_step(travel, engine=engine, before_each=empty)
    booked.append(await names(engine))
    assert booked[1:] == [BOOKED] * (len(report.points) + 1)
    assert report.calls["book"] == 2


async def test_rolls_back(engine: AsyncEngine) -> None:
    """What PostgreSQL refuses is the step's failure, and nothing of it is there."""

    @step
    async def twice() -> None:
        session = await trx()
        await session.execute(insert(bookings).values(booking_id=1, name="a"))
        await session.execute(insert(bookings).values(booking_id=1, name="b"))

    @durable
    async def fails() -> None:
        await twice()

    with pytest.raises(StepFailed) as failed:
        await run_workflow(fails, engine=engine)
    assert isinstance(failed.value.cause, IntegrityError)
    assert await names(engine) == []


@pytest.mark.parametrize("ending", ["commit", "rollback"])
async def test_is_not_the_steps_to_end(engine: AsyncEngine, ending: str) -> None:
    """A step that ends its transaction itself fails, as with a worker."""

    @step
    async def end() -> None:
        session = await trx()
        await session.execute(insert(bookings).values(name="a"))
        await getattr(session, ending)()

    @durable
    async def fails() -> None:
        await end()

    with pytest.raises(StepFailed, match=f"session.{ending}") as failed:
        await run_workflow(fails, engine=engine)
    assert isinstance(failed.value.cause, NotInWorkflowError)
    assert await names(engine) == []


async def test_holds_no_connection(engine: AsyncEngine) -> None:
    """After the run, and after crashes, all connections are back in the pool."""
    await crash_at_every_step(travel, engine=engine)
    async with engine.connect() as connection:
        assert await connection.scalar(select(func.count()).select_from(bookings))
    assert engine.pool.checkedout() == 0  # type: ignore[attr-defined]
