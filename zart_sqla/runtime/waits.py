"""Waiting, durably: without a thread, a coroutine or a connection."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from zart_sqla.durations import to_timedelta
from zart_sqla.records import RecordedStep, StepKind
from zart_sqla.runtime.context import require_body

if TYPE_CHECKING:
    from zart_sqla.durations import Duration


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
        started_at = recorder.now()
        wake_at = started_at + pause
        step = RecordedStep(
            name=place.name, kind=place.kind, position=place.position, started_at=started_at, wake_at=wake_at
        )
        # Of sleeps side by side, in tasks of the body's own, the turn's end can take only one along.
        if pause > recorder.short_wait and place.position is not None:
            raise turn.suspend(wake_at, step=step)
        wake_at = (await turn.record(step)).wake_at or wake_at
    remaining = wake_at - recorder.now()
    if remaining > recorder.short_wait:
        raise turn.suspend(wake_at)
    await asyncio.sleep(max(0.0, remaining.total_seconds()))
