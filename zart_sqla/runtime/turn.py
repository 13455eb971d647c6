"""One turn of a run.

The body runs from the top. Recorded steps answer from the journal; new ones run, and their results are recorded.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import inspect
import logging
import math
from contextvars import copy_context
from dataclasses import replace
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, TypeVar

from zart_sqla.errors import ExecutionTimeout, InvalidDataError, NonDeterminismError
from zart_sqla.records import ErrorRecord, FailedAttempt, RecordedStep, StepKind
from zart_sqla.runtime import faults
from zart_sqla.runtime._signals import TurnSignal, ends_turn
from zart_sqla.runtime.attempts import Attempts
from zart_sqla.runtime.calls import Calls
from zart_sqla.runtime.children import Children
from zart_sqla.runtime.context import Branch, current_body, current_branch, current_turn, is_part
from zart_sqla.runtime.failures import failure_from
from zart_sqla.runtime.journal import Journal
from zart_sqla.runtime.outcomes import Cancelled, Completed, Continued, Failed, LeaseLost, Suspended

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Sequence
    from datetime import datetime

    from zart_sqla.records import Child, ClaimedTask, RunHistory
    from zart_sqla.runtime.handlers import Handler
    from zart_sqla.runtime.journal import Place
    from zart_sqla.runtime.outcomes import Outcome
    from zart_sqla.runtime.ports import Recorder
    from zart_sqla.runtime.steps import StepCall

T = TypeVar("T")

logger: Final = logging.getLogger("zart_sqla.turn")

# A user's code can end in more than an Exception: sys.exit() must fail its run, not take the worker down.
_FAULTS = (Exception, SystemExit)


class StopReason(Enum):
    """Why a turn is stopped from outside."""

    CANCELLED = "the execution was cancelled"
    LEASE_LOST = "the task was taken over"
    SHUTDOWN = "the worker shuts down"


_OUTCOMES: dict[StopReason, Cancelled | LeaseLost | Suspended] = {
    StopReason.CANCELLED: Cancelled(),
    StopReason.LEASE_LOST: LeaseLost(),
    StopReason.SHUTDOWN: Suspended(),
}


class Turn:
    """One turn of a run.

    Args:
        task: the task that the turn holds.
        handler: what to run.
        history: what earlier turns recorded.
        recorder: where checkpoints go.

    Attributes:
        history: what earlier turns recorded.
        journal: the same, looked up in the order of the body's calls.
        deadline: when the execution times out, None if it does not, or has.
        is_async: whether what runs, the body or its `on_failure`, is an `async def`.
        calls: its durable calls that are under way.
        children: the run's children.
    """

    def __init__(self, task: ClaimedTask, handler: Handler[Any, Any], history: RunHistory, recorder: Recorder) -> None:
        self.task = task
        self.handler = handler
        self.recorder = recorder
        self.history = history
        self.journal: Journal = Journal(history)
        self.deadline: datetime | None = None if handler.timeout is None else task.started_at + handler.timeout
        self.is_async: bool = handler.is_async
        self.calls: Calls = Calls()
        self.children: Children = Children(history.children, history.executions, self._add_children)
        self._stopped: StopReason | None = None
        self._divergence: NonDeterminismError | None = None
        self._fault: BaseException | None = None
        self._signals: list[TurnSignal] = []
        self._step_errors: list[tuple[BaseException, ErrorRecord]] = []
        self._told: dict[str, str] = {}  # failed steps, and the branch that was told and has called nothing since
        self._handled: set[str] = set()
        self._asyncio_task: asyncio.Task[Any] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._body = 0
        self._bridged: set[concurrent.futures.Future[Any]] = set()
        self._is_over = False

    @functools.cached_property
    def data(self) -> Any:
        """The run's input.

        Raises:
            InvalidDataError: it does not fit the handler's any more.
        """
        return self.handler.data_codec.unpack(self.task.payload, subject="the input")

    @property
    def fault(self) -> BaseException | None:
        """What the run failed with, where the turn ended in that: the error itself, not its record."""
        return self._divergence or self._fault

    async def run(self) -> Outcome:
        """Run the turn to its end."""
        if self._stopped is not None:  # before it has begun
            return _OUTCOMES[self._stopped]
        self._loop = asyncio.get_running_loop()
        self._asyncio_task = asyncio.current_task()
        current_turn.set(self)
        try:
            return await self._run_to_end()
        finally:
            self._let_go()

    async def _run_to_end(self) -> Outcome:
        try:
            outcome = await self._run_handler()
        except BaseException as error:
            interrupted = self._interrupted()
            if interrupted is None or isinstance(error, KeyboardInterrupt | GeneratorExit):
                raise
            return interrupted
        finally:
            self._is_over = True
            self.children.close()
            await self._absorb_cancellation()
        # A signal decides how the turn ends, whatever the body made of it.
        return self._interrupted() or outcome

    async def _absorb_cancellation(self) -> None:
        """Take in the cancellation that `stop` asked for, if it has not been delivered yet."""
        if self._stopped is not None:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)

    def _let_go(self) -> None:
        """Undo what leads from the turn back to it: all of that would stay until a garbage collection.

        That is the context of its asyncio task, and the tracebacks of what was raised in it.
        """
        self._asyncio_task = None
        self._signals.clear()
        self._step_errors.clear()
        current_turn.set(None)
        current_branch.set(None)

    def stop(self, reason: StopReason) -> bool:
        """Interrupt the turn: what it does gets an `asyncio.CancelledError`, and nothing more is recorded.

        Returns:
            Whether there was something to interrupt.
        """
        if self._stopped is not None or self._is_over:
            return False
        self._stopped = reason
        if self._asyncio_task is not None:
            self._asyncio_task.cancel(reason.value)
        return True

    def _interrupted(self) -> Outcome | None:
        if self._stopped is not None:
            return _OUTCOMES[self._stopped]
        outcomes = [signal.outcome for signal in self._signals]
        for outcome in outcomes:
            if isinstance(outcome, LeaseLost):
                return outcome
        if self._divergence is not None:
            return Failed(faults.record_of(self._divergence))
        for outcome in outcomes:
            if isinstance(outcome, Continued):
                return outcome
        suspended = [outcome for outcome in outcomes if isinstance(outcome, Suspended)]
        if not suspended:
            return None
        suspended += self.calls.waiting
        awaits = frozenset[str]().union(*(outcome.awaits for outcome in suspended))
        missing = min((outcome.awaits_done for outcome in suspended if outcome.awaits_done is not None), default=None)
        # Only now is it known how many there are: tasks of the body's own may have added some while others waited.
        awaits_open = None if missing is None else self.children.count - missing
        step = next((outcome.step for outcome in suspended if outcome.step is not None), None)
        first = min(suspended, key=_due_first)
        return replace(first, awaits=awaits, awaits_done=None, awaits_open=awaits_open, step=step)

    async def _run_handler(self) -> Outcome:
        try:
            data = self.data
            failure = self.journal.failure
            if failure is not None and failure.error is not None:
                return await self._run_on_failure(failure, failure.error)
            return await self._run_body(data)
        except _FAULTS as error:
            self._log_fault(error)
            self._fault = error
            return Failed(faults.record_of(error))

    async def _run_body(self, data: Any) -> Outcome:
        try:
            value = await self._in_time(self.handler.function, *self.handler.arguments(data))
            _, result = self._packed(value)
            self.journal.check_end()
        except NonDeterminismError:
            raise
        except BaseException as error:
            if not self._is_own(error):
                raise
            return await self._after_fault(error)
        return Completed(result)

    def _is_own(self, error: BaseException) -> bool:
        """Return whether the error is of what the turn called, and not what ends the turn, or the process."""
        task = self._asyncio_task
        is_ending = self._interrupted() is not None or (task is not None and task.cancelling() > 0)
        return not (ends_turn(error) or (is_ending and not isinstance(error, _FAULTS)))

    async def _in_time(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what the function returns, unless the execution's deadline comes first."""
        if self.deadline is None or self.handler.timeout is None:
            return await self._call(function, *arguments)
        remaining = (self.deadline - self.recorder.now()).total_seconds()
        if remaining <= 0:  # a body that only replays would not give the timeout below a chance
            raise ExecutionTimeout(self.task.task_name, self.handler.timeout)
        scope = asyncio.timeout(remaining)
        try:
            async with scope:
                return await self._call(function, *arguments)
        except TimeoutError:
            if not scope.expired():
                raise
            raise ExecutionTimeout(self.task.task_name, self.handler.timeout) from None

    async def _call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        self.is_async = inspect.iscoroutinefunction(function)
        current_body.set(self._body)
        current_branch.set(Branch(self._asyncio_task))
        try:
            if self.is_async:
                return await function(*arguments)
            return await self.in_thread(function, *arguments, is_body=True)
        finally:
            self._body += 1  # what it has left behind, a thread or a task, calls nothing more
            for future in tuple(self._bridged):
                future.cancel()

    def _packed(self, value: object) -> tuple[Any, str]:
        text, packed = self.handler.result_codec.pack(value, subject=f"the output of {self.task.task_name!r}")
        return packed, text

    async def _after_fault(self, error: BaseException) -> Outcome:
        """Return how the turn ends after the body raised."""
        retry = self.handler.retry
        of_step = self.record_of(error)
        attempt = self.task.retries + 1
        record = of_step or faults.record_of(error)
        if of_step is None and not isinstance(error, ExecutionTimeout):
            record = ErrorRecord(
                error_type=record.error_type,
                message=record.message,
                attempts=attempt,
                category=record.category,
            )
            if retry.covers(error) and attempt <= retry.retries:
                return self._suspended_for_retry(record, attempt)
        self._log_fault(error)
        if self.handler.on_failure is None or self._interrupted() is not None:
            self._fault = error
            return Failed(record, self._handled_by(record))
        return await self._take_up_failure(record)

    def _suspended_for_retry(self, error: ErrorRecord, attempt: int) -> Suspended:
        now = self.recorder.now()
        failed = FailedAttempt(step="", attempt=attempt, error=error, started_at=self.task.claimed_at)
        due_at = self._bounded(now + self.handler.retry.delay_after(attempt))
        return Suspended(due_at=due_at, is_waiting=True, failed=failed)

    async def _take_up_failure(self, error: ErrorRecord) -> Outcome:
        """Record that the body failed, so that no later turn runs it again, and go on with `on_failure`."""
        if error.category == "execution_timeout":  # the body may not have got as far as it had before
            self.journal.skip_to_end()
        handled = self._handled_by(error)
        marker = self.journal.mark(
            "on_failure", StepKind.FAILURE, error, self.journal.failures if handled is None else handled
        )
        with contextlib.suppress(InvalidDataError):  # one that is not there has not to be given up
            await self.children.written()
        await self.record(marker, gives_up=sorted(self.children.open))
        return await self._run_on_failure(marker, error)

    def _handled_by(self, error: ErrorRecord) -> frozenset[str] | None:
        """Return the failed steps behind which the body had gone on; None if it was not there to the end."""
        return None if error.category == "execution_timeout" else frozenset(self._handled)

    async def _run_on_failure(self, marker: RecordedStep, error: ErrorRecord) -> Outcome:
        self._handled |= self.journal.skip_to(marker)
        self._told[marker.name] = ""
        on_failure = self.handler.on_failure
        if on_failure is None:  # the code has changed since
            return Failed(error)
        self.deadline = None  # it was the body's
        try:
            value = await self._call(on_failure, self.data, failure_from(error))
            _, result = self._packed(value)
            self.journal.check_end()
        except BaseException as raised:
            if not self._is_own(raised):
                raise
            self._log_fault(raised)
            self._fault = raised
            return Failed(faults.record_of(raised), frozenset(self._handled))
        return Completed(result)

    def _log_fault(self, error: BaseException) -> None:
        if self._stopped is None and not self._signals:
            logger.warning(
                "execution %r of %r failed: %s",
                self.task.execution_id,
                self.task.task_name,
                faults.message_of(error),
                exc_info=error,
                extra={"execution_id": self.task.execution_id, "task_name": self.task.task_name},
            )

    def _bounded(self, moment: datetime | None) -> datetime | None:
        """Return the moment, None for never, or the deadline if that comes first."""
        known = [one for one in (moment, self.deadline) if one is not None]
        return min(known, default=None)

    # What the body's calls come to ------------------------------------------------------------------------------

    def enter(self, name: str, kind: StepKind, *, is_own: bool = False) -> Place:
        """Return the place of the next durable call.

        Args:
            name: what it is named.
            kind: what it is.
            is_own: whether the name was given to this call, and not to all calls of the function.

        Raises:
            TurnSignal: the turn is ending; nothing more may be called.
            InvalidNameError: the name cannot be stored.
            NonDeterminismError: another call is recorded at this place.
        """
        branch = self.arrive()
        for failed in [failed for failed, told in self._told.items() if is_part(told, of=branch.path)]:
            del self._told[failed]
            self._handled.add(failed)
        try:
            return self.journal.enter(name, kind, branch=branch.path, is_own=is_own)
        except NonDeterminismError as error:
            raise self.diverge(error) from None

    def arrive(self) -> Branch:
        """Return what calls here, the body or a task of its own.

        Raises:
            BaseException: as `check_open` does.
        """
        self.check_open()
        branch = current_branch.get() or Branch(None)
        if self.is_async:
            branch = branch.here(self._loop)
        self.calls.has_tasks |= bool(branch.path)
        return branch

    def diverge(self, error: NonDeterminismError) -> NonDeterminismError:
        """Remember that the code has changed: the run stops here, even if the body catches the error."""
        self._divergence = error
        return error

    def check_all_called(self) -> None:
        """Check that all that is recorded has been called.

        Raises:
            NonDeterminismError: something was not.
        """
        try:
            self.journal.check_end()
        except NonDeterminismError as error:
            raise self.diverge(error) from None

    def check_open(self) -> None:
        """Check that the turn is not ending.

        Raises:
            TurnSignal: it is, by a signal that the body has caught.
            NonDeterminismError: it is, by an error that the body has caught.
            CancelledError: it was stopped, or the body that calls is over.
        """
        if self._signals:
            raise self._signals[0]
        if self._divergence is not None:
            raise self._divergence
        if self._is_over or self._stopped is not None or current_body.get() != self._body:
            raise asyncio.CancelledError(self._stopped.value if self._stopped else "the body is over")

    async def pause(
        self,
        due_at: datetime | None,
        *,
        step: RecordedStep | None = None,
        awaits: frozenset[str] = frozenset(),
        awaits_done: int | None = None,
    ) -> None:
        """End the turn until then, or until what it awaits is there, as soon as nothing else in it goes on.

        It returns if the moment comes before that: steps that run side by side with the call take longer.

        Args:
            due_at: the moment; None if there is none.
            step: a checkpoint that the end of the turn takes along.
            awaits: the names of the events that it awaits.
            awaits_done: how many of the run's children have to be done.

        Raises:
            TurnSignal: the turn ends.
        """
        await self.children.written()
        outcome = Suspended(
            due_at=self._bounded(due_at), is_waiting=True, step=step, awaits=awaits, awaits_done=awaits_done
        )
        seconds = None if due_at is None else (due_at - self.recorder.now()).total_seconds()
        if await self.calls.pause(outcome, seconds):
            raise self.note(TurnSignal(outcome))

    def note(self, signal: TurnSignal) -> TurnSignal:
        """Remember a signal, so that the turn ends by it even if the body catches it."""
        if signal not in self._signals:
            self._signals.append(signal)
        return signal

    async def answer_of(self, asking: Awaitable[T]) -> T:
        """Return what the recorder answers, and remember a signal that it raises."""
        try:
            return await asking
        except TurnSignal as signal:
            raise self.note(signal) from None

    async def record(self, step: RecordedStep, *, gives_up: Sequence[str] = ()) -> RecordedStep:
        """Write a checkpoint and return what is recorded then."""
        return await self.answer_of(self.recorder.record(step, gives_up=gives_up))

    async def _add_children(self, new: Sequence[Child]) -> None:
        await self.answer_of(self.recorder.add_children(new))

    async def run_step(self, call: StepCall[T]) -> T:
        """Return a step's value: the recorded one, or that of running it now."""
        return await self.run_at(self.enter(call.name, call.step.kind, is_own=call.has_own_name), call)

    async def run_at(self, place: Place, call: StepCall[T]) -> T:
        """Return the value of the step at a place that was entered before."""
        with self.calls.under_way():
            if place.recorded is not None:
                return self.replayed(place.recorded, call)
            return await Attempts(self, place, call).run()

    def note_call(self, name: str) -> None:
        """Take note that the function of a step is about to be called: a simulated turn counts."""

    def replayed(self, recorded: RecordedStep, call: StepCall[T]) -> T:
        """Return the value that is recorded for a step, or raise the error that is."""
        step = call.step
        if recorded.error is not None:
            raise self.from_step(faults.error_from(recorded.error, step.raises), recorded.error)
        return step.codec.unpack(recorded.result or "null", subject=f"the recorded result of step {recorded.name!r}")

    def from_step(self, error: BaseException, record: ErrorRecord) -> BaseException:
        """Return the error, known from now on as one that came from a step, which recorded it so."""
        self._step_errors.append((error, record))
        branch = current_branch.get()
        if record.step is not None and branch is not None:
            self._told[record.step] = branch.path
        return error

    def record_of(self, error: BaseException) -> ErrorRecord | None:
        """Return what is recorded for the step that the error came from, the last such; None if it came from none."""
        return next((record for known, record in reversed(self._step_errors) if known is error), None)

    async def in_thread(self, function: Callable[..., Any], *arguments: Any, is_body: bool) -> Any:
        """Return what a plain function returns, called in a thread that knows this turn."""
        context = copy_context()

        def call() -> Any:
            try:
                return context.run(function, *arguments)
            except StopIteration as error:  # no future can hold it; a coroutine makes the same of it
                raise RuntimeError("the function raised StopIteration") from error

        return await self.recorder.in_thread(call, is_body=is_body)

    def bridge(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Return, in a thread, what the coroutine returns on the worker's loop."""
        assert self._loop is not None  # noqa: S101 - a thread of this turn runs only while the turn does
        try:
            self.check_open()
        except BaseException:
            coroutine.close()
            raise
        future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        self._bridged.add(future)
        if current_body.get() != self._body:  # it has ended between the check and here
            future.cancel()
        try:
            return future.result()
        except concurrent.futures.CancelledError:  # an Exception, which bodies catch
            raise asyncio.CancelledError("the body is over") from None
        finally:
            self._bridged.discard(future)


def _due_first(outcome: Suspended) -> float:
    if outcome.due_at is not None:
        return outcome.due_at.timestamp()
    return math.inf if outcome.awaits or outcome.awaits_done is not None else -math.inf
