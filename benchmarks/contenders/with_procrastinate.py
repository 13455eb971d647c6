"""Procrastinate: async jobs, workers in one process on a psycopg pool.

A job's return value is not stored: so the starter of `latency` sees its status, and its beginning is noted in a file.

Settings, the best of those that were tried side by side, no-op jobs/s with 100 at once unless said otherwise:

- A pool of 10 connections of one's own. The one that it makes checks a connection each time: pools of 2, 10, 20 and 101
  of its own making did 809, 849, 668 and 780 at best with one worker, and 982 without the check.
- 3 workers in the process, as each fetches one job after the other: with 2, 3 and 4 of them 1,073, 1,232 and 1,085;
  pools of 5, 20 and 50 for 2 of them 1,053, 1,342 and 1,255, but 888 and 894 in the median, where 3 had 1,141.
- Finished jobs are kept, which is its default.
- `latency`: it listens, and polls every 50 ms beside, as it misses a notification that comes while it fetches: with
  its default of 5 s, one job of 60 waited for that long. Every 1, 5 and 10 ms was no quicker in the median.
- An app's session is a sync one in a thread; async ones were as quick.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Generator
from concurrent.futures import ThreadPoolExecutor
from tempfile import NamedTemporaryFile
from typing import Any

import psycopg
import psycopg_pool
from procrastinate import App, PsycopgConnector, SyncPsycopgConnector

from benchmarks.contenders import app_rows, common, crews, drains, latencies, notes, takeover
from benchmarks.contenders.common import Meter, Options

CONNECTIONS = 10
WORKERS = 3
LOWEST_POLL_SECONDS = 0.001
WORKER_POLL_SECONDS = 0.05
UNDONE = "SELECT FROM procrastinate_jobs WHERE status IN ('todo', 'doing')"
COPIES = [
    {"table": "procrastinate_jobs", "changes": {"id": "-n"}},
    {"table": "procrastinate_events", "changes": {"id": "-10 * n - seed.id", "job_id": "-n"}},
]
"""The rows of a finished job, and what tells those of another one from them."""
NO_STEPS = "its jobs have no steps: one that is run again begins anew"
NO_SILENCE = "each start notifies, by a trigger, in its transaction"
NO_WAIT = "a job that has begun cannot wait without its place in a worker"
CANNOT = {
    **dict.fromkeys(("steps", "steps-processes", "long", "resume"), NO_STEPS),
    "fan-out": "a job has no result that another could wait for",
    **dict.fromkeys(("starts", "starts-bulk", "starts-transactional"), NO_SILENCE),
    **dict.fromkeys(("sleeping", "waiting"), NO_WAIT),
    "latency-in-process": "its workers are notified wherever they are",
}
app = App(connector=PsycopgConnector())
meter = Meter()


@app.task(name="no_op")
async def no_op(value: Any) -> Any:
    """Do nothing at all."""
    meter.tick()
    return value


@app.task(name="note")
async def note(file: str) -> None:
    """Note that it begins."""
    notes.add(file)


@app.task(name="hang")
async def hang(file: str) -> None:
    """Note that it begins, and take long."""
    notes.add(file)
    await asyncio.sleep(3600)


async def retry_stalled_jobs(context: Any, timestamp: int) -> None:  # noqa: ARG001
    """Retry the jobs of workers that are gone."""
    for job in await app.job_manager.get_stalled_jobs():
        await app.job_manager.retry_job(job)


@contextlib.asynccontextmanager
async def opened(url: str) -> AsyncGenerator[None]:
    """Have the app open."""
    pool = psycopg_pool.AsyncConnectionPool(url, min_size=1, max_size=CONNECTIONS, open=False)
    async with pool:
        with app.replace_connector(PsycopgConnector(conninfo=url)):
            async with app.open_async(pool):
                yield


@contextlib.contextmanager
def prepared(url: str) -> Generator[None]:
    """Have the app open for sync code, and its schema in the database."""
    with app.replace_connector(SyncPsycopgConnector(conninfo=url)), app.open():
        app.schema_manager.apply_schema()
        yield


@contextlib.asynccontextmanager
async def watching(url: str) -> AsyncGenerator[psycopg.AsyncConnection[Any]]:
    """Have the app open, and its schema in the database; yield a connection that looks how far workers have come."""
    async with opened(url), await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        cursor = await connection.execute("SELECT to_regclass('procrastinate_jobs')")
        if await cursor.fetchone() == (None,):
            await app.schema_manager.apply_schema_async()
        yield connection


@contextlib.asynccontextmanager
async def working(concurrency: int, **settings: Any) -> AsyncGenerator[None]:
    """Work by several workers while in the context."""
    count = min(concurrency, WORKERS)
    shares = [len(range(number, concurrency, count)) for number in range(count)]
    settings["install_signal_handlers"] = False
    running = [app.run_worker_async(concurrency=share, **settings) for share in shares]
    workers = [asyncio.create_task(one) for one in running]
    yield
    for worker in workers:
        worker.cancel()
    await asyncio.gather(*workers, return_exceptions=True)


async def drain_no_ops(url: str, options: Options, _: Meter) -> None:
    """Drain jobs that do nothing."""
    async with watching(url) as connection:
        await no_op.batch_defer_async(*[{"value": common.text(options.payload)}] * options.units)
        meter.begin()
        async with working(options.concurrency):
            await drains.drained(connection, UNDONE, meter, options.units)
            meter.end(options.units)


async def drain_by_several(url: str, options: Options, _: Meter) -> None:
    """Have several processes drain jobs."""
    async with watching(url) as connection:
        await no_op.batch_defer_async(*[{"value": None}] * options.units)
        await crews.drain(url, options, meter, options.units, drains.nothing_left(connection, UNDONE))


async def work(url: str, options: Options, _: Meter) -> None:
    """Be a worker until a signal comes, with the periodic task of the documentation, which retries stalled jobs."""
    meter.begin()
    task = app.task(name="rescue", queueing_lock="retry_stalled_jobs", pass_context=True)(retry_stalled_jobs)
    app.periodic(cron="*/10 * * * *")(task)
    async with opened(url), working(options.concurrency, **options.more):
        await asyncio.Event().wait()


async def latency(url: str, options: Options, _: Meter) -> None:
    """Defer jobs one after the other, for a worker in another process, which listens; poll their status."""
    with NamedTemporaryFile() as file:

        async def run() -> Any:
            job_id = await note.defer_async(file=file.name)
            while (await app.job_manager.get_job_status_async(job_id)).value != "succeeded":  # noqa: ASYNC110
                await asyncio.sleep(LOWEST_POLL_SECONDS)
            return notes.read(file.name)[-1].nanoseconds

        async def start_others(count: int) -> None:
            await no_op.batch_defer_async(*[{"value": None}] * count)

        async with watching(url):
            settings = {"fetch_job_polling_interval": WORKER_POLL_SECONDS}
            worker = common.spawn("work", url, concurrency=options.concurrency, more=settings)
            try:
                await latencies.measure(options, meter, run, start_others)
            finally:
                common.stop(worker)


def starts(url: str, options: Options, _: Meter) -> None:
    """Defer jobs one after the other, on a connection."""
    with prepared(url), psycopg.connect(url, autocommit=True) as connection:
        meter.begin()
        for _number in range(options.units):
            no_op.configure(connection=connection).defer(value=common.text(options.payload))
        meter.end(options.units)


async def starts_bulk(url: str, options: Options, _: Meter) -> None:
    """Defer jobs all at once."""
    async with watching(url):
        meter.begin()
        await no_op.batch_defer_async(*[{"value": common.text(options.payload)}] * options.units)
        meter.end(options.units)


def starts_transactional(url: str, options: Options, _: Meter) -> None:
    """Defer jobs on psycopg connections of the app's, in its transactions, each with a row of its own."""
    left = iter(range(options.units))

    def session(connection: psycopg.Connection[Any]) -> None:
        for _ in left:
            with connection.transaction():
                connection.execute(app_rows.INSERT)
                no_op.configure(connection=connection).defer(value=common.text(options.payload))

    with prepared(url), contextlib.ExitStack() as stack:
        opening = (psycopg.connect(url, autocommit=True) for _ in range(options.concurrency))
        connections = [stack.enter_context(one) for one in opening]
        connections[0].execute(app_rows.CREATE)
        threads = stack.enter_context(ThreadPoolExecutor(options.concurrency))
        meter.begin()
        list(threads.map(session, connections))
        meter.end(options.units)


async def kill(url: str, options: Options, _: Meter) -> None:
    """Kill the process that has a job; it is found every ten minutes that it stalled."""
    async with watching(url):
        await takeover.kill(url, options, meter, lambda file: hang.defer_async(file=file))


async def idle(url: str, options: Options, _: Meter) -> None:
    """Be a worker that has nothing to do, for some seconds."""
    async with watching(url):
        pass
    async with opened(url):
        worker = asyncio.create_task(app.run_worker_async(install_signal_handlers=False))
        await asyncio.sleep(options.more["settle"])
        meter.begin()
        await asyncio.sleep(options.more["seconds"])
        meter.end(1)
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)


async def leave_history(url: str, options: Options, _: Meter) -> None:
    """Have one job, whose rows are to be copied."""
    async with watching(url) as connection:
        await no_op.defer_async(value=None)
        meter.begin()
        async with working(options.concurrency):
            await common.until(drains.nothing_left(connection, UNDONE))
        meter.end(1, copies=COPIES)


if __name__ == "__main__":
    common.main(
        {
            "drain": drain_no_ops,
            "drain-processes": drain_by_several,
            "latency": latency,
            "latency-loaded": latency,
            "starts-notified": starts,
            "starts-bulk-notified": starts_bulk,
            "starts-transactional-notified": starts_transactional,
            "history": leave_history,
            "kill": kill,
            "idle": idle,
            "work": work,
        },
        cannot=CANNOT,
    )
