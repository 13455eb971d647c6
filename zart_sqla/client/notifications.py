"""Who is told when: waiting for the end of a run, and waking workers for new work."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from typing import TYPE_CHECKING, Any, Final

from zart_sqla.client.engines import apart, call, opened
from zart_sqla.store import executions
from zart_sqla.store.failures import DATABASE_ERRORS, brief, is_interruption, is_transient

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

    from sqlalchemy.ext.asyncio import AsyncEngine

    from zart_sqla.table_names import TableNames

logger: Final = logging.getLogger("zart_sqla.notifications")

_RETRY_SECONDS = 1.0
_ANSWER_SECONDS = 10.0


class Ends:
    """Hears of the ends of runs, for those in this process who wait for them.

    It listens on a connection of its own while somebody waits, unless a worker of this process listens anyway.
    """

    def __init__(self, engine: AsyncEngine, names: TableNames) -> None:
        self._engine = engine
        self._names = names
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._feeders = 0
        self._listener: asyncio.Task[None] | None = None
        self._is_listening = asyncio.Event()

    def tell(self, run_id: str) -> None:
        """Wake those who wait for the end of this run."""
        for event in self._waiting.get(run_id, ()):
            event.set()

    def tell_all(self) -> None:
        """Wake everybody, since news may have been missed."""
        for run_id in list(self._waiting):
            self.tell(run_id)

    @contextlib.contextmanager
    def fed(self) -> Generator[None]:
        """Leave the listening to the caller, who will `tell`."""
        self._feeders += 1
        try:
            yield
        finally:
            self._feeders -= 1
            self.tell_all()

    @contextlib.contextmanager
    def waiting_for(self, run_id: str) -> Generator[asyncio.Event]:
        """Give the event that is set when the run ends, or when news may have been missed."""
        event = asyncio.Event()
        self._waiting.setdefault(run_id, set()).add(event)
        try:
            yield event
        finally:
            self._waiting[run_id].discard(event)
            if not self._waiting[run_id]:
                del self._waiting[run_id]

    async def listen(self) -> None:
        """Make sure that somebody listens; return when that is so."""
        if self._feeders:
            return
        if self._listener is None or self._listener.done():
            self._is_listening.clear()
            self._listener = asyncio.create_task(self._run(), name="zart_sqla: ends of runs")
        await self._is_listening.wait()

    async def close(self) -> None:
        """Stop listening."""
        if self._listener is not None:
            self._listener.cancel()
            await asyncio.gather(self._listener, return_exceptions=True)
            self._listener = None

    async def _run(self) -> None:
        try:
            while True:
                try:
                    await self._listen_once()
                except DATABASE_ERRORS as error:
                    logger.warning("cannot listen for the ends of runs, polling instead: %s", brief(error))
                self._is_listening.set()
                self.tell_all()
                await asyncio.sleep(_RETRY_SECONDS)
        finally:
            self._is_listening.set()

    async def _listen_once(self) -> None:
        engine = apart(self._engine)
        try:
            async with opened(engine) as connection:
                driver: Any = (await connection.get_raw_connection()).driver_connection
                lost = asyncio.Event()

                def on_lost(_connection: object) -> None:
                    lost.set()

                def on_message(_connection: object, _pid: int, _channel: str, run_id: str) -> None:
                    self.tell(run_id)

                driver.add_termination_listener(on_lost)
                await driver.add_listener(self._names.done_channel, on_message)
                self._is_listening.set()
                self.tell_all()
                await lost.wait()
                await connection.invalidate()
        finally:
            await engine.dispose()


class WakeUps:
    """Wakes workers after a commit, in as few notifications as there can be.

    A notification takes a lock that all commits of the cluster wait for, so it stays out of the transactions that
    start executions: what is started while one notification is under way shares the next. If the process dies in
    between, the workers' polling finds the work.
    """

    def __init__(self, engine: AsyncEngine, names: TableNames) -> None:
        self._engine = engine
        self._names = names
        self._listeners: list[Callable[[], None]] = []
        self._is_asked = False
        self._sender: asyncio.Task[None] | None = None

    def add_listener(self, wake: Callable[[], None]) -> None:
        """Have a worker of this process told directly."""
        self._listeners.append(wake)

    def remove_listener(self, wake: Callable[[], None]) -> None:
        """Have it told no more."""
        self._listeners.remove(wake)

    def send(self) -> None:
        """Wake the workers, soon."""
        for wake in self._listeners:
            wake()
        self._is_asked = True
        if self._sender is None or self._sender.done():
            self._sender = asyncio.get_running_loop().create_task(self._send(), name="zart_sqla: wake-ups")

    async def flush(self) -> None:
        """Return when all that was asked for has been sent."""
        if self._sender is not None:
            await self._sender

    async def _send(self) -> None:
        while self._is_asked:
            self._is_asked = False
            try:
                channel = self._names.work_channel
                await call(self._engine, executions.notify, channel, seconds=_ANSWER_SECONDS)
            except DATABASE_ERRORS as error:
                if not (is_transient(error) or is_interruption(error)):
                    raise
                logger.warning("could not wake the workers, they will find the work by polling: %s", brief(error))
