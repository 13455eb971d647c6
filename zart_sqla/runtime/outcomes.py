"""How a turn can end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime

    from zart_sqla.records import ErrorRecord, FailedAttempt, RecordedStep


@dataclass(frozen=True, slots=True)
class Completed:
    """The run has its output.

    Attributes:
        result: the output as JSON text.
    """

    result: str


@dataclass(frozen=True, slots=True)
class Failed:
    """The run has failed.

    Attributes:
        error: what it failed with.
        handled: the names of its failed steps behind which the body went on; None if that is not known.
    """

    error: ErrorRecord
    handled: frozenset[str] | None = None


@dataclass(frozen=True, slots=True)
class Continued:
    """The run ends, and another one of the execution follows.

    Attributes:
        payload: the input of the next run as JSON text.
    """

    payload: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspended:
    """The run goes on in another turn.

    Attributes:
        due_at: when; None for at once, unless it awaits something else.
        is_waiting: whether its execution shows as waiting until then.
        step: a checkpoint to be written together with it.
        failed: a failed attempt of the body, which the next turn makes again.
        awaits: the events that make it go on before.
        awaits_done: in a turn that still goes on, how many more children have to be done for one of its calls to go on;
            None if it waits for none.
        awaits_open: how few open children make it go on before; None if it does not wait for children.
    """

    due_at: datetime | None = None
    is_waiting: bool = False
    step: RecordedStep | None = None
    failed: FailedAttempt | None = None
    awaits: frozenset[str] = frozenset()
    awaits_done: int | None = None
    awaits_open: int | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """The child has its checkpoint, with which its task has ended; there is nothing left to write."""


@dataclass(frozen=True, slots=True)
class CleanedUp:
    """What was to be done after the cancellation is done, or failed; the run stays as it is."""


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The execution was cancelled while the turn ran; there is nothing left to write."""


@dataclass(frozen=True, slots=True)
class LeaseLost:
    """The task is not the worker's any more; what the turn did since is not written."""


Outcome = Completed | Failed | Continued | Suspended | Done | CleanedUp | Cancelled | LeaseLost
