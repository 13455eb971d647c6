"""Waiting, durably: without a thread, a coroutine or a connection."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

from zart_sqla.codec import codec_for
from zart_sqla.durations import to_timedelta
from zart_sqla.records import RecordedStep, StepKind
from zart_sqla.runtime import faults
from zart_sqla.runtime.context import require_body

if TYPE_CHECKING:
    from zart_sqla.durations import Duration
    from zart_sqla.runtime.journal import Place
    from zart_sqla.runtime.turn import Turn

T = TypeVar("T")


async def sleep(name: str, duration: Duration) -> None:
    """Let the workflow go on after a while, measured by the database's clock.

    The moment is recorded first, so a replay does not sleep again. The run costs a row while it sleeps; only a sleep
    that is shorter than half a second stays in the process.

    Args:
        name: its name in the run.
        duration: how long.

    Raises:
        ConfigError: it is not a duration.
        NotInWorkflowError: it is called outside the body of a workflow.
    """
    turn = require_body("sleep(...)")
    pause = to_timedelta(duration)
    place = turn.enter(name, StepKind.SLEEP)
    recorder = turn.recorder
    if place.recorded is not None:
        wake_at = place.recorded.wake_at or recorder.now()
    else:
        step = _begun(turn, place, duration)
        wake_at = step.wake_at or recorder.now()
        # Of waits side by side, in tasks of the body's own, the turn's end can take only one along.
        if pause > recorder.short_wait and place.position is not None:
            raise turn.suspend(wake_at, step=step)
        wake_at = (await turn.record(step)).wake_at or wake_at
    remaining = wake_at - recorder.now()
    if remaining > recorder.short_wait:
        raise turn.suspend(wake_at)
    await asyncio.sleep(max(0.0, remaining.total_seconds()))


@overload
async def wait_for_event(name: str, kind: type[T], /, *, timeout: Duration | None = None) -> T: ...
@overload
async def wait_for_event(name: str, kind: Any = Any, /, *, timeout: Duration | None = None) -> Any: ...
async def wait_for_event(name: str, kind: Any = Any, /, *, timeout: Duration | None = None) -> Any:
    """Return the value of the next event of this name that is offered to the execution, or was before.

    Events of one name are taken in the order in which they came, each of them once. The run costs a row while it
    waits. When its time is over, a wait still takes an event that is there; then it fails, once and for all, and an
    event that comes later is kept for the next wait of its name.

    Args:
        name: the event's name, and the wait's in the run.
        kind: the type of its value. Default: plain JSON data.
        timeout: how long to wait. Default: as long as it takes, up to the timeout of the workflow.

    Raises:
        EventTimeout: no event came in time.
        InvalidDataError: the event that came does not fit the type. It is taken: wait again for another one.
        ConfigError: the timeout is not a duration.
        NotInWorkflowError: it is called outside the body of a workflow.
    """
    turn = require_body("wait_for_event(...)")
    place = turn.enter(name, StepKind.EVENT)
    wait = place.recorded or _begun(turn, place, timeout)
    if wait.is_open:
        wait = await _met(turn, place, wait, name)
    if wait.error is not None:
        raise turn.from_step(faults.error_from(wait.error, ()), wait.error)
    return codec_for(kind).unpack(wait.result or "null", subject=f"the event {place.name!r}")


def _begun(turn: Turn, place: Place, limit: Duration | None) -> RecordedStep:
    now = turn.recorder.now()
    wake_at = None if limit is None else now + to_timedelta(limit)
    return RecordedStep(name=place.name, kind=place.kind, position=place.position, started_at=now, wake_at=wake_at)


async def _met(turn: Turn, place: Place, wait: RecordedStep, name: str) -> RecordedStep:
    """Return the wait with its event or its timeout.

    Raises:
        TurnSignal: there is neither; the turn ends.
    """
    if turn.task.signals:
        wait = await turn.take_event(wait, name)
    if wait.is_open and wait.wake_at is not None and wait.wake_at <= turn.recorder.now():
        limit = wait.wake_at - cast("Any", wait.started_at)
        error = faults.record_of(faults.event_timeout(place.name, limit))
        wait = await turn.record(replace(wait, error=error))
    if not wait.is_open:
        return wait
    is_taken_along = place.recorded is None and place.position is not None
    if place.recorded is None and not is_taken_along:
        wait = await turn.record(wait)
    raise turn.suspend(wait.wake_at, step=wait if is_taken_along else None, awaits=frozenset({name}))
