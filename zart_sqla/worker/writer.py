"""The writer: all that the turns of a worker have to write, in as few commits as there can be.

While one commit is under way, what comes gathers; the next takes all of it, as one transaction of a few statements
over lists. An idle worker's write is committed at once; a busy one's shares its commit with hundreds.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, Final, TypeVar

from zart_sqla.client.engines import connected
from zart_sqla.errors import InvalidDataError
from zart_sqla.runtime._signals import TurnSignal
from zart_sqla.runtime.outcomes import LeaseLost
from zart_sqla.store import children, events, executions, streams, tasks
from zart_sqla.store.events import EventToTake
from zart_sqla.store.failures import DATABASE_ERRORS, brief, is_data_fault
from zart_sqla.store.tasks import AttemptToRecord, RunToFinish, StepToRecord, TaskToPutDown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from uuid import UUID

    from sqlalchemy import Connection
    from sqlalchemy.engine.interfaces import IsolationLevel
    from sqlalchemy.ext.asyncio import AsyncEngine

    from zart_sqla.config import WorkerConfig
    from zart_sqla.records import ClaimedTask, FailedAttempt, RecordedStep
    from zart_sqla.store.children import ChildrenToAdd, ChildrenToGiveUp
    from zart_sqla.store.streams import ItemToEmit
    from zart_sqla.table_names import TableNames
    from zart_sqla.worker.identity import Identity

Item = TypeVar("Item", StepToRecord, EventToTake)

logger: Final = logging.getLogger("zart_sqla.writer")

MAX_BATCH: Final = 2000
MAX_BATCH_CHARACTERS: Final = 8 * 1024 * 1024
_SLOWEST_LINK: Final = 1024 * 1024  # characters a second: what is much takes its time
_FIRST_PAUSE_SECONDS: Final = 0.05
_LONGEST_PAUSE_SECONDS: Final = 1.0
_LOCKED_PAUSE_SECONDS: Final = 0.01
_LONGEST_LOCKED_PAUSE_SECONDS: Final = 0.2
_ODD_ATTEMPTS: Final = 3  # where the error is none of SQLAlchemy's: it may be the driver's, or the write's


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    """What the holder of a task has to write, all of it in one transaction.

    Attributes:
        task: the task.
        step: a checkpoint; if the task is a child, it ends with it.
        take: a wait for an event, to be given one that is there.
        emit: a value for a stream, with its checkpoint.
        failed: a failed attempt.
        add: children of its run.
        give_up: children that its run has no more need of.
        put_down: that the task is freed.
        finish: that its run ends.
    """

    task: ClaimedTask
    step: RecordedStep | None = None
    take: EventToTake | None = None
    emit: ItemToEmit | None = None
    failed: FailedAttempt | None = None
    add: ChildrenToAdd | None = None
    give_up: ChildrenToGiveUp | None = None
    put_down: TaskToPutDown | None = None
    finish: RunToFinish | None = None

    @property
    def size(self) -> int:
        """About how many characters it brings."""
        result = self.step.result if self.step else self.finish.result if self.finish else None
        value = self.emit.value if self.emit else result
        return 200 + len(value or "") + (self.add.size if self.add else 0)

    @property
    def checkpoint(self) -> RecordedStep | None:
        """The checkpoint that is among it."""
        part = self.take or self.emit
        return self.step if part is None else part.step

    @property
    def is_done(self) -> bool:
        """Whether its task is a child that ends."""
        return self.step is not None and self.task.child is not None

    @property
    def needs_task(self) -> bool:
        """Whether it is written only while nobody else has locked the task."""
        return self.is_done or any(part is not None for part in (self.give_up, self.put_down, self.finish))

    @property
    def waits_for(self) -> UUID | None:
        """The run that may wait for what this writes, or that it puts down to wait."""
        if self.is_done or self.finish is not None:
            return self.task.parent_run_id
        is_to_wait = self.put_down is not None and self.put_down.awaits_open is not None
        return self.task.run_id if is_to_wait else None


@dataclass(slots=True, eq=False)
class _Pending:
    write: Write
    done: asyncio.Future[RecordedStep | None]
    pause: float = _LOCKED_PAUSE_SECONDS


@dataclass(slots=True)
class _Batch:
    """A batch of writes, by what they write."""

    steps: list[StepToRecord]
    take: list[EventToTake]
    emit: list[ItemToEmit]
    failed: list[AttemptToRecord]
    add: list[ChildrenToAdd]
    give_up: list[ChildrenToGiveUp]
    done: list[ClaimedTask]
    put_down: list[TaskToPutDown]
    finish: list[RunToFinish]
    bound: list[ClaimedTask]
    size: int

    @classmethod
    def of(cls, writes: Sequence[Write]) -> _Batch:
        return cls(
            steps=[StepToRecord(write.task, write.step) for write in _in_order(writes) if write.step is not None],
            take=[write.take for write in writes if write.take is not None],
            emit=[write.emit for write in writes if write.emit is not None],
            failed=[AttemptToRecord(write.task, write.failed) for write in writes if write.failed is not None],
            add=[write.add for write in writes if write.add is not None],
            give_up=[write.give_up for write in writes if write.give_up is not None],
            done=[write.task for write in writes if write.is_done],
            put_down=[write.put_down for write in writes if write.put_down is not None],
            finish=[write.finish for write in writes if write.finish is not None],
            bound=[write.task for write in writes if write.needs_task],
            size=sum(write.size for write in writes),
        )

    @property
    def is_one_statement(self) -> bool:
        """Whether it needs no transaction around it."""
        parts = (self.steps, self.take, self.emit, self.failed, self.give_up, self.done, self.put_down, self.finish)
        return sum(map(bool, parts)) == 1 and not self.add

    def left(self, written: _Written) -> list[ClaimedTask]:
        """Return the tasks that were not the worker's, or that somebody else has locked."""
        not_emitted = [item.task for item in self.emit if item.key not in written.steps]
        return not_emitted + [task for task in self.bound if task.task_id not in written.tasks]


def _in_order(writes: Sequence[Write]) -> Iterable[Write]:
    """Return the writes so that children come in one order, always: a run that gives some up inserts the same steps."""
    of_children = [write for write in writes if write.task.child is not None]
    if not of_children:
        return writes
    of_runs = (write for write in writes if write.task.child is None)
    return chain(of_runs, sorted(of_children, key=lambda write: write.task.task_id.int))


@dataclass(slots=True)
class _Written:
    """What a batch came to.

    Attributes:
        steps: the checkpoints that are recorded now, new or from before; and waits for which there was no event.
        failed: the failed attempts that are recorded now.
        held: tasks to which children were added, if they are the worker's.
        tasks: the tasks that were freed, finished or done, or whose children were given up.
        locked: those that were not, or whose values were not emitted, because somebody else has locked them.
    """

    steps: dict[tuple[UUID, str], RecordedStep] = field(default_factory=dict[Any, Any])
    failed: set[tuple[UUID, str]] = field(default_factory=set[Any])
    held: set[UUID] = field(default_factory=set[Any])
    tasks: set[UUID] = field(default_factory=set[Any])
    locked: set[UUID] = field(default_factory=set[Any])


class Writer:
    """Writes for all turns of a worker.

    Args:
        engine: where it takes its connection from, while there is something to write.
        names: the tables.
        identity: the worker.
        config: how long it waits for an answer, and goes on trying where the database is in the way.
        on_done: told of runs that may have waited for what has been committed.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        names: TableNames,
        identity: Identity,
        config: WorkerConfig,
        on_done: Callable[[Iterable[UUID]], None],
    ) -> None:
        self._engine = engine
        self._names = names
        self._identity = identity
        self._config = config
        self._on_done = on_done
        self._queue: deque[_Pending] = deque()
        self._postponed: set[_Pending] = set()
        self._is_hurried = False
        self._has_work = asyncio.Event()
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._is_closed = False

    async def write(self, write: Write) -> RecordedStep | None:
        """Return when it is committed.

        Returns:
            The checkpoint that is recorded now, if it was to write one.

        Raises:
            TurnSignal: the task is not the worker's any more; nothing was written.
            InvalidDataError: PostgreSQL refuses what was to be written; nothing was.
        """
        if self._is_closed:
            raise TurnSignal(LeaseLost())
        done: asyncio.Future[RecordedStep | None] = asyncio.get_running_loop().create_future()
        self._queue.append(_Pending(write, done))
        self._is_idle.clear()
        self._has_work.set()
        return await done

    def hurry(self) -> None:
        """From now on, leave to others what somebody has locked for longer than a moment."""
        self._is_hurried = True
        for pending in list(self._postponed):
            self._resume(pending)

    async def flush(self) -> None:
        """Return when all that was to be written is."""
        await self._is_idle.wait()

    async def run(self) -> None:
        """Write what comes, until cancelled; what comes later is not written."""
        batch: list[_Pending] = []
        try:
            while True:
                await self._has_work.wait()
                batch = self._take()
                await self._settle(batch)
                if not self._queue:
                    self._has_work.clear()
                    if not self._postponed:
                        self._is_idle.set()
        finally:
            self._is_closed = True
            for pending in (*batch, *self._queue, *self._postponed):
                _resolve(pending, _Written())

    def _take(self) -> list[_Pending]:
        batch: list[_Pending] = []
        size = 0
        while self._queue and len(batch) < MAX_BATCH and size < MAX_BATCH_CHARACTERS:
            pending = self._queue.popleft()
            batch.append(pending)
            size += pending.write.size
        return batch

    async def _settle(self, batch: Sequence[_Pending]) -> None:
        """Write the batch, and tell each of its writes what became of it."""
        try:
            written = await self._written(batch)
        except Exception as error:  # noqa: BLE001 - whatever one write brings up, the writer has to outlive it
            if len(batch) == 1:
                _refuse(batch[0], error)
                return
            # One of them is poisoned: the rest must not fail for it.
            middle = len(batch) // 2
            await self._settle(batch[:middle])
            await self._settle(batch[middle:])
            return
        for pending in batch:
            if pending.write.task.task_id in written.locked:
                self._postpone(pending)
            else:
                _resolve(pending, written)
        self._on_done(filter(None, (pending.write.waits_for for pending in batch)))

    def _postpone(self, pending: _Pending) -> None:
        """Write it a little later: somebody has locked its task, and the others must not wait for that.

        Mostly that is another worker's claim, for a moment; it can be an app that cancels the execution in a
        transaction of its own, for as long as that takes.
        """
        if self._is_hurried and pending.pause >= _LONGEST_LOCKED_PAUSE_SECONDS:
            _resolve(pending, _Written())
            return
        self._postponed.add(pending)
        asyncio.get_running_loop().call_later(pending.pause, self._resume, pending)
        pending.pause = min(pending.pause * 2, _LONGEST_LOCKED_PAUSE_SECONDS)

    def _resume(self, pending: _Pending) -> None:
        if pending in self._postponed:
            self._postponed.remove(pending)
            self._queue.append(pending)
            self._has_work.set()

    async def _written(self, batch: Sequence[_Pending]) -> _Written:
        """Return what the batch came to, once it is committed; nothing, if the lease ended before it could be."""
        writes = _Batch.of([pending.write for pending in batch])
        give_up_at = time.monotonic() + self._config.lease_seconds + writes.size / _SLOWEST_LINK
        pause = _FIRST_PAUSE_SECONDS
        attempt = 0
        while True:
            attempt += 1
            try:
                return await self._commit(writes)
            except Exception as error:
                is_usual = isinstance(error, DATABASE_ERRORS)
                if is_data_fault(error) or (attempt == _ODD_ATTEMPTS and not is_usual):
                    raise
                if time.monotonic() > give_up_at:
                    logger.exception("gave up writing %d checkpoints: the lease is over", len(batch))
                    return _Written()
                logger.warning("cannot write, trying again: %s", brief(error))
            await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - jitter is no secret
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    async def _commit(self, batch: _Batch) -> _Written:
        isolation_level: IsolationLevel = "AUTOCOMMIT" if batch.is_one_statement else "READ COMMITTED"
        seconds = self._config.answer_seconds + batch.size / _SLOWEST_LINK
        async with connected(self._engine, seconds, isolation_level=isolation_level) as connection:
            written = await connection.run_sync(self._apply, batch)
            await connection.commit()
            return written

    def _apply(self, connection: Connection, batch: _Batch) -> _Written:
        names, me = self._names, self._identity.worker_id
        written = _Written(steps=self._record(connection, batch))
        if batch.failed:
            written.failed = tasks.record_attempts(connection, names, me, batch.failed)
        if batch.add:
            children.add(connection, names, me, batch.add)
            written.held = tasks.held(connection, names, me, [item.task for item in batch.add])
            executions.notify_work(connection, names)
        if batch.give_up:
            written.tasks |= children.give_up(connection, names, me, batch.give_up)
        if batch.done:
            written.tasks |= children.remove(connection, names, me, batch.done)
        if batch.put_down:
            written.tasks |= tasks.put_down(connection, names, me, batch.put_down)
        if batch.finish:
            written.tasks |= tasks.finish(connection, names, me, batch.finish)
        left = batch.left(written)
        if left:
            written.locked = tasks.held(connection, names, me, left)
        return written

    def _record(self, connection: Connection, batch: _Batch) -> dict[tuple[UUID, str], RecordedStep]:
        recorded: dict[tuple[UUID, str], RecordedStep] = {}
        if batch.steps:
            recorded |= self._record_steps(connection, batch.steps)
        if batch.take:
            recorded |= self._take_events(connection, batch.take)
        if batch.emit:
            emitted = streams.emit(connection, self._names, self._identity.worker_id, batch.emit)
            recorded |= {item.key: item.step for item in batch.emit if item.key in emitted}
        return recorded

    def _record_steps(
        self, connection: Connection, steps: Sequence[StepToRecord]
    ) -> dict[tuple[UUID, str], RecordedStep]:
        inserted = tasks.record_steps(connection, self._names, self._identity.worker_id, steps)
        by_key = {(item.task.run_id, item.step.name): item for item in steps}
        recorded = {key: by_key[key].step for key in inserted}
        missing = [item for key, item in by_key.items() if key not in inserted]
        if missing:  # lost, or written before by a commit whose answer did not arrive
            recorded |= self._find_steps(connection, missing)
        return recorded

    def _take_events(
        self, connection: Connection, waits: Sequence[EventToTake]
    ) -> dict[tuple[UUID, str], RecordedStep]:
        taken = events.take(connection, self._names, self._identity.worker_id, waits)
        by_key = {(wait.task.run_id, wait.step.name): wait for wait in waits}
        recorded = {key: replace(by_key[key].step, result=result) for key, result in taken.items()}
        missing = [wait for key, wait in by_key.items() if key not in taken]
        if missing:  # lost, or there is no event, or it was taken before by a commit whose answer did not arrive
            recorded |= {(wait.task.run_id, wait.step.name): wait.step for wait in self._held(connection, missing)}
            recorded |= self._find_steps(connection, missing)
        return recorded

    def _find_steps(self, connection: Connection, items: Sequence[Item]) -> dict[tuple[UUID, str], RecordedStep]:
        keys = [(item.task.run_id, item.step.name) for item in self._held(connection, items)]
        return tasks.find_steps(connection, self._names, keys)

    def _held(self, connection: Connection, items: Sequence[Item]) -> list[Item]:
        held = tasks.held(connection, self._names, self._identity.worker_id, [item.task for item in items])
        return [item for item in items if item.task.task_id in held]


def _resolve(pending: _Pending, written: _Written) -> None:
    if pending.done.done():  # the turn was stopped in the meantime
        return
    write = pending.write
    named = write.checkpoint
    step = None if named is None else written.steps.get((write.task.run_id, named.name))
    is_written = (
        (named is None or step is not None)
        and (write.failed is None or (write.task.run_id, write.failed.step) in written.failed)
        and (write.add is None or write.task.task_id in written.held)
        and (not write.needs_task or write.task.task_id in written.tasks)
    )
    if is_written:
        pending.done.set_result(step)
    else:
        pending.done.set_exception(TurnSignal(LeaseLost()))


def _refuse(pending: _Pending, error: Exception) -> None:
    if not pending.done.done():
        problem = str(getattr(error, "orig", None) or error)
        refusal = InvalidDataError("what the turn has to write", [problem])
        refusal.__cause__ = error
        pending.done.set_exception(refusal)
