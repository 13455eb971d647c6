"""The command that works: one worker in this process, or a supervisor of several processes."""

import asyncio
import contextlib
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any, Final

import typer

from zart_sqla.cli import logs, options
from zart_sqla.cli.database import Database, run
from zart_sqla.cli.exits import EXPECTED, fail
from zart_sqla.cli.loading import load_registry
from zart_sqla.cli.logs import LogFormat, LogLevel
from zart_sqla.cli.signals import Stops, end_now
from zart_sqla.cli.supervisor import supervise
from zart_sqla.config import PoolConfig, WorkerConfig
from zart_sqla.runtime.handlers import TaskRegistry
from zart_sqla.worker.process import make_runner
from zart_sqla.worker.worker import Worker

logger: Final = logging.getLogger("zart_sqla.cli")

_HURRY_SECONDS: Final = 5.0  # a hurried worker cancels what runs, and hands it back
_THREAD_SECONDS: Final = 1.0  # how long threads have to end by themselves
_DEFAULT: Final = WorkerConfig()


def worker(  # noqa: PLR0913, PLR0917 - options
    registry: Annotated[
        str, typer.Argument(metavar="MODULE:REGISTRY", help="The TaskRegistry, such as myapp.jobs:registry.")
    ],
    processes: Annotated[
        int, typer.Option("--processes", metavar="N", min=1, help="Run so many worker processes, and restart them.")
    ] = 1,
    concurrency: Annotated[
        int, typer.Option("--concurrency", metavar="N", help="How many tasks a process runs at once.")
    ] = _DEFAULT.max_concurrent_tasks,
    queue: Annotated[
        list[str] | None,
        typer.Option("--queue", metavar="QUEUE", help="Serve this queue; can be repeated. Default: all queues."),
    ] = None,
    poll_interval: Annotated[
        str, typer.Option("--poll-interval", metavar="DURATION", help="How often to look for work unasked.")
    ] = "5s",
    shutdown_timeout: Annotated[
        str,
        typer.Option("--shutdown-timeout", metavar="DURATION", help="How long running tasks may finish on a stop."),
    ] = "30s",
    lease_timeout: Annotated[
        str,
        typer.Option("--lease-timeout", metavar="DURATION", help="How long tasks stay its own without a heartbeat."),
    ] = "30s",
    pool_size: Annotated[
        int, typer.Option("--pool-size", metavar="N", help="How many connections a process has at most.")
    ] = 20,
    log_format: Annotated[LogFormat, typer.Option("--log-format", help="How to log.")] = LogFormat.TEXT,
    log_level: Annotated[LogLevel, typer.Option("--log-level", help="How much to log.")] = LogLevel.INFO,
    check: Annotated[
        bool, typer.Option("--check", help="Only see whether a worker could start: registry, database, tables.")
    ] = False,
    url: options.Url = None,
    prefix: options.Prefix = None,
    schema: options.Schema = None,
    tethered: Annotated[
        bool, typer.Option("--tethered", hidden=True, help="Stop when the standard input ends.")
    ] = False,
) -> None:
    """Run workflows until SIGTERM or SIGINT; a second one does not wait for what runs."""
    database = Database.named(url, prefix, schema)
    config = WorkerConfig(
        max_concurrent_tasks=concurrency,
        queues=queue or None,
        poll_interval=_duration(poll_interval),
        shutdown_timeout=_duration(shutdown_timeout),
        lease_timeout=_duration(lease_timeout),
    )
    pool = PoolConfig(max_connections=pool_size, min_connections=min(2, pool_size))
    logs.configure(log_format, log_level)
    if processes > 1 and not check:
        given = {
            "--concurrency": concurrency,
            "--poll-interval": poll_interval,
            "--shutdown-timeout": shutdown_timeout,
            "--lease-timeout": lease_timeout,
            "--pool-size": pool_size,
            "--log-format": log_format.value,
            "--log-level": log_level.value,
            "--url": url,
            "--prefix": prefix,
            "--schema": schema,
        }
        queues = [part for name in queue or () for part in ("--queue", name)]
        raise typer.Exit(supervise([registry, *queues, *_arguments(given)], processes))
    loaded = load_registry(registry)
    if check:
        run(_check(database))
        typer.echo(f"{registry}: ready to run {', '.join(loaded.names)}")
        return
    raise typer.Exit(_Process(database, loaded, config, pool).work(is_tethered=tethered))


def _duration(text: str) -> Any:
    return options.duration(text)


def _arguments(given: Mapping[str, object]) -> list[str]:
    return [part for name, value in given.items() if value is not None for part in (name, str(value))]


async def _check(database: Database) -> None:
    async with database.open():
        pass


class _Process:
    """One worker, its event loop, and the end of the process."""

    def __init__(self, database: Database, registry: TaskRegistry, config: WorkerConfig, pool: PoolConfig) -> None:
        self._database = database
        self._registry = registry
        self._config = config
        self._pool = pool
        self._stops = Stops(self._stop, self._hurry, patience=_HURRY_SECONDS)
        self._executor = ThreadPoolExecutor(thread_name_prefix="zart-default")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = asyncio.Event()
        self._worker: Worker | None = None

    def work(self, *, is_tethered: bool) -> int:
        """Work until stopped, and return the exit code."""
        runner = make_runner()
        with self._stops.installed():
            if is_tethered:
                threading.Thread(target=self._wait_for_input_to_end, name="zart-tether", daemon=True).start()
            try:
                code, is_clean = runner.run(self._main())
            except EXPECTED as error:  # told here, since a thread may keep the process from ending by itself
                code, is_clean = fail(error), True
            self._leave_if_stuck(code, is_clean=is_clean)
            runner.close()
        return code

    async def _main(self) -> tuple[int, bool]:
        """Work, and return the exit code and whether nothing goes on any more."""
        self._loop = asyncio.get_running_loop()
        self._loop.set_default_executor(self._executor)
        if self._stops.is_asked:  # by a signal before there was a loop
            self._stopping.set()
        working = asyncio.create_task(self._work(), name="zart: work")
        stopping = asyncio.create_task(self._stopping.wait(), name="zart: stop")
        await asyncio.wait({working, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            working.cancel()  # to the worker this is a graceful stop
        stopping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await working
        return self._stops.exit_code, await _all_ended()

    async def _work(self) -> None:
        async with self._database.connect(self._pool) as scheduler:
            self._worker = Worker(scheduler, self._registry, self._config)
            await self._worker.run()

    def _stop(self) -> None:
        self._call(self._begin_to_stop)

    def _begin_to_stop(self) -> None:
        logger.info("stopping: no more tasks are taken; a second signal does not wait for those that run")
        self._stopping.set()

    def _hurry(self) -> None:
        self._call(self._hand_back)

    def _hand_back(self) -> None:
        logger.warning("a second signal: what runs goes back to the queue")
        if self._worker is not None:
            self._worker.hurry()

    def _call(self, function: Callable[[], None]) -> None:
        """Call the function on the loop, out of reach of what the signal interrupted."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(function)

    def _wait_for_input_to_end(self) -> None:
        # Not sys.stdin.read(): its lock must not be held by a thread when the interpreter ends.
        while os.read(sys.stdin.fileno(), 1024):
            pass
        self._stops.first()

    def _leave_if_stuck(self, code: int, *, is_clean: bool) -> None:
        """End the process here if something would keep it from ending: a thread, or a task that ignores its end."""
        self._executor.shutdown(wait=False, cancel_futures=True)
        stray = _stray_threads(_THREAD_SECONDS)
        if is_clean and not stray:
            return
        names = ", ".join(thread.name for thread in stray) or "a task"
        logger.warning("the process ends although something still runs in it: %s", names)
        logging.shutdown()
        end_now(code)


async def _all_ended() -> bool:
    """Cancel all other tasks of the loop, and return whether they end."""
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    if others:
        _, pending = await asyncio.wait(others, timeout=_THREAD_SECONDS)
        return not pending
    return True


def _stray_threads(seconds: float) -> list[threading.Thread]:
    """Return the threads that would keep the process from ending, after giving them a while."""
    deadline = time.monotonic() + seconds
    stray = [thread for thread in threading.enumerate() if _keeps_process(thread)]
    for thread in stray:
        thread.join(max(0.0, deadline - time.monotonic()))
    return [thread for thread in stray if thread.is_alive()]


def _keeps_process(thread: threading.Thread) -> bool:
    return thread is not threading.current_thread() and not thread.daemon
