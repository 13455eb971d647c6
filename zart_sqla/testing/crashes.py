"""A workflow whose worker dies, at every point at which that can make a difference."""

from __future__ import annotations

import operator
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from zart_sqla.records import StepKind
from zart_sqla.runtime.answers import settled
from zart_sqla.runtime.outcomes import Completed
from zart_sqla.testing.clock import VirtualClock
from zart_sqla.testing.errors import CrashInconsistency, WorkflowStuck
from zart_sqla.testing.run import SimulatedRun
from zart_sqla.testing.simulation import handler_of, offer_all, packed_input
from zart_sqla.testing.storage import Storage
from zart_sqla.testing.transactions import Transactions
from zart_sqla.testing.writes import Crash, Writes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

    from zart_sqla.records import ErrorRecord, RecordedStep
    from zart_sqla.runtime.handlers import Durable, Handler, TaskObject
    from zart_sqla.runtime.outcomes import Failed
    from zart_sqla.testing.simulation import Event

_LONGEST_SHOWN: Final = 500


@dataclass(frozen=True, slots=True, kw_only=True)
class CrashPoint:
    """A point at which the worker died, and the run that came to its end all the same.

    Attributes:
        place: which point it was, in words.
        calls: how often the function of each step was called in that run, by the step's name.
    """

    place: str
    calls: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class CrashReport:
    """What came of a workflow, whatever its worker died of.

    Attributes:
        output: its output, as plain JSON data is read back by its type; None if it failed.
        error: what it failed with; None if it did not.
        points: the points at which the worker died, one for each run.
        calls: how often the function of each step was called in the one run in which that was most often.
    """

    output: Any
    error: ErrorRecord | None
    points: Sequence[CrashPoint]
    calls: Mapping[str, int]


async def crash_at_every_step(  # noqa: PLR0913 - what a test can choose
    workflow: Durable[Any, Any] | TaskObject,
    data: object = None,
    *,
    events: Iterable[Event] = (),
    engine: AsyncEngine | None = None,
    sessionmaker: async_sessionmaker[Any] | None = None,
    workflows: Iterable[Durable[Any, Any]] = (),
    execution_id: str = "test",
    before_each: Callable[[], object] | None = None,
    same: Callable[[Any, Any], bool] = operator.eq,
) -> CrashReport:
    """Run a workflow once as it is, and then again and again with a worker that dies; each must end like the first.

    The worker dies once in each run: before or after one of the writes of which the first run was made. These are
    the checkpoints, failed attempts, events that are taken, steps that are scheduled, waits, and the end. What was
    not written by then is lost, and a new turn replays what was. After a wait is written, a turn is made
    at once, long before its time. Time is skipped as in `run_workflow`.

    What `capture`, `now`, `random` and `uuid` record in the first run they give in all of them.

    A step whose worker dies after it ran and before its checkpoint runs again: look at `calls`, and make sure that what
    it does to the outside world can happen twice.

    Args:
        workflow: as in `run_workflow`, like the other arguments that are named as there.
        data: its input.
        events: what is offered to it, in each run.
        engine: the database in which `trx()` writes, in each run.
        sessionmaker: what makes the sessions of `trx()`.
        workflows: the workflows that it starts by `start_child`.
        execution_id: what the runs are told of their execution's id.
        before_each: called before each run, to bring what the steps change back to how it was; `def` or `async def`.

        same: whether two outputs count as the same, where they hold something that no two runs have alike, such as a
            number of a sequence of the database. Default: they are equal.

    Returns:
        How the runs ended, all alike, and how often each step was called.

    Raises:
        CrashInconsistency: a run ended otherwise, or a recorded step ran again; it says after which crash.
        WorkflowStuck: the run without a crash gets nowhere.
        ConfigError: as `run_workflow` does.
        InvalidDataError: as `run_workflow` does.
    """
    plan = _Plan(
        workflow=workflow,
        others={one.name: one.handler for one in workflows},
        data=data,
        events=tuple(events),
        transactions=Transactions(engine, sessionmaker),
        execution_id=execution_id,
        before_each=before_each,
        same=same,
    )
    writes = Writes()
    first = await plan.begin(writes, {})
    ending = await first.finish()
    captured = {name: step for name, step in first.storage.steps.items() if step.kind is StepKind.CAPTURE}
    points: list[CrashPoint] = []
    for number in range(1, writes.count + 1):
        for is_after in (False, True):
            crash = Crash(number=number, is_after=is_after)
            run = await plan.begin(Writes(crash), captured)
            await plan.check(run, crash, ending)
            if crash.place is not None:  # with steps side by side, a run can be made of fewer writes
                points.append(CrashPoint(place=crash.place, calls=dict(run.storage.calls)))
    most = Counter(first.storage.calls)
    for point in points:
        most |= Counter(point.calls)
    return CrashReport(output=plan.output_of(ending), error=_error_of(ending), points=points, calls=dict(most))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Plan:
    """How each of the runs begins."""

    workflow: Durable[Any, Any] | TaskObject
    others: Mapping[str, Handler[Any, Any]]
    data: object
    events: Sequence[Event]
    transactions: Transactions
    execution_id: str
    before_each: Callable[[], object] | None
    same: Callable[[Any, Any], bool]

    async def begin(self, writes: Writes, captured: Mapping[str, RecordedStep]) -> SimulatedRun:
        if self.before_each is not None:
            await settled(self.before_each())
        handler = handler_of(self.workflow)
        clock = VirtualClock()
        run = SimulatedRun(
            handler,
            packed_input(handler, self.data),
            execution_id=self.execution_id,
            storage=Storage(clock, captured),
            clock=clock,
            writes=writes,
            transactions=self.transactions,
            others=self.others,
        )
        offer_all(run, self.events)
        return run

    def output_of(self, ending: Completed | Failed) -> Any:
        if not isinstance(ending, Completed):
            return None
        return handler_of(self.workflow).result_codec.unpack(ending.result, subject="the output")

    async def check(self, run: SimulatedRun, crash: Crash, expected: Completed | Failed) -> None:
        """Have the run come to its end, and compare it with that of the run without a crash.

        Raises:
            CrashInconsistency: it is another one, or a recorded step ran again.
        """
        try:
            actual = await run.finish()
        except WorkflowStuck as error:
            raise _inconsistency(run, crash, expected, f"got nowhere: {error.problem}") from error
        if not self._is_same(expected, actual):
            raise _inconsistency(run, crash, expected, _described(actual)) from run.fault
        if run.storage.repeated:
            names = ", ".join(map(repr, run.storage.repeated))
            raise _inconsistency(run, crash, expected, f"ran steps again that were recorded: {names}")

    def _is_same(self, expected: Completed | Failed, actual: Completed | Failed) -> bool:
        if isinstance(expected, Completed) and isinstance(actual, Completed):
            return expected == actual or self.same(self.output_of(expected), self.output_of(actual))
        return _essence(expected) == _essence(actual)


def _inconsistency(run: SimulatedRun, crash: Crash, expected: Completed | Failed, actual: str) -> CrashInconsistency:
    place = crash.place or "that did not come about"
    return CrashInconsistency(run.task.task_name, place=place, expected=_described(expected), actual=actual)


def _essence(ending: Completed | Failed) -> object:
    if isinstance(ending, Completed):
        return ending
    error = ending.error
    return error.error_type, error.message, error.step, error.category, error.attempts


def _described(ending: Completed | Failed) -> str:
    if isinstance(ending, Completed):
        return _short(f"returns {ending.result}")
    error = ending.error
    place = "" if error.step is None else f" in step {error.step!r}"
    return _short(f"fails{place} with {error.error_type}: {error.message}")


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _error_of(ending: Completed | Failed) -> ErrorRecord | None:
    return None if isinstance(ending, Completed) else ending.error
