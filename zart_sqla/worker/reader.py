"""What a turn has to know of other executions."""

from __future__ import annotations

import logging
from datetime import timedelta
from typing import TYPE_CHECKING, Final

from zart_sqla.client.engines import call
from zart_sqla.runtime._signals import TurnSignal
from zart_sqla.runtime.outcomes import Suspended
from zart_sqla.store import executions
from zart_sqla.store.failures import DATABASE_ERRORS, brief

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from zart_sqla.config import WorkerConfig
    from zart_sqla.records import Ending
    from zart_sqla.table_names import TableNames
    from zart_sqla.worker.clock import DatabaseClock

logger: Final = logging.getLogger("zart_sqla.reader")

_PAUSE: Final = timedelta(seconds=0.5)


class Reader:
    """Reads for turns, on a connection of the pool for as long as that takes."""

    def __init__(self, engine: AsyncEngine, names: TableNames, clock: DatabaseClock, config: WorkerConfig) -> None:
        self._engine = engine
        self._names = names
        self._clock = clock
        self._config = config

    async def ending_of(self, execution_id: str) -> Ending | None:
        """Return how an execution stands, None if there is none.

        Raises:
            TurnSignal: the database is in the way; the turn is made again soon.
        """
        try:
            seconds = self._config.answer_seconds
            return await call(self._engine, executions.ending, self._names, execution_id, seconds=seconds)
        except DATABASE_ERRORS as error:
            logger.warning("the database was in the way of a turn, which will be made again: %s", brief(error))
            raise TurnSignal(Suspended(due_at=self._clock.now() + _PAUSE)) from error
