"""Fixtures of the acceptance tests: the command `zart`, as a user runs it."""

import shutil
from pathlib import Path

import pytest

from tests.acceptance.command import Command

JOBS = Path(__file__).with_name("shop_jobs.py")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of an app: its module `shop_jobs` is importable only from there."""
    shutil.copy(JOBS, tmp_path)
    return tmp_path


@pytest.fixture
def zart(migrated_url: str, folder: Path) -> Command:
    """Return the command in the app's folder, on a database with tables."""
    return Command(folder, {"DATABASE_URL": migrated_url})


@pytest.fixture
def zart_on_empty(database_url: str, folder: Path) -> Command:
    """Return the command in the app's folder, on an empty database."""
    return Command(folder, {"DATABASE_URL": database_url})
