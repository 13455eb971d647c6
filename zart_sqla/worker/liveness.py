"""The one connection that a worker has of its own, and the thread that keeps it.

On it the worker holds an advisory lock that falls when its process dies, says that it lives, looks for workers that
do not, and hears of news. It has a thread and a loop of its own, so that none of this waits for what a handler does:
a body that computes, a step that blocks the loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy.exc import SQLAlchemyError

from zart_sqla.client.engines import answering, apart, connect
from zart_sqla.store import children, executions, workers
from zart_sqla.store.failures import DATABASE_ERRORS, brief

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping
    from datetime import datetime
    from uuid import UUID

    from sqlalchemy import Connection
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from zart_sqla.config import WorkerConfig
    from zart_sqla.store.workers import Beat
    from zart_sqla.table_names import TableNames
    from zart_sqla.worker.clock import DatabaseClock
    from zart_sqla.worker.identity import Identity

logger: Final = logging.getLogger("zart_sqla.liveness")

GRACE_FACTOR: Final = 1.4
"""For how many heartbeats a worker counts as alive whose connection is gone: it may be making a new one."""

_CANCEL = "cancel "
_WAKE = "wake "
_RECONNECT_SECONDS: Final = 0.2
_SWEEP_SECONDS: Final = 60.0  # between looks for tasks that a takeover has left, and its worker then forgotten


@dataclass(frozen=True, slots=True, kw_only=True)
class News:
    """Whom the liveness thread tells what. They are called on the worker's own loop.

    Attributes:
        on_work: there may be work.
        on_cancelled: the run was cancelled.
        on_child_cancelled: a child of the run was cancelled, for which it may wait.
        on_ended: a run has ended that somebody waits for.
        on_lost: the tasks, each with its fencing token, are not the worker's any more.
        on_dead: the worker counts as dead; nothing that it holds is its own any more.
        on_alive: it counts as alive, and hears of news, now or again; what came in between it has missed.
    """

    on_work: Callable[[], None]
    on_cancelled: Callable[[str], None]
    on_child_cancelled: Callable[[str], None]
    on_ended: Callable[[str], None]
    on_lost: Callable[[Mapping[UUID, int]], None]
    on_dead: Callable[[], None]
    on_alive: Callable[[], None]


class Liveness:
    """Keeps the worker alive in the eyes of the database."""

    def __init__(  # noqa: PLR0913, PLR0917 - what it works with
        self,
        engine: AsyncEngine,
        names: TableNames,
        identity: Identity,
        config: WorkerConfig,
        clock: DatabaseClock,
        held: Mapping[UUID, int],
        news: News,
    ) -> None:
        self._engine = engine
        self._names = names
        self._identity = identity
        self._config = config
        self._clock = clock
        self._held = held
        self._news = news
        self._home = asyncio.get_running_loop()
        self._registered: asyncio.Future[None] = self._home.create_future()
        self._thread = threading.Thread(target=self._run, name="zart-liveness", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._has_started = False
        self._is_registered = False
        self._has_left_work = False
        self._is_stopping = False
        self._last_beat = time.monotonic()
        self._sweep_at = self._last_beat

    async def start(self) -> None:
        """Register the worker; return when it is, and listens.

        Raises:
            sqlalchemy.exc.DBAPIError: the database cannot be reached.
        """
        self._thread.start()
        await self._registered

    async def stop(self, *, has_left_work: bool) -> None:
        """Unregister the worker, free whatever it still holds, and close its connection.

        If the database is out of reach, the others will notice that the worker is gone.

        Args:
            has_left_work: whether there is work of which the others have to be told.
        """
        self._has_left_work = has_left_work
        self._is_stopping = True
        loop, stopping = self._loop, self._stopping
        if loop is not None and stopping is not None and self._thread.is_alive():
            loop.call_soon_threadsafe(stopping.set)
        await asyncio.to_thread(self._thread.join)

    # In the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            asyncio.run(self._main())
        except BaseException as error:  # noqa: BLE001 - the worker has to hear of it, whatever it is
            self._call(self._fail, error)

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = stopping = asyncio.Event()
        if self._is_stopping:
            return
        while True:
            began = time.monotonic()
            try:
                await self._keep_connection(stopping)
            except Exception as error:
                if not self._has_started:
                    raise
                if stopping.is_set():
                    logger.warning("cannot unregister, others will take over what is left: %s", brief(error))
                    return
                self._note_break(error)
                if self._last_beat < began:  # it never came up: leave the server some time
                    await _wait(stopping, _RECONNECT_SECONDS)
            else:
                return

    def _note_break(self, error: Exception) -> None:
        is_usual = isinstance(error, DATABASE_ERRORS)
        logger.warning(
            "the worker's own connection is broken, making a new one: %s", brief(error), exc_info=not is_usual
        )
        if time.monotonic() - self._last_beat > self._config.lease_seconds:
            self._call(self._news.on_dead)
        if not self._is_registered:  # it tried to, and nobody knows whether that was committed
            self._identity.renew()

    async def _keep_connection(self, stopping: asyncio.Event) -> None:
        """Connect, and use the connection until it breaks or the worker stops."""
        engine = apart(self._engine)
        try:
            async with asyncio.timeout(self._config.answer_seconds):
                connection = await connect(engine)
            try:
                await self._use(connection, stopping)
            except BaseException:
                await _cut(connection)
                raise
            await connection.close()
        finally:
            await engine.dispose()

    async def _use(self, connection: AsyncConnection, stopping: asyncio.Event) -> None:
        """Take a lock, listen, and beat until the connection breaks or the worker stops."""
        config = self._config
        with answering(connection, config.answer_seconds):
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            is_lost = await self._listen(connection)
            await self._register(connection)
        while not stopping.is_set():
            with answering(connection, config.lease_seconds / 3):
                beat = await self._beat(connection)
            if self._home.is_closed():  # nobody has stopped the worker, but it cannot work any more
                break
            if beat.has_dead or time.monotonic() >= self._sweep_at:
                with answering(connection, config.answer_seconds):
                    await self._take_over(connection)
            await _wait_for_either(stopping, is_lost, config.heartbeat_seconds)
            if is_lost.is_set():
                raise ConnectionResetError("the server closed it")
        with answering(connection, config.answer_seconds):
            await self._resign(connection)

    async def _listen(self, connection: AsyncConnection) -> asyncio.Event:
        is_lost = asyncio.Event()
        driver: Any = (await connection.get_raw_connection()).driver_connection

        def on_lost(_connection: object) -> None:
            is_lost.set()

        def on_work(_connection: object, _pid: int, _channel: str, payload: str) -> None:
            self._hear_of_work(payload)

        def on_done(_connection: object, _pid: int, _channel: str, run_id: str) -> None:
            self._call(self._news.on_ended, run_id)

        driver.add_termination_listener(on_lost)
        await driver.add_listener(self._names.work_channel, on_work)
        await driver.add_listener(self._names.done_channel, on_done)
        return is_lost

    async def _register(self, connection: AsyncConnection) -> None:
        """Take a lock, and tell the others which it is."""
        identity = self._identity
        identity.renew_lock()  # the server may not know yet that the last session, with the last lock, is gone
        is_locked = await connection.run_sync(workers.lock, identity.lock_key)
        lock_key = identity.lock_key if is_locked else None
        if not is_locked:
            logger.warning(
                "no session lock can be had here (a transaction pooler?): a crash of this worker will be noticed only "
                "when its lease of %.0f s is over",
                self._config.lease_seconds,
            )
        self._sweep_at = time.monotonic()  # it may have missed that a run has nothing to wait for any more
        if self._is_registered:
            await connection.run_sync(workers.set_lock, self._names, identity.worker_id, lock_key)
        else:
            asked_at = time.monotonic()
            self._clock.set(await connection.run_sync(self._insert, lock_key), asked_at=asked_at)
            self._is_registered = self._has_started = True
            self._last_beat = time.monotonic()
            self._call(self._succeed)
        self._call(self._news.on_alive)

    def _insert(self, connection: Connection, lock_key: int | None) -> datetime:
        identity = self._identity
        return workers.register(
            connection,
            self._names,
            identity.worker_id,
            hostname=identity.hostname,
            pid=identity.pid,
            lock_key=lock_key,
            lease_seconds=self._config.lease_seconds,
        )

    async def _beat(self, connection: AsyncConnection) -> Beat:
        running = dict(self._held)
        asked_at = time.monotonic()
        beat = await connection.run_sync(self._say_alive, running)
        self._clock.set(beat.now, asked_at=asked_at)
        self._last_beat = time.monotonic()
        if not beat.is_alive:
            await self._rise_again(connection)
        elif beat.lost:
            self._call(self._news.on_lost, {task_id: running[task_id] for task_id in beat.lost})
        return beat

    def _say_alive(self, connection: Connection, running: Mapping[UUID, int]) -> Beat:
        return workers.beat(
            connection,
            self._names,
            self._identity.worker_id,
            running=running.items(),
            lease_seconds=self._config.lease_seconds,
            grace_seconds=self._config.heartbeat_seconds * GRACE_FACTOR,
        )

    async def _rise_again(self, connection: AsyncConnection) -> None:
        """Go on as a new worker, after having been taken for dead."""
        logger.error("this worker was taken for dead; it gives up its %d tasks and goes on anew", len(self._held))
        self._call(self._news.on_dead)
        self._identity.renew()
        self._is_registered = False
        await self._register(connection)

    async def _take_over(self, connection: AsyncConnection) -> None:
        """Free the tasks of workers that died. The dead are buried first, in a statement before."""
        await connection.commit()  # nothing, but SQLAlchemy has begun something for the heartbeat
        async with _transaction(connection):
            freed = await connection.run_sync(self._bury)
        woken = await connection.run_sync(self._wake_all)
        if freed or woken:
            self._call(self._news.on_work)

    def _wake_all(self, connection: Connection) -> int:
        """Wake the runs that a dead worker has put down or should have woken, after what they waited for was there."""
        found = children.wake_all(connection, self._names)
        woken = sum(found.values())
        if woken < len(found):  # somebody has locked them
            self._sweep_at = time.monotonic()
        if woken:
            executions.notify_work(connection, self._names)
        return woken

    def _bury(self, connection: Connection) -> int:
        grace_seconds = self._config.heartbeat_seconds * GRACE_FACTOR
        dead = workers.bury(connection, self._names, self._identity.worker_id, grace_seconds=grace_seconds)
        ids = [worker.worker_id for worker in dead]
        orphans = workers.take_over(connection, self._names, ids, max_crashes=self._config.max_crashes)
        is_all = not workers.has_orphans(connection, self._names)
        self._sweep_at = time.monotonic() + (_SWEEP_SECONDS if is_all else 0.0)
        for worker in dead:
            logger.warning("worker %s (process %d on %s) is dead", worker.worker_id, worker.pid, worker.hostname)
        for orphan in orphans:
            if orphan.is_failed:
                logger.error(
                    "%s of execution %r is failed: %d workers in a row died with it",
                    "the run" if orphan.step is None else f"step {orphan.step!r}",
                    orphan.execution_id,
                    orphan.crashes,
                )
        if orphans:
            logger.info("took over %d tasks of workers that are not there any more", len(orphans))
            executions.notify_work(connection, self._names)
        return len(orphans)

    async def _resign(self, connection: AsyncConnection) -> None:
        """Unregister the worker, and free what it still holds."""
        async with _transaction(connection):
            await connection.run_sync(self._sign_off)

    def _sign_off(self, connection: Connection) -> None:
        freed = workers.unregister(connection, self._names, self._identity.worker_id)
        if freed or self._has_left_work:
            executions.notify_work(connection, self._names)

    def _hear_of_work(self, payload: str) -> None:
        if payload.startswith(_CANCEL):
            self._call(self._news.on_cancelled, payload.removeprefix(_CANCEL))
        elif payload.startswith(_WAKE):
            self._call(self._news.on_child_cancelled, payload.removeprefix(_WAKE))
        else:
            self._call(self._news.on_work)

    def _call(self, function: Callable[..., None], *args: Any) -> None:
        """Call the function on the worker's own loop, if that is still there."""
        if not self._home.is_closed():
            self._home.call_soon_threadsafe(function, *args)

    # On the worker's loop -----------------------------------------------------------------------------------------

    def _succeed(self) -> None:
        if not self._registered.done():
            self._registered.set_result(None)

    def _fail(self, error: BaseException) -> None:
        if not self._registered.done():
            self._registered.set_exception(error)
        else:
            logger.critical("the liveness thread broke off: this worker will lose its tasks", exc_info=error)


@contextlib.asynccontextmanager
async def _transaction(connection: AsyncConnection) -> AsyncGenerator[None]:
    """Make one transaction, on a connection on which each statement else is one of its own."""
    await connection.rollback()  # there is nothing to roll back, but SQLAlchemy thinks that there may be
    await connection.execution_options(isolation_level="READ COMMITTED")
    async with connection.begin():
        yield
    await connection.execution_options(isolation_level="AUTOCOMMIT")


async def _cut(connection: AsyncConnection) -> None:
    """Drop a connection without asking the server, which may not answer; its locks fall when it notices."""
    with contextlib.suppress(SQLAlchemyError):
        if not connection.invalidated:  # else SQLAlchemy has dropped it, and would make another one when asked for it
            driver: Any = (await connection.get_raw_connection()).driver_connection
            driver.terminate()
            await connection.invalidate()
    await connection.close()


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return


async def _wait_for_either(stopping: asyncio.Event, lost: asyncio.Event, seconds: float) -> None:
    waits = [asyncio.ensure_future(event.wait()) for event in (stopping, lost)]
    await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for wait in waits:
        wait.cancel()
