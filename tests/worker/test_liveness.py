"""The worker's own connection."""

from sqlalchemy import event
from sqlalchemy.ext.asyncio import create_async_engine

from zart_sqla.worker.liveness import _cut


async def test_cut_of_what_is_dropped_already(migrated_url: str) -> None:
    """A connection that SQLAlchemy has dropped is not made anew to be cut: the network may be away."""
    engine = create_async_engine(migrated_url.replace("postgresql://", "postgresql+asyncpg://"))
    connection = await engine.connect()
    await connection.invalidate()
    made: list[object] = []
    event.listen(engine.sync_engine, "connect", lambda driver, _record: made.append(driver))
    await _cut(connection)
    await engine.dispose()
    assert made == []


async def test_cut(migrated_url: str) -> None:
    """One that is in use is closed without asking the server."""
    engine = create_async_engine(migrated_url.replace("postgresql://", "postgresql+asyncpg://"))
    connection = await engine.connect()
    driver = (await connection.get_raw_connection()).driver_connection
    await _cut(connection)
    assert driver is not None
    assert driver.is_closed()
    await engine.dispose()
