"""Running a step that is not recorded yet: attempt after attempt, until there is a checkpoint."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any, Final, Generic, NoReturn, TypeVar

from zart_sqla.errors import InvalidDataError, RetryExhausted, StepError, StepFailed, StepStalled, StepTimeout
from zart_sqla.records import ErrorRecord, FailedAttempt, RecordedStep
from zart_sqla.runtime import faults
from zart_sqla.runtime._signals import TurnSignal, ends_turn
from zart_sqla.runtime.bridges import Bridge
from zart_sqla.runtime.context import ActiveStep, active_step

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime, timedelta

    from zart_sqla.runtime.journal import Place
    from zart_sqla.runtime.steps import StepCall
    from zart_sqla.runtime.turn import Turn

T = TypeVar("T")

logger: Final = logging.getLogger("zart_sqla.attempts")


class Attempts(Generic[T]):
    """The attempts at one step, from the first in this turn to the checkpoint.

    Args:
        turn: the turn that came to the step.
        place: where in the body that is.
        call: the step, and the arguments of this call.
    """

    def __init__(self, turn: Turn, place: Place, call: StepCall[T]) -> None:
        self._turn = turn
        self._place = place
        self._call = call
        self._step = call.step
        self._attempt = place.failed_attempts
        self._started_at: datetime

    async def run(self) -> T:
        """Return the step's value, once it is recorded.

        Raises:
            TurnSignal: the turn ends here.
            CancelledError: it was stopped.
            StepFailed: the step has failed for good, which is recorded; or one of its kinds, or an error in `raises`.
        """
        while True:
            self._attempt += 1
            self._started_at = self._turn.recorder.now()
            active = ActiveStep(
                turn=self._turn,
                name=self._place.name,
                attempt=self._attempt,
                max_attempts=self._step.retry.max_attempts,
                bridge=None if self._step.is_async else Bridge(self._place.name),
            )
            try:
                return await self._succeed(await self._invoke(active), active)
            except asyncio.CancelledError:
                await self._undo(active)
                raise
            except BaseException as error:
                if ends_turn(error):
                    await self._undo(active)
                    raise
                await self._after_fault(error, active)

    async def _invoke(self, active: ActiveStep) -> Any:
        token = active_step.set(active)
        try:
            if self._step.timeout is None and self._step.heartbeat is None:
                return await self._call_function(active)
            return await self._call_in_time(active)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Nobody cancelled this turn: it is the step's own, and so an error like others.
            raise StepFailed(
                active.name,
                error_type="CancelledError",
                message=faults.message_of(error),
                attempts=active.attempt,
            ) from error
        finally:
            active_step.reset(token)

    async def _call_function(self, active: ActiveStep) -> Any:
        self._turn.note_call(self._place.name)
        if active.bridge is None:
            return await self._call.invoke()
        try:
            return await self._turn.in_thread(self._call_in_thread, active, is_body=False)
        finally:  # the thread may still run, if the attempt was ended from outside
            await active.bridge.close()

    def _call_in_thread(self, active: ActiveStep) -> Any:
        value = self._call.invoke()
        if active.transaction is not None:
            active.transaction.flush()
        return value

    async def _call_in_time(self, active: ActiveStep) -> Any:
        """Call the function, unless it takes longer than it may, in all or between two signs of progress."""
        name, limit, heartbeat = self._place.name, self._step.timeout, self._step.heartbeat
        whole, pulse = asyncio.timeout(_seconds(limit)), asyncio.timeout(_seconds(heartbeat))
        if heartbeat is not None:
            active.on_progress = _restarting(pulse, heartbeat)
        try:
            async with whole, pulse:
                return await self._call_function(active)
        except TimeoutError:
            if limit is not None and whole.expired():
                raise faults.step_timeout(name, limit, attempts=self._attempt) from None
            if heartbeat is not None and pulse.expired():
                raise StepStalled(name, heartbeat) from None
            raise

    async def _succeed(self, value: Any, active: ActiveStep) -> T:
        name = self._place.name
        try:
            text, packed = self._step.codec.pack(value, subject=f"the result of step {name!r}")
            checkpoint = self._checkpoint(result=text)
            write = self._turn.recorder.record if active.transaction is None else active.transaction.commit
            recorded = await self._turn.answer_of(write(checkpoint))
        except InvalidDataError as error:
            raise faults.step_error(StepFailed, name, error, attempts=self._attempt) from error
        if recorded is not checkpoint:  # somebody was first, and what is recorded counts
            return self._turn.replayed(recorded, self._call)
        return packed

    async def _after_fault(self, error: BaseException, active: ActiveStep) -> None:
        """Return if another attempt is to be made now; raise what the step ends in if not."""
        signal = None if active.transaction is None else active.transaction.signal_for(error)
        await self._undo(active)
        if isinstance(signal, TurnSignal):
            raise self._turn.note(signal)
        step, name, attempt = self._step, self._place.name, self._attempt
        if _is_verdict(error, name):
            await self._fail(error, faults.record_of(error))
        is_declared = isinstance(error, step.raises)
        may_retry = step.retry.covers(error) and not (is_declared and step.retry.on == (Exception,))
        if may_retry and attempt <= step.retry.retries:
            await self._wait_for_retry(error)
        elif is_declared:
            record = faults.business_record(name, error, attempts=attempt)
            restored = faults.error_from(record, step.raises)  # as a replay will see it
            await self._fail(restored.with_traceback(error.__traceback__), record)
        else:
            kind = RetryExhausted if may_retry and step.retry.retries else StepFailed
            failed = faults.step_error(kind, name, error, attempts=attempt)
            await self._fail(failed, faults.record_of(failed))

    async def _fail(self, error: BaseException, record: ErrorRecord) -> NoReturn:
        await self._turn.record(self._checkpoint(error=record))
        raise self._turn.from_step(error, record)

    async def _wait_for_retry(self, error: BaseException) -> None:
        turn, attempt = self._turn, self._attempt
        failed = FailedAttempt(
            step=self._place.name, attempt=attempt, error=faults.record_of(error), started_at=self._started_at
        )
        await turn.answer_of(turn.recorder.record_attempt(failed))
        delay = self._step.retry.delay_after(attempt)
        logger.info(
            "step %r failed on attempt %d, next in %.3f s: %s",
            self._place.name,
            attempt,
            delay.total_seconds(),
            failed.error.message,
            extra={"execution_id": turn.task.execution_id, "step": self._place.name, "attempt": attempt},
        )
        if delay > turn.recorder.short_wait:
            await turn.pause(turn.recorder.now() + delay)
        else:
            await asyncio.sleep(delay.total_seconds())

    async def _undo(self, active: ActiveStep) -> None:
        transaction, active.transaction = active.transaction, None
        if transaction is not None:
            await transaction.rollback()

    def _checkpoint(self, *, result: str | None = None, error: ErrorRecord | None = None) -> RecordedStep:
        return RecordedStep(
            name=self._place.name,
            kind=self._place.kind,
            position=self._place.position,
            attempts=self._attempt,
            result=result,
            error=error,
            started_at=self._started_at,
        )


def _seconds(limit: timedelta | None) -> float | None:
    return None if limit is None else limit.total_seconds()


def _restarting(pulse: asyncio.Timeout, heartbeat: timedelta) -> Callable[[], None]:
    """Return what gives an attempt its time anew, from whatever thread it is called."""
    loop = asyncio.get_running_loop()

    def restart() -> None:
        with contextlib.suppress(RuntimeError):  # the attempt is over, and a thread goes on
            pulse.reschedule(loop.time() + heartbeat.total_seconds())

    def tell() -> None:
        with contextlib.suppress(RuntimeError):  # even the loop is closed
            loop.call_soon_threadsafe(restart)

    return tell


def _is_verdict(error: BaseException, name: str) -> bool:
    """Return whether the error was made here, of what the step did; a subclass is the user's own, as others are."""
    return isinstance(error, StepError) and type(error) in {StepFailed, StepTimeout} and error.step == name
