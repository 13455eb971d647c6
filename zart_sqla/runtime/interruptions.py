"""What a step that takes long can say, and how it can end in order when it is interrupted."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from zart_sqla.errors import NotInWorkflowError
from zart_sqla.runtime.context import active_step, current_turn

if TYPE_CHECKING:
    from collections.abc import Awaitable

T = TypeVar("T")


def progress() -> None:
    """Say that this step gets on, so that its `heartbeat` is counted anew.

    It costs nothing but that: nothing is written. It is called without `await`, in a `def` step too. In a step without
    a heartbeat, and outside a workflow, it does nothing.

    Raises:
        NotInWorkflowError: it is called in the body of a workflow.
    """
    step = active_step.get()
    if step is None and current_turn.get() is not None:
        raise NotInWorkflowError("progress()", "is for steps, not for the body of a workflow")
    if step is not None and step.on_progress is not None:
        step.on_progress()


async def shield(awaitable: Awaitable[T]) -> T:
    """Let something come to its end even if the step that waits for it is interrupted; only then interrupt the step.

    It is for what must not be left half done: giving back a lock, deleting what was uploaded. A cancellation, a timeout
    and the stop of the worker wait for it. It should be short: a worker that stops waits for two seconds, then
    leaves it to itself. Steps, sleeps and other durable calls do not belong in it.

    Args:
        awaitable: what to wait for.
    """
    inner = asyncio.ensure_future(awaitable)
    interruption: asyncio.CancelledError | None = None
    while not inner.done():
        try:
            await asyncio.wait({inner})
        except asyncio.CancelledError as error:
            interruption = error
    if interruption is None:
        return inner.result()
    raise interruption from (None if inner.cancelled() else inner.exception())
