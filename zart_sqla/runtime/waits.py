"""Waiting, durably: without a thread, a coroutine or a connection."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

from zart_sqla.codec import MAX_INNER_NAME_BYTES, checked_name, codec_for
from zart_sqla.durations import to_timedelta
from zart_sqla.records import RecordedStep, StepKind
from zart_sqla.runtime import faults
from zart_sqla.runtime.context import require_body

if TYPE_CHECKING:
    from datetime import timedelta

    from zart_sqla.durations import Duration
    from zart_sqla.errors import EventTimeout
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
    place = turn.enter(name, StepKind.SLEEP, is_own=True)
    with turn.calls.under_way():
        await _slept(turn, place, pause)


async def _slept(turn: Turn, place: Place, duration: timedelta) -> None:
    recorder = turn.recorder
    nap = place.recorded or _begun(turn, place, duration)
    is_long = _remaining(turn, nap) > recorder.short_wait
    # Of waits side by side, in tasks of the body's own, the turn's end can take only one along.
    is_taken_along = is_long and place.recorded is None and place.position is not None
    if place.recorded is None and not is_taken_along:
        nap = await turn.record(nap)
    if is_long:
        await turn.pause(nap.wake_at, step=nap if is_taken_along else None)
    if is_taken_along:  # it was over before the turn
        nap = await turn.record(nap)
    await asyncio.sleep(max(0.0, _remaining(turn, nap).total_seconds()))


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
    checked_name("event name", name, longest=MAX_INNER_NAME_BYTES)
    place = turn.enter(name, StepKind.EVENT)
    with turn.calls.under_way():
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


def _remaining(turn: Turn, step: RecordedStep) -> timedelta:
    now = turn.recorder.now()
    return (step.wake_at or now) - now


async def _met(turn: Turn, place: Place, wait: RecordedStep, name: str) -> RecordedStep:
    """Return the wait with its event or its timeout.

    Raises:
        TurnSignal: there is neither; the turn ends.
    """
    is_recorded = place.recorded is not None
    has_events = turn.task.signals > 0
    while True:
        if has_events:
            wait = await turn.answer_of(turn.recorder.take_event(wait, name))
        if wait.is_open and wait.wake_at is not None and wait.wake_at <= turn.recorder.now():
            wait = await turn.record(replace(wait, error=faults.record_of(_timeout_of(wait))))
        if wait.is_open and not is_recorded and place.position is None:
            wait = await turn.record(wait)
            is_recorded = True
        if not wait.is_open:
            return wait
        await turn.pause(wait.wake_at, step=None if is_recorded else wait, awaits=frozenset({name}))
        has_events = True  # there may be one now


def _timeout_of(wait: RecordedStep) -> EventTimeout:
    began, ended = cast("Any", wait.started_at), cast("Any", wait.wake_at)
    return faults.event_timeout(wait.name, ended - began)
