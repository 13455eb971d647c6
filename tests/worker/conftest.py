"""Fixtures for tests with real workers."""

from collections.abc import Iterator

import pytest

from tests.support.ledger import Base
from tests.support.scene import Scene, new_scene
from tests.support.working import scheduler_on


@pytest.fixture
def scene() -> Iterator[Scene]:
    """Yield what the steps of `tests.support.scene` meet in this test."""
    with new_scene() as made:
        yield made


@pytest.fixture
async def ledger_url(migrated_url: str) -> str:
    """Return the URL of a database with zart's tables and the app's."""
    async with scheduler_on(migrated_url) as scheduler, scheduler.engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    return migrated_url
