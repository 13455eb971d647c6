"""Absurd: async clients, several of them in one worker process, as each has one connection.

Settings, the best of those that were tried side by side, steps/s with 100 runs at once unless said otherwise:

- 10 clients share the runs that may be under way at once. One did 263 at best, 2 391, 4 598, 8 826; from there on it is
  level (8, 16, 32 and 50 in another round: 1,102, 1,110, 1,129, 968). The sync client with 1 and 4: 244 and 589.
- A client claims at least 30 tasks at a time, also when it may run fewer at once: each claim looks through all tasks
  for those to be cancelled. With 10 at once in 10 clients, batches of 1, 5 and 20 did 477, 1,040 and 1,422 no-op
  runs/s; with one at once, batches of 1, 5, 20 and 100 did 78, 200, 649 and 387.
- The parent of a fan-out spawns by 4 clients and awaits one result after the other: 193 children/s at best; by one
  client 159; awaiting all at once 196, and 124 in another round, where the former did 178.
- An idle worker has one client, which polls every 250 ms, its default.
- An app's session is a sync one in a thread: 1,413 starts/s from 10 of them, 734 from async ones; 1,612 and 1,096 from
  100.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import Any

import absurdctl
import psycopg
from absurd_sdk import Absurd, AsyncAbsurd

from benchmarks.contenders import app_rows, common, crews, drains, latencies, notes, takeover, waits
from benchmarks.contenders.common import STEPS, Meter, Options
from benchmarks.contenders.waits import Waiting

QUEUE = "bench"
CHILDREN = "children"
CLIENTS = 10
SPAWNERS = 4
LEAST_BATCH = 30
LOWEST_POLL_SECONDS = 0.001
LOADED_POLL_SECONDS = 0.01
SLEEPERS_A_SECOND = 250
"""How many runs are put to sleep, at least."""
UNDONE = "SELECT FROM absurd.r_bench WHERE state IN ('pending', 'running', 'sleeping')"
AT_WORK = "SELECT FROM absurd.r_bench WHERE state IN ('pending', 'running')"
SPAWN = "SELECT absurd.spawn_task(%s, %s, {params}) FROM generate_series(1, %s) AS number"
TASK_ID = "('00000000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid"
RUN_ID = "('00000000-0000-7000-9000-' || lpad(to_hex(n), 12, '0'))::uuid"
COPIES = [
    {"table": "absurd.t_bench", "changes": {"task_id": TASK_ID, "last_attempt_run": RUN_ID}},
    {"table": "absurd.r_bench", "changes": {"task_id": TASK_ID, "run_id": RUN_ID}},
    {"table": "absurd.c_bench", "changes": {"task_id": TASK_ID, "owner_run_id": RUN_ID}},
]
"""The rows of a finished run, and what tells those of another one from them."""
NO_NOTIFY = "to spawn notifies nobody: its workers poll"
CANNOT = {
    "starts-notified": NO_NOTIFY,
    "starts-bulk-notified": NO_NOTIFY,
    "starts-transactional-notified": NO_NOTIFY,
    "latency-in-process": "its workers poll wherever they are",
}
meter = Meter()


async def no_op(value: Any, _: Any) -> Any:
    """Do nothing at all."""
    meter.tick()
    return value


async def five_steps(value: Any, context: Any) -> Any:
    """Run five steps that do nothing."""

    async def nothing() -> Any:
        return value

    meter.tick()
    for _ in range(STEPS):
        value = await context.step("nothing", nothing)
    return value


async def one_step(_: None, context: Any) -> Any:
    """Tell when its only step began, by the clock that all processes of a machine share, in nanoseconds."""

    async def read_clock() -> int:
        return time.monotonic_ns()

    return await context.step("read_clock", read_clock)


async def long_run(steps: int, context: Any) -> int:
    """Run many steps, one after the other."""

    async def nothing() -> None:
        pass

    with meter.lap():
        for number in range(steps):
            await context.step(str(number), nothing)
    meter.tick()
    return steps


async def hang(data: tuple[str, int], context: Any) -> None:
    """Run so many steps, and then one that notes that it begins, and takes long."""
    file, steps = data

    async def nothing() -> None:
        pass

    async def note_and_sleep() -> None:
        notes.add(file)
        await asyncio.sleep(3600)

    for number in range(steps):
        await context.step(str(number), nothing)
    await context.step("hang", note_and_sleep)


async def sleeper(until: float, context: Any) -> None:
    """Sleep until that moment."""
    await context.sleep_until("long", until)


async def waiter(event: str, context: Any) -> None:
    """Wait for an event."""
    await context.await_event(event)


def client_of(where: Any, queue: str = QUEUE) -> AsyncAbsurd:
    """Return a client that knows the tasks."""
    client = AsyncAbsurd(where, queue_name=queue)
    for task in (no_op, five_steps, one_step, long_run, hang, sleeper, waiter):
        client.register_task(task.__name__)(task)
    return client


@contextlib.asynccontextmanager
async def prepared(url: str, *queues: str) -> AsyncGenerator[psycopg.AsyncConnection[Any]]:
    """Yield a connection to the database, which has Absurd's schema and the queues now."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        cursor = await connection.execute("SELECT to_regclass('absurd.queues')")
        if await cursor.fetchone() == (None,):
            await connection.execute(absurdctl.BUNDLED_SCHEMA_SQL)
        for queue in (QUEUE, *queues):
            await connection.execute("SELECT absurd.create_queue(%s)", (queue,))
        yield connection


@contextlib.asynccontextmanager
async def working(
    url: str, concurrency: int, queue: str = QUEUE, *, clients: int = CLIENTS, poll_interval: float = 0.25
) -> AsyncGenerator[None]:
    """Work by several clients while in the context."""
    its = [client_of(url, queue) for _ in range(min(concurrency, clients))]
    each = concurrency // len(its)
    batch_size = max(each, LEAST_BATCH)
    workers = [
        asyncio.create_task(client.start_worker(concurrency=each, batch_size=batch_size, poll_interval=poll_interval))
        for client in its
    ]
    yield
    for client in its:
        client.stop_worker()
    await asyncio.gather(*workers)
    for client in its:
        await client.close()


async def spawn(connection: psycopg.AsyncConnection[Any], task: str, runs: int, params: str) -> None:
    """Spawn that many runs with what this SQL expression gives, in one transaction."""
    await connection.execute(SPAWN.format(params=params).encode(), (QUEUE, task, runs))


def quoted(value: Any) -> str:
    """Return the SQL expression of a value that has no quotes."""
    return f"'{json.dumps(value)}'::jsonb"


async def drain(url: str, options: Options, *, task: str, value: Any, units: int) -> None:
    """Have a worker drain `options.units` runs."""
    async with prepared(url) as connection:
        await spawn(connection, task, options.units, quoted(value))
        meter.begin()
        async with working(url, options.concurrency):
            await drains.drained(connection, UNDONE, meter, options.units)
            meter.end(units)


async def drain_no_ops(url: str, options: Options, _: Meter) -> None:
    """Drain runs that do nothing."""
    await drain(url, options, task="no_op", value=common.text(options.payload), units=options.units)


async def drain_steps(url: str, options: Options, _: Meter) -> None:
    """Drain runs of five steps."""
    await drain(url, options, task="five_steps", value=common.text(options.payload), units=options.units * STEPS)


async def drain_by_several(url: str, options: Options, _: Meter, *, task: str, steps: int) -> None:
    """Have several processes drain runs."""
    async with prepared(url) as connection:
        await spawn(connection, task, options.units, quoted(None))
        is_done = drains.nothing_left(connection, UNDONE)
        await crews.drain(url, options, meter, options.units * steps, is_done)


async def do_long_runs(url: str, options: Options, _: Meter) -> None:
    """Have runs of many steps, one after the other; what counts is the time in their bodies."""
    steps = options.more["steps"]
    async with prepared(url) as connection, working(url, 1):
        await spawn(connection, "long_run", 1, quoted(options.more["warm_up"]))
        await drains.drained(connection, UNDONE, meter, 1)
        meter.begin()
        await spawn(connection, "long_run", options.units // steps, quoted(steps))
        await drains.drained(connection, UNDONE, meter, options.units // steps)
        meter.end(options.units, sum(meter.laps))


async def do_fan_out(url: str, options: Options, _: Meter) -> None:
    """Have one run of many children, which are on a queue of their own: a task may not wait for others on its queue."""
    parent, spawners = client_of(url), list[AsyncAbsurd]()

    async def fan_out(children: int, context: Any) -> int:
        async def spawn(number: int) -> Any:
            key = f"{context.task_id}:{number}"  # a parent that is run again finds the child that it has
            child = await spawners[number % SPAWNERS].spawn("no_op", number, idempotency_key=key)
            return child["task_id"]

        meter.tick()
        spawned = await asyncio.gather(*(spawn(number) for number in range(children)))
        results = [await context.await_task_result(child, queue_name=CHILDREN) for child in spawned]
        return len(results)

    parent.register_task("fan_out")(fan_out)
    async with prepared(url, CHILDREN) as connection, contextlib.AsyncExitStack() as stack:
        for _number in range(SPAWNERS):
            opened = await psycopg.AsyncConnection.connect(url, autocommit=True)
            spawners.append(client_of(await stack.enter_async_context(opened), CHILDREN))
        await parent.spawn("fan_out", options.units)
        meter.begin()
        worker = asyncio.create_task(parent.start_worker())
        async with working(url, options.concurrency, CHILDREN):
            await common.until(drains.nothing_left(connection, UNDONE))
            meter.end(options.units)
        parent.stop_worker()
        await worker
    await parent.close()


async def work(url: str, options: Options, _: Meter) -> None:
    """Be a worker until a signal comes."""
    meter.begin()
    async with working(url, options.concurrency, **options.more):
        await asyncio.Event().wait()


async def latency(url: str, options: Options, _: Meter, *, clients: int, poll_interval: float) -> None:
    """Spawn runs of one step one after the other, for a worker in another process; both poll as often as they can.

    `await_task_result` would look for the result for the first time after 50 ms.
    """
    async with prepared(url):
        client, other = client_of(url), client_of(url)

        async def run() -> Any:
            spawned = await client.spawn("one_step", None)
            while (task := await client.fetch_task_result(spawned["task_id"])).state != "completed":  # noqa: ASYNC110
                await asyncio.sleep(LOWEST_POLL_SECONDS)
            return task.result

        async def start_others(count: int) -> None:
            for _ in range(count):
                await other.spawn("no_op", None)

        settings = {"clients": clients, "poll_interval": poll_interval}
        worker = common.spawn("work", url, concurrency=options.concurrency, more=settings)
        try:
            await latencies.measure(options, meter, run, start_others)
        finally:
            common.stop(worker)
            await client.close()
            await other.close()


async def starts(url: str, options: Options, _: Meter) -> None:
    """Spawn runs one after the other."""
    async with prepared(url):
        client = client_of(url)
        await client.spawn("no_op", None)  # it connects
        meter.begin()
        for _number in range(options.units):
            await client.spawn("no_op", common.text(options.payload))
        meter.end(options.units)
        await client.close()


async def starts_bulk(url: str, options: Options, _: Meter) -> None:
    """Spawn runs with one statement, by the function that all of its clients call."""
    async with prepared(url) as connection:
        meter.begin()
        await spawn(connection, "no_op", options.units, quoted(None))
        meter.end(options.units)


async def starts_transactional(url: str, options: Options, _: Meter) -> None:
    """Spawn runs on psycopg connections of the app's, in its transactions, each with a row of its own."""
    left = iter(range(options.units))

    def session(connection: psycopg.Connection[Any]) -> None:
        client = Absurd(connection, queue_name=QUEUE)
        for _ in left:
            with connection.transaction():
                connection.execute(app_rows.INSERT)
                client.spawn("no_op", common.text(options.payload), queue=QUEUE)

    async with prepared(url) as connection:
        await connection.execute(app_rows.CREATE)
    with contextlib.ExitStack() as stack:
        opened = [psycopg.connect(url, autocommit=True) for _ in range(options.concurrency)]
        connections = [stack.enter_context(one) for one in opened]
        threads = stack.enter_context(ThreadPoolExecutor(options.concurrency))
        meter.begin()
        list(threads.map(session, connections))
        meter.end(options.units)


async def kill(url: str, options: Options, _: Meter) -> None:
    """Kill the process that has a run; its lease is of 120 s."""
    async with prepared(url) as connection:
        await takeover.kill(url, options, meter, lambda file: client_of(connection).spawn("hang", (file, 0)))


async def resume(url: str, options: Options, _: Meter) -> None:
    """Kill the process that has a long run, and start another one, which waits for the end of the lease."""
    async with prepared(url) as connection:
        client = client_of(connection)
        await takeover.resume(url, options, meter, lambda file, steps: client.spawn("hang", (file, steps)))


async def idle(url: str, options: Options, _: Meter) -> None:
    """Be a worker that has nothing to do, for some seconds."""
    async with prepared(url):
        pass
    client = client_of(url)
    worker = asyncio.create_task(client.start_worker())
    await asyncio.sleep(options.more["settle"])
    meter.begin()
    await asyncio.sleep(options.more["seconds"])
    meter.end(1)
    client.stop_worker()
    await worker
    await client.close()


async def leave_history(url: str, options: Options, _: Meter) -> None:
    """Have one run of one step, whose rows are to be copied."""
    async with prepared(url) as connection:
        await client_of(connection).spawn("one_step", None)
        meter.begin()
        async with working(url, options.concurrency):
            await common.until(drains.nothing_left(connection, UNDONE))
        meter.end(1, copies=COPIES)


@contextlib.asynccontextmanager
async def waiting(url: str, task: str, runs: int, params: Any, wake: Any) -> AsyncGenerator[Waiting]:
    """Yield how its runs wait."""
    async with prepared(url) as connection:

        async def warm_up() -> None:
            await spawn(connection, "no_op", 2000, quoted(None))
            await common.until(ended)

        async def start() -> None:
            await spawn(connection, task, runs, params())

        ended = drains.nothing_left(connection, UNDONE)
        at_work = drains.nothing_left(connection, AT_WORK)
        yield Waiting(warm_up=warm_up, start=start, all_wait=at_work, wake=wake, all_ended=ended)


async def have_sleepers(url: str, options: Options, _: Meter) -> None:
    """Have runs that sleep until one moment."""
    alarm = waits.Alarm(options.units / SLEEPERS_A_SECOND)
    async with waiting(url, "sleeper", options.units, lambda: quoted(alarm.set()), alarm.wait) as its:
        await waits.measure(url, options, meter, replace(its, still_wait=alarm.is_ahead))


async def have_waiters(url: str, options: Options, _: Meter) -> None:
    """Have runs that wait for an event each, and emit these by several clients."""

    async def wake() -> None:
        left = iter(range(1, options.units + 1))

        async def emit() -> None:
            client = client_of(url)
            for number in left:
                await client.emit_event(f"go-{number}")
            await client.close()

        await asyncio.gather(*(emit() for _ in range(CLIENTS)))

    async with waiting(url, "waiter", options.units, lambda: "to_jsonb('go-' || number)", wake) as its:
        await waits.measure(url, options, meter, its)


if __name__ == "__main__":
    common.main(
        {
            "drain": drain_no_ops,
            "steps": drain_steps,
            "drain-processes": partial(drain_by_several, task="no_op", steps=1),
            "steps-processes": partial(drain_by_several, task="five_steps", steps=STEPS),
            "long": do_long_runs,
            "resume": resume,
            "fan-out": do_fan_out,
            "latency": partial(latency, clients=1, poll_interval=LOWEST_POLL_SECONDS),
            "latency-loaded": partial(latency, clients=CLIENTS, poll_interval=LOADED_POLL_SECONDS),
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
