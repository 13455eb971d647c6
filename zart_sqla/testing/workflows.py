"""A workflow in a unit test, from its start to its end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar, overload

from zart_sqla.testing.simulation import Simulation

if TYPE_CHECKING:
    from collections.abc import Iterable

    from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

    from zart_sqla.runtime.handlers import Durable, TaskObject
    from zart_sqla.testing.simulation import Event

D = TypeVar("D")
R = TypeVar("R")


@overload
async def run_workflow(
    workflow: Durable[None, R],
    data: None = None,
    *,
    events: Iterable[Event] = (),
    engine: AsyncEngine | None = None,
    sessionmaker: async_sessionmaker[Any] | None = None,
    workflows: Iterable[Durable[Any, Any]] = (),
    execution_id: str = "test",
) -> R: ...
@overload
async def run_workflow(
    workflow: Durable[D, R],
    data: D,
    *,
    events: Iterable[Event] = (),
    engine: AsyncEngine | None = None,
    sessionmaker: async_sessionmaker[Any] | None = None,
    workflows: Iterable[Durable[Any, Any]] = (),
    execution_id: str = "test",
) -> R: ...
@overload
async def run_workflow(
    workflow: TaskObject,
    data: Any = None,
    *,
    events: Iterable[Event] = (),
    engine: AsyncEngine | None = None,
    sessionmaker: async_sessionmaker[Any] | None = None,
    workflows: Iterable[Durable[Any, Any]] = (),
    execution_id: str = "test",
) -> Any: ...
async def run_workflow(  # noqa: PLR0913 - what a test can choose
    workflow: Durable[Any, Any] | TaskObject,
    data: Any = None,
    *,
    events: Iterable[Event] = (),
    engine: AsyncEngine | None = None,
    sessionmaker: async_sessionmaker[Any] | None = None,
    workflows: Iterable[Durable[Any, Any]] = (),
    execution_id: str = "test",
) -> Any:
    """Run a workflow to its end in memory, with its time skipped, and return its output.

    Its turns are those that a worker makes: each wait ends one, and the next one replays. A sleep, the delay of a
    retry, the timeout of an event and the deadline of the workflow take no real time, but its clock moves on by them.
    The steps themselves take the time that they take, by which the clock does not move.

    Args:
        workflow: a `@durable` function, `def` or `async def`, or an object with a method `run(data)`.
        data: its input.
        events: what is offered to it, in this order: `("paid", payment)` is there from the start, and
            `("paid", payment, "2d")` after two days.
        engine: the database in which `trx()` writes: really, and committed with the checkpoint. Default: that of the
            sessionmaker; without both, `trx()` raises.
        sessionmaker: what makes the sessions of `trx()`, as that of a `Worker`. Default: plain sessions.
        workflows: the workflows that it starts by `start_child`: they run beside it, by the same clock.
        execution_id: what the run is told of its execution's id.

    Raises:
        WorkflowStuck: it waits for what nobody brings, or goes on for ever.
        Exception: what the run failed with: the error itself.
        ConfigError: it is no workflow, or an argument is out of range.
        InvalidDataError: the input or an event cannot be stored, or does not fit.
    """
    simulation: Simulation[Any] = Simulation(
        workflow,
        data,
        events=events,
        engine=engine,
        sessionmaker=sessionmaker,
        workflows=workflows,
        execution_id=execution_id,
    )
    return await simulation.result()


@overload
def run_workflow_sync(
    workflow: Durable[None, R], data: None = None, *, events: Iterable[Event] = (), execution_id: str = "test"
) -> R: ...
@overload
def run_workflow_sync(
    workflow: Durable[D, R], data: D, *, events: Iterable[Event] = (), execution_id: str = "test"
) -> R: ...
@overload
def run_workflow_sync(
    workflow: TaskObject, data: Any = None, *, events: Iterable[Event] = (), execution_id: str = "test"
) -> Any: ...
def run_workflow_sync(
    workflow: Durable[Any, Any] | TaskObject,
    data: Any = None,
    *,
    events: Iterable[Event] = (),
    execution_id: str = "test",
) -> Any:
    """Do as `run_workflow` does, in a test that is a plain `def`; its steps have no `trx()`.

    Raises:
        RuntimeError: an event loop runs here, where `run_workflow` is the one to call.
    """
    simulation: Simulation[Any] = Simulation(workflow, data, events=events, execution_id=execution_id)
    return asyncio.run(simulation.result())
