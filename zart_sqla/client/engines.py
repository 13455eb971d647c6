"""The engines and connections that zart_sqla makes for itself."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import create_async_engine

from zart_sqla.config import PoolConfig
from zart_sqla.errors import ConfigError

if TYPE_CHECKING:
    from sqlalchemy import URL
    from sqlalchemy.ext.asyncio import AsyncEngine

ASYNC_DRIVER: Final = "postgresql+asyncpg"
SYNC_DRIVER: Final = "postgresql+psycopg"
_ALIASES = frozenset({"postgresql", "postgres"})


def url_for(url: str | URL, driver: str) -> URL:
    """Return the URL with the driver that zart_sqla needs there.

    Raises:
        ConfigError: it is not the URL of a PostgreSQL database, or it names another driver.
    """
    try:
        parsed = make_url(url)
    except ArgumentError:
        raise ConfigError("url", expected="a URL such as 'postgresql://user@host/database'", actual="***") from None
    if parsed.drivername in _ALIASES:
        return parsed.set(drivername=driver)
    if parsed.drivername != driver:
        raise ConfigError("url", expected=f"'postgresql://...' or '{driver}://...'", actual=f"{parsed.drivername}://")
    return parsed


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


def read_committed(engine: AsyncEngine) -> AsyncEngine:
    """Return the same engine, whose transactions are of the level that our statements are written for."""
    return engine.execution_options(isolation_level="READ COMMITTED")


def autocommit(engine: AsyncEngine) -> AsyncEngine:
    """Return the same engine, on which each statement is a transaction of its own: one round trip, not three."""
    return engine.execution_options(isolation_level="AUTOCOMMIT")
