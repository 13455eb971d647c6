"""The transactions of steps that write in the app's own tables."""

from __future__ import annotations

import asyncio
import logging
import random
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import event
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import async_sessionmaker

from zart_sqla.client.engines import answering, connect
from zart_sqla.errors import InvalidDataError, NotInWorkflowError
from zart_sqla.runtime._signals import TurnSignal
from zart_sqla.runtime.outcomes import LeaseLost, Suspended
from zart_sqla.store import children, tasks
from zart_sqla.store.failures import DATABASE_ERRORS, brief, is_data_fault, is_interruption, is_transient
from zart_sqla.store.tasks import StepToRecord
from zart_sqla.worker.lent import lend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from uuid import UUID

    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, AsyncTransaction
    from sqlalchemy.orm import Session, SessionTransaction

    from zart_sqla.config import WorkerConfig
    from zart_sqla.records import ClaimedTask, RecordedStep
    from zart_sqla.runtime.bridges import Bridge
    from zart_sqla.table_names import TableNames
    from zart_sqla.worker.clock import DatabaseClock
    from zart_sqla.worker.identity import Identity
    from zart_sqla.worker.lent import LentConnection

logger: Final = logging.getLogger("zart_sqla.transactions")


class Transactions:
    """Opens the transactions of steps.

    Args:
        engine: the app's engine.
        names: the tables.
        identity: the worker.
        clock: the database's time.
        config: how long it waits for an answer when a step commits.
        sessionmaker: what makes the sessions. Default: plain sessions that do not expire on commit.
        on_done: told of runs when a child of theirs has ended.
        on_checkpoint: told when a task has got somewhere that was suspected of killing workers.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - what it works with
        self,
        engine: AsyncEngine,
        names: TableNames,
        identity: Identity,
        clock: DatabaseClock,
        config: WorkerConfig,
        sessionmaker: async_sessionmaker[AsyncSession] | None,
        on_done: Callable[[Iterable[UUID]], None],
        on_checkpoint: Callable[[ClaimedTask], None],
    ) -> None:
        self.engine = engine
        self.names = names
        self.identity = identity
        self.clock = clock
        self.answer_seconds: float = config.answer_seconds
        self.on_done = on_done
        self.on_checkpoint = on_checkpoint
        self._sessionmaker = sessionmaker

    async def begin(self, task: ClaimedTask, bridge: Bridge | None) -> OpenTransaction:
        """Begin a transaction for one attempt of a step.

        Args:
            task: the task of the step's run, or the step's own.
            bridge: how the thread that works in it asks the loop; None if the step runs on the loop itself.

        Raises:
            TurnSignal: the database is in the way.
        """
        try:
            connection = await connect(self.engine)
        except DATABASE_ERRORS as error:
            raise self.put_back(error) from error
        try:
            if bridge is not None:
                return await self._begin_in_thread(task, connection, bridge)
            transaction = await connection.begin()
            session = self._session_on(connection)
        except BaseException:
            await connection.close()
            raise
        return OpenTransaction(self, task, connection, transaction, session)

    async def _begin_in_thread(self, task: ClaimedTask, owner: AsyncConnection, bridge: Bridge) -> ThreadTransaction:
        lent, connection = await lend(owner, bridge)
        transaction = await connection.begin()
        session = self._session_on(connection)
        return ThreadTransaction(self, task, connection, transaction, session, owner=owner, lent=lent)

    def _session_on(self, connection: AsyncConnection) -> AsyncSession:
        make = self._sessionmaker or async_sessionmaker(expire_on_commit=False)
        # The session's own commit is not the transaction's: the checkpoint has to be in it.
        return make(bind=connection, join_transaction_mode="rollback_only")

    def put_back(self, error: BaseException) -> TurnSignal:
        """Return the signal that ends the turn, to be tried again soon, since the database was in the way."""
        logger.warning("the database was in the way of a step, which will run again: %s", brief(error))
        pause = timedelta(seconds=random.uniform(0.05, 0.5))  # noqa: S311 - jitter is no secret
        return TurnSignal(Suspended(due_at=self.clock.now() + pause))


class OpenTransaction:
    """The transaction of one attempt of a step.

    Attributes:
        session: the session in which the step writes.
    """

    def __init__(
        self,
        opener: Transactions,
        task: ClaimedTask,
        connection: AsyncConnection,
        transaction: AsyncTransaction,
        session: AsyncSession,
    ) -> None:
        self._opener = opener
        self._task = task
        self._connection = connection
        self._transaction = transaction
        self._session = session
        self._has_rolled_back = False
        self._is_ending = False
        event.listen(session.sync_session, "before_commit", self._refuse_commit)
        event.listen(session.sync_session, "after_soft_rollback", self._note_rollback)

    def _refuse_commit(self, session: Session) -> None:
        if not session.in_nested_transaction():
            raise NotInWorkflowError("session.commit()", "must not be called on the session that trx() gave")

    def _note_rollback(self, _session: Session, ended: SessionTransaction) -> None:
        self._has_rolled_back |= not ended.nested

    @property
    def session(self) -> AsyncSession:
        return self._session

    def flush(self) -> None:
        self._session.sync_session.flush()

    async def commit(self, step: RecordedStep) -> RecordedStep:
        """Write the checkpoint and commit it together with what the step wrote."""
        await self._session.flush()
        if self._has_rolled_back:
            raise NotInWorkflowError("session.rollback()", "must not be called on the session that trx() gave")
        # A heartbeat may find that the task is gone, because this has ended it. The turn is stopped then, but whoever
        # waits for the child has to be told.
        committing = asyncio.ensure_future(self._finish(step))
        committing.add_done_callback(_acknowledge)
        try:
            await asyncio.shield(committing)
        except asyncio.CancelledError:
            await asyncio.wait({committing})
            raise
        return step

    async def _finish(self, step: RecordedStep) -> None:
        with answering(self._connection, self._opener.answer_seconds):
            is_written = await self._write(step)
        if not is_written:
            await self.rollback()
            raise TurnSignal(LeaseLost())
        if self._task.child is not None:
            self._opener.on_done([self._task.run_id])
        if self._task.is_suspect:
            self._opener.on_checkpoint(self._task)
        await self._close()

    async def _write(self, step: RecordedStep) -> bool:
        """Write the checkpoint and commit; return whether the task was still the worker's."""
        self._is_ending = True
        try:
            is_written = await self._connection.run_sync(self._record, step)
        except SQLAlchemyError as error:
            if is_data_fault(error):
                raise InvalidDataError(f"the checkpoint of step {step.name!r}", [str(error.__cause__)]) from error
            raise
        if is_written:
            await self._transaction.commit()
        return is_written

    def _record(self, connection: Connection, step: RecordedStep) -> bool:
        names, me = self._opener.names, self._opener.identity.worker_id
        is_recorded = bool(tasks.record_steps(connection, names, me, [StepToRecord(self._task, step)]))
        if self._task.child is None:
            return is_recorded
        return is_recorded and bool(children.remove(connection, names, me, [self._task]))

    async def rollback(self) -> None:
        """Undo what the step wrote."""
        try:
            if self._transaction.is_active:
                await self._transaction.rollback()
        except DATABASE_ERRORS as error:
            logger.warning("could not roll back a step, so its connection is dropped: %s", brief(error))
            await self._connection.invalidate()
        finally:
            await self._close()

    def signal_for(self, error: BaseException) -> TurnSignal | None:
        """Return the signal that ends the turn, if the error is the database's and not the step's."""
        # The driver lets an OSError through when it loses the connection; else it is of the step's own doing.
        is_ours = self._is_disconnected() if isinstance(error, OSError) else is_transient(error)
        is_ours |= self._is_ending and is_interruption(error)  # it is our statement then, not one of the step's
        return self._opener.put_back(error) if is_ours else None

    def _is_disconnected(self) -> bool:
        connection = self._connection.sync_connection
        if connection is None or connection.closed or connection.invalidated:
            return True
        driver: Any = connection.connection.driver_connection
        return bool(driver is None or driver.is_closed())

    async def _close(self) -> None:
        await self._session.close()
        await self._connection.close()


def _acknowledge(ended: asyncio.Future[None]) -> None:
    """Take note of how it ended: the turn may be stopped, and asyncio complains of an error that nobody asks for."""
    if not ended.cancelled():
        ended.exception()


class ThreadTransaction(OpenTransaction):
    """The transaction of one attempt of a `def` step, whose session its thread uses.

    Args:
        owner: the connection of the pool, of which the session's is lent.
        lent: what the thread uses in its place.
    """

    def __init__(self, *arguments: Any, owner: AsyncConnection, lent: LentConnection) -> None:
        super().__init__(*arguments)
        self._owner = owner
        self._lent = lent

    async def rollback(self) -> None:
        if self._owner.closed:
            return
        # The thread may still be at work with the session, whatever that comes to: it is left to the thread.
        try:
            if self._lent.is_lost:
                await self._owner.invalidate()
            else:
                await (await self._owner.begin()).rollback()
        except DATABASE_ERRORS as error:
            logger.warning("could not roll back a step, so its connection is dropped: %s", brief(error))
            await self._owner.invalidate()
        finally:
            await self._owner.close()

    async def _close(self) -> None:
        await super()._close()
        await self._owner.close()
