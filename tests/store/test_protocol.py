"""The protocol of claims, leases and fences, driven by Hypothesis over interleaved transactions."""

import functools
import os
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from sqlalchemy import CTE, Connection, bindparam, create_engine, make_url, select, update

from tests.store.protocol.machine import Protocol
from tests.store.protocol.work import World
from zart_sqla import TableNames
from zart_sqla.models.mapping import tables_of
from zart_sqla.records import NewEvent
from zart_sqla.statements import children, events, executions, fences, steps, streams, tasks, workers
from zart_sqla.statements.arrays import UUID
from zart_sqla.store import events as event_store

EXAMPLES = "ZART_TEST_PROTOCOL_EXAMPLES"
"""How many histories are tried. Without it, some, the same each time; with it, others each time: for a long hunt."""

SETTINGS = settings(
    database=None,
    deadline=None,
    derandomize=EXAMPLES not in os.environ,
    max_examples=int(os.environ.get(EXAMPLES, "40")),
    stateful_step_count=100,
    suppress_health_check=list(HealthCheck),
)

STATEMENTS = (children, events, executions, fences, steps, streams, tasks, workers)


@pytest.fixture
def world(migrated_url: str) -> Iterator[World]:
    """Yield the database in which the machine runs."""
    engine = create_engine(make_url(migrated_url).set(drivername="postgresql+psycopg"), pool_size=10)
    made = World(engine, TableNames())
    yield made
    made.close()
    engine.dispose()


def machine_in(world: World) -> type[Protocol]:
    """Return the machine that runs in this database."""

    class Here(Protocol):
        def __init__(self) -> None:
            super().__init__(world)

    return Here


def test_protocol(world: World) -> None:
    """Whatever the order of statements, commits and deaths: the tables are what the answers have said."""
    run_state_machine_as_test(machine_in(world), settings=SETTINGS)


def _unlocked(names: TableNames) -> CTE:
    """Select the worker's own row, and do not keep it from being deleted."""
    table = tables_of(names).workers
    return select(table.c.worker_id).where(table.c.worker_id == bindparam("me", type_=UUID)).cte("me")


def _without_token(names: TableNames, turn: Any, *columns: Any, against_end_only: bool = False) -> CTE:
    """Select the tasks of the worker, also those that it has claimed again since."""
    table, me = tables_of(names).tasks, fences.alive(names)
    return (
        select(table.c.task_id, table.c.run_id, table.c.started_at, *columns)
        .join(turn, table.c.task_id == turn.c.task_id)
        .join(me, me.c.worker_id == table.c.worker_id)
        .with_for_update(of=table, skip_locked=True, read=against_end_only, key_share=against_end_only)
        .cte("mine")
    )


def _rewriting(names: TableNames, inserted: Any) -> Any:
    """Return an insertion of checkpoints that changes those that are there."""
    table = tables_of(names).steps
    changed = {"result": inserted.excluded.result, "error": inserted.excluded.error}
    return inserted.on_conflict_do_update(index_elements=[table.c.run_id, table.c.name], set_=changed)


def _silent(offer: Callable[..., Any], connection: Connection, names: TableNames, event: NewEvent) -> Any:
    """Offer an event, and do not tell the turn that is under way."""
    answer = offer(connection, names, event)
    table, known = tables_of(names).tasks, tables_of(names).executions
    current = select(known.c.run_id).where(known.c.execution_id == event.execution_id).scalar_subquery()
    connection.execute(update(table).values(signals=table.c.signals - 1).where(table.c.task_id == current))
    return answer


BROKEN: dict[str, tuple[tuple[ModuleType, ...], str, Any]] = {
    "the worker's row is not locked": ((fences, tasks, steps, events), "alive", _unlocked),
    "the token is not compared": ((tasks, children, streams), "mine", _without_token),
    "checkpoints are written anew": ((steps, events), "completed", _rewriting),
    "a turn does not hear of events": ((event_store,), "offer", functools.partial(_silent, event_store.offer)),
}
"""What the product would be without one of its guards: where, which function, and what it would be."""


def _forget() -> None:
    """Have all statements made anew."""
    for module in STATEMENTS:
        for function in vars(module).values():
            if hasattr(function, "cache_clear") and function.__module__ == module.__name__:
                function.cache_clear()


@pytest.fixture(params=BROKEN)
def broken(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Take one of its guards from the product."""
    modules, name, instead = BROKEN[request.param]
    for module in modules:
        monkeypatch.setattr(module, name, instead)
    _forget()
    yield
    monkeypatch.undo()
    _forget()


@pytest.mark.usefixtures("broken")
def test_without_a_guard(world: World) -> None:
    """The machine finds out what is missing."""
    quick = settings(SETTINGS, phases=[Phase.generate], report_multiple_bugs=False, max_examples=400, derandomize=True)
    with pytest.raises(AssertionError):
        run_state_machine_as_test(machine_in(world), settings=quick)
