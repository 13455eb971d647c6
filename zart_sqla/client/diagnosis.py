"""Whether the way to the database lets zart_sqla work as it is meant to."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, Any, Final

from zart_sqla.client.engines import apart, autocommit, opened
from zart_sqla.store import diagnosis, executions, workers

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from zart_sqla.table_names import TableNames

_NEWS_SECONDS: Final = 3.0


async def has_sessions(engine: AsyncEngine) -> bool:
    """Return whether a connection is a session of the server's, which can hold a lock.

    Behind a transaction pooler it is not: two connections take turns on one of the server's.
    """
    own = autocommit(apart(engine))
    try:
        async with opened(own) as first, opened(own) as second:
            before = await first.run_sync(diagnosis.backend)
            await second.execution_options(isolation_level="READ COMMITTED")
            async with second.begin():
                other = await second.run_sync(diagnosis.backend)
                after = await first.run_sync(diagnosis.backend)
            is_locked = await first.run_sync(workers.lock, secrets.randbits(63))
            return is_locked and before == after != other
    finally:
        await own.dispose()  # and with it the lock


async def hears_news(engine: AsyncEngine, names: TableNames) -> bool:
    """Return whether a notification that one connection sends arrives at another that listens."""
    own = autocommit(apart(engine))
    channel = f"{names.prefix}doctor_{secrets.token_hex(8)}"
    heard = asyncio.Event()

    def hear(*_message: object) -> None:
        heard.set()

    try:
        async with opened(own) as listener, opened(own) as sender:
            driver: Any = (await listener.get_raw_connection()).driver_connection
            await driver.add_listener(channel, hear)
            await sender.run_sync(executions.notify, channel)
            async with asyncio.timeout(_NEWS_SECONDS):
                await heard.wait()
            await listener.invalidate()
    except TimeoutError:
        return False
    finally:
        await own.dispose()
    return True
