"""The session of a `def` step: in its thread it does what any `Session` does, and nothing after the attempt is over."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import pytest
from sqlalchemy import Connection, event, insert, inspect, select, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import Session

from tests.support.ledger import Entry, notes, write_note
from tests.support.waiting import PATIENCE, eventually
from tests.support.working import CONFIG, count_rows, registry_of, scheduler_on, working
from zart_sqla import (
    ExecutionFailed,
    PoolConfig,
    PostgresScheduler,
    Retry,
    StepError,
    Worker,
    WorkerConfig,
    context,
    durable,
    gather,
    schedule,
    step,
    sync,
    wait,
)
from zart_sqla.client.engines import ASYNC_DRIVER, url_for

SLEEP = text("SELECT pg_sleep(60)")


@asynccontextmanager
async def working_here(url: str, workflow: Any, *, connections: int = 1) -> AsyncIterator[PostgresScheduler]:
    """Yield the scheduler of a worker that has so many connections."""
    pool = PoolConfig(max_connections=connections, min_connections=0)
    async with (
        await PostgresScheduler.connect_with_pool(url, pool) as scheduler,
        Worker(scheduler, registry_of(workflow), WorkerConfig(**CONFIG)),
    ):
        yield scheduler


def lent_out(engine: AsyncEngine) -> int:
    """Return how many connections of the pool are in use."""
    pool: Any = engine.pool
    return int(pool.checkedout())


async def others(scheduler: PostgresScheduler) -> list[str]:
    """Return what the server does for others than the one who asks, or has left open."""
    async with scheduler.engine.connect() as connection:
        query = """
            SELECT query FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()
            AND backend_type = 'client backend' AND state <> 'idle'
        """
        return list(await connection.scalars(text(query)))


@step("write-{note}")
def write_line(note: str) -> int:
    """Write in the ledger."""
    return write_note(sync.trx(), note)


async def test_whoever_calls(ledger_url: str) -> None:
    """A `def` step gets its session in each kind of workflow, side by side with others, and as a task of its own."""

    @durable
    async def order() -> int:
        answers = await wait([schedule(write_line.call(f"child {number}")) for number in range(3)])
        return len([*answers, *await gather(write_line.call("a"), write_line.call("b"))])

    @durable
    def order_in_a_thread() -> int:
        answers = sync.wait([sync.schedule(write_line.call(f"thread's child {number}")) for number in range(3)])
        return len([*answers, *sync.gather(write_line.call("c"), write_line.call("d")), write_line("e")])

    async with working(ledger_url, order, order_in_a_thread, workers=2) as scheduler:
        handles = [await scheduler.start(order), await scheduler.start(order_in_a_thread)]
        assert [await handle.result(timeout=PATIENCE) for handle in handles] == [5, 6]
        written = [*"abcde", *(f"{kind} {number}" for kind in ("child", "thread's child") for number in range(3))]
        assert sorted(await notes(scheduler)) == sorted(written)


def load_lazily(session: Session) -> None:
    """Follow relationships, which an `AsyncSession` cannot; and see one object for one row."""
    entry = Entry(note="wrong", corrections=[Entry(note="right")])
    session.add(entry)
    session.flush()
    session.expire_all()
    (correction,) = entry.corrections
    assert correction.corrects is entry
    assert session.get(Entry, entry.entry_id) is entry
    assert session.scalars(select(Entry).where(Entry.note == "wrong")).one() is entry


def stream(session: Session) -> None:
    """Read row by row."""
    session.execute(insert(Entry), [{"note": f"{number:03}"} for number in range(200)])
    query = select(Entry.note).order_by(Entry.note).execution_options(yield_per=7)
    read = session.execute(query).scalars()
    assert [read.fetchmany(10)[-1], *read.partitions(100)][:1] == ["009"]
    assert list(session.execute(query).scalars()) == [f"{number:03}" for number in range(200)]
    assert session.execute(query).scalars().all()[-1] == "199"
    with session.execute(query) as closed_early:
        assert closed_early.scalars().first() == "000"


def go_below(session: Session) -> None:
    """Use the connection, and what is below it."""
    connection = session.connection()
    assert connection is session.get_bind()
    connection.execute(text("INSERT INTO ledger (note) VALUES ('by hand')"))
    assert connection.get_isolation_level() == "READ COMMITTED"
    cursor: Any = connection.connection.cursor()
    cursor.execute("SELECT note FROM ledger UNION SELECT 'other' ORDER BY 1")
    assert [row[0] for row in cursor] == ["by hand", "other"]
    cursor.close()
    assert inspect(connection).has_table("ledger")
    connection.info["zart_test"] = 1
    assert connection.connection.record_info is not None

    async def copy(driver: Any) -> str:
        return str(await driver.copy_records_to_table("ledger", records=[("copied",)], columns=["note"]))

    driver: Any = connection.connection
    assert driver.run_async(copy) == "COPY 1"
    assert connection.connection.is_valid
    assert not connection.connection.is_detached


def fail_in_a_savepoint(session: Session) -> None:
    """Go on after an error of the database."""
    with pytest.raises(Exception, match="null value"), session.begin_nested():
        session.execute(text("INSERT INTO ledger (note) VALUES (NULL)"))
    with session.begin_nested():
        write_note(session, "outer")
        with session.begin_nested() as inner:
            write_note(session, "inner")
            inner.rollback()


@pytest.mark.parametrize("work", [load_lazily, stream, go_below, fail_in_a_savepoint])
async def test_it_is_a_session(work: Callable[[Session], None], ledger_url: str) -> None:
    """Whatever works on a `Session` with a connection of its own works here too."""

    @step
    def write() -> None:
        work(sync.trx())

    @durable
    async def order() -> None:
        await write.call()

    async with working(ledger_url, order) as scheduler:
        await (await scheduler.start(order)).result(timeout=PATIENCE)
        assert await notes(scheduler)


async def test_listeners_of_the_app(ledger_url: str) -> None:
    """What the app listens to on its engine and its sessions happens in the step's thread, in the step's context."""
    tenant: ContextVar[str] = ContextVar("tenant", default="none")
    heard: list[tuple[str, int]] = []
    threads: list[int] = []

    @step
    def write() -> None:
        tenant.set("one")
        threads.append(threading.get_ident())
        session = sync.trx()
        event.listen(session, "before_flush", lambda *_: heard.append((tenant.get(), threading.get_ident())))
        session.add(Entry(note="written"))

    @durable
    async def order() -> None:
        await write.call()

    def hear(_connection: Connection, _cursor: Any, statement: str, *_: Any) -> None:
        if "ledger" in statement:
            heard.append((tenant.get(), threading.get_ident()))

    async with working_here(ledger_url, order) as scheduler:
        event.listen(scheduler.engine.sync_engine, "before_cursor_execute", hear)
        await (await scheduler.start(order)).result(timeout=PATIENCE)
    assert heard == [("one", threads[0])] * 2
    assert threads != [threading.get_ident()]


async def test_engine_with_an_isolation_level(ledger_url: str) -> None:
    """The level that the app has given its engine is that of the session."""

    @step
    def look() -> str:
        return sync.trx().connection().get_isolation_level()

    @durable
    async def order() -> str:
        return await look.call()

    level = "REPEATABLE READ"
    engine = create_async_engine(url_for(ledger_url, ASYNC_DRIVER), execution_options={"isolation_level": level})
    async with PostgresScheduler(engine) as scheduler, Worker(scheduler, registry_of(order), WorkerConfig(**CONFIG)):
        assert await (await scheduler.start(order)).result(timeout=PATIENCE) == level
    await engine.dispose()


async def test_threads_of_the_step(ledger_url: str) -> None:
    """A thread that the step waits for can use its session; one that it leaves behind cannot, and disturbs nobody."""
    has_ended = threading.Event()
    errors: list[BaseException] = []

    @step
    def write() -> None:
        session = sync.trx()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(write_note, session).result()

        def go_on() -> None:
            has_ended.wait()
            try:
                write_note(session, "late")
            except BaseException as error:  # noqa: BLE001 - it is what is looked for
                errors.append(error)

        left_behind.append(threading.Thread(target=go_on))
        left_behind[0].start()

    @durable
    async def order() -> None:
        await write.call()

    left_behind: list[threading.Thread] = []
    async with working_here(ledger_url, order) as scheduler:
        await (await scheduler.start(order)).result(timeout=PATIENCE)
        has_ended.set()
        await asyncio.to_thread(left_behind[0].join)
        assert await notes(scheduler) == ["written"]
    assert len(errors) == 1


def commit_connection(session: Session) -> None:
    """Commit below the session."""
    session.connection().commit()


def roll_back_connection(session: Session) -> None:
    """Roll back below the session, and go on."""
    session.connection().rollback()
    write_note(session, "written anew")


def close_connection(session: Session) -> None:
    """Close the connection."""
    session.connection().close()


def drop_connection(session: Session) -> None:
    """Drop the connection, roll back, and go on."""
    session.connection().invalidate()
    session.rollback()
    write_note(session, "written anew")


def detach_connection(session: Session) -> None:
    """Take the connection out of the pool."""
    session.connection().detach()


@pytest.mark.parametrize(
    ("work", "error"),
    [
        (commit_connection, "NotInWorkflowError: connection.commit() must not be called"),
        (roll_back_connection, "InvalidRequestError: This transaction is inactive"),
        (close_connection, "ResourceClosedError: This Connection is closed"),
        (drop_connection, "ResourceClosedError: This Connection is closed"),
        (detach_connection, "NotInWorkflowError: connection.detach() must not be called"),
    ],
)
async def test_not_the_steps_to_end(work: Callable[[Session], None], error: str, ledger_url: str) -> None:
    """What a step does to its connection instead of its session fails it, too; nothing is there, nothing is kept."""

    @step
    def write() -> None:
        session = sync.trx()
        write_note(session)
        work(session)

    @durable
    async def order() -> None:
        await write.call()

    async with working_here(ledger_url, order) as scheduler:
        with pytest.raises(ExecutionFailed) as failure:
            await (await scheduler.start(order)).result(timeout=PATIENCE)
        assert error in str(failure.value)
        assert await notes(scheduler) == []
        await eventually(lambda: lent_out(scheduler.engine) == 0)


class Stage:
    """A `def` step that times out, and its thread."""

    def __init__(self) -> None:
        self.may_go_on = threading.Event()
        self.errors: list[BaseException] = []
        self.has_ended = threading.Event()

    def order(self, work: Callable[[Session], None]) -> Any:
        """Return a workflow with a step that does this with its session, and another step."""

        @step(timeout="300ms")
        def write() -> None:
            try:
                work(sync.trx())
            except BaseException as error:
                self.errors.append(error)
                raise
            finally:
                self.has_ended.set()

        @durable
        async def order() -> str:
            try:
                await write.call()
            except StepError as error:
                await write_line.call("after")
                return f"{type(error).__name__}"
            return ""

        return order


async def test_timeout_in_a_statement(ledger_url: str) -> None:
    """When the timeout is known the statement is over, at the server too; the thread hears why."""
    stage = Stage()

    def work(session: Session) -> None:
        write_note(session)
        session.execute(SLEEP)

    async with working_here(ledger_url, stage.order(work)) as scheduler, scheduler_on(ledger_url) as outside:
        handle = await scheduler.start("order")
        assert await handle.result(timeout=PATIENCE) == "StepTimeout"
        assert await others(outside) == []
        await asyncio.to_thread(stage.has_ended.wait)
        assert await notes(outside) == ["after"]
        await eventually(lambda: lent_out(scheduler.engine) == 0)
    (error,) = stage.errors
    assert isinstance(error, asyncio.CancelledError)
    assert str(error) == "this attempt of step 'write' is over: its session can do nothing more"


def add_and_flush(session: Session) -> None:
    """Write once more."""
    write_note(session, "late")


def query(session: Session) -> None:
    """Read."""
    session.scalars(select(Entry)).all()


def commit(session: Session) -> None:
    """Commit."""
    session.commit()


def roll_back(session: Session) -> None:
    """Roll back."""
    session.rollback()
    query(session)


def drop(session: Session) -> None:
    """Drop the connection."""
    session.invalidate()
    query(session)


def run_async(session: Session) -> None:
    """Ask the driver."""
    driver: Any = session.connection().connection

    async def fetch(driver: Any) -> None:
        await driver.fetch("INSERT INTO ledger (note) VALUES ('late')")

    driver.run_async(fetch)


@pytest.mark.parametrize(
    ("late", "error"),
    [
        (add_and_flush, "this attempt of step 'write' is over"),
        (query, "this attempt of step 'write' is over"),
        (commit, "session.commit() must not be called"),
        (roll_back, "this attempt of step 'write' is over"),
        (drop, "This Connection is closed"),
        (run_async, "this attempt of step 'write' is over"),
    ],
)
async def test_goes_on_after_its_attempt(late: Callable[[Session], None], error: str, ledger_url: str) -> None:
    """A thread that uses its session after its attempt is refused, and does not disturb who has the connection now."""
    stage = Stage()

    def work(session: Session) -> None:
        write_note(session)
        stage.may_go_on.wait()
        late(session)

    async with working_here(ledger_url, stage.order(work)) as scheduler:
        handle = await scheduler.start("order")
        assert await handle.result(timeout=PATIENCE) == "StepTimeout"
        await eventually(lambda: lent_out(scheduler.engine) == 0)
        async with scheduler.engine.begin() as connection:  # the only one
            pid = await connection.scalar(text("SELECT pg_backend_pid()"))
            await connection.execute(text("INSERT INTO ledger (note) VALUES ('mine')"))
            stage.may_go_on.set()
            await asyncio.to_thread(stage.has_ended.wait)
            await connection.execute(text("INSERT INTO ledger (note) VALUES ('mine too')"))
        assert await notes(scheduler) == ["after", "mine", "mine too"]
        async with scheduler.engine.connect() as connection:
            assert await connection.scalar(text("SELECT pg_backend_pid()")) == pid
    assert error in str(stage.errors[0])


async def test_goes_on_streaming_after_its_attempt(ledger_url: str) -> None:
    """A result that is read row by row ends with the attempt."""
    stage = Stage()

    def work(session: Session) -> None:
        rows = session.execute(text("SELECT generate_series(1, 100000)").execution_options(yield_per=10)).scalars()
        assert next(rows) == 1
        stage.may_go_on.wait()
        list(rows)

    async with working_here(ledger_url, stage.order(work)) as scheduler:
        handle = await scheduler.start("order")
        assert await handle.result(timeout=PATIENCE) == "StepTimeout"
        stage.may_go_on.set()
        await asyncio.to_thread(stage.has_ended.wait)
        assert await notes(scheduler) == ["after"]
        await eventually(lambda: lent_out(scheduler.engine) == 0)
    assert "this attempt of step 'write' is over" in str(stage.errors[0])


async def test_timeout_before_it_begins(ledger_url: str) -> None:
    """A step that times out while it waits for a connection does not get one later."""
    is_held, has_ended = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    @step
    def hold() -> None:
        sync.trx().execute(text("SELECT 1"))  # on the only connection
        is_held.set()
        has_ended.wait()

    @step(timeout="300ms")
    def write() -> None:
        is_held.wait()
        try:
            sync.trx()
        except BaseException as error:
            errors.append(error)
            raise
        finally:
            has_ended.set()

    @durable
    async def order() -> str:
        try:
            await gather(hold.call(), write.call())
        except StepError as error:
            return f"{type(error).__name__}"
        return ""

    async with working_here(ledger_url, order) as scheduler:
        assert await (await scheduler.start(order)).result(timeout=PATIENCE) == "StepTimeout"
        await eventually(lambda: lent_out(scheduler.engine) == 0)
    assert [type(error) for error in errors] == [asyncio.CancelledError]


async def test_lost_in_the_thread(ledger_url: str) -> None:
    """A broken connection is dropped where the pool is, and another one is there for the next attempt."""
    attempts: list[int] = []

    @step(retry=Retry.fixed(1, 0))
    def write() -> None:
        session = sync.trx()
        attempts.append(context().attempt)
        write_note(session)
        if len(attempts) == 1:
            session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))

    @durable
    async def order() -> None:
        await write.call()

    async with working_here(ledger_url, order) as scheduler:
        await (await scheduler.start(order)).result(timeout=PATIENCE)
        assert await notes(scheduler) == ["written"]
        assert (await count_rows(scheduler))["step_attempts"] == 0
        await eventually(lambda: lent_out(scheduler.engine) == 0)
    assert attempts == [1, 1]
