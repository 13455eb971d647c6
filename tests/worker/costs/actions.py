"""What an application does, one thing after the other, and what each costs."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import asyncpg
from sqlalchemy.ext.asyncio import AsyncEngine

from tests.support.scene import new_scene, scene
from tests.support.traffic import Traffic, traffic
from tests.support.waiting import eventually
from tests.support.working import registry_of
from tests.worker.costs.meter import Cost, Meter, least
from tests.worker.costs.workflows import (
    WORKFLOWS,
    emitter,
    listener,
    order,
    parent,
    retrier,
    sleeper,
    writer,
)
from zart_sqla import Durable, PoolConfig, PostgresScheduler, Worker, WorkerConfig
from zart_sqla.client.engines import make_engine

TIMES = 5
"""How often what is done alone is done."""
MANY = 1000
"""How many are done at once."""
CHILDREN = 100

_POOL = PoolConfig(max_connections=1, min_connections=0)
_CONFIG = WorkerConfig(
    poll_interval="1h",
    lease_timeout="1h",
    heartbeat_interval="10m",
    max_concurrent_tasks=MANY,
    max_tasks_per_poll=MANY,
)
"""A worker that says nothing by itself."""


class Office:
    """An app and its worker, on a server that is quiet otherwise.

    Args:
        app: the app's scheduler.
        staff: the worker's.
        own: an engine of the app's own.
        outside: a connection whose statements are not counted.
        said: what is said on the others.
    """

    def __init__(
        self,
        app: PostgresScheduler,
        staff: PostgresScheduler,
        own: AsyncEngine,
        outside: asyncpg.Connection,
        said: Traffic,
    ) -> None:
        self.app = app
        self.own = own
        self.outside = outside
        self.meter = Meter(said, outside, app.engine, staff.engine, own)
        self._staff = staff
        self._said = said

    @asynccontextmanager
    async def working(self) -> AsyncIterator[None]:
        """Have the worker work, and say nothing by itself."""
        async with Worker(self._staff, registry_of(*WORKFLOWS), _CONFIG):
            await eventually(lambda: self._said.has_swept and self._said.is_settled)
            yield

    async def start(self, workflow: Durable[int, Any], argument: int = 1, count: int = 1) -> None:
        """Start executions, and tell the worker."""
        if count == 1:
            await self.app.start(workflow, argument)
        else:
            await self.app.start_many(workflow, [(None, argument)] * count)
        await self.app.wake_ups.flush()

    async def start_in_own_transaction(self) -> None:
        """Start an execution in a transaction of the app's own."""
        async with self.own.begin() as connection:
            await self.app.start(order, 1, session=connection)

    async def notify(self) -> None:
        """Tell the worker."""
        self.app.wake_ups.send()
        await self.app.wake_ups.flush()

    async def offer(self) -> None:
        """Offer an event to one of those that wait."""
        query = """
            SELECT execution_id FROM zart_tasks task JOIN zart_execution_runs run USING (run_id) WHERE due_at IS NULL
        """
        await self.app.handle(await self.outside.fetchval(query)).offer_event("paid", 1)
        await self.app.wake_ups.flush()

    async def is_empty(self) -> bool:
        """Tell whether nothing is in the queue."""
        return bool(await self.outside.fetchval("SELECT NOT EXISTS (SELECT FROM zart_tasks)"))

    async def is_waiting(self) -> bool:
        """Tell whether all that is in the queue waits."""
        query = "SELECT bool_and(is_waiting AND worker_id IS NULL) FROM zart_tasks"
        return bool(await self.outside.fetchval(query))


@asynccontextmanager
async def office(url: str) -> AsyncIterator[Office]:
    """Yield an app and its worker, which does not work yet."""
    own = make_engine(url, _POOL)
    outside = await asyncpg.connect(url)
    try:
        with traffic() as said:
            async with (
                await PostgresScheduler.connect_with_pool(url, _POOL) as app,
                await PostgresScheduler.connect_with_pool(url, _POOL) as staff,
            ):
                await app.migrate()
                yield Office(app, staff, own, outside, said)
    finally:
        await outside.close()
        await own.dispose()


async def costs_of(office: Office) -> dict[str, Cost]:
    """Return what each thing costs that an app does."""
    costs = await _starts(office)
    async with office.working():
        await _phases(office, order, count=MANY)  # pages and indexes exist from here on
        costs |= await _turns(office, costs)
        costs |= await _sleep(office, costs)
        costs |= await _children(office, costs)
        costs |= await _wait(office, costs)
    costs["offer"] = least([await office.meter.cost(office.offer) for _ in range(TIMES)])
    costs["take"] -= costs["offer"]
    return costs


async def _starts(office: Office) -> dict[str, Cost]:
    """Return what it costs to start executions, and to wake a worker, of which there is none."""
    meter = office.meter
    start_many = partial(office.start, order, count=MANY)
    await start_many()
    costs = {
        "start": least([await meter.cost(partial(office.start, order)) for _ in range(TIMES)]),
        "start in own": least([await meter.cost(office.start_in_own_transaction) for _ in range(TIMES)]),
        "start, many": least([await meter.cost(start_many) for _ in range(2)]),
        "notify": least([await meter.cost(office.notify) for _ in range(TIMES)]),
    }
    await office.outside.execute("TRUNCATE zart_executions, zart_execution_runs, zart_tasks")
    return costs


async def _turns(office: Office, known: dict[str, Cost]) -> dict[str, Cost]:
    """Return what the parts of a turn cost."""
    costs: dict[str, Cost] = {}
    begin, step, end = await _least_phases(office, order)
    costs |= {"claim": begin - known["start"], "step": step, "finish": end - step}
    begin, many_steps, end = await _phases(office, order, count=MANY)
    costs |= {"claim, many": begin - known["start, many"], "step, many": many_steps, "finish, many": end - many_steps}
    for name, workflow, steps in (("attempt", retrier, 2), ("trx", writer, 1), ("emit", emitter, 1)):
        _, middle, _ = await _least_phases(office, workflow)
        for _ in range(steps):
            middle -= step
        costs[name] = middle
    return costs


async def _least_phases(office: Office, workflow: Durable[int, Any]) -> list[Cost]:
    times = [await _phases(office, workflow) for _ in range(TIMES)]
    return [least(costs) for costs in zip(*times, strict=True)]


async def _phases(office: Office, workflow: Durable[int, Any], *, argument: int = 1, count: int = 1) -> list[Cost]:
    """Return what executions cost until they are at their first gate, at their second one, and at their end."""
    cost = office.meter.cost
    with new_scene():
        return [
            await cost(partial(office.start, workflow, argument, count), _at("open", count)),
            await cost(partial(_pass, "open"), _at("shut", count)),
            await cost(partial(_pass, "shut"), office.is_empty),
        ]


async def _pass(gate: str) -> None:
    scene().gate(gate).set()


def _at(gate: str, count: int = 1) -> Callable[[], bool]:
    return lambda: scene().ran[gate] == count


async def _sleep(office: Office, known: dict[str, Cost]) -> dict[str, Cost]:
    """Return what it costs to sleep, and to wake up."""
    cost, downs, ups = office.meter.cost, [], []
    for _ in range(TIMES):
        with new_scene():
            await cost(partial(office.start, sleeper), _at("open"))
            downs.append(await cost(partial(_pass, "open"), office.is_waiting))
            await office.outside.execute("UPDATE zart_steps SET wake_at = now() WHERE wake_at > now()")
            await office.outside.execute("UPDATE zart_tasks SET due_at = now()")
            ups.append(await cost(office.notify, _at("shut")))
            await cost(partial(_pass, "shut"), office.is_empty)
    return {"sleep": least(downs) - known["step"], "wake-up": least(ups) - known["notify"]}


async def _wait(office: Office, known: dict[str, Cost]) -> dict[str, Cost]:
    """Return what it costs to wait for an event, and to be offered it and take it; leave some that wait."""
    cost, downs, ups = office.meter.cost, [], []
    for _ in range(TIMES):
        with new_scene():
            await cost(partial(office.start, listener), _at("open"))
            downs.append(await cost(partial(_pass, "open"), office.is_waiting))
            ups.append(await cost(office.offer, _at("shut")))
            await cost(partial(_pass, "shut"), office.is_empty)
    with new_scene():
        await office.start(listener, count=TIMES)
        await eventually(_at("open", TIMES))
        await _pass("open")
        await eventually(office.is_waiting)
    return {"wait": least(downs) - known["step"], "take": least(ups)}


async def _children(office: Office, known: dict[str, Cost]) -> dict[str, Cost]:
    """Return what it costs to run children: what a group costs besides them, and each of them."""
    one, many = [
        min([(await _phases(office, parent, argument=count))[1] for _ in range(TIMES)], key=lambda cost: cost.wal)
        for count in (1, 1 + CHILDREN)
    ]
    child = (many - one) / CHILDREN
    return {"child": child, "group": one - known["step"] - child}
