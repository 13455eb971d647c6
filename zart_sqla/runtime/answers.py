"""A step's error as a value."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast, overload

from zart_sqla.errors import NotInWorkflowError, StepError, StepFailed
from zart_sqla.runtime import faults
from zart_sqla.runtime.context import body_turn
from zart_sqla.runtime.steps import check_call

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from zart_sqla.records import RecordedStep
    from zart_sqla.runtime.steps import Step, StepCall
    from zart_sqla.runtime.turn import Turn

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
U = TypeVar("U")


@dataclass(frozen=True)
class Ok(Generic[T_co]):
    """The step gave a value.

    Attributes:
        value: the value.
    """

    __slots__ = ("value",)  # with those that a dataclass makes itself, Python 3.11 cannot call Ok[int](3)

    value: T_co

    def __reduce__(self) -> tuple[Any, ...]:
        return Ok, (self.value,)


@dataclass(frozen=True, slots=True)
class BusinessErr:
    """The step raised an error that it declares in `raises`: an answer, not a fault.

    Attributes:
        error: that error.
    """

    error: Exception


@dataclass(frozen=True, slots=True)
class ZartErr:
    """The step failed, was out of retries, or timed out.

    Attributes:
        error: which of them, with the step's name and the number of attempts.
    """

    error: StepError


Answer = Ok[T] | BusinessErr | ZartErr
"""What a step answers: a value, an error that it declares, or a failure."""


class ExactCall(Protocol[T]):
    """A call that is of one type only, for type checkers: a `StepCall[str]` is a `StepCall[object]` too.

    It has them read a default of `[]` as a list of the step's own type.
    """

    step: Step[..., T]


async def outcome(call: StepCall[T]) -> Answer[T]:
    """Run a step to its checkpoint, and return its error as a value instead of raising it.

    What is recorded for the step decides which of the three it is, so a replay takes the same branch. What is no
    error of the step's is raised as ever.

    Outside a workflow the step is the plain function, and an error that it does not declare becomes a `StepFailed`
    with that error in `.cause`: a unit test can reach every branch without a database.

    Args:
        call: the call, not awaited yet; of a `def` step, `f.call(...)`.

    Raises:
        NotInWorkflowError: something else than the call of a step was given; or, in a unit test, the step makes a call
            that needs a workflow.
    """
    check_call("outcome", call)
    turn = body_turn()
    try:
        return Ok(await call)
    except Exception as error:
        answer = _answer_of_plain(call, error) if turn is None else _answer_of_recorded(turn, error)
        if answer is None:
            raise
        return answer


@overload
async def step_or(call: ExactCall[T], default: T) -> T: ...
@overload
async def step_or(call: StepCall[T], default: U) -> T | U: ...
async def step_or(call: Any, default: Any) -> Any:
    """Run a step to its checkpoint, and return its value; if it failed in whatever way, the default.

    Args:
        call: the call, not awaited yet; of a `def` step, `f.call(...)`.
        default: the value to go on with.

    Raises:
        NotInWorkflowError: as `outcome` does.
    """
    check_call("step_or", call)
    answer = await outcome(call)
    return answer.value if isinstance(answer, Ok) else default


@overload
async def step_or_else(call: StepCall[T], otherwise: Callable[[Any], Awaitable[U]]) -> T | U: ...
@overload
async def step_or_else(call: StepCall[T], otherwise: Callable[[Any], U]) -> T | U: ...
async def step_or_else(call: StepCall[Any], otherwise: Callable[[Any], Any]) -> Any:
    """Run a step to its checkpoint, and return its value, or what a function makes of an error that the step declares.

    Args:
        call: the call, not awaited yet; of a `def` step, `f.call(...)`.
        otherwise: takes the declared error and returns the value to go on with, or something to await for it. It is
            part of the body: the steps that it calls have their own checkpoints, and it runs again on replay.

    Raises:
        StepError: the step failed, was out of retries, or timed out.
        NotInWorkflowError: as `outcome` does.
    """
    check_call("step_or_else", call)
    answer = await outcome(call)
    if isinstance(answer, BusinessErr):
        return await settled(otherwise(answer.error))
    return value_of(answer)


def answer_of(turn: Turn, call: StepCall[T], recorded: RecordedStep) -> Answer[T]:
    """Return what a step answers that is recorded."""
    try:
        return Ok(turn.replayed(recorded, call))
    except Exception as error:
        answer = _answer_of_recorded(turn, error)
        if answer is None:
            raise
        return answer


def value_of(answer: Ok[T] | ZartErr) -> T:
    """Return the value.

    Raises:
        StepError: there is none.
    """
    if isinstance(answer, ZartErr):
        raise answer.error
    return answer.value


async def settled(value: Any) -> Any:
    """Return the value, awaited if it is something to await."""
    return await value if inspect.isawaitable(value) else value


def _answer_of_recorded(turn: Turn, error: Exception) -> BusinessErr | ZartErr | None:
    """Return the error as the record has it; None if it is not a step's."""
    record = turn.record_of(error)
    if record is None:
        return None
    return BusinessErr(error) if record.category == faults.BUSINESS else ZartErr(cast("StepError", error))


def _answer_of_plain(call: StepCall[Any], error: Exception) -> BusinessErr | ZartErr | None:
    """Return the error as it would be in a workflow; None if only a workflow can tell."""
    if isinstance(error, NotInWorkflowError):
        return None
    if isinstance(error, call.step.raises):
        return BusinessErr(error)
    return ZartErr(faults.step_error(StepFailed, call.name, error, attempts=1))
