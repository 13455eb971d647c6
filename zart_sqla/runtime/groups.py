"""Several steps side by side."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar, overload

from zart_sqla.runtime._signals import TurnSignal
from zart_sqla.runtime.context import body_turn
from zart_sqla.runtime.steps import check_call

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zart_sqla.runtime.steps import StepCall
    from zart_sqla.runtime.turn import Turn

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
T = TypeVar("T")


@overload
async def gather(a: StepCall[A], /) -> tuple[A]: ...
@overload
async def gather(a: StepCall[A], b: StepCall[B], /) -> tuple[A, B]: ...
@overload
async def gather(a: StepCall[A], b: StepCall[B], c: StepCall[C], /) -> tuple[A, B, C]: ...
@overload
async def gather(a: StepCall[A], b: StepCall[B], c: StepCall[C], d: StepCall[D], /) -> tuple[A, B, C, D]: ...
@overload
async def gather(*calls: StepCall[T]) -> tuple[T, ...]: ...
async def gather(*calls: StepCall[Any]) -> tuple[Any, ...]:
    """Return the values of steps that run side by side in this worker, each with its own checkpoint.

    All of them come to their end before the first error, in the order of the calls, is raised.

    Args:
        *calls: the calls, not awaited yet; of a `def` step, `f.call(...)`.

    Raises:
        NotInWorkflowError: something else than the call of a step was given.
    """
    for call in calls:
        check_call("gather", call)
    turn = body_turn()
    if turn is None:
        return tuple(await asyncio.gather(*(call.run_plainly() for call in calls)))
    return await _gather(turn, calls)


async def _gather(turn: Turn, calls: Sequence[StepCall[Any]]) -> tuple[Any, ...]:
    places = [turn.enter(call.name, call.step.kind, is_own=call.has_own_name) for call in calls]
    tasks = [asyncio.ensure_future(turn.run_at(place, call)) for place, call in zip(places, calls, strict=True)]
    try:
        if tasks:
            await asyncio.wait(tasks)
    except asyncio.CancelledError:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        raise
    errors = [error for task in tasks if (error := _error_of(task)) is not None]
    for error in sorted(errors, key=lambda error: not isinstance(error, TurnSignal)):
        raise error
    return tuple(task.result() for task in tasks)


def _error_of(task: asyncio.Future[Any]) -> BaseException | None:
    return asyncio.CancelledError() if task.cancelled() else task.exception()
