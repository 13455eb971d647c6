"""A migrated database through each of the drivers."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.store.connections import Database
from zart_sqla import TableNames


@pytest_asyncio.fixture(params=["asyncpg", "psycopg"])
async def database(request: pytest.FixtureRequest, migrated_url: str) -> AsyncIterator[Database]:
    """Yield a database of the test's own."""
    database = Database(TableNames(), str(request.param), migrated_url)
    yield database
    await database.close()
