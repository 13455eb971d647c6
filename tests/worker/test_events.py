"""Events with real workers: each is taken once, in order, whenever it comes, and whatever happens beside it."""

import asyncio
import contextlib
import inspect
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import create_engine, func, make_url, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from tests.support.waiting import PATIENCE, eventually
from tests.support.working import count_rows, let_time_pass, scheduler_on, until, worker_on, working
from zart_sqla import (
    EventTimeout,
    ExecutionCancelled,
    ExecutionFailed,
    ExecutionFinished,
    ExecutionHandle,
    ExecutionNotFound,
    ExecutionStatus,
    InvalidDataError,
    InvalidNameError,
    PostgresScheduler,
    StepKind,
    StepStatus,
    SyncScheduler,
    durable,
    sleep,
    step,
    sync,
    trx,
    wait_for_event,
)
from zart_sqla.models.mapping import tables_of


@dataclass(frozen=True)
class Payment:
    """The value of an event."""

    amount: Decimal
    note: str | None = None


@step
async def double(number: int) -> int:
    """Return twice the number."""
    return number * 2


@durable
async def order(count: int) -> list[Any]:
    """Wait for so many events of one name, with a step between them."""
    values = []
    for _ in range(count):
        number = await wait_for_event("paid", int)
        assert await double(number) == number * 2
        values.append(number)
    return values


async def events_left(scheduler: PostgresScheduler) -> int:
    """Return how many events have not been taken."""
    table = tables_of(scheduler.names).events
    async with scheduler.engine.connect() as connection:
        query = select(func.count()).select_from(table).where(table.c.taken_at.is_(None))
        return await connection.scalar(query) or 0


async def is_all_taken(scheduler: PostgresScheduler) -> bool:
    """Tell whether no event is left."""
    return await events_left(scheduler) == 0


async def test_offered_before_there_is_a_worker(migrated_url: str) -> None:
    """Events are kept until the run asks for them, in the order in which they came."""
    async with scheduler_on(migrated_url) as scheduler:
        handle = await scheduler.start(order, 3)
        for number in (3, 1, 2):
            assert await handle.offer_event("paid", number)
        async with worker_on(migrated_url, order):
            assert await handle.result(timeout=PATIENCE) == [3, 1, 2]
        assert await events_left(scheduler) == 0


async def test_offered_during_the_wait(migrated_url: str) -> None:
    """The run waits without a worker's doing, and goes on at once when the event comes."""
    async with working(migrated_url, order, workers=2) as scheduler:
        handle = await scheduler.start(order, 2)
        for number in (1, 2):
            await until(handle, ExecutionStatus.WAITING)
            waiting = (await handle.steps())[-1]
            assert (waiting.kind, waiting.status) == (StepKind.EVENT, StepStatus.WAITING)
            assert (waiting.result, waiting.completed_at) == (None, None)
            await handle.offer_event("refunded", 99)  # nobody waits for it
            await handle.offer_event("paid", number)
            await eventually(lambda: has_taken(handle, number))  # noqa: B023 - awaited at once
        assert await handle.result(timeout=PATIENCE) == [1, 2]
        seen = [(one.name, one.kind.value, one.status.value, one.result) for one in await handle.steps()]
        assert await events_left(scheduler) == 2
    assert seen == [
        ("paid", "event", "completed", 1),
        ("double", "step", "completed", 2),
        ("paid#2", "event", "completed", 2),
        ("double#2", "step", "completed", 4),
    ]


async def has_taken(handle: ExecutionHandle[Any], count: int) -> bool:
    """Tell whether the execution has taken so many events, and done what follows."""
    steps = await handle.steps()
    return len([one for one in steps if one.kind is StepKind.STEP]) >= count


async def test_offered_during_a_step(migrated_url: str) -> None:
    """An event that comes while the turn is busy is there when the run asks for it."""
    started, go_on = asyncio.Event(), asyncio.Event()

    @step
    async def ship() -> None:
        started.set()
        await go_on.wait()

    @durable
    async def shipment() -> str:
        await ship()
        return await wait_for_event("paid", str)

    async with working(migrated_url, shipment) as scheduler:
        handle = await scheduler.start(shipment)
        await eventually(started.is_set)
        await handle.offer_event("paid", "in time")
        go_on.set()
        assert await handle.result(timeout=PATIENCE) == "in time"


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled"])
async def test_offered_after_the_end(status: str, migrated_url: str) -> None:
    """What has ended takes nothing more: the offer is refused, and nothing is kept."""

    @durable
    async def quick(number: int) -> float:
        if number < 0:
            await sleep("night", "8h")
        return 1 / number

    async with working(migrated_url, quick) as scheduler:
        handle = await scheduler.start(quick, {"completed": 1, "failed": 0, "cancelled": -1}[status])
        if status == "cancelled":
            await handle.cancel()
        await until(handle, ExecutionStatus(status))
        with pytest.raises(ExecutionFinished) as caught:
            await handle.offer_event("paid", 1)
        assert (caught.value.execution_id, caught.value.status) == (handle.execution_id, status)
        with pytest.raises(ExecutionFinished):
            await asyncio.to_thread(scheduler.sync.handle(handle.execution_id).offer_event, "paid", 1)
        assert await events_left(scheduler) == 0


async def test_offered_to_nobody(migrated_url: str) -> None:
    """An id that there is not is an error."""
    async with scheduler_on(migrated_url) as scheduler:
        with pytest.raises(ExecutionNotFound) as caught:
            await scheduler.handle("nobody").offer_event("paid", 1)
        assert caught.value.execution_id == "nobody"


async def test_refused_where_it_enters(migrated_url: str) -> None:
    """What cannot be stored is refused by the offer, and nothing is written."""
    async with scheduler_on(migrated_url) as scheduler:
        handle = await scheduler.start(order, 1)
        for value in ("\x00", float("nan"), object(), "\ud800"):
            with pytest.raises(InvalidDataError, match="the event 'paid'"):
                await handle.offer_event("paid", value)
        for name in ("", "\x00"):
            with pytest.raises(InvalidNameError):
                await handle.offer_event(name, 1)
            with pytest.raises(InvalidNameError):
                await handle.offer_event("paid", 1, event_id=name)
        assert await events_left(scheduler) == 0


async def test_event_id(migrated_url: str) -> None:
    """However often an event of one id is offered, and by whomever, it counts once."""
    async with working(migrated_url, order, workers=2) as scheduler:
        handle = await scheduler.start(order, 2)
        offers = (handle.offer_event("paid", 1, event_id="e") for _ in range(5))
        assert sorted(await asyncio.gather(*offers)) == [False] * 4 + [True]
        await eventually(lambda: has_taken(handle, 1))
        assert not await handle.offer_event("paid", 1, event_id="e")
        assert await handle.offer_event("paid", 2, event_id="f")
        assert await handle.result(timeout=PATIENCE) == [1, 2]


async def test_values_come_through(migrated_url: str) -> None:
    """A value has the type that the wait names, and plain JSON stays what it was."""
    kinds = [
        (Payment, Payment(Decimal("19.99"), "x"), Payment(Decimal("19.99"), "x")),
        (type(None), None, None),
        (Any, [], []),
        (list[Payment], [Payment(Decimal(1))], [Payment(Decimal(1))]),
        (Decimal, Decimal("0.1"), Decimal("0.1")),
        (Any, {"a": [1, None, "ü"]}, {"a": [1, None, "ü"]}),
        (Any, {}, {}),
        (int, 2**70, 2**70),
    ]
    seen: list[list[Any]] = []

    @durable
    async def typed() -> None:
        values: list[Any] = [await wait_for_event("paid", kind) for kind, _, _ in kinds]
        await sleep("night", "8h")  # then all that again, from the record
        seen.append(values)

    async with working(migrated_url, typed) as scheduler:
        handle = await scheduler.start(typed)
        for _, value, _ in kinds:
            await handle.offer_event("paid", value)
        await eventually(lambda: is_all_taken(scheduler))
        await until(handle, ExecutionStatus.WAITING)
        await let_time_pass(scheduler)
        await handle.result(timeout=PATIENCE)
    assert seen == [[expected for _, _, expected in kinds]]


async def test_value_that_does_not_fit(migrated_url: str) -> None:
    """It fails the run, unless the body catches it and waits for another one."""

    @durable
    async def strict(is_patient: bool) -> str:  # noqa: FBT001
        try:
            return str(await wait_for_event("paid", Payment))
        except InvalidDataError:
            if not is_patient:
                raise
            return (await wait_for_event("paid", Payment)).note or ""

    async with working(migrated_url, strict) as scheduler:
        for is_patient in (True, False):
            handle = await scheduler.start(strict, is_patient)
            await handle.offer_event("paid", {"amount": "much"})
            if not is_patient:
                with pytest.raises(ExecutionFailed, match="amount"):
                    await handle.result(timeout=PATIENCE)
                continue
            await handle.offer_event("paid", Payment(Decimal(1), "fits"))
            assert await handle.result(timeout=PATIENCE) == "fits"


async def test_plain_workflow(migrated_url: str) -> None:
    """A `def` workflow waits without a thread: more of them do than there are threads."""

    @durable
    def plain() -> int:
        try:
            sync.wait_for_event("never", timeout="600ms")
        except EventTimeout:
            return sync.wait_for_event("paid", Payment).amount.as_integer_ratio()[0]
        return 0

    async with working(migrated_url, plain, max_concurrent_tasks=2) as scheduler:
        handles = await scheduler.start_many(plain, [(None, None)] * 20)
        for number, handle in enumerate(handles):
            joining = scheduler.sync.handle(handle.execution_id)
            assert await asyncio.to_thread(joining.offer_event, "paid", Payment(Decimal(number)))
        assert [await one.result(timeout=PATIENCE) for one in handles] == list(range(20))


async def test_caught_timeout(migrated_url: str) -> None:
    """A body that catches it goes on, also in later turns; the late event is for the next wait of that name."""

    @durable
    async def patient() -> list[Any]:
        try:
            first = await wait_for_event("paid", int, timeout="1h")
        except EventTimeout:
            first = await double(21)
        await sleep("night", "8h")
        return [first, await wait_for_event("paid", int)]

    async with working(migrated_url, patient, workers=2) as scheduler:
        handle = await scheduler.start(patient)
        await until(handle, ExecutionStatus.WAITING)
        await let_time_pass(scheduler)
        await eventually(lambda: has_taken(handle, 1))
        await handle.offer_event("paid", 7)
        await until(handle, ExecutionStatus.WAITING)
        await let_time_pass(scheduler)
        assert await handle.result(timeout=PATIENCE) == [42, 7]
        timed_out = (await handle.steps())[0]
        assert (timed_out.name, timed_out.kind, timed_out.status) == ("paid", StepKind.EVENT, StepStatus.FAILED)
        assert timed_out.error is not None
        assert timed_out.error["error_type"] == "EventTimeout"


async def test_timeout_and_resume(migrated_url: str) -> None:
    """A run that failed for want of an event waits for it anew when it is resumed."""

    @durable
    async def impatient() -> int:
        return await wait_for_event("paid", int, timeout="1h")

    async with working(migrated_url, impatient) as scheduler:
        handle = await scheduler.start(impatient)
        await until(handle, ExecutionStatus.WAITING)
        await let_time_pass(scheduler)
        with pytest.raises(ExecutionFailed, match="none in") as caught:
            await handle.result(timeout=PATIENCE)
        assert (caught.value.error_type, caught.value.step) == ("EventTimeout", "paid")
        await handle.resume()
        await until(handle, ExecutionStatus.WAITING)
        await handle.offer_event("paid", 7)
        assert await handle.result(timeout=PATIENCE) == 7


async def test_event_that_a_failed_run_left(migrated_url: str) -> None:
    """A resumed run has what the failed one took, and takes what that left."""
    is_broken = True

    @durable
    async def fragile() -> list[int]:
        first = await wait_for_event("paid", int)
        if is_broken:
            raise ValueError("broken")
        return [first, await wait_for_event("paid", int)]

    async with working(migrated_url, fragile) as scheduler:
        handle = await scheduler.start(fragile)
        await until(handle, ExecutionStatus.WAITING)
        async with scheduler.engine.begin() as connection:
            for number in (1, 2):
                await handle.offer_event("paid", number, session=connection)
        await until(handle, ExecutionStatus.FAILED)
        is_broken = False
        await handle.resume()
        assert await handle.result(timeout=PATIENCE) == [1, 2]


async def test_waits_side_by_side(migrated_url: str) -> None:
    """Waits in tasks of the body's own, beside a sleep: what follows an event runs when it comes."""

    async def pay() -> int:
        return await double(await wait_for_event("paid", int))

    @durable
    async def shipment() -> list[Any]:
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(one) for one in (sleep("night", "8h"), pay(), wait_for_event("packed", timeout="8h"))
            ]
        return [task.result() for task in tasks]

    async with working(migrated_url, shipment, workers=2) as scheduler:
        handle = await scheduler.start(shipment)
        await until(handle, ExecutionStatus.WAITING)
        await handle.offer_event("paid", 21)
        await eventually(lambda: has_taken(handle, 1))
        await handle.offer_event("packed", "box")
        await eventually(lambda: is_all_taken(scheduler))
        await until(handle, ExecutionStatus.WAITING)
        await let_time_pass(scheduler)
        assert await handle.result(timeout=PATIENCE) == [None, 42, "box"]


async def test_cancel_while_waiting(migrated_url: str) -> None:
    """A run that waits ends at once, and takes nothing more."""
    async with working(migrated_url, order, workers=2) as scheduler:
        doomed, other = await scheduler.start_many(order, [("order_1", 1), ("order-1", 1)])
        for handle in (doomed, other):
            await until(handle, ExecutionStatus.WAITING)
        await doomed.cancel()
        with pytest.raises(ExecutionCancelled):
            await doomed.result(timeout=PATIENCE)
        with pytest.raises(ExecutionFinished):
            await doomed.offer_event("paid", 1)
        await other.offer_event("paid", 2)
        assert await other.result(timeout=PATIENCE) == [2]
        assert await doomed.status() is ExecutionStatus.CANCELLED


# In the app's transaction ----------------------------------------------------------------------------------------

KINDS = (
    "AsyncSession",
    "AsyncConnection",
    "Session",
    "Connection",
    "Session in an async app",
    "Connection in an async app",
)


async def settled(value: Any) -> Any:
    """Return the value, awaited where it has to be."""
    return await value if inspect.isawaitable(value) else value


@asynccontextmanager
async def joined(kind: str, url: str, scheduler: PostgresScheduler) -> AsyncIterator[tuple[Any, Any]]:
    """Yield a session or connection of the app's of this kind, and a scheduler that joins its transactions."""
    engine = create_engine(make_url(url).set(drivername="postgresql+psycopg"))
    async with AsyncExitStack() as stack:
        stack.callback(engine.dispose)
        match kind.split():
            case ["AsyncSession"]:
                yield await stack.enter_async_context(AsyncSession(scheduler.engine)), scheduler
            case ["AsyncConnection"]:
                yield await stack.enter_async_context(scheduler.engine.connect()), scheduler
            case ["Session", *rest]:
                yield stack.enter_context(Session(engine)), scheduler if rest else SyncScheduler(engine)
            case [_, *rest]:
                yield stack.enter_context(engine.connect()), scheduler if rest else SyncScheduler(engine)
            case _:
                raise AssertionError(kind)


@pytest.mark.parametrize("kind", KINDS)
async def test_in_the_apps_transaction(kind: str, migrated_url: str) -> None:
    """An event that is rolled back never was; one that is committed wakes the run, which hardly ever polls."""
    async with working(migrated_url, order) as scheduler, joined(kind, migrated_url, scheduler) as (session, client):
        handle = await scheduler.start(order, 2)
        await until(handle, ExecutionStatus.WAITING)
        joining = client.handle(handle.execution_id)

        async def offer(number: int) -> bool:
            offered = await settled(joining.offer_event("paid", number, event_id=str(number), session=session))
            assert isinstance(offered, bool)
            return offered

        assert await offer(1)
        await settled(session.rollback())
        assert await offer(2)
        assert not await offer(2)
        assert await events_left(scheduler) == 0
        await settled(session.commit())
        await eventually(lambda: has_taken(handle, 1))
        assert await offer(1)
        await settled(session.commit())
        assert await handle.result(timeout=PATIENCE) == [2, 1]
        with pytest.raises(ExecutionFinished):
            await offer(3)
        with pytest.raises(ExecutionNotFound):
            await settled(client.handle("nobody").offer_event("paid", 1, session=session))
        await settled(session.rollback())


@pytest.mark.parametrize("is_committed", [True, False])
@pytest.mark.parametrize("is_busy", [True, False])
async def test_offer_that_stays_open(
    migrated_url: str,
    is_busy: bool,  # noqa: FBT001
    is_committed: bool,  # noqa: FBT001
) -> None:
    """An app that takes its time between offer and commit holds up no other run, neither claims nor writes."""
    gate = asyncio.Event()

    @durable
    async def held() -> str:
        if is_busy:
            await gate.wait()  # the offer comes before the turn is put down
        return await wait_for_event("paid", str)

    async with working(migrated_url, held, order) as scheduler:
        waiting = await scheduler.start(held)
        await until(waiting, ExecutionStatus.RUNNING if is_busy else ExecutionStatus.WAITING)
        async with scheduler.engine.connect() as connection:
            await waiting.offer_event("paid", "committed", session=connection)
            gate.set()
            other = await scheduler.start(order, 3)
            for number in range(3):
                await other.offer_event("paid", number)
            assert await other.result(timeout=PATIENCE) == [0, 1, 2]
            await (connection.commit() if is_committed else connection.rollback())
        if not is_committed:
            await until(waiting, ExecutionStatus.WAITING)
            await waiting.offer_event("paid", "another")
        assert await waiting.result(timeout=PATIENCE) == ("committed" if is_committed else "another")


async def test_offer_from_a_step(migrated_url: str) -> None:
    """A run tells another one, in the transaction of its step: once, with the checkpoint."""
    clients: list[PostgresScheduler] = []

    @step
    async def tell(execution_id: str) -> None:
        await clients[0].handle(execution_id).offer_event("paid", 7, session=await trx())

    @durable
    async def payment(execution_id: str) -> None:
        await tell(execution_id)

    async with working(migrated_url, order, payment) as scheduler:
        clients.append(scheduler)
        handle = await scheduler.start(order, 1)
        await (await scheduler.start(payment, handle.execution_id)).result(timeout=PATIENCE)
        assert await handle.result(timeout=PATIENCE) == [7]


# Races -----------------------------------------------------------------------------------------------------------


async def test_event_and_deadline(migrated_url: str) -> None:
    """An event that races its deadline is taken or too late, never both; and a late one is not lost."""
    chance = random.Random(1)

    @durable
    async def race(number: int) -> list[Any]:
        try:
            return ["in time", await wait_for_event("paid", int, timeout="700ms")]
        except EventTimeout:
            await double(number)
        return ["late", await wait_for_event("paid", int)]

    async def offer(handle: ExecutionHandle[Any], number: int) -> None:
        await asyncio.sleep(chance.uniform(0.5, 0.9))  # the instant is what is random here
        await handle.offer_event("paid", number)

    async with working(migrated_url, race, workers=2) as scheduler:
        handles = await scheduler.start_many(race, [(None, number) for number in range(80)])
        await asyncio.gather(*(offer(handle, number) for number, handle in enumerate(handles)))
        for number, handle in enumerate(handles):
            outcome, value = await handle.result(timeout=PATIENCE)
            assert value == number
            kinds = [(one.kind.value, one.status.value) for one in await handle.steps()]
            late = [("event", "failed"), ("step", "completed"), ("event", "completed")]
            assert kinds == ([("event", "completed")] if outcome == "in time" else late)
        assert await is_all_taken(scheduler)


async def is_idle(scheduler: PostgresScheduler) -> bool:
    """Tell whether nothing is left to do."""
    return (await count_rows(scheduler))["tasks"] == 0


@pytest.mark.parametrize(("of_wait", "of_run"), [("1500ms", None), (None, "1500ms")])
async def test_deadline_after_the_end(of_wait: str | None, of_run: str | None, migrated_url: str) -> None:
    """A run that completed stays as it is when the deadline passes that it had while it waited: nothing runs again."""
    turns: Counter[str] = Counter()

    @durable(timeout=of_run)
    async def shipment(name: str) -> int:
        turns[name] += 1
        paid = await wait_for_event("paid", int, timeout=of_wait)
        return await double(paid)

    async with working(migrated_url, shipment, workers=2, poll_interval="200ms") as scheduler:
        handles = [await scheduler.start(shipment, f"order-{number}") for number in range(5)]
        for number, handle in enumerate(handles):
            await eventually(lambda: turns[f"order-{number}"])  # noqa: B023 - awaited at once
            with contextlib.suppress(ExecutionFinished):
                await handle.offer_event("paid", number)
        await eventually(lambda: is_idle(scheduler))
        before = {handle: (await handle.info(), await handle.steps()) for handle in handles}
        in_time = {handle for handle, (info, _) in before.items() if info.status is ExecutionStatus.COMPLETED}
        assert in_time  # all, unless the machine is very slow
        made = Counter(turns)
        witness = await scheduler.start(shipment, "witness")  # its deadline is the last
        with pytest.raises(ExecutionFailed):
            await witness.result(timeout=PATIENCE)
        assert {handle: (await handle.info(), await handle.steps()) for handle in handles} == before
        assert {name: count for name, count in turns.items() if name != "witness"} == made


@pytest.mark.slow
async def test_hundreds_of_runs(migrated_url: str) -> None:
    """Events for 200 runs, in random order, to two workers: each run gets exactly its own, in order."""
    chance = random.Random(1)

    @durable
    async def gatherer() -> list[Any]:
        values = [await wait_for_event("paid", list[int]), await wait_for_event("paid", list[int])]
        return [*values, await wait_for_event("packed", list[int])]

    async with working(migrated_url, gatherer, workers=2, max_concurrent_tasks=50) as scheduler:
        handles = await scheduler.start_many(gatherer, [(None, None)] * 200)
        deliveries = list(range(200)) * 2
        chance.shuffle(deliveries)
        offered: defaultdict[int, int] = defaultdict(int)
        locks = [asyncio.Lock() for _ in handles]

        async def deliver(to: int) -> None:
            async with locks[to]:  # in order for each run
                offered[to] += 1
                await handles[to].offer_event("paid", [to, offered[to]])
            if offered[to] == 2:
                await handles[to].offer_event("packed", [to, 3], event_id="only")

        for first in range(0, len(deliveries), 8):
            await asyncio.gather(*map(deliver, deliveries[first : first + 8]))
        for number, handle in enumerate(handles):
            expected = [[number, 1], [number, 2], [number, 3]]
            assert await handle.result(timeout=PATIENCE) == expected
        assert await is_all_taken(scheduler)
