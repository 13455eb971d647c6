"""The calls of a workflow for those that are a plain `def`: the same names, without `await`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar, assert_never, cast, overload

from zart_sqla.errors import NotInWorkflowError
from zart_sqla.runtime import answers, executions, groups, scheduled, streams, transactions, values, waits
from zart_sqla.runtime.context import body_turn, context
from zart_sqla.runtime.interruptions import progress
from zart_sqla.runtime.steps import check_call

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterable
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy.orm import Session

    from zart_sqla.durations import Duration
    from zart_sqla.runtime.answers import Answer, ExactCall
    from zart_sqla.runtime.executions import ChildExecution, OnParentCancel
    from zart_sqla.runtime.handlers import Durable
    from zart_sqla.runtime.scheduled import Scheduled
    from zart_sqla.runtime.steps import StepCall

__all__ = [
    "SyncChildExecution",
    "capture",
    "context",
    "continue_as_new",
    "emit",
    "gather",
    "now",
    "outcome",
    "progress",
    "random",
    "schedule",
    "sleep",
    "start_child",
    "step_or",
    "step_or_else",
    "trx",
    "uuid",
    "wait",
    "wait_any",
    "wait_first_n",
    "wait_for_event",
]

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
D = TypeVar("D")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
T = TypeVar("T")
U = TypeVar("U")


def sleep(name: str, duration: Duration) -> None:
    """Let the workflow go on after a while; see `zart_sqla.sleep`."""
    _await("sleep(...)", waits.sleep(name, duration))


@overload
def wait_for_event(name: str, kind: type[T], /, *, timeout: Duration | None = None) -> T: ...
@overload
def wait_for_event(name: str, kind: Any = Any, /, *, timeout: Duration | None = None) -> Any: ...
def wait_for_event(name: str, kind: Any = Any, /, *, timeout: Duration | None = None) -> Any:
    """Return the value of the next event of this name; see `zart_sqla.wait_for_event`."""
    return _await("wait_for_event(...)", waits.wait_for_event(name, kind, timeout=timeout))


def emit(stream: str, value: object, /) -> None:
    """Add a value to a stream of the execution; see `zart_sqla.emit`."""
    _await("emit(...)", streams.emit(stream, value))


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


def trx() -> Session:
    """Return a session whose writes commit together with this step's checkpoint, or not at all; see `zart_sqla.trx`.

    It is for `def` steps, whoever calls them. When the attempt is over before its thread is, since the step timed out,
    was cancelled or lost its run, what the session is doing is cancelled, and whatever the thread asks of it later
    raises an `asyncio.CancelledError`.

    Raises:
        NotInWorkflowError: it is called outside a step of a workflow, in an `async def` step, or twice in a step.
    """
    return transactions.trx_in_thread()


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


def schedule(call: StepCall[T]) -> Scheduled[T]:
    """Make a step a task of its own, which any worker may run, and go on; see `zart_sqla.schedule`."""
    return _await("schedule(...)", scheduled.scheduled_here(call))


def wait(handles: Iterable[Scheduled[T]]) -> list[Answer[T]]:
    """Wait until all of these steps are done, and return what each of them answers; see `zart_sqla.wait`."""
    return _await("wait(...)", scheduled.wait(handles))


def wait_any(handles: Iterable[Scheduled[T]]) -> tuple[Answer[T], list[Scheduled[T]]]:
    """Wait until one of these steps is done; return what it answers, and the others; see `zart_sqla.wait_any`."""
    return _await("wait_any(...)", scheduled.wait_any(handles))


def wait_first_n(handles: Iterable[Scheduled[T]], n: int) -> list[Answer[T]]:
    """Wait until so many of these steps are done, and cancel the others; see `zart_sqla.wait_first_n`."""
    return _await("wait_first_n(...)", scheduled.wait_first_n(handles, n))


class SyncChildExecution(Generic[R_co]):
    """An execution that a `def` workflow has started; see `zart_sqla.ChildExecution`.

    Attributes:
        execution_id: its id.
    """

    def __init__(self, child: ChildExecution[R_co]) -> None:
        self.execution_id: str = child.execution_id
        self._child = child

    def __repr__(self) -> str:
        return repr(self._child)

    def result(self) -> R_co:
        """Return its output when it has completed; see `zart_sqla.ChildExecution.result`."""
        return _await("result()", self._child.result())


@overload
def start_child(
    workflow: Durable[None, R],
    data: None = None,
    *,
    execution_id: str | None = None,
    queue: str | None = None,
    on_parent_cancel: OnParentCancel = "cancel",
) -> SyncChildExecution[R]: ...
@overload
def start_child(
    workflow: Durable[D, R],
    data: D,
    *,
    execution_id: str | None = None,
    queue: str | None = None,
    on_parent_cancel: OnParentCancel = "cancel",
) -> SyncChildExecution[R]: ...
@overload
def start_child(
    workflow: str,
    data: Any = None,
    *,
    execution_id: str | None = None,
    queue: str | None = None,
    on_parent_cancel: OnParentCancel = "cancel",
) -> SyncChildExecution[Any]: ...
def start_child(
    workflow: Durable[Any, Any] | str,
    data: Any = None,
    *,
    execution_id: str | None = None,
    queue: str | None = None,
    on_parent_cancel: OnParentCancel = "cancel",
) -> SyncChildExecution[Any]:
    """Start another execution, once, however often this workflow is replayed; see `zart_sqla.start_child`."""
    started: Coroutine[Any, Any, ChildExecution[Any]] = executions.start_child(
        cast("Any", workflow), data, execution_id=execution_id, queue=queue, on_parent_cancel=on_parent_cancel
    )
    return SyncChildExecution(_await("start_child(...)", started))


def continue_as_new(data: object = None) -> NoReturn:
    """End this run, and begin another one of the same execution; see `zart_sqla.continue_as_new`."""
    assert_never(_await("continue_as_new(...)", executions.continue_as_new(data)))


def outcome(call: StepCall[T]) -> Answer[T]:
    """Run a step, and return its error as a value instead of raising it; see `zart_sqla.outcome`."""
    return _await("outcome(...)", answers.outcome(call))


@overload
def step_or(call: ExactCall[T], default: T) -> T: ...
@overload
def step_or(call: StepCall[T], default: U) -> T | U: ...
def step_or(call: Any, default: Any) -> Any:
    """Run a step, and return its value; if it failed in whatever way, the default; see `zart_sqla.step_or`."""
    return _await("step_or(...)", answers.step_or(call, default))


@overload
def step_or_else(call: StepCall[T], otherwise: Callable[[Any], Awaitable[U]]) -> T | U: ...
@overload
def step_or_else(call: StepCall[T], otherwise: Callable[[Any], U]) -> T | U: ...
def step_or_else(call: StepCall[Any], otherwise: Callable[[Any], Any]) -> Any:
    """Run a step, and return its value, or what a function makes of an error that the step declares.

    The function is called in the workflow's thread; see `zart_sqla.step_or_else`.
    """
    check_call("step_or_else", call)
    answer = _await("step_or_else(...)", answers.outcome(call))
    if isinstance(answer, answers.BusinessErr):
        return _await("step_or_else(...)", answers.settled(otherwise(answer.error)))
    return answers.value_of(answer)


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
