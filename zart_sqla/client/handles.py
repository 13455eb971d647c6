"""One execution, as an async application holds it."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast, overload

from zart_sqla.client import executions
from zart_sqla.client.streams import StreamReader
from zart_sqla.durations import to_timedelta
from zart_sqla.errors import WaitTimedOut
from zart_sqla.store import executions as stored

if TYPE_CHECKING:
    from uuid import UUID

    from zart_sqla.client.connections import AnyConnection
    from zart_sqla.client.scheduler import PostgresScheduler
    from zart_sqla.codec import Codec
    from zart_sqla.durations import Duration
    from zart_sqla.histories import ExecutionHistory
    from zart_sqla.records import ExecutionInfo, ExecutionStatus, StepInfo

R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")

POLL_SECONDS: Final = 5.0
"""How often a wait looks by itself, in case a notification was missed."""


class ExecutionHandle(Generic[R]):
    """An execution, whether it exists yet or not. To hold one costs nothing and does no I/O.

    Attributes:
        execution_id: its id.
    """

    def __init__(
        self, scheduler: PostgresScheduler, execution_id: str, codec: Codec[R], *, first_run_id: UUID | None = None
    ) -> None:
        self.execution_id = execution_id
        self._scheduler = scheduler
        self._codec = codec
        self._first_run_id = first_run_id  # of what was just started: who waits for it needs not look first

    def __repr__(self) -> str:
        return f"<execution {self.execution_id!r}>"

    def with_codec(self, codec: Codec[S]) -> ExecutionHandle[S]:
        """Return the handle of the same execution whose output is read by this codec."""
        return ExecutionHandle(self._scheduler, self.execution_id, codec, first_run_id=self._first_run_id)

    async def info(self) -> ExecutionInfo:
        """Return the execution as it stands now.

        Raises:
            ExecutionNotFound: there is none with this id.
        """
        return await self._scheduler.ask(executions.info, self.execution_id)

    async def status(self) -> ExecutionStatus:
        """Return where it stands now.

        Raises:
            ExecutionNotFound: there is none with this id.
        """
        return (await self.info()).status

    async def steps(self) -> list[StepInfo]:
        """Return the recorded steps of its current run, in the order of recording.

        Raises:
            ExecutionNotFound: there is none with this id.
        """
        return await self._scheduler.ask(executions.steps, self.execution_id)

    async def history(self) -> ExecutionHistory:
        """Return what is recorded of its current run, to be kept in a file or replayed by `zart_sqla.testing.replay`.

        Raises:
            ExecutionNotFound: there is none with this id.
        """
        return await self._scheduler.ask(executions.history, self.execution_id)

    async def cancel(self, *, session: AnyConnection | None = None) -> None:
        """End it as cancelled: no further step starts, and a step that runs is interrupted within a second.

        To cancel it again changes nothing.

        Args:
            session: the app's own session or connection, whose transaction this joins; the caller commits.

        Raises:
            ExecutionNotFound: there is none with this id.
            ExecutionFinished: it has completed or failed.
            NotInWorkflowError: a step cancels the execution that it is in, or one that takes it along, in the
                transaction of its own checkpoint.
        """
        spared = executions.run_to_spare(session)
        await self._scheduler.run(executions.cancel, self.execution_id, spared, session=session)

    async def offer_event(
        self,
        name: str,
        value: object = None,
        *,
        event_id: str | None = None,
        session: AnyConnection | None = None,
    ) -> bool:
        """Offer it an event, which it takes when it waits for one of this name: now, later or never.

        Args:
            name: the event's name.
            value: its value: anything that JSON can tell. Whether it fits is seen by the workflow that takes it.
            event_id: what tells the event from others, so that it counts once however often it is offered.
            session: the app's own session or connection, whose transaction this joins; the caller commits.

        Returns:
            Whether it counts: False if an event of this id was offered before.

        Raises:
            ExecutionNotFound: there is none with this id.
            ExecutionFinished: it has ended.
            InvalidDataError: the value cannot be stored; nothing is written.
            InvalidNameError: the name or the id cannot be stored; nothing is written.
        """
        event = executions.prepare_event(self.execution_id, name, value, event_id)
        return await self._scheduler.run_and_wake(executions.offer_event, event, session=session, is_one_statement=True)

    @overload
    def stream(self, name: str, kind: type[T], /, *, offset: int = 0, follow: bool = True) -> StreamReader[T]: ...
    @overload
    def stream(self, name: str, kind: Any = Any, /, *, offset: int = 0, follow: bool = True) -> StreamReader[Any]: ...
    def stream(self, name: str, kind: Any = Any, /, *, offset: int = 0, follow: bool = True) -> StreamReader[Any]:
        """Return a reader of one of its streams, which gives the values that it emits, as they come.

        The reader ends when the execution has ended and all is read, however it ended. A wait holds no connection of
        the pool. Its `offset` tells where to go on: whoever stores that can follow from there later, and elsewhere.

        Args:
            name: the stream's name.
            kind: the type of the values. Default: plain JSON data.
            offset: the number of the first value to read. Default: the first that there is, 0.
            follow: whether to wait for what comes later. If not, the reader ends behind what is there.

        Raises:
            ConfigError: the offset is not a number from 0.
            InvalidNameError: no stream can have such a name.
        """
        return StreamReader(self._scheduler, self.execution_id, name, kind, offset=offset, follow=follow)

    async def resume(self) -> None:
        """Let it go on after it failed, in a new run that keeps the steps that succeeded.

        Raises:
            ExecutionNotFound: there is none with this id.
            ExecutionFinished: it has completed or was cancelled.
            ExecutionAlreadyExists: it has not ended.
        """
        await self._scheduler.run(executions.resume, self.execution_id)
        self._scheduler.wake_ups.send()

    async def result(self, *, timeout: Duration | None = None) -> R:  # noqa: ASYNC109 - a duration, with an error of its own
        """Return its output when it has completed. The wait holds no connection of the pool.

        Args:
            timeout: how long to wait. Default: as long as it takes.

        Raises:
            ExecutionNotFound: there is none with this id.
            ExecutionFailed: it failed.
            ExecutionCancelled: it was cancelled.
            WaitTimedOut: it had not ended in time; it goes on.
            InvalidDataError: its output does not fit the declared type.
        """
        limit = None if timeout is None else to_timedelta(timeout, setting="timeout")
        scope = asyncio.timeout(None if limit is None else limit.total_seconds())
        try:
            async with scope:
                return await self._wait()
        except TimeoutError:
            if limit is None or not scope.expired():
                raise
            raise WaitTimedOut(self.execution_id, limit) from None

    async def _wait(self) -> R:
        if self._first_run_id is not None:
            await self._wait_for_end(self._first_run_id)
            self._first_run_id = None
        while True:
            ended = await self._scheduler.ask(executions.ending, self.execution_id)
            if ended.status.is_terminal:
                return cast("R", executions.result_of(ended, self.execution_id, self._codec))
            await self._wait_for_end(ended.run_id)

    async def _wait_for_end(self, run_id: UUID) -> None:
        """Return when this run has ended, or it is time to look."""
        scheduler = self._scheduler
        await scheduler.ends.listen()
        # Nothing is awaited in between: a worker that listens for us and stops wakes only those who wait by then.
        with scheduler.ends.waiting_for(str(run_id)) as end:
            # If it is this run that is marked, it goes on, and its end will be heard. If not, it has ended, perhaps
            # unheard, and another one may have begun.
            if await scheduler.ask(stored.await_end, self.execution_id) != run_id:
                return
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(end.wait(), POLL_SECONDS)
