"""Connections that are cut when the database does not answer on them.

A connection can be half open: the other end is gone, or something between drops what is sent, and nobody says so.
What waits for an answer on it would wait for hours.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine


@asynccontextmanager
async def connected(engine: AsyncEngine, seconds: float) -> AsyncGenerator[AsyncConnection]:
    """Lend a connection for what the database must answer within so many seconds.

    Raises:
        TimeoutError: no connection could be had in that time.
        sqlalchemy.exc.DBAPIError: it did not answer in that time, or is broken otherwise.
    """
    async with asyncio.timeout(seconds):
        connection = await engine.connect()
    async with connection, answering(connection, seconds):
        yield connection


@asynccontextmanager
async def answering(connection: AsyncConnection, seconds: float) -> AsyncGenerator[None]:
    """Cut the connection if what is done in the block takes longer; then whatever waits on it fails.

    The driver's connection is cut, not the task cancelled: SQLAlchemy then sees a disconnect, and trusts the pool's
    other connections no more either.
    """
    driver: Any = (await connection.get_raw_connection()).driver_connection
    timer = asyncio.get_running_loop().call_later(seconds, driver.terminate)
    try:
        yield
    finally:
        timer.cancel()
