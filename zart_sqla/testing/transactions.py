"""The transactions of steps in a simulated run: real ones, in the database that the test names."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker

from zart_sqla.errors import ConfigError, NotInWorkflowError
from zart_sqla.testing.recorder import checkpoint_of
from zart_sqla.worker.lent import lend

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, AsyncTransaction
    from sqlalchemy.orm import Session, SessionTransaction

    from zart_sqla.records import RecordedStep
    from zart_sqla.runtime.bridges import Bridge
    from zart_sqla.testing.recorder import MemoryRecorder
    from zart_sqla.worker.lent import LentConnection

T = TypeVar("T")

_EXPECTED = "an AsyncEngine, or an async_sessionmaker that is bound to one"


class Transactions:
    """Opens the transactions that steps ask for by `trx()`.

    Args:
        engine: the test's database; None: that which the sessionmaker is bound to.
        sessionmaker: what makes the sessions. Default: plain sessions that do not expire on commit.

    Raises:
        ConfigError: they are something else.
    """

    def __init__(self, engine: AsyncEngine | None = None, sessionmaker: async_sessionmaker[Any] | None = None) -> None:
        self._endings: set[asyncio.Task[Any]] = set()
        self._sessionmaker = sessionmaker or async_sessionmaker(expire_on_commit=False)
        self._engine = self._sessionmaker.kw.get("bind") if engine is None else engine
        if self._engine is None and sessionmaker is None:
            return
        if not isinstance(self._engine, AsyncEngine):
            raise ConfigError("engine or sessionmaker", expected=_EXPECTED, actual=self._engine)

    async def begin(self, recorder: MemoryRecorder, bridge: Bridge | None) -> SimulatedTransaction:
        """Begin a transaction for one attempt of a step, `async def` or, over the bridge of its thread, `def`.

        Raises:
            NotInWorkflowError: the test names no database.
        """
        if self._engine is None:
            raise NotInWorkflowError("trx()", "needs a database in a test: pass engine=... or sessionmaker=...")
        owner = await self._engine.connect()
        try:
            lent, connection = (None, owner) if bridge is None else await lend(owner, bridge)
            transaction = await connection.begin()
            session = self._sessionmaker(bind=connection, join_transaction_mode="rollback_only")
        except BaseException:
            await owner.close()
            raise
        return SimulatedTransaction(self, recorder, owner, transaction, session, lent=lent)

    async def to_the_end(self, ending: Coroutine[Any, Any, T]) -> T:
        """Return what the ending of a transaction returns; it goes on even if the turn is stopped here."""
        task = asyncio.ensure_future(ending)
        self._endings.add(task)
        task.add_done_callback(self._endings.discard)
        return await asyncio.shield(task)

    async def ended(self) -> None:
        """Return when all that were to end have: their connections are back in the pool."""
        while self._endings:
            await asyncio.wait(self._endings)


class SimulatedTransaction:
    """The transaction of one attempt: committed with the checkpoint, rolled back if the worker dies before.

    Attributes:
        session: the session in which the step writes.
    """

    def __init__(
        self,
        opener: Transactions,
        recorder: MemoryRecorder,
        connection: AsyncConnection,
        transaction: AsyncTransaction,
        session: AsyncSession,
        *,
        lent: LentConnection | None = None,
    ) -> None:
        self._opener = opener
        self._lent = lent
        self._recorder = recorder
        self._connection = connection
        self._transaction = transaction
        self._session = session
        self._has_rolled_back = False
        self._lock = asyncio.Lock()
        event.listen(session.sync_session, "before_commit", self._refuse_commit)
        event.listen(session.sync_session, "after_soft_rollback", self._note_rollback)

    def _refuse_commit(self, session: Session) -> None:
        if not session.in_nested_transaction():
            raise NotInWorkflowError("session.commit()", "must not be called on the session that trx() gave")

    def _note_rollback(self, _session: Session, ended: SessionTransaction) -> None:
        self._has_rolled_back |= not ended.nested

    @property
    def session(self) -> AsyncSession:
        """The session in which the step writes."""
        return self._session

    def flush(self) -> None:
        """Write what the session of a `def` step still keeps back."""
        self._session.sync_session.flush()

    async def commit(self, step: RecordedStep) -> RecordedStep:
        """Commit what the step wrote, and keep its checkpoint."""
        await self._session.flush()
        if self._has_rolled_back:
            raise NotInWorkflowError("session.rollback()", "must not be called on the session that trx() gave")
        return await self._recorder.commit(checkpoint_of(step), lambda: self._opener.to_the_end(self._commit(step)))

    async def _commit(self, step: RecordedStep) -> RecordedStep:
        async with self._lock:
            await self._transaction.commit()
            await self._close()
        return self._recorder.storage.keep(step)

    async def rollback(self) -> None:
        """Undo what the step wrote, unless it is committed."""
        await self._opener.to_the_end(self._roll_back())

    async def _roll_back(self) -> None:
        async with self._lock:  # a commit that is under way when the turn is stopped comes to its end
            try:
                if self._lent is not None and self._lent.is_lost:  # its thread was interrupted in a statement
                    await self._connection.invalidate()
                elif self._transaction.is_active:
                    await self._transaction.rollback()
            finally:
                await self._close()

    async def _close(self) -> None:
        await self._session.close()
        await self._connection.close()

    def signal_for(self, error: BaseException) -> None:
        """Take each error for the step's own: a test's database is not to be in the way."""
