"""The pytest plugin of zart_sqla: databases, schedulers and workers for tests.

It stands beside the package, not in it: pytest loads it in every run of every project that has zart_sqla installed, and
to load a module of a package is to load the package. The package comes when a test asks for one of these fixtures.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from zart_sqla import PostgresScheduler, TableNames
    from zart_sqla.testing.databases import Databases
    from zart_sqla.testing.workers import WorkerFactory


def pytest_configure(config: pytest.Config) -> None:
    """Make those of the fixtures that are async, in the way of the plugin that runs async tests here."""
    # Not imported: it is there if its plugin is, and anyio's plugin takes an async fixture as it is.
    plugin: Any = sys.modules.get("pytest_asyncio", pytest)
    fixtures = ModuleType("zart_sqla_pytest_async")
    for function in (zart_scheduler, zart_worker):
        setattr(fixtures, function.__name__, plugin.fixture(function))
    config.pluginmanager.register(fixtures, fixtures.__name__)


@pytest.fixture(scope="session")
def zart_table_names() -> TableNames:
    """Return the names of the tables. Override it to test with a prefix or a schema of your own."""
    from zart_sqla import TableNames

    return TableNames.default()


@pytest.fixture(scope="session")
def zart_databases(zart_table_names: TableNames) -> Iterator[Databases]:
    """Yield what makes databases with zart's tables, on a server for this run of pytest."""
    from zart_sqla.testing.databases import open_databases

    with open_databases(zart_table_names) as databases:
        yield databases


@pytest.fixture
def zart_database_url(zart_databases: Databases) -> Iterator[str]:
    """Yield the URL of a database of the test's own, which has zart's tables."""
    with zart_databases.temporary() as url:
        yield url


async def zart_scheduler(zart_database_url: str, zart_table_names: TableNames) -> AsyncIterator[PostgresScheduler]:
    """Yield a scheduler on the test's database."""
    from zart_sqla.testing.workers import scheduler_on

    async with scheduler_on(zart_database_url, zart_table_names) as scheduler:
        yield scheduler


async def zart_worker(zart_database_url: str, zart_table_names: TableNames) -> AsyncIterator[WorkerFactory]:
    """Yield what starts workers on the database of the test, and stops them with it: call it with the workflows."""
    from zart_sqla.testing.workers import workers_on

    async with workers_on(zart_database_url, zart_table_names) as start:
        yield start
