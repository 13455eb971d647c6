"""zart_sqla, one worker process unless said otherwise, as `zart worker` runs it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Any

from sqlalchemy import make_url, select, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from benchmarks.contenders import app_rows, common, crews, latencies, notes, takeover, waits
from benchmarks.contenders.common import STEPS, Meter, Options
from benchmarks.contenders.waits import Waiting
from zart_sqla import (
    PostgresScheduler,
    TaskRegistry,
    Worker,
    WorkerConfig,
    durable,
    schedule,
    sleep,
    step,
    wait,
    wait_for_event,
)
from zart_sqla.models import tables_of
from zart_sqla.worker.process import make_runner

SLEEPERS_A_SECOND = 1000
"""How many runs are put to sleep, at least."""
OFFERERS = 20
RUN_ID = "('00000000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid"
COPIES = [
    {"table": "zart_executions", "changes": {"execution_id": f"{RUN_ID}::text", "run_id": RUN_ID}},
    {"table": "zart_execution_runs", "changes": {"execution_id": f"{RUN_ID}::text", "run_id": RUN_ID}},
    {"table": "zart_steps", "changes": {"run_id": RUN_ID}},
]
"""The rows of a finished run, and what tells those of another one from them."""
meter = Meter()


@step
async def nothing(value: Any) -> Any:
    """Do nothing, durably."""
    return value


@step("{number}")
async def numbered(number: int) -> int:
    """Do nothing, by a name of its own."""
    return number


@step
async def read_clock() -> int:
    """Tell when it began, by the clock that all processes of a machine share, in nanoseconds."""
    return time.monotonic_ns()


@step
async def note_and_sleep(file: str) -> None:
    """Note that it begins, and sleep for long."""
    notes.add(file)
    await asyncio.sleep(3600)


@durable
async def no_op(value: Any) -> Any:
    """Do nothing at all."""
    meter.tick()
    return value


@durable
async def five_steps(value: Any) -> Any:
    """Run five steps that do nothing."""
    meter.tick()
    for _ in range(STEPS):
        value = await nothing(value)
    return value


@durable
async def one_step() -> int:
    """Tell when its only step began."""
    return await read_clock()


@durable
async def long_run(steps: int) -> int:
    """Run many steps, one after the other."""
    with meter.lap():
        for number in range(steps):
            await numbered(number)
    meter.tick()
    return steps


@durable
async def fan_out(children: int) -> int:
    """Have many children."""
    meter.tick()
    return len(await wait([schedule(numbered(number)) for number in range(children)]))


@durable
async def hang(data: tuple[str, int]) -> None:
    """Run so many steps, and then one that notes that it begins, and takes long."""
    file, steps = data
    for number in range(steps):
        await numbered(number)
    await note_and_sleep(file)


@durable
async def sleeper(until: float) -> None:
    """Sleep until that moment."""
    await sleep("long", max(0.0, until - time.time()))


@durable
async def waiter(_: None) -> None:
    """Wait for an event."""
    await wait_for_event("go")


registry = TaskRegistry()
for workflow in (no_op, five_steps, one_step, long_run, fan_out, hang, sleeper, waiter):
    registry.register(workflow)


def config(concurrency: int) -> WorkerConfig:
    """Return the settings of a worker that has so many runs under way."""
    return WorkerConfig(max_concurrent_tasks=concurrency, max_tasks_per_poll=concurrency)


@contextlib.asynccontextmanager
async def prepared(url: str) -> AsyncGenerator[PostgresScheduler]:
    """Yield a scheduler on the database, which has the tables now."""
    async with await PostgresScheduler.connect(url) as scheduler:
        await scheduler.migrate()
        yield scheduler


def nothing_left(scheduler: PostgresScheduler) -> Callable[[], Awaitable[bool]]:
    """Return what tells whether no task is left."""
    tasks = tables_of(scheduler.names).tasks

    async def is_done() -> bool:
        async with scheduler.engine.connect() as connection:
            return await connection.scalar(select(tasks.c.task_id).limit(1)) is None

    return is_done


async def drained(scheduler: PostgresScheduler, runs: int) -> None:
    """Return when nothing is left of that many runs."""
    await common.until(nothing_left(scheduler), is_near=lambda: meter.count >= runs)


async def drain(url: str, options: Options, *, workflow: Any, value: Any, units: int) -> None:
    """Have a worker drain that many runs."""
    async with prepared(url) as scheduler:
        await scheduler.start_many(workflow, [(None, value)] * options.units)
        meter.begin()
        async with Worker(scheduler, registry, config(options.concurrency)):
            await drained(scheduler, options.units)
            meter.end(units)


async def drain_no_ops(url: str, options: Options, _: Meter) -> None:
    """Drain runs that do nothing."""
    await drain(url, options, workflow=no_op, value=common.text(options.payload), units=options.units)


async def drain_steps(url: str, options: Options, _: Meter) -> None:
    """Drain runs of five steps."""
    await drain(url, options, workflow=five_steps, value=common.text(options.payload), units=options.units * STEPS)


async def drain_by_several(url: str, options: Options, _: Meter, *, workflow: Any, steps: int) -> None:
    """Have several processes drain runs."""
    async with prepared(url) as scheduler:
        await scheduler.start_many(workflow, [(None, None)] * options.units)
        await crews.drain(url, options, meter, options.units * steps, nothing_left(scheduler))


async def do_long_runs(url: str, options: Options, _: Meter) -> None:
    """Have runs of many steps, one after the other; what counts is the time in their bodies."""
    steps = options.more["steps"]
    async with prepared(url) as scheduler, Worker(scheduler, registry, config(1)):
        await scheduler.start(long_run, options.more["warm_up"])
        await drained(scheduler, 1)
        meter.begin()
        await scheduler.start_many(long_run, [(None, steps)] * (options.units // steps))
        await drained(scheduler, options.units // steps)
        meter.end(options.units, sum(meter.laps))


async def do_fan_out(url: str, options: Options, _: Meter) -> None:
    """Have one run of many children."""
    async with prepared(url) as scheduler:
        await scheduler.start(fan_out, options.units)
        meter.begin()
        async with Worker(scheduler, registry, config(options.concurrency)):
            await drained(scheduler, 1)
            meter.end(options.units)


async def work(url: str, options: Options, _: Meter) -> None:
    """Be a worker until a signal comes."""
    meter.begin()
    async with await PostgresScheduler.connect(url) as scheduler:
        await Worker(scheduler, registry, config(options.concurrency)).run()


async def measure_latency(scheduler: PostgresScheduler, options: Options) -> None:
    """Start runs of one step one after the other, beside others."""

    async def run() -> int:
        handle = await scheduler.start(one_step)
        return await handle.result(timeout="60s")

    async def start_others(count: int) -> None:
        await scheduler.start_many(no_op, [(None, None)] * count)

    await latencies.measure(options, meter, run, start_others)


async def latency(url: str, options: Options, _: Meter) -> None:
    """Have a worker in another process, which has others to do at some rate."""
    async with prepared(url) as scheduler:
        worker = common.spawn("work", url, concurrency=options.concurrency)
        try:
            await measure_latency(scheduler, options)
        finally:
            common.stop(worker)


async def latency_in_process(url: str, options: Options, _: Meter) -> None:
    """Have the worker in the process that starts them."""
    async with prepared(url) as scheduler, Worker(scheduler, registry, config(options.concurrency)):
        await measure_latency(scheduler, options)


@contextlib.asynccontextmanager
async def app(url: str, *, sessions: int, is_notified: bool) -> AsyncGenerator[PostgresScheduler]:
    """Yield the scheduler of an app that has an engine of its own."""
    engine = create_async_engine(make_url(url).set(drivername="postgresql+asyncpg"), pool_size=sessions)
    async with PostgresScheduler(engine, notify="in_transaction" if is_notified else "after_commit") as scheduler:
        await scheduler.migrate()
        yield scheduler
    await engine.dispose()


async def start_one_by_one(url: str, options: Options, _: Meter, *, is_notified: bool) -> None:
    """Start runs, each when the one before is there."""
    async with app(url, sessions=2, is_notified=is_notified) as scheduler:
        meter.begin()
        for _number in range(options.units):
            await scheduler.start(no_op, None)
        meter.end(options.units)


async def start_in_bulk(url: str, options: Options, _: Meter, *, is_notified: bool) -> None:
    """Start all runs with one call."""
    async with app(url, sessions=2, is_notified=is_notified) as scheduler:
        meter.begin()
        await scheduler.start_many(no_op, [(None, None)] * options.units)
        meter.end(options.units)


async def start_in_transactions(url: str, options: Options, _: Meter, *, is_notified: bool) -> None:
    """Start runs from sessions side by side, each start in a transaction with a row of the app's own."""
    async with app(url, sessions=options.concurrency, is_notified=is_notified) as scheduler:
        async with scheduler.engine.begin() as connection:
            await connection.execute(text(app_rows.CREATE))
        left = iter(range(options.units))

        async def start_some() -> None:
            for _number in left:
                async with AsyncSession(scheduler.engine) as session, session.begin():
                    await session.execute(text(app_rows.INSERT))
                    await scheduler.start(no_op, None, session=session)

        meter.begin()
        await asyncio.gather(*(start_some() for _ in range(options.concurrency)))
        meter.end(options.units)


async def kill(url: str, options: Options, _: Meter) -> None:
    """Kill the process that has a run; all settings are the defaults."""
    async with prepared(url) as scheduler:
        await takeover.kill(url, options, meter, lambda file: scheduler.start(hang, (file, 0)))


async def resume(url: str, options: Options, _: Meter) -> None:
    """Kill the process that has a long run, and start another one."""
    async with prepared(url) as scheduler:
        await takeover.resume(url, options, meter, lambda file, steps: scheduler.start(hang, (file, steps)))


async def idle(url: str, options: Options, _: Meter) -> None:
    """Be a worker that has nothing to do, for some seconds."""
    async with prepared(url) as scheduler, Worker(scheduler, registry):
        await asyncio.sleep(options.more["settle"])
        meter.begin()
        await asyncio.sleep(options.more["seconds"])
        pool: Any = scheduler.engine.pool
        meter.end(1, pool_connections=pool.checkedin() + pool.checkedout())


async def leave_history(url: str, options: Options, _: Meter) -> None:
    """Have one run of one step, whose rows are to be copied."""
    async with prepared(url) as scheduler:
        meter.begin()
        async with Worker(scheduler, registry, config(options.concurrency)):
            await (await scheduler.start(one_step)).result()
        meter.end(1, copies=COPIES)


def waiting(scheduler: PostgresScheduler, options: Options, start: Any, wake: Any) -> Waiting:
    """Return how our runs wait."""
    tasks = tables_of(scheduler.names).tasks
    at_work = select(tasks.c.task_id).where(tasks.c.worker_id.is_not(None) | (tasks.c.due_at <= text("now()")))

    async def warm_up() -> None:
        await scheduler.start_many(no_op, [(None, None)] * 20 * options.concurrency)
        await common.until(nothing_left(scheduler))

    async def all_wait() -> bool:
        async with scheduler.engine.connect() as connection:
            return await connection.scalar(at_work.limit(1)) is None

    ended = nothing_left(scheduler)
    return Waiting(warm_up=warm_up, start=start, all_wait=all_wait, wake=wake, all_ended=ended)


async def have_sleepers(url: str, options: Options, _: Meter) -> None:
    """Have runs that sleep until one moment."""
    async with prepared(url) as scheduler:
        alarm = waits.Alarm(options.units / SLEEPERS_A_SECOND)

        async def start() -> None:
            at = alarm.set()
            await scheduler.start_many(sleeper, [(None, at)] * options.units)

        its = replace(waiting(scheduler, options, start, alarm.wait), still_wait=alarm.is_ahead)
        await waits.measure(url, options, meter, its)


async def have_waiters(url: str, options: Options, _: Meter) -> None:
    """Have runs that wait for an event each, and offer it to them side by side."""
    async with prepared(url) as scheduler:
        ids = [f"waiter-{number}" for number in range(options.units)]

        async def start() -> None:
            await scheduler.start_many(waiter, [(one, None) for one in ids])

        async def wake() -> None:
            left = iter(ids)

            async def offer() -> None:
                for one in left:
                    await scheduler.handle(one).offer_event("go")

            await asyncio.gather(*(offer() for _ in range(OFFERERS)))

        await waits.measure(url, options, meter, waiting(scheduler, options, start, wake))


if __name__ == "__main__":
    common.main(
        {
            "drain": drain_no_ops,
            "steps": drain_steps,
            "drain-processes": partial(drain_by_several, workflow=no_op, steps=1),
            "steps-processes": partial(drain_by_several, workflow=five_steps, steps=STEPS),
            "long": do_long_runs,
            "resume": resume,
            "fan-out": do_fan_out,
            "latency": latency,
            "latency-loaded": latency,
            "latency-in-process": latency_in_process,
            "starts": partial(start_one_by_one, is_notified=False),
            "starts-notified": partial(start_one_by_one, is_notified=True),
            "starts-bulk": partial(start_in_bulk, is_notified=False),
            "starts-bulk-notified": partial(start_in_bulk, is_notified=True),
            "starts-transactional": partial(start_in_transactions, is_notified=False),
            "starts-transactional-notified": partial(start_in_transactions, is_notified=True),
            "history": leave_history,
            "sleeping": have_sleepers,
            "waiting": have_waiters,
            "kill": kill,
            "idle": idle,
            "work": work,
        },
        make_runner,
    )
