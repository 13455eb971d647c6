"""The app's engine and sessions, which zart_sqla shares."""

from sqlalchemy import make_url
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker, create_async_engine

Session = async_sessionmaker(expire_on_commit=False)
"""Makes the app's sessions, once `connect` was called."""


def connect(url: str, *, pool_size: int) -> AsyncEngine:
    """Return the engine of this process, and have `Session` use it."""
    engine = create_async_engine(
        make_url(url).set(drivername="postgresql+asyncpg"), pool_size=pool_size, max_overflow=0
    )
    Session.configure(bind=engine)
    return engine
