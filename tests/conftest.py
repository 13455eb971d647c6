"""Fixtures for every test: a PostgreSQL server for the run and a database for each test that asks for one.

`ZART_TEST_DATABASE_URL` names a server to use. Without it the run starts an embedded one, of the major
version in `ZART_TEST_POSTGRES` (16 or 18; 18 if unset).
"""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.databases import Databases
from tests.support.postgres import kept, once, shared_server

RUN_FOLDER = "ZART_TEST_RUN_FOLDER"
OWN_SETTINGS = ("DATABASE_URL", "ZART_SCHEMA", "ZART_TABLE_PREFIX")


def pytest_configure() -> None:
    """Make the folder in which the processes of this run meet, and forget the developer's own settings."""
    for name in OWN_SETTINGS:
        os.environ.pop(name, None)
    if not _is_xdist_worker():
        os.environ[RUN_FOLDER] = tempfile.mkdtemp(prefix="zart_test_")


def pytest_unconfigure() -> None:
    """Leave nothing behind: wait until the embedded server is gone, or drop this run's databases."""
    if _is_xdist_worker():
        return
    folder = Path(os.environ.pop(RUN_FOLDER))
    if url := os.environ.get("ZART_TEST_DATABASE_URL"):
        if (folder / "template").exists():
            Databases(server_url=url, prefix=folder.name).drop_all()
    elif (folder / "server").exists():
        _wait_until_gone(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def run_folder() -> Path:
    """Return the folder in which the processes of this run meet."""
    return Path(os.environ[RUN_FOLDER])


@pytest.fixture(scope="session", autouse=True)
def _keep_server(run_folder: Path) -> Iterator[None]:
    """Keep the run's server while this process has tests: others may be done with it before this one asks for it."""
    with kept(run_folder):
        yield


@pytest.fixture(scope="session")
def postgres_version() -> int:
    """Return the major version that embedded servers of this run have."""
    return int(os.environ.get("ZART_TEST_POSTGRES", "18"))


@pytest.fixture(scope="session")
def databases(run_folder: Path, postgres_version: int) -> Iterator[Databases]:
    """Create and drop databases on the run's server."""
    if url := os.environ.get("ZART_TEST_DATABASE_URL"):
        yield Databases(server_url=url, prefix=run_folder.name)
        return
    with shared_server(run_folder, postgres_version) as url:
        yield Databases(server_url=url, prefix=run_folder.name)


@pytest.fixture(scope="session")
def template(run_folder: Path, databases: Databases) -> str:
    """Return the name of a database with zart's tables, made once a run."""
    return once(run_folder, "template", databases.create_template)


@pytest.fixture
def database_url(databases: Databases) -> Iterator[str]:
    """Yield the URL of an empty database of the test's own."""
    with databases.temporary() as url:
        yield url


@pytest.fixture
def migrated_url(databases: Databases, template: str) -> Iterator[str]:
    """Yield the URL of a database of the test's own that has zart's tables."""
    with databases.temporary(template) as url:
        yield url


def _is_xdist_worker() -> bool:
    return "PYTEST_XDIST_WORKER" in os.environ


def _wait_until_gone(path: Path, seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
