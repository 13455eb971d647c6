"""trx(): what a step writes and its checkpoint are both there or both absent."""

import asyncio
import contextlib
import gc
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

import asyncpg
import pytest
from sqlalchemy import func, insert, select, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session

from tests.support.ledger import Entry, notes, write_note
from tests.support.waiting import PATIENCE, eventually
from tests.support.working import CONFIG, count_rows, let_time_pass, registry_of, scheduler_on, until, working
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
    sync,
    trx,
)
from zart_sqla.runtime.steps import Step


@pytest.fixture(params=["async def", "def"])
def kind(request: pytest.FixtureRequest) -> str:
    """Return the kind of the step: the facts are the same."""
    return str(request.param)


def step_of(kind: str, *parts: Callable[..., Any], between: Callable[[], Any] = bool, **options: Any) -> Step[..., Any]:
    """Return a step that does these parts with its session and its arguments, and something else between them."""

    @step("write", **options)
    async def write_on_the_loop(*arguments: str) -> Any:
        session = await trx()
        for part in parts[:-1]:
            await session.run_sync(part, *arguments)
            await asyncio.to_thread(between)
        return await session.run_sync(parts[-1], *arguments)

    @step("write", **options)
    def write_in_a_thread(*arguments: str) -> Any:
        session = sync.trx()
        for part in parts[:-1]:
            part(session, *arguments)
            between()
        return parts[-1](session, *arguments)

    return write_on_the_loop if kind == "async def" else write_in_a_thread


async def test_both_are_there(ledger_url: str, kind: str) -> None:
    """What a step writes is committed with its checkpoint, once, also side by side with others."""
    write = step_of(kind, write_note)

    @durable
    async def order(name: str) -> list[int]:
        return [await write.call(name), *await gather(*(write.call(f"{name} {number}") for number in range(3)))]

    async with working(ledger_url, order, workers=2) as scheduler:
        handles = await scheduler.start_many(order, [(None, name) for name in "abcd"])
        ids = [await handle.result(timeout=PATIENCE) for handle in handles]
        assert len({one for several in ids for one in several}) == 16
        written = await notes(scheduler)
    assert sorted(written) == sorted(f"{name}{end}" for name in "abcd" for end in ("", " 0", " 1", " 2"))


def raise_an_error(session: Session) -> None:
    """Fail after the write."""
    session.flush()
    raise LookupError("after the write")


def lose_a_peer(session: Session) -> None:
    """Fail as a call over the network does, which is none of the database's business."""
    session.flush()
    raise ConnectionResetError("the peer is gone")


def hang(session: Session) -> None:
    """Take longer than the timeout, in a statement."""
    session.flush()
    session.execute(text("SELECT pg_sleep(60)"))


def violate_at_once(session: Session) -> None:
    """Have PostgreSQL refuse a statement."""
    session.execute(text("INSERT INTO ledger (note) VALUES (NULL)"))


def violate_at_commit(session: Session) -> None:
    """Have PostgreSQL refuse the commit."""
    session.add(Entry(note="written"))


def roll_back(session: Session) -> None:
    """Do what a step must not do."""
    session.flush()
    session.rollback()


def roll_back_unflushed(session: Session) -> None:
    """Do it before anything was sent to the database."""
    session.rollback()


def commit(session: Session) -> None:
    """Do what only the step's end may do."""
    session.commit()


ENDS: dict[str, tuple[Callable[[Session], None], str]] = {
    "error": (raise_an_error, "RetryExhausted LookupError"),
    "network": (lose_a_peer, "StepFailed ConnectionResetError"),
    "timeout": (hang, "StepTimeout StepTimeout"),
    "refused": (violate_at_once, "StepFailed IntegrityError"),
    "refused at commit": (violate_at_commit, "StepFailed IntegrityError"),
    "rolled back": (roll_back, "StepFailed NotInWorkflowError"),
    "rolled back at once": (roll_back_unflushed, "StepFailed NotInWorkflowError"),
    "committed": (commit, "StepFailed NotInWorkflowError"),
}


@pytest.mark.parametrize("way", ENDS)
async def test_both_are_absent(ledger_url: str, way: str, kind: str) -> None:
    """However a step fails, nothing that it wrote is there; the failure is recorded, and the run can go on."""
    end, expected = ENDS[way]
    attempts: list[int] = []

    def work(session: Session) -> None:
        attempts.append(context().attempt)
        session.add(Entry(note="written"))
        end(session)

    write = step_of(kind, work, timeout="200ms" if end is hang else "1h", retry=Retry.fixed(1, 0, on=LookupError))
    write_after = step_of(kind, write_note)

    @durable
    async def order() -> str:
        try:
            await write.call()
        except StepError as error:
            await write_after.call("after")
            return f"{type(error).__name__} {error.error_type}"
        return ""

    async with working(ledger_url, order) as scheduler:
        assert await (await scheduler.start(order)).result(timeout=PATIENCE) == expected
        assert await notes(scheduler) == ["after"]
    assert attempts == ([1, 2] if expected.startswith("RetryExhausted") else [1])


async def test_savepoint(ledger_url: str, kind: str) -> None:
    """A step can try something in a savepoint, and go on without it; one that it leaves open is part of the rest."""

    def work(session: Session) -> None:
        for note in ("kept", "undone"):
            with contextlib.suppress(KeyError), session.begin_nested():
                session.add(Entry(note=note))
                if note == "undone":
                    raise KeyError(note)
        session.begin_nested()
        session.add(Entry(note="left open"))

    write = step_of(kind, work)

    @durable
    async def order() -> None:
        await write.call()

    async with working(ledger_url, order) as scheduler:
        await (await scheduler.start(order)).result(timeout=PATIENCE)
        assert await notes(scheduler) == ["kept", "left open"]


async def test_unstorable_result(ledger_url: str, kind: str) -> None:
    """A result that cannot be stored takes what the step wrote with it."""

    def work(session: Session) -> object:
        write_note(session)
        return object()

    write = step_of(kind, work)

    @durable
    async def order() -> None:
        await write.call()

    async with working(ledger_url, order) as scheduler:
        with pytest.raises(ExecutionFailed, match="InvalidDataError: the result of step 'write'"):
            await (await scheduler.start(order)).result(timeout=PATIENCE)
        assert await notes(scheduler) == []


async def test_refused_checkpoint(ledger_url: str, kind: str) -> None:
    """If PostgreSQL refuses the checkpoint, what the step wrote is not there either."""

    def work(session: Session) -> str:
        write_note(session)
        return "poison"

    write = step_of(kind, work)

    @durable
    async def order() -> None:
        await write.call()

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


async def test_cancelled(ledger_url: str, kind: str) -> None:
    """A step that is cancelled in the middle of a statement leaves nothing."""
    written = threading.Event()

    def work(session: Session) -> None:
        write_note(session)
        written.set()
        session.execute(text("SELECT pg_sleep(60)"))

    write = step_of(kind, work)

    @durable
    async def order() -> None:
        await write.call()

    async with working(ledger_url, order) as scheduler:
        handle = await scheduler.start(order)
        await asyncio.to_thread(written.wait)
        await handle.cancel()
        assert await notes(scheduler) == []
    async with scheduler_on(ledger_url) as scheduler:
        assert await notes(scheduler) == []
        assert (await count_rows(scheduler))["steps"] == 0


async def test_lost_task(ledger_url: str, kind: str) -> None:
    """A step whose task was taken over meanwhile leaves nothing; the one that runs in its place does."""
    has_written, may_end = threading.Event(), threading.Event()

    def write(session: Session) -> None:
        write_note(session)
        has_written.set()

    def look(session: Session) -> int:
        return session.scalars(select(func.count()).select_from(Entry)).one()

    write_and_look = step_of(kind, write, look, between=may_end.wait)

    @durable
    async def order() -> int:
        seen: int = await write_and_look.call()
        return seen

    async with working(ledger_url, order) as scheduler:
        handle = await scheduler.start(order)
        await asyncio.to_thread(has_written.wait)
        async with scheduler.engine.begin() as connection:
            await connection.execute(text("UPDATE zart_tasks SET worker_id = NULL"))
        may_end.set()
        await let_time_pass(scheduler)
        assert await handle.result(timeout=PATIENCE) == 1
        assert await notes(scheduler) == ["written"]


async def test_lost_connection(ledger_url: str, kind: str) -> None:
    """A step whose connection is lost runs again, without spending an attempt."""
    attempts: list[int] = []

    def work(session: Session) -> int:
        attempts.append(context().attempt)
        if len(attempts) == 1:
            write_note(session, "lost")
            session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))
        return write_note(session)

    write = step_of(kind, work, retry=Retry.fixed(1, 0))

    @durable
    async def order() -> None:
        await write.call()

    async with working(ledger_url, order) as scheduler:
        await (await scheduler.start(order)).result(timeout=PATIENCE)
        assert await notes(scheduler) == ["written"]
        assert (await count_rows(scheduler))["step_attempts"] == 0
    assert attempts == [1, 1]


BLOCK = """
CREATE FUNCTION block() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(42);
    RETURN NEW;
END $$;
CREATE TRIGGER block BEFORE INSERT ON zart_steps FOR EACH ROW EXECUTE FUNCTION block();
SELECT pg_advisory_lock(42);
"""
"""Whoever records a step waits for this connection."""

CUT = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND wait_event = 'advisory'
"""


async def test_lost_connection_of_a_cancelled_step(
    ledger_url: str, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A step that is cancelled while it commits, and then loses its connection, leaves no error that nobody sees."""
    write = step_of(kind, write_note)

    @durable
    async def order() -> None:
        await write.call()

    caplog.set_level("INFO")
    async with working(ledger_url, order) as scheduler:
        blocking = await asyncpg.connect(ledger_url)
        await blocking.execute(BLOCK)
        handle = await scheduler.start(order)
        await eventually(partial(blocking.fetchval, CUT.replace("pg_terminate_backend(pid)", "count(*)")), 1)
        await handle.cancel()
        await eventually(lambda: "the execution was cancelled" in caplog.text)
        assert await blocking.fetchval(CUT)
        await blocking.close()
        assert await handle.status() is ExecutionStatus.CANCELLED
        assert await notes(scheduler) == []
    gc.collect()  # asyncio complains when it forgets the task
    assert "never retrieved" not in caplog.text


INTERRUPTED = {
    "checkpoint": "CREATE TRIGGER interrupt BEFORE INSERT ON zart_steps",
    "commit": "CREATE CONSTRAINT TRIGGER interrupt AFTER INSERT ON ledger DEFERRABLE INITIALLY DEFERRED",
}
"""What the server cancels the first time, as a `statement_timeout` does."""


@pytest.mark.parametrize("what", INTERRUPTED)
async def test_interrupted_end(ledger_url: str, what: str, kind: str) -> None:
    """A step whose checkpoint or commit takes too long for the server runs again, without spending an attempt."""
    write = step_of(kind, write_note)

    @durable
    async def order() -> None:
        await write.call()

    async with working(ledger_url, order) as scheduler:
        async with scheduler.engine.begin() as connection:
            await connection.execute(text("CREATE SEQUENCE times"))
            body = "BEGIN IF nextval('times') = 1 THEN RAISE query_canceled; END IF; RETURN NEW; END"
            await connection.execute(
                text(f"CREATE FUNCTION interrupt() RETURNS trigger LANGUAGE plpgsql AS $${body}$$")
            )
            await connection.execute(text(f"{INTERRUPTED[what]} FOR EACH ROW EXECUTE FUNCTION interrupt()"))
        handle = await scheduler.start(order)
        await handle.result(timeout=PATIENCE)
        assert await notes(scheduler) == ["written"]
        assert [one.attempts for one in await handle.steps()] == [1]
        assert (await count_rows(scheduler))["step_attempts"] == 0


async def test_interrupted_statement(ledger_url: str, kind: str) -> None:
    """A statement of the step's own that takes too long is an error of the step."""

    def work(session: Session) -> None:
        write_note(session)
        session.execute(text("SET LOCAL statement_timeout = 1"))
        session.execute(text("SELECT pg_sleep(60)"))

    write = step_of(kind, work)

    @durable
    async def order() -> None:
        await write.call()

    async with working(ledger_url, order) as scheduler:
        with pytest.raises(ExecutionFailed, match="statement timeout"):
            await (await scheduler.start(order)).result(timeout=PATIENCE)
        assert await notes(scheduler) == []


async def test_serialization_failure(ledger_url: str, kind: str) -> None:
    """Two steps on two workers that cannot both commit: one runs again, without spending an attempt."""
    attempts: Counter[int] = Counter()
    both = threading.Barrier(2)

    def count(session: Session, _name: str) -> None:
        attempts[context().attempt] += 1
        session.execute(text("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE"))
        session.info["count"] = session.scalar(select(func.count()).select_from(Entry)) or 0

    def write(session: Session, name: str) -> int:
        session.add(Entry(note=f"{name} after {session.info['count']}"))
        return int(session.info["count"])

    count_and_write = step_of(kind, count, write, between=lambda: attempts.total() <= 2 and both.wait())

    @durable
    async def order(name: str) -> int:
        counted: int = await count_and_write.call(name)
        return counted

    async with working(ledger_url, order, workers=2, max_concurrent_tasks=1) as scheduler:
        handles = await scheduler.start_many(order, [(None, "a"), (None, "b")])
        counts = [await handle.result(timeout=PATIENCE) for handle in handles]
        assert sorted(counts) == [0, 1]
        assert len(await notes(scheduler)) == 2
        assert [[one.attempts for one in await handle.steps()] for handle in handles] == [[1], [1]]
        assert (await count_rows(scheduler))["step_attempts"] == 0
    assert attempts[1] == attempts.total() >= 3


async def test_deadlock(ledger_url: str, kind: str) -> None:
    """Two steps on two workers that wait for each other: one runs again, without spending an attempt."""
    attempts: Counter[int] = Counter()
    both = threading.Barrier(2)

    def lock(session: Session, note: str) -> None:
        session.scalars(select(Entry).where(Entry.note == note).with_for_update()).all()

    def lock_first(session: Session, first: str, _second: str) -> None:
        attempts[context().attempt] += 1
        lock(session, first)

    def lock_second(session: Session, _first: str, second: str) -> None:
        lock(session, second)

    touch = step_of(kind, lock_first, lock_second, between=lambda: attempts.total() <= 2 and both.wait())

    @durable
    async def order(pair: list[str]) -> None:
        await touch.call(*pair)

    async with working(ledger_url, order, workers=2, max_concurrent_tasks=1) as scheduler:
        async with scheduler.engine.begin() as connection:
            await connection.execute(insert(Entry), [{"note": "x"}, {"note": "y"}])
        handles = await scheduler.start_many(order, [(None, ["x", "y"]), (None, ["y", "x"])])
        for handle in handles:
            await handle.result(timeout=PATIENCE)
        assert (await count_rows(scheduler))["step_attempts"] == 0
    assert attempts == {1: 3}


async def test_smallest_pool(ledger_url: str, kind: str) -> None:
    """Steps with transactions of their own get along with a pool of a single connection."""

    def work(session: Session, note: str) -> None:
        write_note(session, note)
        if not context().is_retry:
            raise OSError

    write = step_of(kind, work, retry=Retry.fixed(1, 0))

    @durable
    async def order(name: str) -> None:
        await gather(*(write.call(f"{name} {number}") for number in range(10)))

    pool = PoolConfig(max_connections=1, min_connections=0)
    async with await PostgresScheduler.connect_with_pool(ledger_url, pool) as scheduler:
        async with Worker(scheduler, registry_of(order), WorkerConfig(**CONFIG)):
            handles = await scheduler.start_many(order, [(None, name) for name in "abc"])
            for handle in handles:
                await handle.result(timeout=PATIENCE)
        assert len(await notes(scheduler)) == 30


async def test_sessionmaker_of_the_app(ledger_url: str) -> None:
    """The sessions are made by the app's own sessionmaker, if the worker is given one."""

    class AppSession(Session):
        """The app's own kind of session."""

    class AppAsyncSession(AsyncSession):
        """The same, for the loop."""

        sync_session_class = AppSession

    @step
    async def write() -> str:
        session = await trx()
        session.add(Entry(note="written"))
        return type(session).__name__

    @step
    def write_in_a_thread() -> str:
        session = sync.trx()
        session.add(Entry(note="written in a thread"))
        return type(session).__name__

    @durable
    async def order() -> list[str]:
        return [await write(), await write_in_a_thread.call()]

    sessionmaker = async_sessionmaker[AsyncSession](class_=AppAsyncSession, expire_on_commit=False)
    async with (
        scheduler_on(ledger_url) as scheduler,
        Worker(scheduler, registry_of(order), WorkerConfig(**CONFIG), sessionmaker=sessionmaker),
    ):
        assert await (await scheduler.start(order)).result(timeout=PATIENCE) == ["AppAsyncSession", "AppSession"]
        assert await notes(scheduler) == ["written", "written in a thread"]


async def test_start_in_the_steps_transaction(ledger_url: str, kind: str) -> None:
    """An execution that a step starts in its transaction exists if and only if the step succeeds."""

    @durable
    async def child(name: str) -> str:
        return name

    def work(session: Session) -> None:
        scheduler.sync.start(child, "kid", execution_id="child", session=session)
        if context().attempt == 1:
            raise OSError("roll it back")

    start_child = step_of(kind, work, retry=Retry.fixed(1, 0))

    @durable
    async def parent() -> None:
        await start_child.call()

    async with working(ledger_url, parent, child, workers=2) as scheduler:
        await (await scheduler.start(parent)).result(timeout=PATIENCE)
        handle = scheduler.handle("child", child)
        assert await handle.result(timeout=PATIENCE) == "kid"
        await until(handle, ExecutionStatus.COMPLETED)


async def test_cancel_in_the_steps_transaction(ledger_url: str, kind: str) -> None:
    """A step cannot end the run that its own checkpoint belongs to; what it wrote is not there."""

    @step
    async def give_up() -> None:
        await scheduler.handle(context().execution_id).cancel(session=await trx())

    @step
    def give_up_in_a_thread() -> None:
        scheduler.sync.handle(context().execution_id).cancel(session=sync.trx())

    @durable
    async def order() -> None:
        await (give_up() if kind == "async def" else give_up_in_a_thread.call())

    async with working(ledger_url, order) as scheduler:
        handle = await scheduler.start(order)
        with pytest.raises(ExecutionFailed, match="cannot end the run of its own step"):
            await handle.result(timeout=PATIENCE)
