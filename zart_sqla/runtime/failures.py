"""What an `on_failure` function is told of why the run failed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zart_sqla.records import ErrorRecord


@dataclass(frozen=True, slots=True)
class StepFailure:
    """A step failed, or timed out, and the body did not handle it.

    Attributes:
        step: the step's name.
        error_type: the name of the type of the error that it raised.
        message: that error's text.
        attempts: how many attempts were made.
    """

    step: str
    error_type: str
    message: str
    attempts: int


@dataclass(frozen=True, slots=True)
class RetriesExhausted:
    """A step failed on every attempt that its retry allowed, and the body did not handle it.

    Attributes:
        step: the step's name.
        error_type: the name of the type of the last error.
        message: that error's text.
        attempts: how many attempts were made.
    """

    step: str
    error_type: str
    message: str
    attempts: int


@dataclass(frozen=True, slots=True)
class DeadlineExceeded:
    """The execution passed its own timeout.

    Attributes:
        message: which timeout that was.
    """

    message: str


@dataclass(frozen=True, slots=True)
class BodyError:
    """The body raised an error that is not a step's.

    Attributes:
        error_type: the name of its type.
        message: its text.
        attempts: how many attempts of the body were made.
    """

    error_type: str
    message: str
    attempts: int


Failure = StepFailure | RetriesExhausted | DeadlineExceeded | BodyError
"""Why a run failed."""


def failure_from(error: ErrorRecord) -> Failure:
    """Return the failure that the recorded error stands for."""
    if error.category == "execution_timeout":
        return DeadlineExceeded(error.message)
    if error.step is None:
        return BodyError(error.error_type, error.message, error.attempts)
    kind = RetriesExhausted if error.category == "retry_exhausted" else StepFailure
    return kind(error.step, error.error_type, error.message, error.attempts)
