"""Fixtures for migrations: an engine for a database of its own, and a revision that is yet to come."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, NullPool, create_engine, make_url

from tests.migrations.catalog import LATER, add_later_revision
from zart_sqla.migrations import history
from zart_sqla.table_names import TableNames

ALL_NAMES = {
    "default": TableNames(),
    "prefix": TableNames("myapp_"),
    "schema": TableNames(schema="tenant_a"),
    "both": TableNames("svc_", "myschema"),
    "quoted": TableNames("Svc_", "User"),
    "longest": TableNames("p" * 32, "s" * 63),
}


@pytest.fixture
def engine(database_url: str) -> Iterator[Engine]:
    """Yield an engine for an empty database."""
    engine = create_engine(make_url(database_url).set(drivername="postgresql+psycopg"), poolclass=NullPool)
    yield engine
    engine.dispose()


@pytest.fixture(params=list(ALL_NAMES.values()), ids=list(ALL_NAMES))
def names(request: pytest.FixtureRequest) -> TableNames:
    """Return names of each kind."""
    assert isinstance(request.param, TableNames)
    return request.param


@pytest.fixture
def later_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Give this process one more revision of zart_sqla, and return it."""
    directory = add_later_revision(tmp_path / "later")
    monkeypatch.setattr(history, "_script_directory", lambda: directory)
    return LATER
