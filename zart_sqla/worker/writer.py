"""The writer: all that turns of a worker have to write, in as few commits as there can be.

While one commit is under way, what comes gathers; the next takes all of it, as one transaction of a few statements
over lists. An idle worker's write is committed at once; a busy one's shares its commit with hundreds.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from zart_sqla.client.engines import call
from zart_sqla.errors import InvalidDataError
from zart_sqla.runtime._signals import TurnSignal
from zart_sqla.runtime.outcomes import LeaseLost
from zart_sqla.store.failures import DATABASE_ERRORS, brief, is_data_fault
from zart_sqla.worker.batches import Application, Batch, Written

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from uuid import UUID

    from sqlalchemy import Connection
    from sqlalchemy.engine.interfaces import IsolationLevel
    from sqlalchemy.ext.asyncio import AsyncEngine

    from zart_sqla.config import WorkerConfig
    from zart_sqla.records import RecordedStep
    from zart_sqla.table_names import TableNames
    from zart_sqla.worker.identity import Identity
    from zart_sqla.worker.writes import AnyWrite

logger: Final = logging.getLogger("zart_sqla.writer")

MAX_BATCH: Final = 2000
MAX_BATCH_CHARACTERS: Final = 8 * 1024 * 1024
_SLOWEST_LINK: Final = 1024 * 1024  # characters a second: what is much takes its time
_FIRST_PAUSE_SECONDS: Final = 0.05
_LONGEST_PAUSE_SECONDS: Final = 1.0
_LOCKED_PAUSE_SECONDS: Final = 0.01
_LONGEST_LOCKED_PAUSE_SECONDS: Final = 0.2
_ODD_ATTEMPTS: Final = 3  # where the error is none of SQLAlchemy's: it may be the driver's, or the write's


@dataclass(slots=True, eq=False)
class _Pending:
    write: AnyWrite
    done: asyncio.Future[RecordedStep | None]
    pause: float = _LOCKED_PAUSE_SECONDS


class Writer:
    """Writes for turns of a worker, all that one of them has to write in the order in which that comes.

    Args:
        engine: where it takes its connection from, while there is something to write.
        names: the tables.
        identity: the worker.
        config: how long it waits for an answer, and goes on trying where the database is in the way.
        on_done: told of runs that may have waited for what has been committed.
        on_due: told when a task that was put down is due again already.
    """

    def __init__(
        self,
        engine: AsyncEngine,
        names: TableNames,
        identity: Identity,
        config: WorkerConfig,
        on_done: Callable[[Iterable[UUID]], None],
        on_due: Callable[[], None],
    ) -> None:
        self._engine = engine
        self._names = names
        self._identity = identity
        self._config = config
        self._on_done = on_done
        self._on_due = on_due
        self._loop = asyncio.get_running_loop()
        self._queue: deque[_Pending] = deque()
        self._batch: list[_Pending] = []
        self._postponed: set[_Pending] = set()
        self._is_hurried = False
        self._has_work = asyncio.Event()
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._is_closed = False

    async def write(self, write: AnyWrite) -> RecordedStep | None:
        """Return when it is committed.

        Returns:
            The checkpoint that is recorded now, if it was to write one.

        Raises:
            TurnSignal: the task is not the worker's any more; nothing was written.
            InvalidDataError: PostgreSQL refuses what was to be written; nothing was.
        """
        if self._is_closed:
            raise TurnSignal(LeaseLost())
        done: asyncio.Future[RecordedStep | None] = self._loop.create_future()
        self._queue.append(_Pending(write, done))
        self._is_idle.clear()
        self._has_work.set()
        return await done

    def hurry(self) -> None:
        """From now on, leave to others what somebody has locked for longer than a moment."""
        self._is_hurried = True
        for pending in list(self._postponed):
            self._resume(pending)

    @property
    def task_ids(self) -> set[UUID]:
        """The tasks for which there is something to write, or which a commit that is under way may write for."""
        return {pending.write.task.task_id for pending in (*self._batch, *self._queue, *self._postponed)}

    async def flush(self) -> None:
        """Return when all that was to be written is."""
        await self._is_idle.wait()

    async def run(self) -> None:
        """Write what comes, until cancelled; what comes later is not written."""
        try:
            while True:
                await self._has_work.wait()
                self._batch = self._take()
                for part in _parts(self._batch):
                    await self._settle(part)
                self._batch = []
                if not self._queue:
                    self._has_work.clear()
                    if not self._postponed:
                        self._is_idle.set()
        finally:
            self._is_closed = True
            for pending in (*self._batch, *self._queue, *self._postponed):
                _resolve(pending, Written())

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
        if written.has_due:
            self._on_due()

    def _postpone(self, pending: _Pending) -> None:
        """Write it a little later: somebody has locked its task, and the others must not wait for that.

        Mostly that is another worker's claim, for a moment; it can be an app that cancels the execution in a
        transaction of its own, for as long as that takes.
        """
        if self._is_hurried and pending.pause >= _LONGEST_LOCKED_PAUSE_SECONDS:
            _resolve(pending, Written())
            return
        self._postponed.add(pending)
        self._loop.call_later(pending.pause, self._resume, pending)
        pending.pause = min(pending.pause * 2, _LONGEST_LOCKED_PAUSE_SECONDS)

    def _resume(self, pending: _Pending) -> None:
        if pending in self._postponed:
            self._postponed.remove(pending)
            self._queue.append(pending)
            self._has_work.set()

    async def _written(self, batch: Sequence[_Pending]) -> Written:
        """Return what the batch came to, once it is committed; nothing, if the lease ended before it could be."""
        writes = Batch.of([pending.write for pending in batch])
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
                    return Written()
                logger.warning("cannot write, trying again: %s", brief(error))
            await asyncio.sleep(pause * random.uniform(0.5, 1))  # noqa: S311 - jitter is no secret
            pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)

    async def _commit(self, batch: Batch) -> Written:
        isolation_level: IsolationLevel = "AUTOCOMMIT" if batch.is_one_statement else "READ COMMITTED"
        seconds = self._config.answer_seconds + batch.size / _SLOWEST_LINK
        return await call(self._engine, self._apply, batch, seconds=seconds, isolation_level=isolation_level)

    def _apply(self, connection: Connection, batch: Batch) -> Written:
        return Application(connection, self._names, self._identity.worker_id).apply(batch)


def _parts(batch: Sequence[_Pending]) -> Iterable[Sequence[_Pending]]:
    """Return the parts of the batch that are committed one after the other.

    A transaction that ends children, and one that deletes them with their run, may have to wait for each other. One
    that did both could wait for another worker's that waits for it.
    """
    ends_others = [pending for pending in batch if pending.write.ends_others]
    if not ends_others or not any(pending.write.is_done for pending in batch):
        return [batch]
    return [[pending for pending in batch if not pending.write.ends_others], ends_others]


def _resolve(pending: _Pending, written: Written) -> None:
    if pending.done.done():  # the turn was stopped in the meantime
        return
    write = pending.write
    named = write.checkpoint
    step = None if named is None else written.steps.get((write.task.run_id, named.name))
    is_written = (
        (named is None or step is not None)
        and (write.failed is None or (write.task.run_id, write.failed.step) in written.failed)
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
