"""Connections through either driver, for a store that knows only SQLAlchemy's sync `Connection`."""

import asyncio
import copy
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine, create_engine, make_url, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from zart_sqla import TableNames

P = ParamSpec("P")
T = TypeVar("T")


class Link(ABC):
    """One connection, in a transaction that the test ends."""

    def __init__(self, names: TableNames) -> None:
        self.names = names

    async def run(
        self, function: Callable[Concatenate[Connection, TableNames, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Return what a function of the store returns."""
        return await self.call(lambda connection: function(connection, self.names, *args, **kwargs))

    @abstractmethod
    async def call(self, function: Callable[[Connection], T]) -> T:
        """Return what a function of a connection returns."""

    @abstractmethod
    async def commit(self) -> None:
        """Commit."""

    @abstractmethod
    async def rollback(self) -> None:
        """Roll back."""


class AsyncLink(Link):
    """A connection of an async driver."""

    def __init__(self, names: TableNames, connection: AsyncConnection) -> None:
        super().__init__(names)
        self._connection = connection

    async def call(self, function: Callable[[Connection], T]) -> T:
        """Return what a function of a connection returns."""
        return await self._connection.run_sync(function)

    async def commit(self) -> None:
        """Commit."""
        await self._connection.commit()

    async def rollback(self) -> None:
        """Roll back."""
        await self._connection.rollback()


class SyncLink(Link):
    """A connection of a sync driver, in a thread of its own, so that it can wait for another one's lock."""

    def __init__(self, names: TableNames, connection: Connection, thread: ThreadPoolExecutor) -> None:
        super().__init__(names)
        self._connection = connection
        self._thread = thread

    async def call(self, function: Callable[[Connection], T]) -> T:
        """Return what a function of a connection returns."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, self._connection)

    async def commit(self) -> None:
        """Commit."""
        await self.call(lambda connection: connection.commit())

    async def rollback(self) -> None:
        """Roll back."""
        await self.call(lambda connection: connection.rollback())


class Database:
    """A database with the tables of these names.

    Args:
        names: the names.
        driver: `asyncpg` or `psycopg`.
        url: the database.
    """

    def __init__(self, names: TableNames, driver: str, url: str) -> None:
        self.names = names
        self.url = make_url(url).set(drivername=f"postgresql+{driver}")
        self._engine: AsyncEngine | Engine = (
            create_async_engine(self.url, pool_size=20)
            if driver == "asyncpg"
            else create_engine(self.url, pool_size=20)
        )

    @property
    def engine(self) -> AsyncEngine:
        """The engine, where that of the driver is async."""
        assert isinstance(self._engine, AsyncEngine)
        return self._engine

    async def close(self) -> None:
        """Close all connections."""
        if isinstance(self._engine, AsyncEngine):
            await self._engine.dispose()
        else:
            self._engine.dispose()

    def of_names(self, names: TableNames) -> "Database":
        """Return the same database, with tables of other names."""
        other = copy.copy(self)
        other.names = names
        return other

    def connected(self) -> AbstractAsyncContextManager[Link]:
        """Yield a connection."""
        if isinstance(self._engine, AsyncEngine):
            return self._async_link(self._engine)
        return self._sync_link(self._engine)

    async def run(
        self, function: Callable[Concatenate[Connection, TableNames, P], T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        """Return what a function of the store returns, in a transaction of its own."""
        async with self.connected() as link:
            answer = await link.run(function, *args, **kwargs)
            await link.commit()
            return answer

    async def call(self, function: Callable[[Connection], T]) -> T:
        """Return what a function of a connection returns, in a transaction of its own."""
        return await self.run(lambda connection, _names: function(connection))

    @asynccontextmanager
    async def _async_link(self, engine: AsyncEngine) -> AsyncIterator[Link]:
        async with engine.connect() as connection:
            yield AsyncLink(self.names, connection)

    @asynccontextmanager
    async def _sync_link(self, engine: Engine) -> AsyncIterator[Link]:
        with ThreadPoolExecutor(1) as thread, engine.connect() as connection:
            yield SyncLink(self.names, connection, thread)


async def is_blocked(waiting: "asyncio.Task[Any]", database: Database) -> bool:
    """Wait until the task is done, or some connection of the database waits for a lock; tell which."""
    query = text(
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    )
    for _ in range(1000):
        if waiting.done():
            return False
        if await database.call(lambda connection: connection.scalar(query)):
            return True
    message = "neither done nor blocked"
    raise AssertionError(message)
