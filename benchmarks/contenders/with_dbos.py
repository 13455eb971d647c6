"""DBOS Transact: async workflows on a queue, one worker process.

Settings, the best of those that were tried side by side:

- Pool of 20 connections, its default, and 16 executor threads. With 100 runs at once these did 393 steps/s at best; a
  pool of 20 without a limit of threads 366, 10 and 10 threads 366, 5 and 8 threads 349, sync workflows 365. With 500
  at once 350, 218, 303, 337 and 357.
- The queue is polled every 50 ms: each time, it takes up what may run at once. Every 250, 100, 20 and 5 ms: 300, 530,
  810 and 1,000 no-op runs/s with 100 at once, where 50 ms did 900 and took less of the processor. With one at once it
  is polled every ms: 108 runs/s at best, and 55 with 5 ms.
- A child's result is asked for when the one before it is there. To ask for all at once took a third more of the
  processor, at the same rate.
- An app's session is a sync one in a thread: 1,240 starts/s from 10 of them, and 1,010 by `run_sync` from async ones.
- An idle worker polls its queue every second, its default.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any
from uuid import uuid4

import psycopg
import sqlalchemy
from dbos import DBOS, DBOSClient, SendMessage

from benchmarks.contenders import app_rows, common, crews, drains, latencies, notes, takeover, waits
from benchmarks.contenders.common import STEPS, Meter, Options
from benchmarks.contenders.waits import Waiting

IDLE_POLL_SECONDS = 1.0
SLEEPERS_A_SECOND = 50
"""How many runs are put to sleep, at least."""
MESSAGES_AT_ONCE = 1000
NAME = "bench"
QUEUE = "bench"
POLL_SECONDS = 0.05
LOWEST_POLL_SECONDS = 0.001
UNDONE = "SELECT FROM dbos.workflow_status WHERE queue_name = 'bench' AND status IN ('ENQUEUED', 'PENDING')"
STEPS_UNDER_WAY = """
    SELECT count(*) FROM dbos.operation_outputs JOIN dbos.workflow_status USING (workflow_uuid) WHERE status = 'PENDING'
"""
WORKFLOW_ID = "md5(n::text)::uuid::text"
COPIES = [
    {"table": f"dbos.{table}", "changes": {"workflow_uuid": WORKFLOW_ID}}
    for table in ("workflow_status", "workflow_input", "workflow_output", "operation_outputs")
]
"""The rows of a finished run, and what tells those of another one from them."""
NO_NOTIFY = "to enqueue notifies nobody: its workers poll"
CANNOT = {
    "starts-notified": NO_NOTIFY,
    "starts-bulk-notified": NO_NOTIFY,
    "starts-transactional-notified": NO_NOTIFY,
}
meter = Meter()


@DBOS.step()
async def nothing(value: Any) -> Any:
    """Do nothing, durably."""
    return value


@DBOS.step()
async def read_clock() -> int:
    """Tell when it began, by the clock that all processes of a machine share, in nanoseconds."""
    return time.monotonic_ns()


@DBOS.step()
async def note_and_sleep(file: str) -> None:
    """Note that it begins, and sleep for long."""
    notes.add(file)
    await asyncio.sleep(3600)


@DBOS.workflow()
async def no_op(value: Any) -> Any:
    """Do nothing at all."""
    meter.tick()
    return value


@DBOS.workflow()
async def five_steps(value: Any) -> Any:
    """Run five steps that do nothing."""
    meter.tick()
    for _ in range(STEPS):
        value = await nothing(value)
    return value


@DBOS.workflow()
async def one_step() -> Any:
    """Tell when its only step began."""
    return await read_clock()


@DBOS.workflow()
async def long_run(steps: int) -> int:
    """Run many steps, one after the other."""
    with meter.lap():
        for number in range(steps):
            await nothing(number)
    meter.tick()
    return steps


@DBOS.workflow()
async def fan_out(children: int) -> int:
    """Have many children on the queue."""
    meter.tick()
    enqueued = [DBOS.enqueue_workflow_async(QUEUE, no_op, number) for number in range(children)]
    handles = await asyncio.gather(*enqueued)
    return len([await handle.get_result(polling_interval_sec=POLL_SECONDS) for handle in handles])


@DBOS.workflow()
async def hang(file: str, steps: int) -> None:
    """Run so many steps, and then one that notes that it begins, and takes long."""
    for number in range(steps):
        await nothing(number)
    await note_and_sleep(file)


@DBOS.workflow()
async def sleeper(until: float) -> None:
    """Sleep until that moment."""
    await DBOS.sleep_async(until - time.time())


@DBOS.workflow()
async def waiter() -> None:
    """Wait for a message, after a step that tells others that it is about to."""
    await nothing(None)
    await DBOS.recv_async("go", timeout_seconds=3600)


def queued(workflow: str) -> Any:
    """Return the options that enqueue a workflow."""
    return {"workflow_name": workflow, "queue_name": QUEUE}


def engine_of(url: str, sessions: int = 1) -> sqlalchemy.Engine:
    """Return an engine for as many of the app's sessions."""
    psycopg_url = sqlalchemy.make_url(url).set(drivername="postgresql+psycopg")
    return sqlalchemy.create_engine(psycopg_url, pool_size=sessions)


@contextlib.contextmanager
def prepared(url: str, concurrency: int, poll_seconds: float | None = None) -> Generator[DBOSClient]:
    """Yield a client of the database, which has DBOS's tables and a queue now."""
    DBOS.migrate(url)
    client = DBOSClient(system_database_url=url, application_name=NAME)
    interval = poll_seconds or min(POLL_SECONDS, max(LOWEST_POLL_SECONDS, concurrency / 2000))
    client.register_queue(QUEUE, worker_concurrency=concurrency, polling_interval_sec=interval)
    try:
        yield client
    finally:
        client.destroy()


@contextlib.contextmanager
def launched(url: str, executor_id: str | None = None) -> Generator[None]:
    """Work on the queue while in the context; take up what a process of the same id had, if one is given."""
    DBOS(
        config={
            "name": NAME,
            "executor_id": executor_id or str(uuid4()),  # it is to be unique where there are several processes
            "system_database_url": url,
            "sys_db_pool_size": 20,
            "max_executor_threads": 16,
            "log_level": "ERROR",
        }
    )
    DBOS.launch()
    try:
        yield
    finally:
        DBOS.destroy()


def enqueue(url: str, client: DBOSClient, workflow: str, *runs: tuple[Any, ...]) -> None:
    """Enqueue a run for each tuple of arguments, in one transaction."""
    engine = engine_of(url)
    with engine.begin() as connection:
        for arguments in runs:
            client.enqueue_in_transaction(connection, queued(workflow), *arguments)
    engine.dispose()


@contextlib.asynccontextmanager
async def watching(url: str) -> AsyncGenerator[psycopg.AsyncConnection[Any]]:
    """Yield a connection that looks how far the workers have come."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        yield connection


async def drain(url: str, options: Options, *, workflow: str, value: Any, units: int) -> None:
    """Have a worker drain `options.units` runs."""
    with prepared(url, options.concurrency) as client:
        enqueue(url, client, workflow, *[(value,)] * options.units)
    async with watching(url) as connection:
        meter.begin()
        with launched(url):
            await drains.drained(connection, UNDONE, meter, options.units)
            meter.end(units)


async def drain_no_ops(url: str, options: Options, _: Meter) -> None:
    """Drain runs that do nothing."""
    await drain(url, options, workflow="no_op", value=common.text(options.payload), units=options.units)


async def drain_steps(url: str, options: Options, _: Meter) -> None:
    """Drain runs of five steps."""
    await drain(url, options, workflow="five_steps", value=common.text(options.payload), units=options.units * STEPS)


async def drain_by_several(url: str, options: Options, _: Meter, *, workflow: str, steps: int) -> None:
    """Have several processes drain runs."""
    with prepared(url, options.concurrency) as client:
        enqueue(url, client, workflow, *[(None,)] * options.units)
    async with watching(url) as connection:
        is_done = drains.nothing_left(connection, UNDONE)
        await crews.drain(url, options, meter, options.units * steps, is_done)


async def do_long_runs(url: str, options: Options, _: Meter) -> None:
    """Have runs of many steps, one after the other; what counts is the time in their bodies."""
    steps = options.more["steps"]
    with prepared(url, 1) as client, launched(url):
        async with watching(url) as connection:
            enqueue(url, client, "long_run", (options.more["warm_up"],))
            await drains.drained(connection, UNDONE, meter, 1)
            meter.begin()
            enqueue(url, client, "long_run", *[(steps,)] * (options.units // steps))
            await drains.drained(connection, UNDONE, meter, options.units // steps)
            meter.end(options.units, sum(meter.laps))


async def do_fan_out(url: str, options: Options, _: Meter) -> None:
    """Have one run of many children."""
    with prepared(url, options.concurrency), launched(url):
        meter.begin()
        handle = await DBOS.start_workflow_async(fan_out, options.units)
        await handle.get_result()
        meter.end(options.units)


async def work(url: str, options: Options, _: Meter) -> None:
    """Be a worker until a signal comes."""
    meter.begin()
    with launched(url, options.more.get("executor_id")):
        await asyncio.Event().wait()


async def latency(url: str, options: Options, _: Meter) -> None:
    """Enqueue runs of one step one after the other, for a worker in another process; both poll as often as they can."""
    with prepared(url, options.concurrency, LOWEST_POLL_SECONDS) as client:

        async def run() -> Any:
            handle = await client.enqueue_async(queued("one_step"))
            return await handle.get_result(polling_interval_sec=LOWEST_POLL_SECONDS)

        async def start_others(count: int) -> None:
            for _ in range(count):
                await client.enqueue_async(queued("no_op"), None)

        worker = common.spawn("work", url)
        try:
            await latencies.measure(options, meter, run, start_others)
        finally:
            common.stop(worker)


async def latency_in_process(url: str, options: Options, _: Meter) -> None:
    """Start runs of one step one after the other, without the queue: in this process, which works on them itself."""

    async def run() -> Any:
        handle = await DBOS.start_workflow_async(one_step)
        return await handle.get_result()

    async def start_others(count: int) -> None:
        for _ in range(count):
            await DBOS.start_workflow_async(no_op, None)

    with launched(url):
        await latencies.measure(options, meter, run, start_others)


def starts(url: str, options: Options, _: Meter) -> None:
    """Enqueue runs one after the other."""
    with prepared(url, options.concurrency) as client:
        meter.begin()
        for _number in range(options.units):
            client.enqueue(queued("no_op"), common.text(options.payload))
        meter.end(options.units)


def starts_bulk(url: str, options: Options, _: Meter) -> None:
    """Enqueue runs one after the other in one transaction, as no interface enqueues many workflows at once."""
    with prepared(url, options.concurrency) as client:
        meter.begin()
        enqueue(url, client, "no_op", *[(None,)] * options.units)
        meter.end(options.units)


def starts_transactional(url: str, options: Options, _: Meter) -> None:
    """Enqueue runs in transactions of SQLAlchemy's, each with a row of the app's."""
    engine, left = engine_of(url, options.concurrency), iter(range(options.units))
    with prepared(url, options.concurrency) as client, ThreadPoolExecutor(options.concurrency) as threads:

        def session(_: int) -> None:
            for _ in left:
                with engine.begin() as connection:
                    connection.execute(sqlalchemy.text(app_rows.INSERT))
                    client.enqueue_in_transaction(connection, queued("no_op"), common.text(options.payload))

        with engine.begin() as connection:
            connection.execute(sqlalchemy.text(app_rows.CREATE))
        meter.begin()
        list(threads.map(session, range(options.concurrency)))
        meter.end(options.units)
    engine.dispose()


async def kill(url: str, options: Options, _: Meter) -> None:
    """Kill the process that has a run; without its Conductor, a service of its own, no other process takes it over."""
    with prepared(url, options.concurrency) as client:
        await takeover.kill(url, options, meter, lambda file: client.enqueue_async(queued("hang"), file, 0))


async def resume(url: str, options: Options, _: Meter) -> None:
    """Kill the process that has a long run, and start another one of the same id, which looks for what that had."""
    with prepared(url, options.concurrency) as client:

        async def start(file: str, steps: int) -> None:
            await client.enqueue_async(queued("hang"), file, steps)

        await takeover.resume(url, options, meter, start, executor_id=NAME)


async def idle(url: str, options: Options, _: Meter) -> None:
    """Be a worker that has nothing to do, for some seconds."""
    with prepared(url, options.concurrency, IDLE_POLL_SECONDS):
        pass
    with launched(url):
        await asyncio.sleep(options.more["settle"])
        meter.begin()
        await asyncio.sleep(options.more["seconds"])
        meter.end(1)


async def leave_history(url: str, options: Options, _: Meter) -> None:
    """Have one run of one step, whose rows are to be copied."""
    with prepared(url, options.concurrency) as client, launched(url):
        meter.begin()
        handle = await client.enqueue_async(queued("one_step"))
        await handle.get_result()
        meter.end(1, copies=COPIES)


@contextlib.asynccontextmanager
async def waiting(url: str, options: Options, client: DBOSClient, start: Any, wake: Any) -> AsyncGenerator[Waiting]:
    """Yield how its runs wait: each of them has recorded a step before."""
    async with watching(url) as connection:

        async def warm_up() -> None:
            enqueue(url, client, "no_op", *[(None,)] * 2000)
            await common.until(ended)

        async def all_wait() -> bool:
            cursor = await connection.execute(STEPS_UNDER_WAY)
            row = await cursor.fetchone()
            return row is not None and row[0] >= options.units

        ended = drains.nothing_left(connection, UNDONE)
        yield Waiting(warm_up=warm_up, start=start, all_wait=all_wait, wake=wake, all_ended=ended)


async def have_sleepers(url: str, options: Options, _: Meter) -> None:
    """Have runs that sleep until one moment, all of them under way."""
    alarm = waits.Alarm(options.units / SLEEPERS_A_SECOND)
    with prepared(url, options.units) as client:

        async def start() -> None:
            at = alarm.set()
            await asyncio.to_thread(enqueue, url, client, "sleeper", *[(at,)] * options.units)

        async with waiting(url, options, client, start, alarm.wait) as its:
            await waits.measure(url, options, meter, replace(its, still_wait=alarm.is_ahead))


async def have_waiters(url: str, options: Options, _: Meter) -> None:
    """Have runs that wait for a message each, all of them under way, and send them in bulk."""
    ids = [f"waiter-{number}" for number in range(options.units)]
    with prepared(url, options.units) as client:

        def enqueue_all() -> None:
            engine = engine_of(url)
            with engine.begin() as connection:
                for one in ids:
                    client.enqueue_in_transaction(connection, {**queued("waiter"), "workflow_id": one})
            engine.dispose()

        async def start() -> None:
            await asyncio.to_thread(enqueue_all)

        async def wake() -> None:
            for first in range(0, len(ids), MESSAGES_AT_ONCE):
                messages = [SendMessage(one, None, "go") for one in ids[first : first + MESSAGES_AT_ONCE]]
                await client.send_bulk_async(messages)

        async with waiting(url, options, client, start, wake) as its:
            await waits.measure(url, options, meter, its)


if __name__ == "__main__":
    common.main(
        {
            "drain": drain_no_ops,
            "steps": drain_steps,
            "drain-processes": partial(drain_by_several, workflow="no_op", steps=1),
            "steps-processes": partial(drain_by_several, workflow="five_steps", steps=STEPS),
            "long": do_long_runs,
            "resume": resume,
            "fan-out": do_fan_out,
            "latency": latency,
            "latency-loaded": latency,
            "latency-in-process": latency_in_process,
            "starts": starts,
            "starts-bulk": starts_bulk,
            "starts-transactional": starts_transactional,
            "history": leave_history,
            "sleeping": have_sleepers,
            "waiting": have_waiters,
            "kill": kill,
            "idle": idle,
            "work": work,
        },
        cannot=CANNOT,
    )
