"""Waiting for endless executions, and following them: however a change of runs meets the wait, no news is missed."""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from sqlalchemy import create_engine, func, make_url, select, text

from tests.support.waiting import PATIENCE, eventually
from tests.support.working import CONFIG, count_awaited, registry_of, scheduler_on, worker_on
from zart_sqla import (
    ExecutionFinished,
    ExecutionHandle,
    ExecutionStatus,
    PostgresScheduler,
    StreamReader,
    SyncScheduler,
    SyncStreamReader,
    Worker,
    WorkerConfig,
    continue_as_new,
    durable,
    emit,
    step,
    wait_for_event,
)
from zart_sqla.client import executions, handles, streams
from zart_sqla.client import sync as sync_client
from zart_sqla.models.mapping import tables_of
from zart_sqla.store import executions as stored_executions
from zart_sqla.store import streams as stored_streams

MODULES = {"ending": executions, "await_end": stored_executions, "read": streams, "follow": stored_streams}
"""Where the functions are that a wait calls, each for one statement."""

END_OF_NEWS = "end of news"
SECOND_LOOK_SECONDS = streams.SECOND_LOOK_SECONDS


@pytest.fixture(autouse=True)
def never_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have waits look by themselves so rarely that only a notification can end them."""
    monkeypatch.setattr(handles, "POLL_SECONDS", 3600.0)
    monkeypatch.setattr(streams, "POLL_SECONDS", 3600.0)
    monkeypatch.setattr(streams, "SECOND_LOOK_SECONDS", 3600.0)
    monkeypatch.setattr(sync_client, "_POLL_SECONDS", 3600.0)


@durable
async def relay(number: int) -> int:
    """Emit the value that comes, if it is not 0, and go on as a new run; or end, if it is negative."""
    value = await wait_for_event("go", int)
    if value > 0:
        await emit("progress", value)
    if value >= 0:
        await continue_as_new(number + 1)
    return number


@step
async def work() -> None:
    """Do something."""


@durable
async def hurry(state: tuple[int, int]) -> int:
    """Count from the first number up to the second, a run for each, and emit those that three does not divide."""
    number, last = state
    await work()
    if number % 3:
        await emit("progress", number)
    if number < last:
        await continue_as_new((number + 1, last))
    return number


@dataclass
class App:
    """An app that waits for executions, and can be held between two statements of a wait.

    Attributes:
        scheduler: its scheduler.
        client: its client without await, if it has one.
        outside: the scheduler of another app.
        handle: the execution of `relay`, as the other app holds it.
    """

    scheduler: PostgresScheduler
    client: SyncScheduler | None
    outside: PostgresScheduler
    handle: ExecutionHandle[int]

    @property
    def listens(self) -> bool:
        """Whether it listens on the event loop, and not only while it waits."""
        return self.client is None or isinstance(self.client._backend, sync_client.LoopBackend)

    async def result(self, execution_id: str) -> int:
        """Wait for the result of an execution."""
        client = self.client
        if client is None:
            return await self.scheduler.handle(execution_id, relay).result(timeout=PATIENCE)
        return await asyncio.to_thread(lambda: client.handle(execution_id, relay).result(timeout=PATIENCE))

    def reader(self, execution_id: str) -> StreamReader[int] | SyncStreamReader[int]:
        """Return one who follows the execution."""
        return (self.client or self.scheduler).handle(execution_id).stream("progress", int)

    def hold(
        self, monkeypatch: pytest.MonkeyPatch, moment: tuple[str, int], doing: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        """Have something done while the app is between the so-manieth call of this function and what follows."""
        (name, number), calls = moment, itertools.count(1)
        ask, loop = self.scheduler.ask, asyncio.get_running_loop()
        original = getattr(MODULES[name], name)

        async def ask_held(function: Callable[..., Any], *args: Any) -> Any:
            value = await ask(function, *args)
            if function is original and next(calls) == number:
                await doing()
            return value

        def held(*args: Any) -> Any:
            value = original(*args)
            if next(calls) == number:
                asyncio.run_coroutine_threadsafe(doing(), loop).result()
            return value

        if self.listens:
            monkeypatch.setattr(self.scheduler, "ask", ask_held)
        else:
            monkeypatch.setattr(MODULES[name], name, held)

    async def renew(self, value: int = 0) -> None:
        """Give `relay` a value for which it goes on as a new run, of which whoever listens hears."""
        index = (await self.handle.info()).run_index
        await self.handle.offer_event("go", value)
        await self.until_in_run(index + 1)
        if self.listens:
            with self.scheduler.ends.waiting_for(END_OF_NEWS) as heard:
                await self.notify(END_OF_NEWS)
                await asyncio.wait_for(heard.wait(), PATIENCE)

    async def until_in_run(self, index: int) -> None:
        """Wait until `relay` waits for a value in its run of this number."""

        async def look() -> bool:
            info = await self.handle.info()
            return (info.run_index, info.status) == (index, ExecutionStatus.WAITING)

        await eventually(look)

    @asynccontextmanager
    async def locked(self) -> AsyncIterator[None]:
        """Lock the run in which `relay` is: it neither ends nor is marked before this is over."""
        runs = tables_of(self.outside.names).execution_runs
        mine = runs.c.run_id == (await self.handle.info()).run_id
        async with self.outside.engine.begin() as connection:
            await connection.execute(select(runs).where(mine).with_for_update())
            yield

    async def until_blocked(self, count: int) -> None:
        """Wait until so many wait for a lock."""
        blocked = text(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )

        async def look() -> int:
            async with self.outside.engine.connect() as connection:
                return await connection.scalar(blocked) or 0

        await eventually(look, count)

    async def until_awaited(self) -> None:
        """Wait until the run in which `relay` waits is marked, so that its end will be notified."""
        await eventually(lambda: count_awaited(self.outside), 1)

    async def until_followed(self) -> None:
        """Wait until the run in which `relay` waits is marked, so that what it emits will be notified."""
        tables = tables_of(self.outside.names)
        runs, tasks = tables.execution_runs, tables.tasks
        both = runs.join(tasks, tasks.c.run_id == runs.c.run_id)
        marked = select(func.count()).select_from(both).where(runs.c.followed_until.is_not(None), tasks.c.is_waiting)

        async def look() -> int:
            async with self.outside.engine.connect() as connection:
                return await connection.scalar(marked) or 0

        await eventually(look, 1)

    async def notify(self, payload: str) -> None:
        """Send something to those who wait."""
        async with self.outside.engine.begin() as connection:
            await connection.run_sync(stored_executions.notify, self.outside.names.done_channel, payload)

    async def let_go(self) -> None:
        """End what a test that has failed has left waiting: threads would wait on."""
        with contextlib.suppress(ExecutionFinished):
            await self.handle.cancel()
        self.scheduler.ends.tell_all()
        await self.notify(END_OF_NEWS)


async def read(reader: StreamReader[int] | SyncStreamReader[int], limit: int | None = None) -> list[int]:
    """Return the next values, until the end or so many."""
    if isinstance(reader, SyncStreamReader):
        return await asyncio.to_thread(lambda: list(itertools.islice(reader, limit)))
    values: list[int] = []
    while limit is None or len(values) < limit:
        async with asyncio.timeout(PATIENCE):
            try:
                values.append(await anext(reader))
            except StopAsyncIteration:
                break
    return values


@asynccontextmanager
async def app_on(
    url: str, scheduler: PostgresScheduler, outside: PostgresScheduler, client: SyncScheduler | None = None
) -> AsyncIterator[App]:
    """Yield an app, and let `relay` wait for a value."""
    app = App(scheduler, client, outside, await outside.start(relay, 0))
    async with worker_on(url, relay, hurry):
        await app.until_in_run(0)
        if app.listens:
            scheduler.note_loop()
            await scheduler.ends.listen()
        try:
            yield app
        finally:
            await app.let_go()


@pytest.fixture(params=["apart", "beside a worker", "a thread of an async app", "psycopg"])
async def app(request: pytest.FixtureRequest, migrated_url: str) -> AsyncIterator[App]:
    """Yield an app of each kind."""
    async with AsyncExitStack() as stack:
        outside = await stack.enter_async_context(scheduler_on(migrated_url))
        scheduler, client = await stack.enter_async_context(scheduler_on(migrated_url)), None
        if request.param == "beside a worker":
            worker = await stack.enter_async_context(worker_on(migrated_url, relay, queues=["none"]))
            scheduler = worker._scheduler
        elif request.param == "a thread of an async app":
            client = scheduler.sync
        elif request.param == "psycopg":
            engine = create_engine(make_url(migrated_url).set(drivername="postgresql+psycopg"))
            stack.callback(engine.dispose)
            client = SyncScheduler(engine)
        yield await stack.enter_async_context(app_on(migrated_url, scheduler, outside, client))


# The result --------------------------------------------------------------------------------------------------------


async def test_result_over_runs(app: App) -> None:
    """Who waits hears that a run has been followed by another, and waits for the end of that one."""
    result = asyncio.create_task(app.result(app.handle.execution_id))
    for _ in range(3):
        await app.until_awaited()
        await app.renew()
    await app.until_awaited()
    assert not result.done()
    await app.handle.offer_event("go", -1)
    assert await result == 3


@pytest.mark.parametrize("moment", [("ending", 1), ("await_end", 1)], ids=["looked", "marked"])
async def test_renewed_before_the_wait(app: App, moment: tuple[str, int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that is followed by another after the look, or after it was marked: the end of that one is heard."""
    app.hold(monkeypatch, moment, app.renew)
    result = asyncio.create_task(app.result(app.handle.execution_id))
    await app.until_in_run(1)
    await app.until_awaited()
    await app.handle.offer_event("go", -1)
    assert await result == 1


async def test_renewed_while_it_is_marked(app: App) -> None:
    """A run that is just being followed by another when it is to be marked: the end of that one is heard."""
    async with app.locked():
        await app.handle.offer_event("go", 0)
        await app.until_blocked(1)
        result = asyncio.create_task(app.result(app.handle.execution_id))
        await app.until_blocked(2)
    await app.until_in_run(1)
    await app.until_awaited()
    await app.handle.offer_event("go", -1)
    assert await result == 1


# Streams -----------------------------------------------------------------------------------------------------------


async def test_stream_over_runs(app: App) -> None:
    """Who follows hears that a run that has emitted nothing more has been followed by another, and follows that one."""
    reader = app.reader(app.handle.execution_id)
    for value in (1, 2):
        following = asyncio.create_task(read(reader, 1))
        for _ in range(2):
            await app.until_followed()
            await app.renew()
        await app.until_followed()
        assert not following.done()
        await app.renew(value)
        assert await following == [value]
    end = asyncio.create_task(read(reader))
    await app.until_followed()
    await app.handle.offer_event("go", -1)
    assert await end == []


@pytest.mark.parametrize(
    "moment", [("read", 1), ("follow", 1), ("read", 2)], ids=["looked", "marked", "looked once more"]
)
async def test_renewed_before_it_is_followed(
    app: App, moment: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that is followed by another after the look, or after it was marked: what that one emits is heard."""
    app.hold(monkeypatch, moment, app.renew)
    reader = app.reader(app.handle.execution_id)
    following = asyncio.create_task(read(reader, 1))
    await app.until_in_run(1)
    await app.until_followed()
    await app.renew(7)
    assert await following == [7]
    end = asyncio.create_task(read(reader))
    await app.until_followed()
    await app.handle.offer_event("go", -1)
    assert await end == []


async def test_renewed_while_it_begins_to_be_followed(app: App) -> None:
    """A run that is just being followed by another when it is to be marked: what that one emits is heard."""
    reader = app.reader(app.handle.execution_id)
    async with app.locked():
        await app.handle.offer_event("go", 0)
        await app.until_blocked(1)
        following = asyncio.create_task(read(reader, 1))
        await app.until_blocked(2)
    await app.until_in_run(1)
    await app.until_followed()
    await app.renew(7)
    assert await following == [7]


# All that can happen -----------------------------------------------------------------------------------------------


async def test_fast_runs(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several who wait and several who follow keep up with runs that are over in no time."""
    monkeypatch.setattr(streams, "SECOND_LOOK_SECONDS", SECOND_LOOK_SECONDS)
    for last in (0, 1, 7, 15):
        handle = await app.outside.start(hurry, (0, last))
        results = [asyncio.create_task(app.result(handle.execution_id)) for _ in range(2)]
        readers = [asyncio.create_task(read(app.reader(handle.execution_id))) for _ in range(2)]
        assert await asyncio.gather(*results) == [last] * 2
        assert await asyncio.gather(*readers) == [[number for number in range(last + 1) if number % 3]] * 2


@pytest.mark.parametrize("moment", [("await_end", 1), ("follow", 1), ("read", 2)], ids=["result", "marked", "looked"])
async def test_worker_that_listened_stops(
    moment: tuple[str, int], migrated_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the worker that listens for the app stops before the wait has begun, the app listens by itself."""
    async with (
        scheduler_on(migrated_url) as outside,
        scheduler_on(migrated_url) as scheduler,
        AsyncExitStack() as stack,
    ):
        config = WorkerConfig(**CONFIG | {"queues": ["none"]})
        await stack.enter_async_context(Worker(scheduler, registry_of(relay), config))
        async with app_on(migrated_url, scheduler, outside) as app:
            app.hold(monkeypatch, moment, stack.aclose)
            name = app.handle.execution_id
            waiting: asyncio.Task[Any] = asyncio.create_task(
                app.result(name) if moment[0] == "await_end" else read(app.reader(name))
            )
            await eventually(lambda: scheduler.ends._listener is not None and scheduler.ends._waiting)
            await app.handle.offer_event("go", -1)
            assert await waiting in (0, [])


@pytest.mark.parametrize("kind", ["result", "stream"])
async def test_listening_connection_is_lost(kind: str, migrated_url: str) -> None:
    """A change of runs of which nobody could hear, since the connection was away, is seen when it is there again."""
    cut = text(
        "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
        " WHERE datname = current_database() AND query LIKE 'LISTEN %'"
    )
    async with (
        scheduler_on(migrated_url) as outside,
        scheduler_on(migrated_url) as scheduler,
        app_on(migrated_url, scheduler, outside) as app,
    ):
        name = app.handle.execution_id
        waiting: asyncio.Task[Any] = asyncio.create_task(
            app.result(name) if kind == "result" else read(app.reader(name))
        )
        await app.until_awaited()
        async with outside.engine.connect() as connection:
            await connection.execute(cut)
        await app.handle.offer_event("go", 0)
        await app.until_in_run(1)
        await app.until_awaited()
        await app.handle.offer_event("go", -1)
        assert await waiting in (1, [])
