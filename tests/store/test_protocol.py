"""The protocol of claims, leases and fences, driven by Hypothesis over interleaved transactions."""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from sqlalchemy import CTE, Connection, bindparam, select

from tests.store.protocol.machine import Protocol
from tests.store.protocol.work import World
from zart_sqla import TableNames
from zart_sqla.models.mapping import tables_of
from zart_sqla.statements import children, events, executions, fences, steps, streams, tasks, workers
from zart_sqla.statements.arrays import UUID
from zart_sqla.store import tasks as task_store

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
    made = World(migrated_url)
    yield made
    made.close()


def machine_in(world: World) -> type[Protocol]:
    """Return the machine that runs in this database."""

    class Here(Protocol):
        def __init__(self) -> None:
            super().__init__(world)

    return Here


@pytest.mark.slow
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


def _deaf(put_down: Callable[..., Any], connection: Connection, names: TableNames, me: Any, freed: Any) -> Any:
    """Put tasks down as if their turns had heard of all that came meanwhile."""
    table = tables_of(names).tasks
    heard = {row.task_id: row.signals for row in connection.execute(select(table.c.task_id, table.c.signals))}
    tasks = [replace(one.task, signals=heard.get(one.task.task_id, 0)) for one in freed]
    return put_down(connection, names, me, [replace(one, task=task) for one, task in zip(freed, tasks, strict=True)])


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What the product would be without one of its guards.

    Attributes:
        modules: where the guard is used.
        name: the function.
        instead: what it would be.
        found: what the machine says of it.
    """

    modules: tuple[ModuleType, ...]
    name: str
    instead: Any
    found: str


FAULTS = {
    "the worker's row is not locked": Fault(
        modules=(fences, tasks, steps, events), name="alive", instead=_unlocked, found="a worker (that )?was buried"
    ),
    "the token is not compared": Fault(
        modules=(tasks, children, streams), name="mine", instead=_without_token, found="does not hold the task"
    ),
    "checkpoints are written anew": Fault(
        modules=(steps, events), name="completed", instead=_rewriting, found="a checkpoint is written anew"
    ),
    "a turn does not hear of events": Fault(
        modules=(task_store,), name="put_down", instead=partial(_deaf, task_store.put_down), found="has not heard"
    ),
}


def _forget() -> None:
    """Have all statements made anew."""
    for module in STATEMENTS:
        for function in vars(module).values():
            if hasattr(function, "cache_clear") and function.__module__ == module.__name__:
                function.cache_clear()


@pytest.fixture(params=FAULTS)
def fault(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fault]:
    """Take one of its guards from the product."""
    made = FAULTS[request.param]
    for module in made.modules:
        monkeypatch.setattr(module, made.name, made.instead)
    _forget()
    yield made
    monkeypatch.undo()
    _forget()


@pytest.mark.slow
def test_without_a_guard(fault: Fault, world: World) -> None:
    """The machine finds out what is missing."""
    quick = settings(SETTINGS, phases=[Phase.generate], report_multiple_bugs=False, max_examples=400, derandomize=True)
    with pytest.raises(AssertionError, match=fault.found):
        run_state_machine_as_test(machine_in(world), settings=quick)
