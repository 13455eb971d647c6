"""Wakes runs that have waited for their children for long enough."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from zart_sqla.client.engines import call
from zart_sqla.store import children, executions
from zart_sqla.store.failures import DATABASE_ERRORS, brief

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from uuid import UUID

    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncEngine

    from zart_sqla.config import WorkerConfig
    from zart_sqla.table_names import TableNames

logger: Final = logging.getLogger("zart_sqla.waker")

_RETRY_SECONDS: Final = 0.2


class Waker:
    """Looks, after each commit that may have been the last thing that a run waits for, whether it was.

    What is asked for while one look is under way shares the next, and no commit waits for a look. A look that is lost,
    because the worker dies before it, is made up for by whoever takes over its tasks.

    Args:
        engine: where it takes its connection from, while there is something to look at.
        names: the tables.
        config: how long it waits for an answer.
        on_woken: told when runs have become due.
    """

    def __init__(
        self, engine: AsyncEngine, names: TableNames, config: WorkerConfig, on_woken: Callable[[], None]
    ) -> None:
        self._engine = engine
        self._names = names
        self._config = config
        self._on_woken = on_woken
        self._run_ids: set[UUID] = set()
        self._is_leaving = False
        self._has_work = asyncio.Event()
        self._is_idle = asyncio.Event()
        self._is_idle.set()

    def wake(self, run_ids: Iterable[UUID]) -> None:
        """Have those of the runs go on that have waited for long enough."""
        self._run_ids.update(run_ids)
        if self._run_ids:
            self._is_idle.clear()
            self._has_work.set()

    def leave(self) -> None:
        """Tell other workers from now on, since this one claims no more."""
        self._is_leaving = True

    async def flush(self) -> None:
        """Return when all that was asked for has been looked at."""
        await self._is_idle.wait()

    async def run(self) -> None:
        """Look whenever there is something to look at, until cancelled."""
        while True:
            await self._has_work.wait()
            self._has_work.clear()
            run_ids, self._run_ids = self._run_ids, set()
            await self._look(run_ids)
            if not self._run_ids:
                self._is_idle.set()

    async def _look(self, run_ids: set[UUID]) -> None:
        try:
            found = await call(self._engine, self._wake, run_ids, seconds=self._config.answer_seconds)
        except DATABASE_ERRORS as error:
            logger.warning("cannot wake runs whose children are done, trying again: %s", brief(error))
            found = dict.fromkeys(run_ids, False)
        left = [run_id for run_id, is_woken in found.items() if not is_woken]
        if left:  # somebody has locked them, or the database is away
            asyncio.get_running_loop().call_later(_RETRY_SECONDS, self.wake, left)
        if len(left) < len(found):
            self._on_woken()

    def _wake(self, connection: Connection, run_ids: set[UUID]) -> dict[UUID, bool]:
        found = children.wake(connection, self._names, run_ids)
        if self._is_leaving and any(found.values()):
            executions.notify_work(connection, self._names)
        return found
