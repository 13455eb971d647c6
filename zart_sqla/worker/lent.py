"""Connections that the thread of a step uses, and the loop owns."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import Connection, PoolProxiedConnection
from sqlalchemy.ext.asyncio import AsyncConnection

from zart_sqla.errors import NotInWorkflowError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from zart_sqla.runtime.bridges import Bridge

T = TypeVar("T")

_ADVICE = "must not be called on the connection of the session that trx() gave"


class LentConnection(PoolProxiedConnection):
    """A connection of the pool, lent to a thread: SQLAlchemy works in the thread, the driver on the loop.

    What the driver has to do goes over the bridge, and is over when that is closed. The connection is not the
    thread's to close or to drop: SQLAlchemy would do so there and then, and neither the driver nor the pool of an
    `AsyncEngine` can be used but on the loop.

    Args:
        owner: the loop's own connection.
        pooled: the same, as the pool knows it.
        bridge: the way from the thread to the loop.

    Attributes:
        is_lost: whether it cannot be used any more, by anybody.
        dbapi_connection: itself.
        driver_connection: the driver's connection, to be used on the loop only.
    """

    def __init__(self, owner: AsyncConnection, pooled: PoolProxiedConnection, bridge: Bridge) -> None:
        self.is_lost: bool = False
        self.dbapi_connection: Any = self  # what is below is for the loop
        self.driver_connection: Any = pooled.driver_connection
        self._owner = owner
        self._pooled = pooled
        self._adapted: Any = pooled.dbapi_connection
        self._connection_record: Any = getattr(pooled, "_connection_record", None)  # where SQLAlchemy resets options
        self._bridge = bridge

    def __getattr__(self, name: str) -> Any:
        return getattr(self._adapted, name)

    def call(self, function: Callable[..., T], *arguments: Any) -> T:
        """Return what the function returns, called on the loop, where it can await what the driver does.

        Raises:
            CancelledError: the attempt is over.
        """
        if self._bridge.is_home:  # SQLAlchemy's own greenlet is around this
            return function(*arguments)
        return self._bridge.wait_for(self._called(function, *arguments))

    async def _called(self, function: Callable[..., T], *arguments: Any) -> T:
        try:
            return await self._owner.run_sync(lambda _: function(*arguments))
        except asyncio.CancelledError:  # in the middle of a statement
            self.is_lost = True
            raise

    def cursor(self, *args: Any, **kwargs: Any) -> Any:
        """Return a cursor that the thread can use."""
        if not self._bridge.is_home:
            self._bridge.check_open()
        return _LentCursor(self, self._adapted.cursor(*args, **kwargs))

    def commit(self) -> None:
        """Commit, when the step has ended."""
        if not self._bridge.is_home:
            raise NotInWorkflowError("connection.commit()", _ADVICE)
        self._adapted.commit()

    def rollback(self) -> None:
        """Roll back."""
        self.call(self._adapted.rollback)

    def run_async(self, function: Callable[[Any], Awaitable[T]]) -> T:
        """Return what a coroutine function returns for the driver's connection, as SQLAlchemy's own do."""
        run_async: Callable[..., T] = self._adapted.run_async
        return self.call(run_async, function)

    @property
    def info(self) -> Any:
        """What the app has noted about the connection."""
        return self._pooled.info

    @property
    def record_info(self) -> Any:
        """What the app has noted about the place in the pool."""
        return self._pooled.record_info

    @property
    def is_valid(self) -> bool:
        """Whether it can be used."""
        return not self.is_lost

    @property
    def is_detached(self) -> bool:
        """It never is."""
        return False

    def invalidate(self, e: BaseException | None = None, soft: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002 - SQLAlchemy's
        """Note that it is broken; the owner drops it when the attempt is over."""
        self.is_lost = True

    def detach(self) -> None:
        """Refuse: it goes back to the pool.

        Raises:
            NotInWorkflowError: always.
        """
        raise NotInWorkflowError("connection.detach()", _ADVICE)

    def close(self) -> None:
        """Do nothing: the owner closes it."""

    def _close_special(self, *, transaction_reset: bool = False) -> None:
        """Do nothing: this is how SQLAlchemy calls `close`."""


class _LentCursor:
    """A cursor whose statements run on the loop."""

    __slots__ = ("_connection", "_cursor")
    _connection: LentConnection
    _cursor: Any

    def __init__(self, connection: LentConnection, cursor: Any) -> None:
        object.__setattr__(self, "_connection", connection)
        object.__setattr__(self, "_cursor", cursor)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cursor, name)

    def __setattr__(self, name: str, value: object) -> None:
        setattr(self._cursor, name, value)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.fetchone, None)

    def execute(self, *arguments: Any) -> Any:
        return self._connection.call(self._cursor.execute, *arguments)

    def executemany(self, *arguments: Any) -> Any:
        return self._connection.call(self._cursor.executemany, *arguments)

    def fetchone(self) -> Any:
        return self._fetch(self._cursor.fetchone)

    def fetchmany(self, size: int | None = None) -> Any:
        return self._fetch(self._cursor.fetchmany, size)

    def fetchall(self) -> Any:
        return self._fetch(self._cursor.fetchall)

    def _fetch(self, function: Callable[..., Any], *arguments: Any) -> Any:
        is_here = not self._cursor.server_side  # all rows came with the statement
        return function(*arguments) if is_here else self._connection.call(function, *arguments)


async def lend(owner: AsyncConnection, bridge: Bridge) -> tuple[LentConnection, AsyncConnection]:
    """Return the connection as a thread can use it, by itself and in what SQLAlchemy makes sessions of."""
    lent = LentConnection(owner, await owner.get_raw_connection(), bridge)

    def connect(connection: Connection) -> Connection:
        # If it breaks, a new one of the pool must not take its place: that would be another transaction.
        return Connection(connection.engine, connection=lent, _allow_revalidate=False)

    return lent, AsyncConnection(owner.engine, await owner.run_sync(connect))
