"""What one turn needs from its worker."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from zart_sqla.store.children import ChildrenToAdd, ChildrenToGiveUp
from zart_sqla.store.events import EventToTake
from zart_sqla.store.streams import ItemToEmit
from zart_sqla.worker.writer import MAX_BATCH
from zart_sqla.worker.writes import Checkpoint, Write

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime

    from zart_sqla.records import Child, ClaimedTask, Ending, FailedAttempt, NewExecution, RecordedStep
    from zart_sqla.runtime.bridges import Bridge
    from zart_sqla.runtime.ports import StepTransaction
    from zart_sqla.worker.clock import DatabaseClock
    from zart_sqla.worker.reader import Reader
    from zart_sqla.worker.threads import Threads
    from zart_sqla.worker.transactions import Transactions
    from zart_sqla.worker.writer import Writer

SHORT_WAIT: Final = timedelta(seconds=0.5)


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """What all turns of a worker share.

    Attributes:
        starter: the executions that they start go there.
        reader: what they have to know of other executions comes from there.
        transactions: where steps get theirs from.
        threads: where plain functions run.
        clock: the database's time.
        on_checkpoint: told when a task has got somewhere that was suspected of killing workers.
    """

    starter: Writer
    reader: Reader
    transactions: Transactions
    threads: Threads
    clock: DatabaseClock
    on_checkpoint: Callable[[ClaimedTask], None]


class TaskRecorder:
    """The `Recorder` of the turn that holds a task.

    Args:
        task: the task.
        writer: what the turn writes goes there.
        services: what it shares with others.
    """

    def __init__(self, task: ClaimedTask, writer: Writer, services: Services) -> None:
        self._task = task
        self._writer = writer
        self._services = services

    @property
    def short_wait(self) -> timedelta:
        return SHORT_WAIT

    def now(self) -> datetime:
        return self._services.clock.now()

    async def record(self, step: RecordedStep, *, gives_up: Sequence[str] = ()) -> RecordedStep:
        task = self._task
        write: Checkpoint | Write
        if task.child is None and not gives_up:
            write = Checkpoint(task, step)
        else:
            write = Write(task=task, step=step, give_up=ChildrenToGiveUp(task, gives_up) if gives_up else None)
        return await self._checkpoint(self._writer, write) or step

    async def add_children(self, children: Sequence[Child]) -> None:
        for first in range(0, len(children), MAX_BATCH):
            some = children[first : first + MAX_BATCH]
            await self._writer.write(Write(task=self._task, add=ChildrenToAdd(self._task, some)))

    async def start_execution(self, step: RecordedStep, new: NewExecution) -> RecordedStep:
        return await self._checkpoint(self._services.starter, Write(task=self._task, step=step, start=new)) or step

    async def ending_of(self, execution_id: str) -> Ending | None:
        return await self._services.reader.ending_of(execution_id)

    async def take_event(self, wait: RecordedStep, name: str) -> RecordedStep:
        take = EventToTake(self._task, wait, name)
        return await self._checkpoint(self._writer, Write(task=self._task, take=take)) or wait

    async def emit(self, step: RecordedStep, stream: str, value: str) -> None:
        item = ItemToEmit(self._task, step, stream, value)
        await self._checkpoint(self._writer, Write(task=self._task, emit=item))

    async def record_attempt(self, failed: FailedAttempt) -> None:
        await self._writer.write(Write(task=self._task, failed=failed))

    async def begin(self, bridge: Bridge | None) -> StepTransaction:
        return await self._services.transactions.begin(self._task, bridge)

    async def in_thread(self, function: Callable[[], Any], *, is_body: bool) -> Any:
        return await self._services.threads.call(function, is_body=is_body)

    async def _checkpoint(self, writer: Writer, write: Checkpoint | Write) -> RecordedStep | None:
        recorded = await writer.write(write)
        if self._task.is_suspect:
            self._services.on_checkpoint(self._task)
        return recorded
