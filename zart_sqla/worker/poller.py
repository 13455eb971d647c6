"""Takes due tasks from the queue: as many as can run, as soon as there are any."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final

from zart_sqla.client.engines import call
from zart_sqla.records import RunHistory
from zart_sqla.store import children, diagnosis, tasks
from zart_sqla.store.failures import DATABASE_ERRORS, brief

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncEngine

    from zart_sqla.config import WorkerConfig
    from zart_sqla.records import ClaimedTask
    from zart_sqla.runtime.handlers import TaskRegistry
    from zart_sqla.table_names import TableNames
    from zart_sqla.worker.clock import DatabaseClock
    from zart_sqla.worker.dispatcher import Dispatcher
    from zart_sqla.worker.identity import Identity

logger: Final = logging.getLogger("zart_sqla.poller")

_FIRST_PAUSE_SECONDS: Final = 0.1
_LONGEST_PAUSE_SECONDS: Final = 2.0
_RELEASE_SECONDS: Final = 0.5
_MOMENT_SECONDS: Final = 0.005
_LOOK_SECONDS: Final = 60.0  # between looks for tasks that are of no use to this worker


class Poller:
    """Claims, as long as there is something to claim; then waits for news, a timer, or the next poll.

    Args:
        engine: where it takes its connection from.
        names: the tables.
        identity: the worker.
        registry: which tasks it can do.
        config: how much it takes, and how often.
        clock: the database's time.
        dispatcher: what runs the turns.
        writing: gives the tasks for which something is being written, whether their turns still run or not.
    """

    def __init__(  # noqa: PLR0913, PLR0917 - what it works with
        self,
        engine: AsyncEngine,
        names: TableNames,
        identity: Identity,
        registry: TaskRegistry,
        config: WorkerConfig,
        clock: DatabaseClock,
        dispatcher: Dispatcher,
        writing: Callable[[], Collection[UUID]],
    ) -> None:
        self._engine = engine
        self._names = names
        self._identity = identity
        self._registry = registry
        self._config = config
        self._clock = clock
        self._dispatcher = dispatcher
        self._writing = writing
        self._news = asyncio.Event()
        self._may_claim = asyncio.Event()
        self._may_claim.set()
        self._is_stopping = False
        self._look_at = time.monotonic() + config.poll_seconds
        self._is_unsure = False  # whether an earlier claim may have taken tasks without our knowing

    def wake(self) -> None:
        """Claim now: there may be work."""
        self._news.set()

    def expect(self, due_at: datetime | None) -> None:
        """Claim when a task that was put down is due again, None for at once."""
        if due_at is None:
            self.wake()
        else:
            self._wake_in((due_at - self._clock.now()).total_seconds())

    def doubt(self) -> None:
        """Look for tasks that the database takes for ours and that do not run here, and put them back."""
        self._is_unsure = True
        self.wake()

    def pause(self) -> None:
        """Claim no more until `resume`. What a claim that is under way takes is put back then, and not begun."""
        self._may_claim.clear()

    def resume(self) -> None:
        """Claim again, and now."""
        self._may_claim.set()
        self.wake()

    def stop(self) -> None:
        """Claim no more. A claim that is under way is still dispatched."""
        self._is_stopping = True
        self.resume()

    async def run(self) -> None:
        """Claim until stopped."""
        pause = _FIRST_PAUSE_SECONDS
        has_backlog = False
        while not self._is_stopping:
            await self._may_claim.wait()
            limit = await self._room(has_backlog=has_backlog)
            self._news.clear()
            if self._is_stopping:
                return
            try:
                claimed = await self._claim(limit)
                pause = _FIRST_PAUSE_SECONDS
            except Exception as error:
                is_usual = isinstance(error, DATABASE_ERRORS)
                logger.warning("cannot claim, trying again in %.1f s: %s", pause, brief(error), exc_info=not is_usual)
                self._is_unsure = True
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE_SECONDS)
                continue
            has_backlog = claimed == limit
            if not has_backlog:
                await self._wait()

    async def _room(self, *, has_backlog: bool) -> int:
        """Return how many tasks can be claimed, when that is at least one.

        To claim one task costs nearly as much as to claim hundreds. So while there are more than there is room for, it
        lets some turns end first, for a moment.
        """
        most = min(self._config.max_tasks_per_poll, tasks.MAX_CLAIM)
        room = await self._dispatcher.slot()
        if has_backlog and room < most // 2:
            await asyncio.sleep(_MOMENT_SECONDS)
            room = self._dispatcher.free_slots
        return min(room, most)

    async def _claim(self, limit: int) -> int:
        """Claim and start turns.

        Returns:
            How many.
        """
        claimed, seconds = await call(self._engine, self._take, limit, seconds=self._config.answer_seconds)
        if seconds is not None:
            self._wake_in(seconds)
        if claimed and not self._may_claim.is_set():  # the lease may have ended meanwhile
            self.doubt()
            return 0
        if claimed:  # what was due for the database is due for the turns
            self._clock.advance(claimed[0].claimed_at)
        for task in claimed:
            if not task.has_history:
                self._dispatcher.dispatch(task, RunHistory())
        resumed = [task for task in claimed if task.has_history]
        if resumed:
            await self._go_on_with(resumed)
        return len(claimed)

    async def _go_on_with(self, resumed: Sequence[ClaimedTask]) -> None:
        """Start the turns of tasks that had turns before, with what those recorded: it can take a while to read."""
        histories = await call(self._engine, self._histories, resumed, seconds=self._config.lease_seconds)
        for task in resumed:
            self._dispatcher.dispatch(task, histories.get(task.task_id, RunHistory()))

    def _release_unknown(self, connection: Connection) -> None:
        """Free what an earlier claim took without its answer ever arriving here, and what turns have left unsettled.

        That of which a turn that was given up may still be written stays for later: else another worker could begin,
        without seeing it, before that is committed.
        """
        self._is_unsure = False
        held = self._dispatcher.held
        writing = set(self._writing()) - held.keys()
        found = tasks.release_others(connection, self._names, self._identity.worker_id, [*held, *writing])
        if writing or not all(found.values()):  # the latter if somebody has locked them
            self._is_unsure = True
            self._wake_in(_RELEASE_SECONDS)
        if any(found.values()):
            logger.info("%d tasks of a broken claim go back to the queue", sum(found.values()))

    def _take(self, connection: Connection, limit: int) -> tuple[list[ClaimedTask], float | None]:
        """Take due tasks, and return them and in how many seconds the next one is due; tidy up where it is time to."""
        if self._is_unsure:
            self._release_unknown(connection)
        claimed, seconds = tasks.claim(
            connection,
            self._names,
            self._identity.worker_id,
            task_names=self._registry.names,
            cleaners=self._registry.cleaners,
            queues=self._config.queues,
            limit=limit,
            takes_suspect=not self._dispatcher.has_suspect,
            ahead_seconds=self._config.poll_seconds,
        )
        if len(claimed) < limit and time.monotonic() >= self._look_at:
            self._look_at = time.monotonic() + _LOOK_SECONDS
            self._tell_unserved(connection)
        return claimed, seconds

    def _histories(self, connection: Connection, resumed: Sequence[ClaimedTask]) -> dict[UUID, RunHistory]:
        """Return what there is of the runs, and of the children, by the ids of their tasks."""
        of_runs = [task for task in resumed if task.child is None]
        journal = tasks.journal(connection, self._names, [task.run_id for task in of_runs]) if of_runs else {}
        of_children = [task for task in resumed if task.child is not None]
        histories = children.histories(connection, self._names, of_children) if of_children else {}
        return histories | {task.task_id: journal[task.run_id] for task in of_runs}

    def _tell_unserved(self, connection: Connection) -> None:
        """Say which tasks wait for a worker with another registry, as they do while a new release is rolled out."""
        for overdue in diagnosis.overdue(connection, self._names, self._config.poll_seconds):
            is_served = self._config.queues is None or overdue.queue in self._config.queues
            if is_served and overdue.task_name not in self._registry.names:
                logger.warning(
                    "%d tasks of %r in queue %r have been due for up to %.0f s, and no handler here is for them",
                    overdue.tasks,
                    overdue.task_name,
                    overdue.queue,
                    overdue.seconds,
                    extra={"task_name": overdue.task_name, "queue": overdue.queue},
                )

    def _wake_in(self, seconds: float) -> None:
        if seconds < self._config.poll_seconds:  # a longer wait than that ends by itself
            asyncio.get_running_loop().call_later(max(0.0, seconds), self.wake)

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(self._config.poll_seconds):
                await self._news.wait()
        except TimeoutError:
            return
