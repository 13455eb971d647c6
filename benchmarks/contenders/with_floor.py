"""The floor: raw asyncpg that does the same row work with the same grouping, and nothing else.

It knows nothing of workflows: it takes tasks in batches, inserts a row for each step of each of them, all of a round in
one statement and one commit, and deletes the tasks when it ends the runs. Nobody could take its work over.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import replace
from functools import partial
from typing import Any

import asyncpg

from benchmarks.contenders import app_rows, common, crews
from benchmarks.contenders.common import STEPS, Meter, Options
from zart_sqla import PostgresScheduler
from zart_sqla.ids import new_id

RUN_ID = "('00000000-0000-7000-8000-' || lpad(to_hex(n), 12, '0'))::uuid"
COPIES = [
    {"table": "zart_executions", "changes": {"execution_id": f"{RUN_ID}::text", "run_id": RUN_ID}},
    {"table": "zart_execution_runs", "changes": {"execution_id": f"{RUN_ID}::text", "run_id": RUN_ID}},
    {"table": "zart_steps", "changes": {"run_id": RUN_ID}},
]
"""The rows of a finished run, and what tells those of another one from them."""
CANNOT = {
    **dict.fromkeys(("resume", "kill"), "nobody could take its work over"),
    **dict.fromkeys(("fan-out", "sleeping", "waiting", "idle"), "it knows nothing of workflows"),
    **dict.fromkeys(("latency-loaded", "latency-in-process"), "it does one thing at a time"),
}
CLAIM = """
WITH due AS (
    SELECT task_id FROM zart_tasks WHERE worker_id IS NULL AND due_at <= now()
    ORDER BY due_at LIMIT $2 FOR UPDATE SKIP LOCKED
)
UPDATE zart_tasks AS t
SET worker_id = $1, attempt = attempt + 1, started_at = coalesce(t.started_at, now()), claimed_at = now()
FROM due, zart_execution_runs AS r
WHERE t.task_id = due.task_id AND r.run_id = t.run_id
RETURNING t.task_id, r.payload
"""
RECORD = """
INSERT INTO zart_steps (run_id, name, kind, position, attempts, result, completed_at)
SELECT run_id, name, 'step', position, 1, result::json, now()
FROM unnest($1::uuid[], $2::text[], $3::int[], $4::text[]) AS given (run_id, name, position, result)
"""
FINISH = """
WITH gone AS (DELETE FROM zart_tasks WHERE task_id = ANY ($1::uuid[]) RETURNING run_id)
UPDATE zart_execution_runs AS r SET outcome = 'completed', result = $2::text::json, completed_at = now()
FROM gone WHERE r.run_id = gone.run_id
"""
NOTIFY = "SELECT pg_notify('floor', '')"
START = """
WITH given AS (SELECT * FROM unnest($1::text[], $2::uuid[]) AS g (execution_id, run_id)),
runs AS (
    INSERT INTO zart_execution_runs (run_id, execution_id, run_index, trigger, payload)
    SELECT run_id, execution_id, 0, 'initial', $3::json FROM given
),
tasks AS (
    INSERT INTO zart_tasks (task_id, run_id, task_name, queue, due_at)
    SELECT run_id, run_id, 'floor', 'default', now() FROM given
)
INSERT INTO zart_executions (execution_id, task_name, queue, run_id)
SELECT execution_id, 'floor', 'default', run_id FROM given
"""


async def start(connection: Any, runs: int, payload: Any) -> None:
    """Start that many runs, in statements of 5,000."""
    for first in range(0, runs, 5000):
        ids = [new_id() for _ in range(min(5000, runs - first))]
        await connection.execute(START, [str(one) for one in ids], ids, json.dumps(payload))


async def drain(url: str, options: Options, meter: Meter, *, steps: int) -> None:
    """Drain that many runs of so many steps."""
    async with connected(url) as connection:
        await start(connection, options.units, common.text(options.payload))
        meter.begin()
        await run_lanes(url, options, meter, steps)
        meter.end(options.units * max(1, steps))


async def run_lanes(url: str, options: Options, meter: Meter, steps: int) -> None:
    """Do what is there in lanes that share the concurrency."""
    lanes = 2 if options.concurrency > 1 else 1
    async with asyncpg.create_pool(url, min_size=lanes, max_size=lanes) as pool:
        meter.tick()
        await asyncio.gather(*(_lane(pool, options.concurrency // lanes, steps, options) for _ in range(lanes)))


async def _lane(pool: asyncpg.Pool, batch: int, steps: int, options: Options) -> None:
    worker, result = new_id(), json.dumps(common.text(options.payload))
    async with pool.acquire() as connection:
        while claimed := [row["task_id"] for row in await connection.fetch(CLAIM, worker, batch)]:
            for step in range(steps):
                await connection.execute(RECORD, claimed, *_rows(len(claimed), step, result))
            await connection.execute(FINISH, claimed, result)


def _rows(count: int, step: int, result: str) -> tuple[list[str], list[int], list[str]]:
    name = "nothing" if step == 0 else f"nothing#{step + 1}"
    return [name] * count, [step] * count, [result] * count


async def drain_no_ops(url: str, options: Options, meter: Meter) -> None:
    """Drain runs that do nothing."""
    await drain(url, options, meter, steps=0)


async def drain_steps(url: str, options: Options, meter: Meter) -> None:
    """Drain runs of five steps."""
    await drain(url, options, meter, steps=STEPS)


async def long_runs(url: str, options: Options, meter: Meter) -> None:
    """Insert the steps of runs one after the other, each with a commit of its own."""
    steps = options.more["steps"]
    async with connected(url) as connection:
        meter.begin()
        for _ in range(options.units // steps):
            run_id = new_id()
            for number in range(steps):
                await connection.execute(RECORD, [run_id], [str(number)], [number], ["1"])
        meter.end(options.units)


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncGenerator[asyncpg.Connection[Any]]:
    """Yield a connection to the database, which has the tables now."""
    async with await PostgresScheduler.connect(url) as scheduler:
        await scheduler.migrate()
    connection = await asyncpg.connect(url)
    yield connection
    await connection.close()


async def start_one_by_one(url: str, options: Options, meter: Meter, *, is_notified: bool) -> None:
    """Start runs, each when the one before is there."""
    async with connected(url) as connection:
        meter.begin()
        for _ in range(options.units):
            if is_notified:
                async with connection.transaction():
                    await start(connection, 1, None)
                    await connection.execute(NOTIFY)
            else:
                await start(connection, 1, None)
        meter.end(options.units)


async def start_in_bulk(url: str, options: Options, meter: Meter, *, is_notified: bool) -> None:
    """Start all runs in one transaction, 5,000 with each statement."""
    async with connected(url) as connection:
        meter.begin()
        async with connection.transaction():
            await start(connection, options.units, None)
            if is_notified:
                await connection.execute(NOTIFY)
        meter.end(options.units)


async def start_in_transactions(url: str, options: Options, meter: Meter, *, is_notified: bool) -> None:
    """Start runs from sessions side by side, each start in a transaction with a row of the app's own."""
    left = iter(range(options.units))
    size = options.concurrency
    async with connected(url) as one, asyncpg.create_pool(url, min_size=size, max_size=size) as pool:
        await one.execute(app_rows.CREATE)

        async def start_some() -> None:
            for _ in left:
                async with pool.acquire() as connection, connection.transaction():
                    await connection.execute(app_rows.INSERT)
                    await start(connection, 1, None)
                    if is_notified:
                        await connection.execute(NOTIFY)

        meter.begin()
        await asyncio.gather(*(start_some() for _ in range(size)))
        meter.end(options.units)


async def leave_history(url: str, _: Options, meter: Meter) -> None:
    """Have one run of one step, whose rows are to be copied."""
    async with connected(url) as connection:
        await start(connection, 1, None)
        meter.begin()
        claimed = [row["task_id"] for row in await connection.fetch(CLAIM, new_id(), 1)]
        await connection.execute(RECORD, claimed, *_rows(1, 0, "1"))
        await connection.execute(FINISH, claimed, "1")
        meter.end(1, copies=COPIES)


async def drain_by_several(url: str, options: Options, meter: Meter, *, steps: int) -> None:
    """Have several processes drain runs."""
    async with connected(url) as connection:
        await start(connection, options.units, None)

        async def is_done() -> Any:
            return await connection.fetchval("SELECT NOT EXISTS (SELECT FROM zart_tasks)")

        its = replace(options, more={"steps": steps})
        await crews.drain(url, its, meter, options.units * max(1, steps), is_done)


async def work(url: str, options: Options, meter: Meter) -> None:
    """Drain what is there."""
    meter.begin()
    await run_lanes(url, options, meter, options.more["steps"])


def sets(event: asyncio.Event) -> Callable[..., None]:
    """Return what sets an event when it is told of something."""

    def on_news(*_: object) -> None:
        event.set()

    return on_news


async def latency(url: str, options: Options, meter: Meter) -> None:
    """Start a run, notify, and have another connection of the same process take it up, record a step and finish it."""
    async with connected(url):
        pass
    client, worker = await asyncpg.connect(url), await asyncpg.connect(url)
    news, done = asyncio.Event(), asyncio.Event()
    await worker.add_listener("floor", sets(news))
    await client.add_listener("floor_done", sets(done))
    to_step, to_result = list[float](), list[float]()
    meter.begin()
    for _ in range(options.units):
        began = time.monotonic_ns()
        await start(client, 1, None)
        await client.execute("NOTIFY floor")
        await news.wait()
        claimed = [row["task_id"] for row in await worker.fetch(CLAIM, new_id(), 1)]
        to_step.append((time.monotonic_ns() - began) / 1e6)
        await worker.execute(RECORD, claimed, *_rows(1, 0, "1"))
        await worker.execute(FINISH, claimed, "1")
        await worker.execute("NOTIFY floor_done")
        await done.wait()
        await client.fetchval("SELECT result FROM zart_execution_runs WHERE run_id = $1", claimed[0])
        to_result.append((time.monotonic_ns() - began) / 1e6)
        news.clear()
        done.clear()
    meter.end(options.units, to_step=to_step, to_result=to_result)
    await client.close()
    await worker.close()


if __name__ == "__main__":
    common.main(
        {
            "drain": drain_no_ops,
            "steps": drain_steps,
            "drain-processes": partial(drain_by_several, steps=0),
            "steps-processes": partial(drain_by_several, steps=STEPS),
            "long": long_runs,
            "latency": latency,
            "starts": partial(start_one_by_one, is_notified=False),
            "starts-notified": partial(start_one_by_one, is_notified=True),
            "starts-bulk": partial(start_in_bulk, is_notified=False),
            "starts-bulk-notified": partial(start_in_bulk, is_notified=True),
            "starts-transactional": partial(start_in_transactions, is_notified=False),
            "starts-transactional-notified": partial(start_in_transactions, is_notified=True),
            "history": leave_history,
            "work": work,
        },
        cannot=CANNOT,
    )
