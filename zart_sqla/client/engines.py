"""The engines and connections that zart_sqla makes for itself."""

from __future__ import annotations

import asyncio
import traceback
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar, TypeVarTuple

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine
from sqlalchemy.pool import ConnectionPoolEntry

from zart_sqla.config import PoolConfig
from zart_sqla.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Generator

    from sqlalchemy import URL, Connection
    from sqlalchemy.engine.interfaces import IsolationLevel
    from sqlalchemy.ext.asyncio import AsyncEngine

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

ASYNC_DRIVER: Final = "postgresql+asyncpg"
SYNC_DRIVER: Final = "postgresql+psycopg"
_ALIASES = frozenset({"postgresql", "postgres"})


def url_for(url: str | URL, driver: str) -> URL:
    """Return the URL with the driver that zart_sqla needs there.

    The `sslmode` of a plain `postgresql://` URL, as hosts of databases hand out, means the same with either driver.

    Raises:
        ConfigError: it is not the URL of a PostgreSQL database, or it names another driver.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):  # the latter where the port is no number
        raise ConfigError("url", expected="a URL such as 'postgresql://user@host/database'", actual="***") from None
    if parsed.drivername in _ALIASES:
        return _with_driver(parsed, driver)
    if parsed.drivername != driver:
        raise ConfigError("url", expected=f"'postgresql://...' or '{driver}://...'", actual=f"{parsed.drivername}://")
    return parsed


def _with_driver(plain: URL, driver: str) -> URL:
    url = plain.set(drivername=driver)
    if driver == ASYNC_DRIVER and "sslmode" in url.query:  # asyncpg calls it otherwise
        url = url.difference_update_query(["sslmode"]).update_query_dict({"ssl": url.query["sslmode"]})
    return url


def make_engine(url: str | URL, pool: PoolConfig | None = None) -> AsyncEngine:
    """Return an engine with a pool of its own.

    Raises:
        ConfigError: it is not the URL of a PostgreSQL database, or it names another driver than asyncpg.
    """
    config = pool or PoolConfig()
    return create_async_engine(
        url_for(url, ASYNC_DRIVER),
        pool_size=config.max_connections,
        max_overflow=0,
        pool_timeout=config.acquire_timeout_seconds,
    )


def checked_engine(engine: AsyncEngine) -> AsyncEngine:
    """Return the engine if zart_sqla can work on it.

    Raises:
        ConfigError: it does not use PostgreSQL through asyncpg.
    """
    drivername = f"{engine.dialect.name}+{engine.dialect.driver}"
    if drivername != ASYNC_DRIVER:
        raise ConfigError("engine", expected=f"an AsyncEngine for '{ASYNC_DRIVER}'", actual=drivername)
    return engine


def apart(engine: AsyncEngine) -> AsyncEngine:
    """Return an engine that connects as this one does, but in a pool of its own.

    Its connections are none of the app's pool, and belong to the event loop in which they are made.
    """
    return create_async_engine(engine.url, pool=engine.sync_engine.pool.recreate())


def autocommit(engine: AsyncEngine) -> AsyncEngine:
    """Return the same engine, on which each statement is a transaction of its own: one round trip, not three.

    It must be an engine of ours. The app's may have been given a level by `execution_options` before, and then that
    one counts; only the options of a connection are above those of all engines.
    """
    return engine.execution_options(isolation_level="AUTOCOMMIT")


async def connect(engine: AsyncEngine) -> AsyncConnection:
    """Return a connection, which the caller closes. If this fails or is cancelled, none is left open."""
    try:
        return await engine.connect()
    except BaseException as error:
        _drop_half_made(error)
        raise


def _drop_half_made(error: BaseException) -> None:
    """Close the connection that had been made, but not set up yet, when this error came.

    SQLAlchemy before 2.0.53 forgets it, and it would stay open until the garbage is collected. Only the error still
    leads to it, by the constructor of the pool's entry. (An event of the pool would, too; but the pool can be the
    app's, and a listener that is added while it connects breaks that.)
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        entry = frame.f_locals.get("self")
        if frame.f_code.co_name == "__init__" and isinstance(entry, ConnectionPoolEntry):
            driver: Any = entry.driver_connection
            if driver is not None:
                driver.terminate()


@asynccontextmanager
async def opened(engine: AsyncEngine) -> AsyncGenerator[AsyncConnection]:
    """Lend a connection, closed at the end, and also if this is cancelled while the connection is being made."""
    connection = await connect(engine)
    try:
        yield connection
    finally:
        await asyncio.shield(connection.close())


@asynccontextmanager
async def transaction(engine: AsyncEngine) -> AsyncGenerator[AsyncConnection]:
    """Lend a connection in a transaction of the level that our statements are written for, committed at the end."""
    async with opened(engine) as connection:
        await connection.execution_options(isolation_level="READ COMMITTED")
        async with connection.begin():
            yield connection


async def call(
    engine: AsyncEngine,
    function: Callable[[Connection, *Ts], T],
    *args: *Ts,
    seconds: float | None = None,
    isolation_level: IsolationLevel = "AUTOCOMMIT",
) -> T:
    """Return what the function returns, called with a connection of the pool; at its end, what it did is committed.

    Args:
        engine: where the connection comes from.
        function: what is to be done with it.
        args: what it gets besides.
        seconds: within how many there must be a connection, and then the answers. Default: the pool's own limit for
            the former, none for the latter.
        isolation_level: of the transaction. Default: each statement is one of its own, which is one round trip, not
            three.

    Raises:
        TimeoutError: no connection could be had in that time, or it was cut.
    """

    def work(connection: Connection) -> T:
        connection.execution_options(isolation_level=isolation_level)
        with answering(connection, seconds):
            value = function(connection, *args)
            connection.commit()
        return value

    async with asyncio.timeout(seconds):
        connection = await connect(engine)
    try:
        value = await connection.run_sync(work)
    except BaseException:
        await asyncio.shield(connection.close())
        raise
    await connection.close()  # there is nothing to be undone, so it only goes back to the pool
    return value


@contextmanager
def answering(connection: AsyncConnection | Connection, seconds: float | None) -> Generator[None]:
    """Cut the connection if what is done in the block takes longer; then what waits for an answer fails.

    A connection can be half open: the other end is gone, or something between drops what is sent, and nobody says so;
    what waits on it would wait for hours. It is cut, not the task cancelled: SQLAlchemy then sees a disconnect, and
    does not trust the pool's other connections either.

    Raises:
        TimeoutError: it was cut.
    """
    if seconds is None:
        yield
        return
    watch = _Watch(_driver_of(connection), seconds)
    try:
        yield
    except Exception as error:
        if not watch.has_cut:
            raise
        raise TimeoutError(f"the database did not answer within {seconds:g} s") from error
    finally:
        watch.end()


def _driver_of(connection: AsyncConnection | Connection) -> Any:
    """Return the driver's connection."""
    lent = connection.sync_connection if isinstance(connection, AsyncConnection) else connection
    assert lent is not None  # noqa: S101 - it is open
    return lent.connection.driver_connection


class _Watch:
    """Cuts a connection after a while.

    It counts the time in parts: while a handler blocks the loop no answer can be read, and that is not the database's
    fault. Such a time counts as one part, however long it is.
    """

    _PARTS: Final = 5

    def __init__(self, driver: Any, seconds: float) -> None:
        self._driver = driver
        self._part = seconds / self._PARTS
        self._left = self._PARTS
        self._timer = asyncio.get_running_loop().call_later(self._part, self._tick)
        self.has_cut = False

    def _tick(self) -> None:
        self._left -= 1
        if self._left:
            self._timer = asyncio.get_running_loop().call_later(self._part, self._tick)
        else:
            self.has_cut = True
            self._driver.terminate()

    def end(self) -> None:
        self._timer.cancel()
