"""trx(): what a step writes and its checkpoint are both there or both absent."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable

import pytest
from sqlalchemy import MetaData, Text, UniqueConstraint, func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from tests.support.waiting import PATIENCE
from tests.support.working import CONFIG, count_rows, registry_of, scheduler_on, until, working
from zart_sqla import (
    ExecutionFailed,
    ExecutionStatus,
    PoolConfig,
    PostgresScheduler,
    Retry,
    StepError,
    Worker,
    WorkerConfig,
    context,
    durable,
    gather,
    step,
    trx,
)


class Base(DeclarativeBase):
    """The app's models."""

    metadata = MetaData()


class Entry(Base):
    """A line of a ledger; that each note is there once is checked at the commit."""

    __tablename__ = "ledger"
    __table_args__ = (UniqueConstraint("note", deferrable=True, initially="DEFERRED"),)

    entry_id: Mapped[int] = mapped_column(primary_key=True)
    note: Mapped[str] = mapped_column(Text)


@pytest.fixture
async def ledger_url(migrated_url: str) -> str:
    """Return the URL of a database with zart's tables and the app's."""
    async with scheduler_on(migrated_url) as scheduler, scheduler.engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    return migrated_url


async def notes(scheduler: PostgresScheduler) -> list[str]:
    """Return what is in the ledger, in order."""
    async with AsyncSession(scheduler.engine) as session:
        return list(await session.scalars(select(Entry.note).order_by(Entry.entry_id)))


async def test_both_are_there(ledger_url: str) -> None:
    """What a step writes is committed with its checkpoint, once, also side by side with others."""

    @step
    async def write(note: str) -> int:
        session = await trx()
        entry = Entry(note=note)
        session.add(entry)
        await session.flush()
        return entry.entry_id

    @durable
    async def order(name: str) -> list[int]:
        return [await write(name), *await gather(*(write(f"{name} {number}") for number in range(3)))]

    async with working(ledger_url, order, workers=2) as scheduler:
        handles = await scheduler.start_many(order, [(None, name) for name in "abcd"])
        ids = [await handle.result(timeout=PATIENCE) for handle in handles]
        assert len({one for several in ids for one in several}) == 16
        written = await notes(scheduler)
    assert sorted(written) == sorted(f"{name}{end}" for name in "abcd" for end in ("", " 0", " 1", " 2"))


async def raise_an_error(session: AsyncSession) -> None:
    """Fail after the write."""
    await session.flush()
    raise LookupError("after the write")


async def lose_a_peer(session: AsyncSession) -> None:
    """Fail as a call over the network does, which is none of the database's business."""
    await session.flush()
    raise ConnectionResetError("the peer is gone")


async def hang(session: AsyncSession) -> None:
    """Take longer than the timeout."""
    await session.flush()
    await asyncio.Event().wait()


async def violate_at_once(session: AsyncSession) -> None:
    """Have PostgreSQL refuse a statement."""
    await session.execute(text("INSERT INTO ledger (note) VALUES (NULL)"))


async def violate_at_commit(session: AsyncSession) -> None:
    """Have PostgreSQL refuse the commit."""
    session.add(Entry(note="written"))


async def roll_back(session: AsyncSession) -> None:
    """Do what a step must not do."""
    await session.flush()
    await session.rollback()


async def roll_back_unflushed(session: AsyncSession) -> None:
    """Do it before anything was sent to the database."""
    await session.rollback()


async def commit(session: AsyncSession) -> None:
    """Do what only the step's end may do."""
    await session.commit()


async def ask_twice(_session: AsyncSession) -> None:
    """Ask for a second transaction."""
    await trx()


ENDS: dict[str, tuple[Callable[[AsyncSession], Awaitable[None]], str]] = {
    "error": (raise_an_error, "RetryExhausted LookupError"),
    "network": (lose_a_peer, "StepFailed ConnectionResetError"),
    "timeout": (hang, "StepTimeout StepTimeout"),
    "refused": (violate_at_once, "StepFailed IntegrityError"),
    "refused at commit": (violate_at_commit, "StepFailed IntegrityError"),
    "rolled back": (roll_back, "StepFailed NotInWorkflowError"),
    "rolled back at once": (roll_back_unflushed, "StepFailed NotInWorkflowError"),
    "committed": (commit, "StepFailed NotInWorkflowError"),
    "twice": (ask_twice, "StepFailed NotInWorkflowError"),
}


@pytest.mark.parametrize("way", ENDS)
async def test_both_are_absent(ledger_url: str, way: str) -> None:
    """However a step fails, nothing that it wrote is there; the failure is recorded, and the run can go on."""
    end, expected = ENDS[way]
    attempts: list[int] = []

    @step(timeout="200ms" if end is hang else "1h", retry=Retry.fixed(1, 0, on=LookupError))
    async def write() -> None:
        attempts.append(context().attempt)
        session = await trx()
        session.add(Entry(note="written"))
        await end(session)

    @step
    async def write_after() -> None:
        (await trx()).add(Entry(note="after"))

    @durable
    async def order() -> str:
        try:
            await write()
        except StepError as error:
            await write_after()
            return f"{type(error).__name__} {error.error_type}"
        return ""

    async with working(ledger_url, order) as scheduler:
        assert await (await scheduler.start(order)).result(timeout=PATIENCE) == expected
        assert await notes(scheduler) == ["after"]
    assert attempts == ([1, 2] if expected.startswith("RetryExhausted") else [1])


async def test_savepoint(ledger_url: str) -> None:
    """A step can try something in a savepoint, and go on without it."""

    @step
    async def write() -> None:
        session = await trx()
        for note in ("kept", "undone"):
            with contextlib.suppress(KeyError):
                async with session.begin_nested():
                    session.add(Entry(note=note))
                    if note == "undone":
                        raise KeyError(note)

    @durable
    async def order() -> None:
        await write()

    async with working(ledger_url, order) as scheduler:
        await (await scheduler.start(order)).result(timeout=PATIENCE)
        assert await notes(scheduler) == ["kept"]


async def test_unstorable_result(ledger_url: str) -> None:
    """A result that cannot be stored takes what the step wrote with it."""

    @step
    async def write() -> object:
        (await trx()).add(Entry(note="written"))
        return object()

    @durable
    async def order() -> None:
        await write()

    async with working(ledger_url, order) as scheduler:
        with pytest.raises(ExecutionFailed, match="InvalidDataError: the result of step 'write'"):
            await (await scheduler.start(order)).result(timeout=PATIENCE)
        assert await notes(scheduler) == []


async def test_refused_checkpoint(ledger_url: str) -> None:
    """If PostgreSQL refuses the checkpoint, what the step wrote is not there either."""

    @step
    async def write() -> str:
        (await trx()).add(Entry(note="written"))
        return "poison"

    @durable
    async def order() -> None:
        await write()

    async with working(ledger_url, order) as scheduler:
        async with scheduler.engine.begin() as connection:
            await connection.execute(text("ALTER TABLE zart_steps ADD CHECK (result::text <> '\"poison\"')"))
        with pytest.raises(ExecutionFailed, match="the checkpoint of step 'write' cannot be stored"):
            await (await scheduler.start(order)).result(timeout=PATIENCE)
        assert await notes(scheduler) == []
        assert [one.error is None for one in await scheduler.handle(await only(scheduler)).steps()] == [False]


async def only(scheduler: PostgresScheduler) -> str:
    """Return the id of the only execution."""
    (info,) = await scheduler.list_executions()
    return info.execution_id


async def test_cancelled(ledger_url: str) -> None:
    """A step that is cancelled leaves nothing."""
    written = asyncio.Event()

    @step
    async def write() -> None:
        session = await trx()
        session.add(Entry(note="written"))
        await session.flush()
        written.set()
        await asyncio.Event().wait()

    @durable
    async def order() -> None:
        await write()

    async with working(ledger_url, order) as scheduler:
        handle = await scheduler.start(order)
        await written.wait()
        await handle.cancel()
        assert await notes(scheduler) == []
    async with scheduler_on(ledger_url) as scheduler:
        assert await notes(scheduler) == []
        assert (await count_rows(scheduler))["steps"] == 0


async def test_serialization_failure(ledger_url: str) -> None:
    """Two steps on two workers that cannot both commit: one runs again, without spending an attempt."""
    attempts: Counter[int] = Counter()
    both = asyncio.Barrier(2)

    @step
    async def count_and_write(name: str) -> int:
        attempts[context().attempt] += 1
        session = await trx()
        await session.execute(text("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"))
        count = await session.scalar(select(func.count()).select_from(Entry)) or 0
        if attempts.total() <= 2:
            await both.wait()
        session.add(Entry(note=f"{name} after {count}"))
        return count

    @durable
    async def order(name: str) -> int:
        return await count_and_write(name)

    async with working(ledger_url, order, workers=2, max_concurrent_tasks=1) as scheduler:
        handles = await scheduler.start_many(order, [(None, "a"), (None, "b")])
        counts = [await handle.result(timeout=PATIENCE) for handle in handles]
        assert sorted(counts) == [0, 1]
        assert len(await notes(scheduler)) == 2
        assert [[one.attempts for one in await handle.steps()] for handle in handles] == [[1], [1]]
        assert (await count_rows(scheduler))["step_attempts"] == 0
    assert attempts[1] == attempts.total() >= 3


async def test_deadlock(ledger_url: str) -> None:
    """Two steps on two workers that wait for each other: one runs again, without spending an attempt."""
    attempts: Counter[int] = Counter()
    both = asyncio.Barrier(2)

    @step
    async def touch(first: str, second: str) -> None:
        attempts[context().attempt] += 1
        session = await trx()
        for note in (first, second):
            await session.scalars(select(Entry).where(Entry.note == note).with_for_update())
            if note == first and attempts.total() <= 2:
                await both.wait()

    @durable
    async def order(pair: list[str]) -> None:
        await touch(*pair)

    async with working(ledger_url, order, workers=2, max_concurrent_tasks=1) as scheduler:
        async with scheduler.engine.begin() as connection:
            await connection.execute(insert(Entry), [{"note": "x"}, {"note": "y"}])
        handles = await scheduler.start_many(order, [(None, ["x", "y"]), (None, ["y", "x"])])
        for handle in handles:
            await handle.result(timeout=PATIENCE)
        assert (await count_rows(scheduler))["step_attempts"] == 0
    assert attempts == {1: 3}


async def test_smallest_pool(ledger_url: str) -> None:
    """Steps with transactions of their own get along with a pool of a single connection."""

    @step(retry=Retry.fixed(1, 0))
    async def write(note: str) -> None:
        (await trx()).add(Entry(note=note))
        if not context().is_retry:
            raise OSError

    @durable
    async def order(name: str) -> None:
        await gather(*(write(f"{name} {number}") for number in range(10)))

    pool = PoolConfig(max_connections=1, min_connections=0)
    async with await PostgresScheduler.connect_with_pool(ledger_url, pool) as scheduler:
        async with Worker(scheduler, registry_of(order), WorkerConfig(**CONFIG)):
            handles = await scheduler.start_many(order, [(None, name) for name in "abc"])
            for handle in handles:
                await handle.result(timeout=PATIENCE)
        assert len(await notes(scheduler)) == 30


async def test_sessionmaker_of_the_app(ledger_url: str) -> None:
    """The sessions are made by the app's own sessionmaker, if the worker is given one."""

    class AppSession(AsyncSession):
        """The app's own kind of session."""

    @step
    async def write() -> str:
        session = await trx()
        session.add(Entry(note="written"))
        return type(session).__name__

    @durable
    async def order() -> str:
        return await write()

    sessionmaker = async_sessionmaker[AsyncSession](class_=AppSession, expire_on_commit=False)
    async with (
        scheduler_on(ledger_url) as scheduler,
        Worker(scheduler, registry_of(order), WorkerConfig(**CONFIG), sessionmaker=sessionmaker),
    ):
        assert await (await scheduler.start(order)).result(timeout=PATIENCE) == "AppSession"
        assert await notes(scheduler) == ["written"]


async def test_start_in_the_steps_transaction(ledger_url: str) -> None:
    """An execution that a step starts in its transaction exists if and only if the step succeeds."""

    @durable
    async def child(name: str) -> str:
        return name

    @step(retry=Retry.fixed(1, 0))
    async def start_child() -> None:
        session = await trx()
        await scheduler.start(child, "kid", execution_id="child", session=session)
        if context().attempt == 1:
            raise OSError("roll it back")

    @durable
    async def parent() -> None:
        await start_child()

    async with working(ledger_url, parent, child, workers=2) as scheduler:
        await (await scheduler.start(parent)).result(timeout=PATIENCE)
        handle = scheduler.handle("child", child)
        assert await handle.result(timeout=PATIENCE) == "kid"
        await until(handle, ExecutionStatus.COMPLETED)


async def test_cancel_in_the_steps_transaction(ledger_url: str) -> None:
    """A step cannot end the run that its own checkpoint belongs to; what it wrote is not there."""

    @step
    async def give_up() -> None:
        await scheduler.handle(context().execution_id).cancel(session=await trx())

    @durable
    async def order() -> None:
        await give_up()

    async with working(ledger_url, order) as scheduler:
        handle = await scheduler.start(order)
        with pytest.raises(ExecutionFailed, match="cannot end the run of its own step"):
            await handle.result(timeout=PATIENCE)
