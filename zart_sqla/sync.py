"""The calls of a workflow for those that are a plain `def`: the same names, without `await`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar, overload

from zart_sqla.errors import NotInWorkflowError
from zart_sqla.runtime import groups, values, waits
from zart_sqla.runtime.context import body_turn, context

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from datetime import datetime
    from uuid import UUID

    from zart_sqla.durations import Duration
    from zart_sqla.runtime.steps import StepCall

__all__ = ["capture", "context", "gather", "now", "random", "sleep", "uuid"]

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
T = TypeVar("T")


def sleep(name: str, duration: Duration) -> None:
    """Let the workflow go on after a while; see `zart_sqla.sleep`."""
    _await("sleep(...)", waits.sleep(name, duration))


def capture(name: str, function: Callable[[], T]) -> T:
    """Return what the function returns the first time, also on replay; see `zart_sqla.capture`."""
    return _await("capture(...)", values.capture(name, function))


def now(name: str) -> datetime:
    """Return the time of this call by the database's clock, also on replay; see `zart_sqla.now`."""
    return _await("now(...)", values.now(name))


def random(name: str) -> float:
    """Return a number from 0 up to 1, the same on replay; see `zart_sqla.random`."""
    return _await("random(...)", values.random(name))


def uuid(name: str) -> UUID:
    """Return a random UUID, the same on replay; see `zart_sqla.uuid`."""
    return _await("uuid(...)", values.uuid(name))


@overload
def gather(a: StepCall[A], /) -> tuple[A]: ...
@overload
def gather(a: StepCall[A], b: StepCall[B], /) -> tuple[A, B]: ...
@overload
def gather(a: StepCall[A], b: StepCall[B], c: StepCall[C], /) -> tuple[A, B, C]: ...
@overload
def gather(a: StepCall[A], b: StepCall[B], c: StepCall[C], d: StepCall[D], /) -> tuple[A, B, C, D]: ...
@overload
def gather(*calls: StepCall[T]) -> tuple[T, ...]: ...
def gather(*calls: StepCall[Any]) -> tuple[Any, ...]:
    """Return the values of steps that run side by side; see `zart_sqla.gather`."""
    return _await("gather(...)", groups.gather(*calls))


def _await(call: str, coroutine: Coroutine[Any, Any, T]) -> T:
    turn = body_turn()
    if _is_on_a_loop() if turn is None else turn.is_async:
        coroutine.close()
        raise NotInWorkflowError(f"sync.{call}", f"is for 'def' workflows: here write 'await {call}'")
    if turn is None:  # a unit test, or a step: the call itself knows whether it can work there
        return asyncio.run(coroutine)
    return turn.bridge(coroutine)


def _is_on_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
