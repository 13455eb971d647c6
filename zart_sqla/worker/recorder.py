"""What one turn needs from its worker."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from zart_sqla.store.children import ChildrenToAdd, ChildrenToGiveUp
from zart_sqla.store.events import EventToTake
from zart_sqla.store.streams import ItemToEmit
from zart_sqla.worker.writer import MAX_BATCH, Write

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from zart_sqla.records import Child, ClaimedTask, FailedAttempt, RecordedStep
    from zart_sqla.runtime.ports import StepTransaction
    from zart_sqla.worker.clock import DatabaseClock
    from zart_sqla.worker.threads import Threads
    from zart_sqla.worker.transactions import Transactions
    from zart_sqla.worker.writer import Writer

SHORT_WAIT: Final = timedelta(seconds=0.5)


class TaskRecorder:
    """The `Recorder` of the turn that holds a task."""

    def __init__(
        self,
        task: ClaimedTask,
        writer: Writer,
        clock: DatabaseClock,
        threads: Threads,
        transactions: Transactions,
    ) -> None:
        self._task = task
        self._writer = writer
        self._clock = clock
        self._threads = threads
        self._transactions = transactions

    @property
    def short_wait(self) -> timedelta:
        return SHORT_WAIT

    def now(self) -> datetime:
        return self._clock.now()

    async def record(self, step: RecordedStep, *, gives_up: Sequence[str] = ()) -> RecordedStep:
        give_up = ChildrenToGiveUp(self._task, gives_up) if gives_up else None
        recorded = await self._writer.write(Write(task=self._task, step=step, give_up=give_up))
        return recorded or step

    async def add_children(self, children: Sequence[Child]) -> None:
        for first in range(0, len(children), MAX_BATCH):
            some = children[first : first + MAX_BATCH]
            await self._writer.write(Write(task=self._task, add=ChildrenToAdd(self._task, some)))

    async def take_event(self, wait: RecordedStep, name: str) -> RecordedStep:
        taken = await self._writer.write(Write(task=self._task, take=EventToTake(self._task, wait, name)))
        return taken or wait

    async def emit(self, step: RecordedStep, stream: str, value: str) -> None:
        await self._writer.write(Write(task=self._task, emit=ItemToEmit(self._task, step, stream, value)))

    async def record_attempt(self, failed: FailedAttempt) -> None:
        await self._writer.write(Write(task=self._task, failed=failed))

    async def begin(self) -> StepTransaction:
        return await self._transactions.begin(self._task)

    async def in_thread(self, function: Callable[[], Any], *, is_body: bool) -> Any:
        return await self._threads.call(function, is_body=is_body)
