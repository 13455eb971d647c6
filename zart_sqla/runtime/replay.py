"""Whether code fits a recorded run: its body is replayed as far as it is recorded, and nothing is run or written."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from zart_sqla.errors import InvalidDataError, NonDeterminismError
from zart_sqla.records import DEFAULT_QUEUE, ClaimedTask, ExecutionStatus, StepKind
from zart_sqla.runtime._signals import TurnSignal
from zart_sqla.runtime.outcomes import Failed, Suspended
from zart_sqla.runtime.turn import Turn

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from zart_sqla.histories import ExecutionHistory
    from zart_sqla.records import Child, Ending, ErrorRecord, FailedAttempt, NewExecution, RecordedStep
    from zart_sqla.runtime.bridges import Bridge
    from zart_sqla.runtime.handlers import Handler
    from zart_sqla.runtime.journal import Place
    from zart_sqla.runtime.outcomes import Outcome
    from zart_sqla.runtime.ports import StepTransaction
    from zart_sqla.runtime.steps import StepCall

T = TypeVar("T")


async def replay(handler: Handler[Any, Any], history: ExecutionHistory) -> None:
    """Replay the body of a run up to its first calls that are not recorded.

    Raises:
        NonDeterminismError: it calls something else than what is recorded, or does not come to all of it.
        InvalidDataError: the input or a recorded result does not fit its type any more.
    """
    task = ClaimedTask(
        task_id=history.run_id,
        run_id=history.run_id,
        execution_id=history.execution_id,
        task_name=history.task_name,
        queue=DEFAULT_QUEUE,
        attempt=1,
        retries=history.retries,
        payload=history.payload,
        started_at=history.started_at,
        claimed_at=history.started_at,
    )
    turn = ReplayTurn(task, handler, history.recorded, ReplayRecorder(_end_of(history)))
    await asyncio.create_task(turn.run(), name=f"zart_sqla: replay of {history.execution_id}")
    fault = turn.fault
    if isinstance(fault, NonDeterminismError):
        raise fault
    # One that has failed may have done so of an event that did not fit.
    if isinstance(fault, InvalidDataError) and history.status is not ExecutionStatus.FAILED:
        raise fault
    try:
        turn.journal.check_end()
    except NonDeterminismError as error:
        raise error from fault


def _end_of(history: ExecutionHistory) -> datetime:
    """Return a moment at which all recorded sleeps are over, so that what came after them is replayed too."""
    moments = [history.started_at]
    for step in history.recorded.steps:
        known = (step.completed_at, step.wake_at if step.kind is StepKind.SLEEP else None)
        moments += [moment for moment in known if moment is not None]
    return max(moments)


class ReplayTurn(Turn):
    """A turn that ends where the record does: when all calls that go on side by side have come to that point."""

    async def run_at(self, place: Place, call: StepCall[T]) -> T:
        """Return the recorded value of a step; end the turn if there is none."""
        with self.calls.under_way():
            if place.recorded is None:
                await self._stop()
            return self.replayed(place.recorded, call)

    async def record(self, step: RecordedStep, *, gives_up: Sequence[str] = ()) -> NoReturn:  # noqa: ARG002
        """End the turn instead of writing a checkpoint."""
        await self._stop()

    async def take_event(self, wait: RecordedStep, name: str) -> NoReturn:  # noqa: ARG002
        """End the turn instead of taking an event."""
        await self._stop()

    async def start_execution(self, step: RecordedStep, new: NewExecution) -> NoReturn:  # noqa: ARG002
        """End the turn instead of starting an execution."""
        await self._stop()

    async def ending_of(self, execution_id: str) -> NoReturn:  # noqa: ARG002
        """End the turn instead of looking at an execution."""
        await self._stop()

    async def emit(self, step: RecordedStep, stream: str, value: str) -> NoReturn:  # noqa: ARG002
        """End the turn instead of emitting something."""
        await self._stop()

    async def pause(self, due_at: datetime | None, **_: Any) -> None:  # noqa: ARG002
        """End the turn, however soon the moment would come."""
        await super().pause(None)

    async def _stop(self) -> NoReturn:
        await self.pause(None)
        raise TurnSignal(Suspended())

    async def _add_children(self, new: Sequence[Child]) -> None:
        """Schedule nothing."""

    async def _in_time(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await self._call(function, *arguments)  # a deadline that has passed would end it before the record does

    async def _take_up_failure(self, error: ErrorRecord) -> Outcome:
        return Failed(error)

    def _log_fault(self, error: BaseException) -> None:
        """Say nothing: how the run ends is not decided here."""


class ReplayRecorder:
    """A `Recorder` that writes nothing.

    Args:
        now: what its clock shows.
    """

    def __init__(self, now: datetime) -> None:
        self._now = now

    @property
    def short_wait(self) -> timedelta:
        """Nothing: each wait ends the turn."""
        return timedelta(0)

    def now(self) -> datetime:
        """Return the moment at which the record ends."""
        return self._now

    async def record(self, step: RecordedStep, *, gives_up: Sequence[str] = ()) -> RecordedStep:  # noqa: ARG002
        """End the turn."""
        raise TurnSignal(Suspended())

    async def add_children(self, children: Sequence[Child]) -> None:  # noqa: ARG002
        """End the turn."""
        raise TurnSignal(Suspended())

    async def take_event(self, wait: RecordedStep, name: str) -> RecordedStep:  # noqa: ARG002
        """End the turn."""
        raise TurnSignal(Suspended())

    async def start_execution(self, step: RecordedStep, new: NewExecution) -> RecordedStep:  # noqa: ARG002
        """End the turn."""
        raise TurnSignal(Suspended())

    async def ending_of(self, execution_id: str) -> Ending | None:  # noqa: ARG002
        """End the turn."""
        raise TurnSignal(Suspended())

    async def emit(self, step: RecordedStep, stream: str, value: str) -> None:  # noqa: ARG002
        """End the turn."""
        raise TurnSignal(Suspended())

    async def record_attempt(self, failed: FailedAttempt) -> None:  # noqa: ARG002
        """End the turn."""
        raise TurnSignal(Suspended())

    async def begin(self, bridge: Bridge | None) -> StepTransaction:  # noqa: ARG002
        """End the turn."""
        raise TurnSignal(Suspended())

    async def in_thread(self, function: Callable[[], Any], *, is_body: bool) -> Any:  # noqa: ARG002
        """Call a function in a thread: the body, for no step is run."""
        return await asyncio.to_thread(function)
