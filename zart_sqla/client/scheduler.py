"""The client of an async application."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, TypeVarTuple, overload

from sqlalchemy.ext.asyncio import AsyncSession

from zart_sqla import migrations
from zart_sqla.client import executions
from zart_sqla.client.connections import after_transaction, run_joined
from zart_sqla.client.engines import call, checked_engine, make_engine, opened, transaction
from zart_sqla.client.handles import ExecutionHandle
from zart_sqla.client.notifications import Ends, WakeUps
from zart_sqla.client.sync import LoopBackend, SyncScheduler
from zart_sqla.config import PoolConfig
from zart_sqla.errors import ConfigError
from zart_sqla.records import DEFAULT_QUEUE, ExecutionStatus
from zart_sqla.runtime.executions import prepare, result_codec
from zart_sqla.store import executions as stored
from zart_sqla.table_names import TableNames

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from datetime import datetime
    from types import TracebackType

    from sqlalchemy import URL, Connection
    from sqlalchemy.ext.asyncio import AsyncEngine

    from zart_sqla.client.connections import AnyConnection
    from zart_sqla.client.executions import OnConflict
    from zart_sqla.records import ExecutionInfo, NewExecution, Page
    from zart_sqla.runtime.handlers import Durable

D = TypeVar("D")
R = TypeVar("R")
T = TypeVar("T")
Ts = TypeVarTuple("Ts")

Notify = Literal["after_commit", "in_transaction"]


class PostgresScheduler:
    """Starts executions and answers for them, on an engine of the app's or one of its own.

    Args:
        engine: the app's engine, on asyncpg. It is shared: `close()` leaves it open.
        names: the names of the tables. Default: the prefix `zart_` on the connection's search path.
        notify: how workers hear of what is started. `after_commit` keeps the notification out of the transaction,
            where it would make all commits of the server wait for each other; `in_transaction` puts it in, so that it
            is sent even if this process dies right after the commit (workers then need no poll to find the work).

    Attributes:
        engine: the engine that it works on.
        names: the names of the tables.

    Raises:
        ConfigError: the engine does not use asyncpg, or `notify` is neither of the two.
    """

    def __init__(
        self, engine: AsyncEngine, *, names: TableNames | None = None, notify: Notify = "after_commit"
    ) -> None:
        if notify not in ("after_commit", "in_transaction"):
            raise ConfigError("notify", expected="'after_commit' or 'in_transaction'", actual=notify)
        self.engine: AsyncEngine = checked_engine(engine)
        self.names: TableNames = names or TableNames.default()
        self.ends: Ends = Ends(engine, self.names)
        self.wake_ups: WakeUps = WakeUps(engine, self.names)
        self._notify = notify
        self._owns_engine = False
        self._loop: asyncio.AbstractEventLoop | None = None

    @classmethod
    async def connect(cls, url: str | URL, *, names: TableNames | None = None) -> Self:
        """Return a scheduler with an engine of its own, whose connections have been tried.

        Args:
            url: the database, such as `postgresql://user@host/database`.
            names: the names of the tables.

        Raises:
            ConfigError: it is not the URL of a PostgreSQL database, or it names another driver than asyncpg.
            sqlalchemy.exc.DBAPIError: the database cannot be reached.
        """
        return await cls.connect_with_pool(url, None, names=names)

    @classmethod
    async def connect_with_pool(
        cls, url: str | URL, pool: PoolConfig | None, *, names: TableNames | None = None
    ) -> Self:
        """Return a scheduler with an engine of its own and a pool of this size.

        Args:
            url: the database.
            pool: the pool's limits.
            names: the names of the tables.

        Raises:
            ConfigError: it is not the URL of a PostgreSQL database, or it names another driver than asyncpg.
            sqlalchemy.exc.DBAPIError: the database cannot be reached.
        """
        config = pool or PoolConfig()
        scheduler = cls(make_engine(url, config), names=names)
        scheduler._owns_engine = True
        try:
            async with AsyncExitStack() as stack:
                for _ in range(max(config.min_connections, 1)):
                    await stack.enter_async_context(opened(scheduler.engine))
        except BaseException:
            await scheduler.close()
            raise
        return scheduler

    @classmethod
    def with_table_names(cls, engine: AsyncEngine, names: TableNames) -> Self:
        """Return a scheduler on the app's engine, with tables of these names."""
        return cls(engine, names=names)

    def __repr__(self) -> str:
        return f"<PostgresScheduler {self.engine.url!r} {self.names.qualified('executions')}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Send what is still to be notified, and close the engine if it is the scheduler's own."""
        try:
            await self.wake_ups.flush()
        finally:
            await self.ends.close()
            if self._owns_engine:
                await self.engine.dispose()

    @property
    def sync(self) -> SyncScheduler:
        """The same calls without `await`, for the app's threads.

        They are not for the event loop's own thread, which would stand still. An app without an event
        loop makes a `SyncScheduler(engine)` on its own `Engine` instead.
        """
        return SyncScheduler(backend=LoopBackend(self), names=self.names)

    @property
    def loop(self) -> asyncio.AbstractEventLoop | None:
        """The event loop that the engine's connections belong to, as far as it is known."""
        return self._loop

    def note_loop(self) -> None:
        """Remember that the engine's connections belong to the event loop that runs here."""
        self._loop = asyncio.get_running_loop()

    async def migrate(self) -> None:
        """Bring the tables to the revision of this code, for an app that has no Alembic history of its own.

        Several processes can do so at once. It changes nothing where the tables are at that revision.
        """
        async with transaction(self.engine) as connection:
            await connection.run_sync(migrations.upgrade, self.names)

    @overload
    async def start(
        self,
        workflow: Durable[None, R],
        data: None = None,
        *,
        execution_id: str | None = None,
        session: AnyConnection | None = None,
        on_conflict: OnConflict = "raise",
        queue: str = DEFAULT_QUEUE,
    ) -> ExecutionHandle[R]: ...
    @overload
    async def start(
        self,
        workflow: Durable[D, R],
        data: D,
        *,
        execution_id: str | None = None,
        session: AnyConnection | None = None,
        on_conflict: OnConflict = "raise",
        queue: str = DEFAULT_QUEUE,
    ) -> ExecutionHandle[R]: ...
    @overload
    async def start(
        self,
        workflow: str,
        data: Any = None,
        *,
        execution_id: str | None = None,
        session: AnyConnection | None = None,
        on_conflict: OnConflict = "raise",
        queue: str = DEFAULT_QUEUE,
    ) -> ExecutionHandle[Any]: ...
    async def start(
        self,
        workflow: Durable[Any, Any] | str,
        data: Any = None,
        *,
        execution_id: str | None = None,
        session: AnyConnection | None = None,
        on_conflict: OnConflict = "raise",
        queue: str = DEFAULT_QUEUE,
    ) -> ExecutionHandle[Any]:
        """Start an execution.

        Args:
            workflow: a `@durable` function, or the name of a task.
            data: its input: what the function is annotated with; plain JSON data where only the name is known.
            execution_id: its id, unique among all executions. Default: a new UUID of version 7.
            session: the app's own session or connection. The start then joins its transaction: the execution exists
                if and only if the app's own rows do. The caller commits.
            on_conflict: what to do if the id is taken: `raise`, or `return` the handle of the one that exists.
            queue: the queue of its tasks.

        Returns:
            The handle of the execution.

        Raises:
            ExecutionAlreadyExists: the id is taken.
            InvalidDataError: the data does not fit the workflow's input, or cannot be stored; nothing is written.
            InvalidNameError: an id or a name cannot be stored; nothing is written.
        """
        new = prepare(workflow, data, execution_id=execution_id, queue=queue)
        await self._start([new], session, on_conflict)
        return ExecutionHandle(self, new.execution_id, result_codec(workflow), first_run_id=new.run_id)

    @overload
    async def start_many(
        self,
        workflow: Durable[D, R],
        items: Iterable[tuple[str | None, D]],
        *,
        session: AnyConnection | None = None,
        on_conflict: OnConflict = "raise",
        queue: str = DEFAULT_QUEUE,
    ) -> list[ExecutionHandle[R]]: ...
    @overload
    async def start_many(
        self,
        workflow: str,
        items: Iterable[tuple[str | None, Any]],
        *,
        session: AnyConnection | None = None,
        on_conflict: OnConflict = "raise",
        queue: str = DEFAULT_QUEUE,
    ) -> list[ExecutionHandle[Any]]: ...
    async def start_many(
        self,
        workflow: Durable[Any, Any] | str,
        items: Iterable[tuple[str | None, Any]],
        *,
        session: AnyConnection | None = None,
        on_conflict: OnConflict = "raise",
        queue: str = DEFAULT_QUEUE,
    ) -> list[ExecutionHandle[Any]]:
        """Start executions of one workflow, thousands a statement: all of them, or none.

        Args:
            workflow: a `@durable` function, or the name of a task.
            items: for each its id, None for a new one, and its input.
            session: as in `start`.
            on_conflict: as in `start`; with `return` those that exist are left as they are.
            queue: the queue of their tasks.

        Returns:
            The handles, in the order of the items.

        Raises:
            ExecutionAlreadyExists: an id is taken; none is started.
            InvalidDataError: an input does not fit, or cannot be stored; none is started.
            InvalidNameError: an id or a name cannot be stored; none is started.
        """
        new = executions.prepare_many(workflow, items, queue)
        await self._start(new, session, on_conflict)
        codec = result_codec(workflow)
        return [ExecutionHandle(self, one.execution_id, codec, first_run_id=one.run_id) for one in new]

    async def _start(self, new: Sequence[NewExecution], session: AnyConnection | None, on_conflict: OnConflict) -> None:
        executions.checked_on_conflict(on_conflict)
        if not new:
            return
        await self.run_and_wake(executions.start, new, on_conflict, session=session, is_one_statement=len(new) == 1)

    @overload
    def handle(self, execution_id: str, workflow: Durable[Any, R]) -> ExecutionHandle[R]: ...
    @overload
    def handle(self, execution_id: str, workflow: None = None) -> ExecutionHandle[Any]: ...
    def handle(self, execution_id: str, workflow: Durable[Any, Any] | None = None) -> ExecutionHandle[Any]:
        """Return the handle of an execution, without looking whether there is one.

        Args:
            execution_id: its id.
            workflow: the workflow that it runs, by which its output is typed. Default: plain JSON data.
        """
        return ExecutionHandle(self, execution_id, result_codec(workflow))

    async def list_executions(
        self,
        *,
        status: ExecutionStatus | str | None = None,
        task_name: str | None = None,
        search: str | None = None,
        since: datetime | None = None,
        limit: int = 100,
        cursor: str | None = None,
    ) -> Page[ExecutionInfo]:
        """Return a page of executions, the newest first.

        Args:
            status: only those that stand there.
            task_name: only those of this task.
            search: only those whose id starts with this.
            since: only those that were started then or later; it must have a time zone.
            limit: how many at most, up to 1000.
            cursor: the `next_cursor` of the page before.

        Raises:
            ConfigError: an argument is out of range.
        """
        wanted = executions.checked_filter(status, task_name, search, since, limit)
        return await self.ask(stored.browse, wanted, cursor)

    async def run_and_wake(
        self,
        function: Callable[[Connection, TableNames, *Ts], T],
        *args: *Ts,
        session: AnyConnection | None = None,
        is_one_statement: bool = False,
    ) -> T:
        """Do as `run`, and have the workers look for work once it is committed.

        What changes something with one statement alone needs no more than `ask` to be committed.
        """
        is_later = self._notify == "after_commit" and (session is None or isinstance(session, AsyncSession))

        def change(connection: Connection, names: TableNames) -> T:
            value = function(connection, names, *args)
            if not is_later:
                stored.notify_work(connection, names)
            return value

        if is_later and is_one_statement and session is None:
            value = await self.ask(change)
        else:
            value = await self.run(change, session=session)
        if is_later and isinstance(session, AsyncSession):
            after_transaction(session, self.wake_ups.send)
        elif is_later:
            self.wake_ups.send()
            await asyncio.sleep(0)  # so that it is on its way before the caller asks for anything else
        return value

    async def run(
        self,
        function: Callable[[Connection, TableNames, *Ts], T],
        *args: *Ts,
        session: AnyConnection | None = None,
    ) -> T:
        """Return what the function returns, called with a connection and the names: how all of the above is done.

        Without a session it has a transaction of its own, committed at the end.
        """
        self.note_loop()

        if session is not None:
            return await run_joined(session, lambda connection: function(connection, self.names, *args))
        return await call(self.engine, function, self.names, *args, isolation_level="READ COMMITTED")

    async def ask(self, function: Callable[[Connection, TableNames, *Ts], T], *args: *Ts) -> T:
        """Return what the function returns, each of whose statements is a transaction of its own.

        That is one round trip for each, not three: for what only reads, or says all in one statement.
        """
        self.note_loop()
        return await call(self.engine, function, self.names, *args)
