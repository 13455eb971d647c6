"""PgQueuer: asyncpg and uvloop, one manager.

What a job returns is not stored: so the starter of `latency` sees its status, and its beginning is noted in a file.

Settings, the best of those that were tried side by side, no-op jobs/s with 100 at once unless said otherwise:

- One manager whose batches are of as many jobs as may be under way at once, without a cap: 7,248 at best. Its cap has
  to be twice its batch, and a manager that has reached it waits for 0.1 s or a notification: a batch of 50 and a cap
  of 100 did 4,131, and with 10 at once 2,761, where a batch of 10 did 5,423. Jobs that do nothing do not pile up.
- Its own benchmark has 5 managers with batches of 10: 3,157. 2 and 5 managers with batches of 50 and 20: 5,846 and
  5,495. A batch of 500, for 100 at once, did 12,049; with 500 at once it did 17,665, and 2 of 250 18,167.
- Its settings for autovacuum, as it recommends: without them it was as quick. Its tables are all logged, its default.
- `latency`: a batch of one, as the ends of jobs are written when there are as many of them as in a batch, or after
  0.1 s: with batches of 2 and 10 a result was seen after 107 and 110 ms. The starter is notified, and does not wait
  for further news (`debounce`) before it looks.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import timedelta
from functools import partial
from tempfile import NamedTemporaryFile
from typing import Any

import asyncpg
from pgqueuer import PgQueuer
from pgqueuer.core.completion import CompletionWatcher
from pgqueuer.db import AsyncpgDriver
from pgqueuer.models import Job
from pgqueuer.queries import Queries

from benchmarks.contenders import app_rows, common, crews, latencies, notes, takeover
from benchmarks.contenders.common import Meter, Options

COPIES = [{"table": "pgqueuer_log", "changes": {"id": "-10 * n - seed.id", "job_id": "-n"}}]
"""The rows of a finished job, and what tells those of another one from them."""
LOADED_BATCH = 100
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
meter = Meter()


async def no_op(_: Job) -> None:
    """Do nothing at all."""
    meter.tick()


async def note(job: Job) -> None:
    """Note that it begins."""
    notes.add(file_of(job))


async def hang(job: Job) -> None:
    """Note that it begins, and take long."""
    notes.add(file_of(job))
    await asyncio.sleep(3600)


def file_of(job: Job) -> str:
    """Return the file that a job was given."""
    return (job.payload or b"").decode()


def manager_of(connection: asyncpg.Connection[Any]) -> PgQueuer:
    """Return a manager that knows the jobs."""
    manager = PgQueuer.from_asyncpg_connection(connection)
    for job in (no_op, note, hang):
        manager.entrypoint(job.__name__)(job)
    return manager


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncGenerator[asyncpg.Connection[Any]]:
    """Yield a connection."""
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


@contextlib.asynccontextmanager
async def prepared(url: str) -> AsyncGenerator[Queries]:
    """Yield what enqueues in the database, which has its tables now, vacuumed as it recommends."""
    async with connected(url) as connection:
        queries = Queries(AsyncpgDriver(connection))
        if await connection.fetchval("SELECT to_regclass('pgqueuer')") is None:
            await queries.install()
            await queries.optimize_autovacuum()
        yield queries


async def enqueue_no_ops(queries: Queries, count: int, payload: bytes | None = None) -> None:
    """Enqueue that many jobs which do nothing, at once."""
    await queries.enqueue(["no_op"] * count, [payload] * count, [0] * count)


def nothing_left(connection: asyncpg.Connection[Any]) -> Callable[[], Awaitable[Any]]:
    """Return what tells whether no job is left."""

    async def is_done() -> Any:
        return await connection.fetchval("SELECT NOT EXISTS (SELECT FROM pgqueuer)")

    return is_done


@contextlib.asynccontextmanager
async def working(url: str, **settings: Any) -> AsyncGenerator[None]:
    """Work while in the context."""
    async with connected(url) as connection:
        manager = manager_of(connection)
        worker = asyncio.create_task(manager.run(**settings))
        yield
        manager.shutdown.set()
        await worker


async def drain_no_ops(url: str, options: Options, _: Meter) -> None:
    """Drain jobs that do nothing."""
    async with prepared(url) as queries, connected(url) as watching:
        await enqueue_no_ops(queries, options.units, common.text(options.payload).encode())
        meter.begin()
        async with working(url, batch_size=options.concurrency):
            await common.until(nothing_left(watching), is_near=lambda: meter.count >= options.units)
            meter.end(options.units)


async def drain_by_several(url: str, options: Options, _: Meter) -> None:
    """Have several processes drain jobs."""
    async with prepared(url) as queries, connected(url) as watching:
        await enqueue_no_ops(queries, options.units)
        await crews.drain(url, options, meter, options.units, nothing_left(watching))


async def work(url: str, options: Options, _: Meter) -> None:
    """Be a worker until a signal comes."""
    meter.begin()
    async with connected(url) as connection:
        await manager_of(connection).run(**{"batch_size": options.concurrency, **options.more})


async def latency(url: str, options: Options, _: Meter, *, batch_size: int) -> None:
    """Enqueue jobs one after the other, for a worker in another process, which is notified, as the starter is."""
    with NamedTemporaryFile() as file:
        async with prepared(url) as queries, connected(url) as listening, connected(url) as loading:
            driver = AsyncpgDriver(listening)
            worker = common.spawn("work", url, more={"batch_size": batch_size})
            try:
                async with CompletionWatcher(driver, queries=Queries(driver), debounce=timedelta()) as watcher:

                    async def run() -> Any:
                        (job_id,) = await queries.enqueue("note", file.name.encode())
                        await watcher.wait_for(job_id)
                        return notes.read(file.name)[-1].nanoseconds

                    async def start_others(count: int) -> None:
                        await enqueue_no_ops(Queries(AsyncpgDriver(loading)), count)

                    await latencies.measure(options, meter, run, start_others)
            finally:
                common.stop(worker)


async def starts(url: str, options: Options, _: Meter) -> None:
    """Enqueue jobs one after the other."""
    async with prepared(url) as queries:
        meter.begin()
        for _number in range(options.units):
            await queries.enqueue("no_op", common.text(options.payload).encode())
        meter.end(options.units)


async def starts_bulk(url: str, options: Options, _: Meter) -> None:
    """Enqueue jobs all at once."""
    async with prepared(url) as queries:
        meter.begin()
        await enqueue_no_ops(queries, options.units, common.text(options.payload).encode())
        meter.end(options.units)


async def starts_transactional(url: str, options: Options, _: Meter) -> None:
    """Enqueue jobs on asyncpg connections of the app's, in its transactions, each with a row of its own."""
    left = iter(range(options.units))

    async def session(connection: asyncpg.Connection[Any]) -> None:
        queries = Queries(AsyncpgDriver(connection))
        for _ in left:
            async with connection.transaction():
                await connection.execute(app_rows.INSERT)
                await queries.enqueue("no_op", common.text(options.payload).encode())

    async with prepared(url), contextlib.AsyncExitStack() as stack:
        connections = [await stack.enter_async_context(connected(url)) for _ in range(options.concurrency)]
        await connections[0].execute(app_rows.CREATE)
        meter.begin()
        await asyncio.gather(*map(session, connections))
        meter.end(options.units)


async def kill(url: str, options: Options, _: Meter) -> None:
    """Kill the process that has a job; its heartbeat is missed after 30 s, by workers that look for work every 30 s."""
    async with prepared(url) as queries:
        await takeover.kill(url, options, meter, lambda file: queries.enqueue("hang", file.encode()))


async def idle(url: str, options: Options, _: Meter) -> None:
    """Be a worker that has nothing to do, for some seconds."""
    async with prepared(url):
        pass
    async with working(url):
        await asyncio.sleep(options.more["settle"])
        meter.begin()
        await asyncio.sleep(options.more["seconds"])
        meter.end(1)


async def leave_history(url: str, _: Options, __: Meter) -> None:
    """Have one job, whose rows are to be copied."""
    async with prepared(url) as queries, connected(url) as watching:
        await enqueue_no_ops(queries, 1)
        meter.begin()
        async with working(url):
            await common.until(nothing_left(watching))
        meter.end(1, copies=COPIES)


if __name__ == "__main__":
    common.main(
        {
            "drain": drain_no_ops,
            "drain-processes": drain_by_several,
            "latency": partial(latency, batch_size=1),
            "latency-loaded": partial(latency, batch_size=LOADED_BATCH),
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
