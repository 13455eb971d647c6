"""The client of a sync application: the calls of `PostgresScheduler` without `await`."""

from __future__ import annotations

import asyncio
import math
import time
from contextlib import contextmanager
from typing import (
    TYPE_CHECKING,
    Any,
    Final,
    Generic,
    Protocol,
    Self,
    TypeVar,
    TypeVarTuple,
    cast,
    overload,
)

from sqlalchemy import create_engine, text

from zart_sqla import migrations
from zart_sqla.client import executions, streams
from zart_sqla.client.connections import run_joined_sync
from zart_sqla.client.engines import SYNC_DRIVER, url_for
from zart_sqla.client.streams import SyncStreamReader
from zart_sqla.durations import to_timedelta
from zart_sqla.errors import ConfigError, WaitTimedOut
from zart_sqla.records import DEFAULT_QUEUE, ExecutionStatus
from zart_sqla.runtime.executions import prepare, result_codec
from zart_sqla.store import executions as stored
from zart_sqla.store import streams as stored_streams
from zart_sqla.table_names import TableNames

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Sequence
    from datetime import datetime
    from types import TracebackType

    from sqlalchemy import URL, Connection, Engine
    from sqlalchemy.engine.interfaces import IsolationLevel

    from zart_sqla.client.connections import AnyConnection
    from zart_sqla.client.executions import OnConflict
    from zart_sqla.client.scheduler import PostgresScheduler
    from zart_sqla.codec import Codec
    from zart_sqla.durations import Duration
    from zart_sqla.histories import ExecutionHistory
    from zart_sqla.records import ExecutionInfo, NewExecution, Page, StepInfo, StreamPosition
    from zart_sqla.runtime.handlers import Durable
    from zart_sqla.store.streams import StreamPage

D = TypeVar("D")
R = TypeVar("R")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")

_POLL_SECONDS: Final = 5.0
_POLL_SECONDS_UNNOTIFIED: Final = 0.25


class Backend(Protocol):
    """How the sync client reaches the database."""

    def run(self, function: Callable[[Connection], T]) -> T:
        """Return what the function returns, called with a connection in a transaction of its own."""
        ...

    def wake(self, names: TableNames) -> None:
        """Wake the workers."""
        ...

    def result(self, execution_id: str, codec: Codec[Any], timeout: float | None) -> Any:
        """Return the execution's output when it has completed; raise `TimeoutError` if that takes too long."""
        ...

    def next_page(self, position: StreamPosition, *, is_caught_up: bool) -> StreamPage:
        """Return the next items of a stream, when there are some, or the execution has ended."""
        ...

    def close(self) -> None:
        """Close what it opened itself."""
        ...


class LoopBackend:
    """Reaches the database through an async scheduler, from another thread than that of its event loop."""

    def __init__(self, scheduler: PostgresScheduler) -> None:
        self._scheduler = scheduler

    def run(self, function: Callable[[Connection], T]) -> T:
        return cast("T", self._await(self._scheduler.run(lambda connection, _names: function(connection))))

    def wake(self, names: TableNames) -> None:  # noqa: ARG002 - the scheduler knows its own
        self._loop().call_soon_threadsafe(self._scheduler.wake_ups.send)

    def result(self, execution_id: str, codec: Codec[Any], timeout: float | None) -> Any:
        return self._await(self._scheduler.handle(execution_id).with_codec(codec).result(timeout=timeout))

    def next_page(self, position: StreamPosition, *, is_caught_up: bool) -> StreamPage:
        return cast("StreamPage", self._await(streams.next_page(self._scheduler, position, is_caught_up=is_caught_up)))

    def close(self) -> None:
        """Leave the scheduler open: it belongs to the async side."""

    def _await(self, coroutine: Any) -> Any:
        try:
            loop = self._loop()
        except ConfigError:
            coroutine.close()
            raise
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result()

    def _loop(self) -> asyncio.AbstractEventLoop:
        loop = self._scheduler.loop
        expected = "the event loop of the scheduler to run, in another thread than this one"
        if loop is None or not loop.is_running():
            raise ConfigError("scheduler.sync", expected=expected, actual="a loop that does not run")
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            return loop
        if here is loop:
            raise ConfigError("scheduler.sync", expected=expected, actual="a call in the loop's own thread")
        return loop


class EngineBackend:
    """Reaches the database through a sync engine."""

    def __init__(self, engine: Engine, names: TableNames, *, is_owned: bool) -> None:
        if engine.dialect.name != "postgresql" or engine.dialect.is_async:
            actual = f"{engine.dialect.name}+{engine.dialect.driver}"
            raise ConfigError("engine", expected="a sync Engine for PostgreSQL", actual=actual)
        self._engine = engine
        self._names = names
        self._is_owned = is_owned

    def run(self, function: Callable[[Connection], T]) -> T:
        with self._connect("READ COMMITTED") as connection, connection.begin():
            return function(connection)

    def wake(self, names: TableNames) -> None:
        with self._connect("AUTOCOMMIT") as connection:
            stored.notify(connection, names.work_channel)

    def _connect(self, isolation_level: IsolationLevel) -> Connection:
        # The app's engine may have been given a level before; only the options of a connection are above that.
        return self._engine.connect().execution_options(isolation_level=isolation_level)

    def result(self, execution_id: str, codec: Codec[Any], timeout: float | None) -> Any:
        deadline = None if timeout is None else time.monotonic() + timeout
        with self._connect("AUTOCOMMIT") as connection, self._listening(connection) as wait_for_news:
            while True:
                ended = executions.ending(connection, self._names, execution_id)
                if ended.status.is_terminal:
                    return executions.result_of(ended, execution_id, codec)
                if stored.await_end(connection, self._names, execution_id) is not None:
                    wait_for_news(_left(deadline))

    def next_page(self, position: StreamPosition, *, is_caught_up: bool) -> StreamPage:
        if not is_caught_up:
            page = self.run(lambda one: streams.read(one, self._names, position))
            if page.is_news:
                return page
        with self._connect("AUTOCOMMIT") as connection, self._listening(connection) as wait_for_news:
            while True:
                followed = stored_streams.follow(connection, self._names, position.execution_id)
                page = streams.read(connection, self._names, position)
                if page.is_news:
                    return page
                if followed is not None and page.run_id == followed.run_id:  # it goes on, so its end will be notified
                    wait_for_news(streams.patience(followed))

    @contextmanager
    def _listening(self, connection: Connection) -> Generator[Callable[[float], None]]:
        """Listen for news of runs; give what waits for some, at most for so many seconds."""
        driver: Any = connection.connection.driver_connection
        is_notified = hasattr(driver, "notifies") and self._engine.dialect.driver == "psycopg"

        def wait_for_news(seconds: float) -> None:
            if is_notified:
                for _ in driver.notifies(timeout=min(seconds, _POLL_SECONDS), stop_after=1):
                    return
            else:
                time.sleep(min(seconds, _POLL_SECONDS_UNNOTIFIED))

        if is_notified:
            connection.execute(text(f'LISTEN "{self._names.done_channel}"'))
        try:
            yield wait_for_news
        finally:
            if is_notified:
                connection.execute(text("UNLISTEN *"))

    def close(self) -> None:
        if self._is_owned:
            self._engine.dispose()


def _left(deadline: float | None) -> float:
    """Return how many seconds are left; raise `TimeoutError` if none are."""
    left = math.inf if deadline is None else deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


class SyncScheduler:
    """Starts executions and answers for them, on a sync engine of the app's.

    Args:
        engine: the app's engine, such as one on psycopg. It is shared: `close()` leaves it open.
        names: the names of the tables. Default: the prefix `zart_` on the connection's search path.

    Attributes:
        names: the names of the tables.

    Raises:
        ConfigError: it is not a sync engine for PostgreSQL.
    """

    def __init__(
        self, engine: Engine | None = None, *, names: TableNames | None = None, backend: Backend | None = None
    ) -> None:
        self.names: TableNames = names or TableNames.default()
        if backend is None and engine is None:
            raise ConfigError("engine", expected="a sync Engine for PostgreSQL", actual=engine)
        self._backend: Backend = backend or EngineBackend(cast("Engine", engine), self.names, is_owned=False)

    @classmethod
    def connect(cls, url: str | URL, *, names: TableNames | None = None) -> Self:
        """Return a scheduler with an engine of its own, on psycopg.

        Raises:
            ConfigError: it is not the URL of a PostgreSQL database, or it names another driver than psycopg.
        """
        known = names or TableNames.default()
        engine = create_engine(url_for(url, SYNC_DRIVER))
        return cls(names=known, backend=EngineBackend(engine, known, is_owned=True))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the engine if it is the scheduler's own."""
        self._backend.close()

    def migrate(self) -> None:
        """Bring the tables to the revision of this code; see `PostgresScheduler.migrate`."""
        self._backend.run(lambda connection: migrations.upgrade(connection, self.names))

    @overload
    def start(
        self,
        workflow: Durable[None, R],
        data: None = None,
        *,
        execution_id: str | None = None,
        session: AnyConnection | None = None,
        on_conflict: OnConflict = "raise",
        queue: str = DEFAULT_QUEUE,
    ) -> SyncExecutionHandle[R]: ...
    @overload
    def start(
        self,
        workflow: Durable[D, R],
        data: D,
        *,
        execution_id: str | None = None,
        session: AnyConnection | None = None,
        on_conflict: OnConflict = "raise",
        queue: str = DEFAULT_QUEUE,
    ) -> SyncExecutionHandle[R]: ...
    @overload
    def start(
        self,
        workflow: str,
        data: Any = None,
        *,
        execution_id: str | None = None,
        session: AnyConnection | None = None,
        on_conflict: OnConflict = "raise",
        queue: str = DEFAULT_QUEUE,
    ) -> SyncExecutionHandle[Any]: ...
    def start(
        self,
        workflow: Durable[Any, Any] | str,
        data: Any = None,
        *,
        execution_id: str | None = None,
        session: AnyConnection | None = None,
        on_conflict: OnConflict = "raise",
        queue: str = DEFAULT_QUEUE,
    ) -> SyncExecutionHandle[Any]:
        """Start an execution; see `PostgresScheduler.start`. The session is a `Session` or a `Connection`."""
        new = prepare(workflow, data, execution_id=execution_id, queue=queue)
        self._start([new], session, on_conflict)
        return SyncExecutionHandle(self, new.execution_id, result_codec(workflow))

    @overload
    def start_many(
        self,
        workflow: Durable[D, R],
        items: Iterable[tuple[str | None, D]],
        *,
        session: AnyConnection | None = None,
        on_conflict: OnConflict = "raise",
        queue: str = DEFAULT_QUEUE,
    ) -> list[SyncExecutionHandle[R]]: ...
    @overload
    def start_many(
        self,
        workflow: str,
        items: Iterable[tuple[str | None, Any]],
        *,
        session: AnyConnection | None = None,
        on_conflict: OnConflict = "raise",
        queue: str = DEFAULT_QUEUE,
    ) -> list[SyncExecutionHandle[Any]]: ...
    def start_many(
        self,
        workflow: Durable[Any, Any] | str,
        items: Iterable[tuple[str | None, Any]],
        *,
        session: AnyConnection | None = None,
        on_conflict: OnConflict = "raise",
        queue: str = DEFAULT_QUEUE,
    ) -> list[SyncExecutionHandle[Any]]:
        """Start executions of one workflow, all of them or none; see `PostgresScheduler.start_many`."""
        new = executions.prepare_many(workflow, items, queue)
        self._start(new, session, on_conflict)
        codec = result_codec(workflow)
        return [SyncExecutionHandle(self, one.execution_id, codec) for one in new]

    def _start(self, new: Sequence[NewExecution], session: AnyConnection | None, on_conflict: OnConflict) -> None:
        executions.checked_on_conflict(on_conflict)
        if not new:
            return
        self.run_and_wake(executions.start, new, on_conflict, session=session)

    @overload
    def handle(self, execution_id: str, workflow: Durable[Any, R]) -> SyncExecutionHandle[R]: ...
    @overload
    def handle(self, execution_id: str, workflow: None = None) -> SyncExecutionHandle[Any]: ...
    def handle(self, execution_id: str, workflow: Durable[Any, Any] | None = None) -> SyncExecutionHandle[Any]:
        """Return the handle of an execution, without looking whether there is one."""
        return SyncExecutionHandle(self, execution_id, result_codec(workflow))

    def list_executions(
        self,
        *,
        status: ExecutionStatus | str | None = None,
        task_name: str | None = None,
        search: str | None = None,
        since: datetime | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[ExecutionInfo]:
        """Return a page of executions, the newest first; see `PostgresScheduler.list_executions`."""
        wanted = executions.checked_filter(status, task_name, search, since, limit)
        return self.run(stored.browse, wanted, cursor)

    def run_and_wake(
        self,
        function: Callable[[Connection, TableNames, *Ts], T],
        *args: *Ts,
        session: AnyConnection | None = None,
    ) -> T:
        """Do as `run`, and have the workers look for work once it is committed."""
        value = self.run(function, *args, session=session)
        if session is None:
            self._backend.wake(self.names)
        else:
            self.run(stored.notify_work, session=session)
        return value

    def run(
        self,
        function: Callable[[Connection, TableNames, *Ts], T],
        *args: *Ts,
        session: AnyConnection | None = None,
    ) -> T:
        """Return what the function returns, called with a connection and the names: how all of the above is done."""

        def call(connection: Connection) -> T:
            return function(connection, self.names, *args)

        return self._backend.run(call) if session is None else run_joined_sync(session, call)

    def wait(self, execution_id: str, codec: Codec[R], timeout: Duration | None) -> R:
        """Return the execution's output when it has completed: how a handle's `result` is done."""
        limit = None if timeout is None else to_timedelta(timeout, setting="timeout")
        try:
            return cast(
                "R",
                self._backend.result(execution_id, codec, None if limit is None else limit.total_seconds()),
            )
        except TimeoutError:
            if limit is None:
                raise
            raise WaitTimedOut(execution_id, limit) from None

    def next_page(self, position: StreamPosition, *, is_caught_up: bool) -> StreamPage:
        """Return the next items of a stream, when there are some: how a reader goes on."""
        return self._backend.next_page(position, is_caught_up=is_caught_up)

    def wake(self) -> None:
        """Wake the workers."""
        self._backend.wake(self.names)


class SyncExecutionHandle(Generic[R]):
    """An execution, as a sync application holds it; see `ExecutionHandle`.

    Attributes:
        execution_id: its id.
    """

    def __init__(self, scheduler: SyncScheduler, execution_id: str, codec: Codec[R]) -> None:
        self.execution_id = execution_id
        self._scheduler = scheduler
        self._codec = codec

    def __repr__(self) -> str:
        return f"<execution {self.execution_id!r}>"

    def info(self) -> ExecutionInfo:
        """Return the execution as it stands now; see `ExecutionHandle.info`."""
        return self._scheduler.run(executions.info, self.execution_id)

    def status(self) -> ExecutionStatus:
        """Return where it stands now; see `ExecutionHandle.status`."""
        return self.info().status

    def steps(self) -> list[StepInfo]:
        """Return the recorded steps of its current run; see `ExecutionHandle.steps`."""
        return self._scheduler.run(executions.steps, self.execution_id)

    def history(self) -> ExecutionHistory:
        """Return what is recorded of its current run; see `ExecutionHandle.history`."""
        return self._scheduler.run(executions.history, self.execution_id)

    def cancel(self, *, session: AnyConnection | None = None) -> None:
        """End it as cancelled; see `ExecutionHandle.cancel`."""
        spared = executions.run_to_spare(session)
        self._scheduler.run(executions.cancel, self.execution_id, spared, session=session)

    def offer_event(
        self,
        name: str,
        value: object = None,
        *,
        event_id: str | None = None,
        session: AnyConnection | None = None,
    ) -> bool:
        """Offer it an event; see `ExecutionHandle.offer_event`."""
        event = executions.prepare_event(self.execution_id, name, value, event_id)
        return self._scheduler.run_and_wake(executions.offer_event, event, session=session)

    @overload
    def stream(self, name: str, kind: type[T], /, *, offset: int = 0, follow: bool = True) -> SyncStreamReader[T]: ...
    @overload
    def stream(
        self, name: str, kind: Any = Any, /, *, offset: int = 0, follow: bool = True
    ) -> SyncStreamReader[Any]: ...
    def stream(self, name: str, kind: Any = Any, /, *, offset: int = 0, follow: bool = True) -> SyncStreamReader[Any]:
        """Return a reader of one of its streams; see `ExecutionHandle.stream`."""
        return SyncStreamReader(self._scheduler, self.execution_id, name, kind, offset=offset, follow=follow)

    def resume(self) -> None:
        """Let it go on after it failed; see `ExecutionHandle.resume`."""
        self._scheduler.run(executions.resume, self.execution_id)
        self._scheduler.wake()

    def result(self, *, timeout: Duration | None = None) -> R:
        """Return its output when it has completed; see `ExecutionHandle.result`."""
        return self._scheduler.wait(self.execution_id, self._codec, timeout)
