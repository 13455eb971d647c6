"""The protocol of claims, leases and fences, driven by Hypothesis over interleaved transactions."""

import os
from collections.abc import Iterator
from functools import partial

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test
from sqlalchemy import create_engine, make_url

from tests.store.protocol.machine import Protocol, World
from zart_sqla import TableNames

EXAMPLES = int(os.environ.get("ZART_TEST_PROTOCOL_EXAMPLES", "60"))
"""How many histories are tried; for a long hunt, thousands, each time others."""

SETTINGS = settings(
    database=None,
    deadline=None,
    derandomize="ZART_TEST_PROTOCOL_EXAMPLES" not in os.environ,
    max_examples=EXAMPLES,
    stateful_step_count=50,
    suppress_health_check=list(HealthCheck),
)


@pytest.fixture
def world(migrated_url: str) -> Iterator[World]:
    """Yield the database in which the machine runs."""
    engine = create_engine(make_url(migrated_url).set(drivername="postgresql+psycopg"), pool_size=10)
    made = World(engine, TableNames())
    yield made
    made.close()
    engine.dispose()


def test_protocol(world: World) -> None:
    """Whatever the order of statements, commits and deaths: the tables are what the answers have said."""
    run_state_machine_as_test(partial(Protocol, world), settings=SETTINGS)
