"""The worker: what an application runs beside itself, or `zart worker` for it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import threading
from typing import TYPE_CHECKING, Any, Final, Self
from uuid import UUID

from zart_sqla.client.engines import opened
from zart_sqla.config import WorkerConfig
from zart_sqla.errors import ConfigError
from zart_sqla.runtime.turn import StopReason
from zart_sqla.store import schema
from zart_sqla.worker.clock import DatabaseClock
from zart_sqla.worker.dispatcher import Dispatcher
from zart_sqla.worker.identity import Identity
from zart_sqla.worker.liveness import Liveness, News
from zart_sqla.worker.poller import Poller
from zart_sqla.worker.reader import Reader
from zart_sqla.worker.recorder import Services, TaskRecorder
from zart_sqla.worker.threads import Threads
from zart_sqla.worker.transactions import Transactions
from zart_sqla.worker.waker import Waker
from zart_sqla.worker.writer import Writer

if TYPE_CHECKING:
    from collections.abc import Generator
    from datetime import datetime
    from types import TracebackType

    from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

    from zart_sqla.client.scheduler import PostgresScheduler
    from zart_sqla.records import ClaimedTask
    from zart_sqla.runtime.handlers import TaskRegistry

logger: Final = logging.getLogger("zart_sqla.worker")

_WRITERS: Final = 2  # while the server is at what one of them commits, the turns go on that wait for the other
_CANCELLATION_SECONDS: Final = 2.0  # how long a handler has to end once it is cancelled
_FLUSH_SECONDS: Final = 5.0


class Worker:
    """Takes tasks and runs them, until it is stopped.

    Use it as `await worker.run()`, or as `async with worker:`.

    Args:
        scheduler: where the tasks are; its engine is shared.
        registry: the workflows that it can run. Tasks of other names it leaves to other workers.
        config: how it works.
        sessionmaker: what makes the sessions of `trx()`. Default: plain sessions on the scheduler's engine.

    Raises:
        ConfigError: the registry is empty.
    """

    def __init__(
        self,
        scheduler: PostgresScheduler,
        registry: TaskRegistry,
        config: WorkerConfig | None = None,
        *,
        sessionmaker: async_sessionmaker[AsyncSession] | None = None,
    ) -> None:
        if not len(registry):
            raise ConfigError("registry", expected="a TaskRegistry with at least one workflow", actual=registry)
        self._scheduler = scheduler
        self._registry = registry
        self._config = config or WorkerConfig()
        self._sessionmaker = sessionmaker
        self._identity = Identity()
        self._machinery: _Machinery | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._stopped = asyncio.Event()

    @property
    def worker_id(self) -> UUID:
        """The id under which the database knows it."""
        return self._identity.worker_id

    @property
    def is_stopping(self) -> bool:
        """Whether it was asked to stop."""
        return self._stopping is not None

    async def run(self) -> None:
        """Work until `stop()`, SIGTERM, SIGINT or the cancellation of this call; each of them is graceful.

        Signals are handled only where nobody else handles them: in the main thread, if the app has not set its own.
        A second signal puts back what runs without letting it finish.

        Raises:
            SchemaOutdated: the tables are not those that this code was written for.
            sqlalchemy.exc.DBAPIError: the database cannot be reached at the start.
        """
        with _signals_stop(self, self._stopped):
            async with self:
                await self._stopped.wait()

    async def __aenter__(self) -> Self:
        """Start working, beside what the caller does."""
        if self._machinery is not None:
            raise ConfigError("worker", expected="a worker that does not run yet", actual=self)
        async with opened(self._scheduler.engine) as connection:
            await connection.run_sync(schema.check_schema, self._scheduler.names)
        machinery = _Machinery(self._scheduler, self._registry, self._config, self._identity, self._sessionmaker)
        await machinery.open()
        self._machinery = machinery
        logger.info("worker %s works on: %s", self.worker_id, ", ".join(self._registry.names))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def stop(self) -> None:
        """Stop gracefully; return when that is done.

        No more tasks are claimed. What runs has `shutdown_timeout` to finish; the rest goes back to the queue, where
        other workers can claim it at once. If this call is cancelled, what runs goes back without further delay.
        """
        if self._machinery is None:
            return
        if self._stopping is None:
            logger.info("worker %s stops", self.worker_id)
            self._stopping = asyncio.create_task(self._machinery.close(), name="zart_sqla: stop")
            self._stopping.add_done_callback(lambda _: self._stopped.set())
        try:
            await asyncio.shield(self._stopping)
        except asyncio.CancelledError:
            self._machinery.hurry()
            await asyncio.shield(self._stopping)
            raise

    def hurry(self) -> None:
        """Do not let running tasks finish any longer: put them back now."""
        if self._machinery is not None:
            self._machinery.hurry()


class _Machinery:
    """The parts of a worker that runs, and the order in which they start and stop."""

    def __init__(
        self,
        scheduler: PostgresScheduler,
        registry: TaskRegistry,
        config: WorkerConfig,
        identity: Identity,
        sessionmaker: async_sessionmaker[AsyncSession] | None,
    ) -> None:
        engine, names = scheduler.engine, scheduler.names
        clock = DatabaseClock()
        self._scheduler = scheduler
        self._config = config
        self._identity = identity
        self._threads = Threads(config.max_concurrent_tasks)
        self._waker = Waker(engine, names, config, on_woken=self._expect_now)

        def make_writer() -> Writer:
            return Writer(engine, names, identity, config, on_done=self._waker.wake, on_due=self._expect_now)

        writers = [make_writer() for _ in range(_WRITERS)]
        # To insert an execution may have to wait for an app that has started one of the same id and not committed.
        starter = make_writer()
        self._writers = (*writers, starter)
        services = Services(
            starter=starter,
            reader=Reader(engine, names, clock, config),
            transactions=Transactions(
                engine,
                names,
                identity,
                clock,
                config,
                sessionmaker,
                on_done=self._waker.wake,
                on_checkpoint=self._trust,
            ),
            threads=self._threads,
            clock=clock,
            on_checkpoint=self._trust,
        )

        self._dispatcher = Dispatcher(
            registry,
            writers,
            lambda task, writer: TaskRecorder(task, writer, services),
            slots=config.max_concurrent_tasks,
            on_suspended=self._expect,
            on_unsettled=self._doubt,
        )
        self._poller = Poller(engine, names, identity, registry, config, clock, self._dispatcher, self._writing)
        news = News(
            on_work=self._poller.wake,
            on_cancelled=self._stop_cancelled,
            on_child_cancelled=self._look_for_children,
            on_ended=scheduler.ends.tell,
            on_lost=self._dispatcher.give_up,
            on_dead=self._die,
            on_alive=self._rise,
        )
        self._liveness = Liveness(engine, names, identity, config, clock, self._dispatcher.held, news)
        self._loops: list[asyncio.Task[None]] = []
        self._open = contextlib.ExitStack()
        self._is_hurried = asyncio.Event()

    async def open(self) -> None:
        try:
            await self._liveness.start()
        except BaseException:
            await self._liveness.stop(has_left_work=False)
            raise
        self._scheduler.note_loop()
        self._open.enter_context(self._scheduler.ends.fed())
        self._scheduler.wake_ups.add_listener(self._poller.wake)
        self._open.callback(self._scheduler.wake_ups.remove_listener, self._poller.wake)
        parts: tuple[Poller | Writer | Waker, ...] = (self._poller, *self._writers, self._waker)
        self._loops = [
            asyncio.create_task(part.run(), name=f"zart_sqla: {type(part).__name__.lower()}") for part in parts
        ]

    def hurry(self) -> None:
        self._is_hurried.set()

    async def close(self) -> None:
        try:
            await self._wind_down()
        finally:  # even if the loop is being torn down: this frees the tasks
            self._open.close()
            self._threads.close()
            await self._liveness.stop(has_left_work=self._dispatcher.handed_back)
        logger.info("worker %s has stopped", self._identity.worker_id)

    async def _wind_down(self) -> None:
        poller, *others = self._loops
        self._poller.stop()
        self._waker.leave()
        await self._let_finish(poller)
        for writer in self._writers:
            writer.hurry()
        poller.cancel()  # before the turns are stopped: no claim that is still under way may start another
        await asyncio.gather(poller, return_exceptions=True)
        self._dispatcher.stop_all(StopReason.SHUTDOWN)
        if not await self._dispatcher.wait(_CANCELLATION_SECONDS):
            self._dispatcher.abandon()
        with contextlib.suppress(TimeoutError):  # the database is away: what is not written will run again
            async with asyncio.timeout(_FLUSH_SECONDS):
                for writer in self._writers:
                    await writer.flush()
                await self._waker.flush()
        for part in others:
            part.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _let_finish(self, poller: asyncio.Task[None]) -> None:
        """Wait until nothing is claimed any more and nothing runs, the time is over, or somebody is in a hurry."""

        async def finish() -> None:
            await asyncio.wait({poller})  # a claim that is under way starts turns
            await self._dispatcher.wait()

        waits = [asyncio.ensure_future(wait) for wait in (finish(), self._is_hurried.wait())]
        await asyncio.wait(waits, timeout=self._config.shutdown_seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    def _expect(self, due_at: datetime | None) -> None:
        self._poller.expect(due_at)

    def _expect_now(self) -> None:
        self._poller.wake()

    def _trust(self, task: ClaimedTask) -> None:
        self._dispatcher.trust(task)

    def _writing(self) -> set[UUID]:
        return set[UUID]().union(*(writer.task_ids for writer in self._writers))

    def _doubt(self) -> None:
        self._poller.doubt()

    def _die(self) -> None:
        self._poller.pause()
        self._dispatcher.stop_all(StopReason.LEASE_LOST)

    def _rise(self) -> None:
        self._poller.resume()
        self._scheduler.ends.tell_all()

    def _stop_cancelled(self, run_id: str) -> None:
        self._dispatcher.stop_run(run_id, StopReason.CANCELLED)

    def _look_for_children(self, run_id: str) -> None:
        self._waker.wake([UUID(run_id)])


@contextlib.contextmanager
def _signals_stop(worker: Worker, asked: asyncio.Event) -> Generator[None]:
    """Have SIGTERM and SIGINT stop the worker, where nobody else has a handler for them.

    (`asyncio.run` has one for SIGINT: it cancels the app's main task, and so, if that runs the worker, stops it.)
    """
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if asked.is_set() or worker.is_stopping:  # somebody is in a hurry
            worker.hurry()
        asked.set()

    taken: list[int] = []
    if threading.current_thread() is threading.main_thread():
        defaults: tuple[Any, ...] = (signal.SIG_DFL, signal.default_int_handler)
        taken = [number for number in (signal.SIGTERM, signal.SIGINT) if signal.getsignal(number) in defaults]
    for number in taken:
        loop.add_signal_handler(number, stop)
    try:
        yield
    finally:
        for number in taken:
            loop.remove_signal_handler(number)
