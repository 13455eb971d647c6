"""A run that a test can look at, and lead through its time."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from zart_sqla.codec import plain_json
from zart_sqla.durations import Duration, to_timedelta
from zart_sqla.errors import ConfigError, ExecutionFailed
from zart_sqla.histories import ExecutionHistory
from zart_sqla.records import ExecutionStatus
from zart_sqla.runtime.handlers import Durable, TaskRegistry
from zart_sqla.runtime.outcomes import Completed, Failed
from zart_sqla.testing.clock import VirtualClock
from zart_sqla.testing.run import SimulatedRun
from zart_sqla.testing.storage import Storage
from zart_sqla.testing.transactions import Transactions
from zart_sqla.testing.writes import Writes

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

    from zart_sqla.records import FailedAttempt, RecordedStep
    from zart_sqla.runtime.handlers import Handler, TaskObject

R = TypeVar("R")

Event = tuple[str, Any] | tuple[str, Any, Duration]
"""The name and the value of an event; and how long after the start it is offered, if not at the start."""


class Simulation(Generic[R]):
    """One run of a workflow in memory: what it has recorded, what it waits for, and its time, which a test moves on.

    Its turns are those that workers make. `await simulation.result()` is all that `run_workflow` does.

    Args:
        workflow: a `@durable` function, or an object with a method `run(data)`.
        data: its input.
        events: what is offered to it, in this order: at the start, or so long after it.
        engine: the database in which `trx()` writes. Default: that of the sessionmaker.
        sessionmaker: what makes the sessions of `trx()`, as that of a `Worker`. Default: plain sessions.
        workflows: the workflows that it starts by `start_child`.
        execution_id: what the run is told of its execution's id.
        now: what its clock shows at the start. Default: the same in every test.

    Raises:
        ConfigError: it is no workflow, or an argument is out of range.
        InvalidDataError: the input or an event cannot be stored, or the input does not fit the workflow.
    """

    def __init__(  # noqa: PLR0913 - what a test can choose
        self,
        workflow: Durable[Any, R] | TaskObject,
        data: object = None,
        *,
        events: Iterable[Event] = (),
        engine: AsyncEngine | None = None,
        sessionmaker: async_sessionmaker[Any] | None = None,
        workflows: Iterable[Durable[Any, Any]] = (),
        execution_id: str = "test",
        now: datetime | None = None,
    ) -> None:
        self._handler = handler_of(workflow)
        clock = VirtualClock(now)
        self._run = SimulatedRun(
            self._handler,
            packed_input(self._handler, data),
            execution_id=execution_id,
            storage=Storage(clock),
            clock=clock,
            writes=Writes(),
            transactions=Transactions(engine, sessionmaker),
            others={one.name: one.handler for one in workflows},
        )
        offer_all(self._run, events)

    def __repr__(self) -> str:
        return f"<simulation of {self._handler.name!r}: {self.status}>"

    @property
    def now(self) -> datetime:
        """The time by the run's clock. It passes only while the run waits."""
        return self._run.clock.now()

    @property
    def status(self) -> ExecutionStatus:
        """Where the run stands: it has ended, waits, or will go on at once when it is let."""
        match self._run.ending:
            case Completed():
                return ExecutionStatus.COMPLETED
            case Failed():
                return ExecutionStatus.FAILED
            case _:
                return ExecutionStatus.SCHEDULED if self._run.is_due else ExecutionStatus.WAITING

    @property
    def steps(self) -> dict[str, RecordedStep]:
        """What is recorded, by name, in the order of recording."""
        return dict(self._run.storage.steps)

    @property
    def failed_attempts(self) -> list[FailedAttempt]:
        """The failed attempts that were followed by another one; those of the body have an empty name."""
        return list(self._run.storage.attempts)

    @property
    def calls(self) -> dict[str, int]:
        """How often the function of each step was called, by the step's name in the run."""
        return dict(self._run.storage.calls)

    @property
    def emitted(self) -> list[tuple[str, Any]]:
        """The streams and the values of what was emitted."""
        return [(stream, json.loads(value)) for stream, value in self._run.storage.emitted]

    @property
    def turns(self) -> int:
        """How many turns have been made, of the run and of the steps that it has scheduled."""
        return self._run.turns

    @property
    def awaits(self) -> frozenset[str]:
        """The names of the events that the run waits for."""
        return self._run.waits.awaits if self._run.ending is None else frozenset()

    @property
    def history(self) -> ExecutionHistory:
        """What is recorded, as `handle.history()` gives it for `replay`."""
        task = self._run.task
        return ExecutionHistory(
            execution_id=task.execution_id,
            task_name=task.task_name,
            status=self.status,
            run_id=task.run_id,
            payload=task.payload,
            retries=task.retries,
            started_at=task.started_at,
            recorded=self._run.storage.history,
        )

    def offer_event(self, name: str, value: object = None) -> None:
        """Offer the run an event, now, as `handle.offer_event` does. A step of the run can do so, too.

        Raises:
            InvalidDataError: the value cannot be stored.
            InvalidNameError: the name cannot be stored.
        """
        self._run.offer(name, _packed(name, value))

    async def result(self) -> R:
        """Let the run go on to its end, whatever time that takes by its clock; return its output.

        Raises:
            WorkflowStuck: it waits for what nobody brings, or goes on for ever.
            Exception: what the run failed with: the error itself.
        """
        ending = await self._run.finish()
        if isinstance(ending, Failed):
            raise self._error(ending)
        subject = f"the output of {self._handler.name!r}"
        return cast("R", self._handler.result_codec.unpack(ending.result, subject=subject))

    def _error(self, ending: Failed) -> Exception:
        fault, record = self._run.fault, ending.error
        if isinstance(fault, Exception):
            return fault
        error = ExecutionFailed(
            self._run.task.execution_id, error_type=record.error_type, message=record.message, step=record.step
        )
        error.__cause__ = fault  # such as the SystemExit of a body, which must not end the test
        return error

    async def run_until_waiting(self) -> None:
        """Let the run go on until it ends, or waits for its time to pass or for an event.

        Raises:
            WorkflowStuck: it goes on for ever.
        """
        while await self._run.make_turn():
            pass

    async def advance(self, duration: Duration) -> None:
        """Let so much time pass, and the run go on with all that comes due in it.

        Raises:
            ConfigError: it is not a duration.
            WorkflowStuck: the run goes on for ever.
        """
        until = self.now + to_timedelta(duration)
        await self.run_until_waiting()
        while (moment := self._run.next_moment) is not None and moment <= until:
            self._run.skip_to(moment)
            await self.run_until_waiting()
        self._run.skip_to(until)


def handler_of(workflow: Durable[Any, Any] | TaskObject) -> Handler[Any, Any]:
    """Return what a worker would run.

    Raises:
        ConfigError: it is no workflow.
    """
    if isinstance(workflow, Durable):
        return workflow.handler
    registry = TaskRegistry()
    name = getattr(workflow, "__name__", type(workflow).__name__)
    registry.register(name, workflow)
    handler = registry.get(name)
    if handler is None:
        raise ConfigError("workflow", expected="a @durable function", actual=workflow)
    return handler


def packed_input(handler: Handler[Any, Any], data: object) -> str:
    """Return the input of a workflow as JSON text.

    Raises:
        InvalidDataError: it does not fit, or cannot be stored.
    """
    return handler.data_codec.pack(data, subject=f"the input of {handler.name!r}")[0]


def offer_all(run: SimulatedRun, events: Iterable[Event]) -> None:
    """Offer a run its events, those for the start now.

    Raises:
        ConfigError: one is something else.
        InvalidDataError: a value cannot be stored.
    """
    for event in events:
        match event:
            case (name, value):
                run.offer(name, _packed(name, value))
            case (name, value, delay):
                moment = run.clock.now() + to_timedelta(delay, setting="delay of an event")
                run.offer_at(moment, name, _packed(name, value))
            case _:
                raise ConfigError("events", expected="('name', value) or ('name', value, 'delay')", actual=event)


def _packed(name: str, value: object) -> str:
    return plain_json.pack(value, subject=f"the event {name!r}")[0]
