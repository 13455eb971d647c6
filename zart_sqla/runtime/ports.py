"""What a turn needs from the worker that runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime, timedelta

    from sqlalchemy.ext.asyncio import AsyncSession

    from zart_sqla.records import Child, Ending, FailedAttempt, NewExecution, RecordedStep
    from zart_sqla.runtime.bridges import Bridge

T = TypeVar("T")


class StepTransaction(Protocol):
    """The transaction of one attempt of a step."""

    @property
    def session(self) -> AsyncSession:
        """The session in which the step writes."""
        ...

    def flush(self) -> None:
        """Write what the session of a `def` step still keeps back, in the step's thread: it may take its time."""
        ...

    async def commit(self, step: RecordedStep) -> RecordedStep:
        """Write the checkpoint and commit it together with what the step wrote; return what is recorded now.

        Raises:
            TurnSignal: the task is not the worker's any more, or the database was in the way; nothing is written.
            InvalidDataError: PostgreSQL refuses the checkpoint; nothing is written.
        """
        ...

    async def rollback(self) -> None:
        """Undo what the step wrote."""
        ...

    def signal_for(self, error: BaseException) -> BaseException | None:
        """Return the signal that ends the turn, if the error is the database's and not the step's."""
        ...


class Recorder(Protocol):
    """Where a turn's checkpoints go, and where its time comes from."""

    @property
    def short_wait(self) -> timedelta:
        """How long a wait can be for which the turn stays in the process."""
        ...

    def now(self) -> datetime:
        """Return the time by the database's clock."""
        ...

    async def record(self, step: RecordedStep, *, gives_up: Sequence[str] = ()) -> RecordedStep:
        """Write a checkpoint; return, once it is committed, what is recorded now.

        Args:
            step: the checkpoint. That of a child ends the child's task.
            gives_up: children that are cancelled with it, unless they are done.

        Raises:
            TurnSignal: the task is not the worker's any more; nothing is written.
            InvalidDataError: PostgreSQL refuses it; nothing is written.
        """
        ...

    async def add_children(self, children: Sequence[Child]) -> None:
        """Make steps of the run tasks of their own, unless they are that already, or done.

        Raises:
            TurnSignal: the task is not the worker's any more; nothing is written.
            InvalidDataError: PostgreSQL refuses one; it is not written.
        """
        ...

    async def start_execution(self, step: RecordedStep, new: NewExecution) -> RecordedStep:
        """Start an execution as the run's child, and write the checkpoint; return, once committed, what is recorded.

        If the execution's id is taken, the checkpoint has that as its error.

        Raises:
            TurnSignal: the task is not the worker's any more; nothing is written.
            InvalidDataError: PostgreSQL refuses it; nothing is written.
        """
        ...

    async def ending_of(self, execution_id: str) -> Ending | None:
        """Return how an execution stands, None if there is none.

        Raises:
            TurnSignal: the database is in the way.
        """
        ...

    async def take_event(self, wait: RecordedStep, name: str) -> RecordedStep:
        """Take the first event of this name that is there; return, once it is committed, what is recorded of the wait.

        If there is none, that is the wait as it was given, or as it was recorded before.

        Raises:
            TurnSignal: the task is not the worker's any more; nothing is written.
        """
        ...

    async def emit(self, step: RecordedStep, stream: str, value: str) -> None:
        """Add a value, as JSON text, to a stream of the execution, with its checkpoint; return once it is committed.

        If the checkpoint is there already, it adds nothing.

        Raises:
            TurnSignal: the task is not the worker's any more; nothing is written.
            InvalidDataError: PostgreSQL refuses it; nothing is written.
        """
        ...

    async def record_attempt(self, failed: FailedAttempt) -> None:
        """Write a failed attempt.

        Raises:
            TurnSignal: the task is not the worker's any more; nothing is written.
        """
        ...

    async def begin(self, bridge: Bridge | None) -> StepTransaction:
        """Begin the transaction of one attempt of a step.

        Args:
            bridge: how the thread that works in it asks the loop; None if the step runs on the loop itself.

        Raises:
            TurnSignal: the database is in the way.
        """
        ...

    async def in_thread(self, function: Callable[[], Any], *, is_body: bool) -> Any:
        """Call a plain function in a thread, so that it does not block the loop."""
        ...
