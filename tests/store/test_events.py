"""Events: offered once, taken once, in order; and never missed by a run that is put down at the same moment."""

import asyncio
import random
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest

from tests.store.connections import Database, Link, is_blocked
from tests.store.crew import (
    ERROR,
    GRACE,
    claim,
    claim_one,
    finish,
    info,
    kill,
    put_down,
    record,
    register,
    rows,
    start,
)
from zart_sqla.records import ClaimedTask, ErrorRecord, NewEvent, RecordedStep, StepKind, StepStatus
from zart_sqla.store import events, executions, tasks, workers
from zart_sqla.store.events import EventToTake, Offer
from zart_sqla.store.tasks import StepToRecord, TaskToPutDown

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)
NEVER = datetime(2100, 1, 1, tzinfo=UTC)
PAID = frozenset({"paid"})


def event(value: object = 1, name: str = "paid", *, execution_id: str = "order-1", event_id: str | None = None) -> Any:
    """Return an event that is to be offered."""
    return NewEvent(execution_id=execution_id, name=name, payload=str(value), event_id=event_id)


async def offer(database: Database, *args: Any, **options: Any) -> Offer | None:
    """Offer an event; return what became of it."""
    return await database.run(events.offer, event(*args, **options))


def wait(name: str = "paid", position: int = 0) -> RecordedStep:
    """Return a wait that has begun."""
    return RecordedStep(name=name, kind=StepKind.EVENT, position=position, started_at=BEGAN, wake_at=NEVER)


async def take(database: Database, worker: UUID, claimed: ClaimedTask, *names: str, of: str = "paid") -> dict[str, str]:
    """Take events of one name for waits of these names; return the values that they got."""
    waits = [EventToTake(claimed, wait(name, position), of) for position, name in enumerate(names)]
    taken = await database.run(events.take, worker, waits)
    assert {run_id for run_id, _ in taken} <= {claimed.run_id}
    return {name: value for (_, name), value in taken.items()}


async def journal(database: Database, run_id: UUID) -> dict[str, RecordedStep]:
    """Return the checkpoints of a run."""
    history = (await database.run(tasks.journal, [run_id]))[run_id]
    return {one.name: one for one in history.steps}


async def taken(database: Database) -> list[tuple[str, Any, bool]]:
    """Return the events in the order of arrival: their names, values, and whether they were taken."""
    found = sorted(await rows(database, lambda tables: tables.events), key=lambda one: one["event_seq"])
    assert all((one["run_id"] is None) == (one["taken_at"] is None) for one in found)
    return [(one["name"], one["payload"], one["taken_at"] is not None) for one in found]


async def task(database: Database) -> dict[str, Any]:
    """Return the one task that there is."""
    (found,) = await rows(database, lambda tables: tables.tasks)
    return found


# Offering --------------------------------------------------------------------------------------------------------


async def test_offer(database: Database) -> None:
    """An event is kept, and counted on the task of the run."""
    await start(database, "order-1")
    due_at = (await task(database))["due_at"]
    assert await offer(database, 7) == Offer(is_new=True, is_free=True)
    (row,) = await rows(database, lambda tables: tables.events)
    assert (row["execution_id"], row["name"], row["payload"], row["event_id"]) == ("order-1", "paid", 7, None)
    assert (row["run_id"], row["taken_at"]) == (None, None)
    assert row["offered_at"] is not None
    found = await task(database)
    assert (found["signals"], found["due_at"], found["worker_id"]) == (1, due_at, None)


async def test_offer_to_a_run_that_is_held(database: Database) -> None:
    """It leaves the task with its worker, and tells so."""
    worker = await register(database)
    await claim_one(database, worker)
    assert await offer(database) == Offer(is_new=True, is_free=False)
    found = await task(database)
    assert (found["signals"], found["worker_id"]) == (1, worker)


async def test_offer_twice_with_one_id(database: Database) -> None:
    """An event of an id that was offered before counts no more, neither as an event nor as a signal."""
    await start(database, "order-1", "order-2")
    assert await offer(database, 1, event_id="e") == Offer(is_new=True, is_free=True)
    assert await offer(database, 2, "packed", event_id="e") == Offer(is_new=False, is_free=True)
    assert await offer(database, 3, event_id="f") == Offer(is_new=True, is_free=True)
    assert await offer(database, 4, event_id="e", execution_id="order-2") == Offer(is_new=True, is_free=True)
    assert await taken(database) == [("paid", 1, False), ("paid", 3, False), ("paid", 4, False)]
    found = await rows(database, lambda tables: tables.tasks)
    assert sorted(one["signals"] for one in found) == [1, 2]


async def test_offer_without_an_id(database: Database) -> None:
    """Without an id each offer counts."""
    await start(database, "order-1")
    assert [await offer(database) for _ in range(3)] == [Offer(is_new=True, is_free=True)] * 3
    assert len(await taken(database)) == 3


async def test_offer_again_after_it_was_taken(database: Database) -> None:
    """An id stays known: what was taken is not offered anew."""
    worker = await register(database)
    claimed = await claim_one(database, worker)
    await offer(database, 1, event_id="e")
    assert await take(database, worker, claimed, "paid") == {"paid": "1"}
    assert await offer(database, 1, event_id="e") == Offer(is_new=False, is_free=False)
    assert await take(database, worker, claimed, "paid#2") == {}


async def test_one_id_at_the_same_time(database: Database) -> None:
    """Of two offers of one id at once, the second waits, and then counts if the first was rolled back."""
    await start(database, "order-1")
    for is_committed in (False, True):
        async with database.connected() as one, database.connected() as other:
            assert await one.run(events.offer, event(1, event_id="e")) == Offer(is_new=True, is_free=True)
            waiting = asyncio.create_task(other.run(events.offer, event(2, event_id="e")))
            assert await is_blocked(waiting, database)
            await (one.commit() if is_committed else one.rollback())
            assert await waiting == Offer(is_new=not is_committed, is_free=True)
            await other.rollback()
    assert await taken(database) == [("paid", 1, False)]


@pytest.mark.parametrize("status", ["unknown", "completed", "failed", "cancelled"])
async def test_offer_to_what_does_not_run(database: Database, status: str) -> None:
    """There is nothing that could take it: nothing is kept."""
    if status != "unknown":
        worker = await register(database)
        claimed = await claim_one(database, worker)
        if status == "cancelled":
            await database.run(executions.cancel, "order-1")
        else:
            await finish(database, worker, claimed, ERROR if status == "failed" else None)
    assert await offer(database) is None
    assert await taken(database) == []


async def test_offer_that_is_rolled_back(database: Database) -> None:
    """Nobody sees it before the commit; rolled back, it has not happened."""
    await start(database, "order-1")
    before = await task(database)
    async with database.connected() as link:
        assert await link.run(events.offer, event()) == Offer(is_new=True, is_free=True)
        assert await taken(database) == []
        await link.rollback()
    assert await taken(database) == []
    assert await task(database) == before


async def test_numbers_are_in_the_order_of_commits(database: Database) -> None:
    """Two transactions that offer to one execution come one after the other, however they began."""
    await start(database, "order-1")
    async with database.connected() as one, database.connected() as other:
        await other.call(lambda connection: connection.exec_driver_sql("SELECT 1"))
        await one.run(events.offer, event(1))
        waiting = asyncio.create_task(other.run(events.offer, event(3)))
        assert await is_blocked(waiting, database)
        await one.run(events.offer, event(2))
        await one.commit()
        await waiting
        await other.commit()
    assert [value for _, value, _ in await taken(database)] == [1, 2, 3]


@pytest.mark.parametrize("text", ["''\"; --", "100%", "a_b", "grün ✓", "x" * 500])
async def test_nasty_names(database: Database, text: str) -> None:
    """Any text is a name, and an id."""
    worker = await register(database)
    claimed = await claim_one(database, worker)
    await put_down(database, worker, claimed, due_at=None, is_waiting=True, awaits=frozenset({text, "other"}))
    assert await offer(database, 1, text, event_id=text) == Offer(is_new=True, is_free=True)
    (again,) = await claim(database, worker)
    assert await take(database, worker, again, "paid", of=text) == {"paid": "1"}


# Taking ----------------------------------------------------------------------------------------------------------


async def test_take(database: Database) -> None:
    """The event becomes the result of the wait, whole, whether the wait had been recorded or not."""
    worker = await register(database)
    claimed = await claim_one(database, worker)
    assert await take(database, worker, claimed, "paid") == {}
    await offer(database, '{"a": [1, null]}')
    await offer(database, "null")
    await database.run(tasks.record_steps, worker, [StepToRecord(claimed, wait())])
    assert (await journal(database, claimed.run_id))["paid"].is_open
    assert await take(database, worker, claimed, "paid") == {"paid": '{"a": [1, null]}'}
    assert await take(database, worker, claimed, "paid#2") == {"paid#2": "null"}
    found = await rows(database, lambda tables: tables.steps)
    assert [(one["kind"], one["attempts"], one["started_at"], one["wake_at"]) for one in found] == [
        ("event", 1, BEGAN, NEVER)
    ] * 2
    assert all(one["completed_at"] is not None for one in found)
    recorded = await journal(database, claimed.run_id)
    assert {name: one.result for name, one in recorded.items()} == {"paid": '{"a": [1, null]}', "paid#2": "null"}
    assert not any(one.is_open for one in recorded.values())
    assert all(one["run_id"] == claimed.run_id for one in await rows(database, lambda tables: tables.events))


async def test_order_of_taking(database: Database) -> None:
    """Events of one name are taken in the order of their arrival, one after the other."""
    worker = await register(database)
    claimed = await claim_one(database, worker)
    for number in range(5):
        await offer(database, number)
        await offer(database, number + 10, "packed")
    got = [await take(database, worker, claimed, f"paid#{number}") for number in range(5)]
    assert got == [{f"paid#{number}": str(number)} for number in range(5)]
    assert await take(database, worker, claimed, "paid#5") == {}
    assert [value for name, value, is_taken in await taken(database) if not is_taken] == [10, 11, 12, 13, 14]


async def test_several_waits_at_once(database: Database) -> None:
    """Each of them gets an event of its own, as far as there are any; waits of several runs do not mix."""
    worker = await register(database)
    await start(database, "order-1", "order-2")
    one, other = await claim(database, worker)
    for number in range(2):
        await offer(database, number)
        await offer(database, number + 10, execution_id="order-2")
    await offer(database, 5, "packed")
    waits = [
        *(EventToTake(one, wait(name, position), "paid") for position, name in enumerate(["paid", "paid#2", "paid#3"])),
        EventToTake(one, wait("packed", 3), "packed"),
        EventToTake(other, wait(), "paid"),
    ]
    assert await database.run(events.take, worker, waits) == {
        (one.run_id, "paid"): "0",
        (one.run_id, "paid#2"): "1",
        (one.run_id, "packed"): "5",
        (other.run_id, "paid"): "10",
    }
    assert [value for _, value, is_taken in await taken(database) if not is_taken] == [11]


async def test_a_wait_takes_one_event(database: Database) -> None:
    """A wait that is done takes no other, and leaves the next event to the next wait, even in the same statement."""
    worker = await register(database)
    claimed = await claim_one(database, worker)
    for number in range(3):
        await offer(database, number)
    assert await take(database, worker, claimed, "paid") == {"paid": "0"}
    assert await take(database, worker, claimed, "paid") == {}
    assert await take(database, worker, claimed, "paid", "paid#2") == {"paid#2": "1"}
    assert [is_taken for _, _, is_taken in await taken(database)] == [True, True, False]


async def test_a_wait_that_timed_out_takes_nothing(database: Database) -> None:
    """A wait ends once: in its timeout or in an event, whichever was recorded first."""
    worker = await register(database)
    claimed = await claim_one(database, worker)
    over = ErrorRecord(error_type="EventTimeout", message="none", step="paid", category="event_timeout")
    ended = RecordedStep(name="paid", kind=StepKind.EVENT, position=0, error=over)
    assert await database.run(tasks.record_steps, worker, [StepToRecord(claimed, wait())]) == 1
    assert await database.run(tasks.record_steps, worker, [StepToRecord(claimed, ended)]) == 1
    await offer(database)
    assert await take(database, worker, claimed, "paid") == {}
    assert await take(database, worker, claimed, "paid#2") == {"paid#2": "1"}
    late = RecordedStep(name="paid#2", kind=StepKind.EVENT, position=1, error=over)
    assert await database.run(tasks.record_steps, worker, [StepToRecord(claimed, late)]) == 0
    recorded = await journal(database, claimed.run_id)
    assert [(one.result, one.error) for one in recorded.values()] == [(None, over), ("1", None)]


async def test_an_open_wait_is_recorded_once(database: Database) -> None:
    """Recorded again, it keeps its time; nothing makes a step that is done open again."""
    worker = await register(database)
    claimed = await claim_one(database, worker)
    again = RecordedStep(name="paid", kind=StepKind.EVENT, position=0, started_at=NEVER, wake_at=NEVER)
    assert await database.run(tasks.record_steps, worker, [StepToRecord(claimed, wait())]) == 1
    assert await database.run(tasks.record_steps, worker, [StepToRecord(claimed, again)]) == 0
    assert (await journal(database, claimed.run_id))["paid"] == wait()
    await offer(database)
    await take(database, worker, claimed, "paid")
    assert await database.run(tasks.record_steps, worker, [StepToRecord(claimed, again)]) == 0
    assert (await journal(database, claimed.run_id))["paid"].result == "1"


async def test_steps_tell_of_waits(database: Database) -> None:
    """A wait that goes on is listed last, whenever it began; one that is done stands where it was done."""
    worker = await register(database)
    claimed = await claim_one(database, worker)
    await database.run(tasks.record_steps, worker, [StepToRecord(claimed, wait()), StepToRecord(claimed, wait("b", 1))])
    await record(database, worker, claimed, "a")
    found = await database.run(executions.steps_of, "order-1")
    assert [(one.name, one.status, one.completed_at is None) for one in found] == [
        ("a", StepStatus.COMPLETED, False),
        ("paid", StepStatus.WAITING, True),
        ("b", StepStatus.WAITING, True),
    ]
    await offer(database)
    await take(database, worker, claimed, "paid")
    found = await database.run(executions.steps_of, "order-1")
    assert [(one.name, one.kind, one.status, one.result) for one in found] == [
        ("a", StepKind.STEP, StepStatus.COMPLETED, 1),
        ("paid", StepKind.EVENT, StepStatus.COMPLETED, 1),
        ("b", StepKind.EVENT, StepStatus.WAITING, None),
    ]


async def test_fence(database: Database) -> None:
    """Who does not hold the task takes nothing: another worker, an older claim, a buried worker, after a cancel."""
    worker, other = await register(database), await register(database)
    claimed = await claim_one(database, worker)
    await offer(database)
    assert await take(database, other, claimed, "paid") == {}
    await put_down(database, worker, claimed)
    assert await take(database, worker, claimed, "paid") == {}
    (again,) = await claim(database, worker)
    assert again.signals == 1
    assert await take(database, worker, claimed, "paid") == {}
    await kill(database, worker)
    await database.run(workers.bury, other, grace_seconds=GRACE)
    assert await take(database, worker, again, "paid") == {}
    await database.run(workers.take_over, [], max_crashes=5)
    (mine,) = await claim(database, other)
    assert await take(database, worker, again, "paid") == {}
    assert await journal(database, mine.run_id) == {}
    assert await take(database, other, mine, "paid") == {"paid": "1"}
    await offer(database, 2)
    await database.run(executions.cancel, "order-1")
    assert await take(database, other, mine, "paid#2") == {}
    assert await taken(database) == [("paid", 1, True), ("paid", 2, False)]


# Putting down at the same time -----------------------------------------------------------------------------------


def to_put_down(claimed: ClaimedTask, awaits: frozenset[str] = PAID) -> list[TaskToPutDown]:
    """Return how a turn is put down that waits for events, and for nothing else."""
    return [TaskToPutDown(claimed, None, is_waiting=True, retries=0, awaits=awaits)]


async def is_due(database: Database) -> bool:
    """Return whether a claim gets the task now. It is freed again, as a worker would free it that found nothing."""
    worker = await register(database)
    found = await claim(database, worker)
    for claimed in found:
        await database.run(tasks.put_down, worker, to_put_down(claimed))
    return bool(found)


async def test_put_down_to_wait(database: Database) -> None:
    """A task that awaits events is due for no other reason than one of those."""
    worker = await register(database)
    claimed = await claim_one(database, worker)
    assert await database.run(tasks.put_down, worker, to_put_down(claimed)) == {claimed.task_id: False}
    found = await task(database)
    assert (found["due_at"], found["is_waiting"], found["awaits"]) == (None, True, ["paid"])
    assert (await info(database)).status == "waiting"
    assert not await is_due(database)
    await offer(database, 1, "packed")
    assert not await is_due(database)
    await offer(database, 2)
    assert await is_due(database)
    assert not await is_due(database)


async def test_put_down_to_wait_for_a_time(database: Database) -> None:
    """A task with a timeout is due at that moment, or with the event."""
    worker = await register(database)
    claimed = await claim_one(database, worker)
    await put_down(database, worker, claimed, due_at=NEVER, is_waiting=True, awaits=PAID)
    assert (await task(database))["due_at"] == NEVER
    await offer(database, 1, "packed")
    assert (await task(database))["due_at"] == NEVER
    await offer(database, 2, event_id="e")
    (again,) = await claim(database, worker)
    await put_down(database, worker, again, due_at=NEVER, is_waiting=True, awaits=PAID)
    await offer(database, 2, event_id="e")
    assert await claim(database, worker) == []


async def test_event_during_the_turn(database: Database) -> None:
    """An event that came while the turn ran, of whatever name, makes the task due as soon as it is put down."""
    worker = await register(database)
    for number, name in enumerate(("paid", "packed")):
        claimed = await claim_one(database, worker, f"order-{number}")
        await offer(database, 1, name, execution_id=f"order-{number}")
        await put_down(database, worker, claimed, due_at=NEVER, is_waiting=True, awaits=PAID)
        (again,) = await claim(database, worker)
        assert again.signals == 1
        await put_down(database, worker, again, due_at=NEVER, is_waiting=True, awaits=PAID)
        assert await claim(database, worker) == []


async def test_event_beside_a_sleep(database: Database) -> None:
    """A task that awaits no event sleeps on."""
    worker = await register(database)
    claimed = await claim_one(database, worker)
    await offer(database)
    await put_down(database, worker, claimed, due_at=NEVER, is_waiting=True)
    await offer(database)
    assert await claim(database, worker) == []


@pytest.mark.parametrize("is_committed", [True, False])
async def test_put_down_during_an_offer(database: Database, is_committed: bool) -> None:  # noqa: FBT001
    """The task is passed over while an offer holds it, and due at once when it is put down after the commit."""
    worker = await register(database)
    claimed = await claim_one(database, worker)
    async with database.connected() as link:
        assert await link.run(events.offer, event()) == Offer(is_new=True, is_free=False)
        assert await database.run(tasks.put_down, worker, to_put_down(claimed)) == {}
        assert await database.run(tasks.held, worker, [claimed]) == {claimed.task_id}
        await (link.commit() if is_committed else link.rollback())
    assert await database.run(tasks.put_down, worker, to_put_down(claimed)) == {claimed.task_id: is_committed}
    assert await is_due(database) == is_committed


@pytest.mark.parametrize("is_committed", [True, False])
async def test_offer_during_a_put_down(database: Database, is_committed: bool) -> None:  # noqa: FBT001
    """The offer waits for the worker's commit, and wakes the run that is free then; or it still finds it held."""
    worker = await register(database)
    claimed = await claim_one(database, worker)
    async with database.connected() as link:
        assert await link.run(tasks.put_down, worker, to_put_down(claimed)) == {claimed.task_id: False}
        waiting = asyncio.create_task(offer(database))
        assert await is_blocked(waiting, database)
        await (link.commit() if is_committed else link.rollback())
    assert await waiting == Offer(is_new=True, is_free=is_committed)
    if not is_committed:
        assert await database.run(tasks.put_down, worker, to_put_down(claimed)) == {claimed.task_id: True}
    assert await is_due(database)


async def test_offer_that_began_before_the_put_down(database: Database) -> None:
    """An app's transaction that is older than the worker's still sees where the run stands, and wakes it."""
    worker = await register(database)
    claimed = await claim_one(database, worker)
    async with database.connected() as link:
        await link.call(lambda connection: connection.exec_driver_sql("SELECT 1 FROM zart_tasks").all())
        await database.run(tasks.put_down, worker, to_put_down(claimed))
        assert await link.run(events.offer, event()) == Offer(is_new=True, is_free=True)
        await link.commit()
    assert await is_due(database)


async def run_turn(link: Link, worker: UUID, claimed: ClaimedTask, got: asyncio.Queue[str], pause: float) -> None:
    """Take what there is, and put the task down as a worker does: again and again while an offer holds it."""
    while claimed.signals:
        found = await link.run(events.take, worker, [EventToTake(claimed, wait(str(uuid4())), "paid")])
        await link.commit()
        if not found:
            break
        for value in found.values():
            got.put_nowait(value)
    await asyncio.sleep(pause)  # the instant is what is random here
    while not await link.run(tasks.put_down, worker, to_put_down(claimed)):
        await link.rollback()
    await link.commit()


async def test_many_races(database: Database) -> None:
    """However an offer and the end of a turn interleave, the run is woken: no other event would come to do it."""
    chance = random.Random(1)
    worker = await register(database)
    await start(database, "order-1")
    got: asyncio.Queue[str] = asyncio.Queue()

    async def work() -> None:
        known: dict[str, Any] = {"task_names": ["task"], "queues": None, "limit": 1}
        async with database.connected() as link:
            while True:
                claimed, _ = await link.run(tasks.claim, worker, **known)
                await link.commit()
                for one in claimed:
                    await run_turn(link, worker, one, got, chance.choice([0, 0.001, 0.003]))

    async with database.connected() as link:
        working = asyncio.create_task(work())
        for number in range(60):
            await link.run(events.offer, event(number))
            await asyncio.sleep(chance.choice([0, 0.001, 0.003]))
            await link.commit()
            assert await asyncio.wait_for(got.get(), 30) == str(number)
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await working


# Resuming --------------------------------------------------------------------------------------------------------


async def test_resumed_run(database: Database) -> None:
    """It keeps the events that the failed run took, goes on with the waits that were open, and sees what is left."""
    worker = await register(database)
    claimed = await claim_one(database, worker)
    await offer(database, 1)
    assert await take(database, worker, claimed, "paid") == {"paid": "1"}
    await offer(database, 2)
    await database.run(tasks.record_steps, worker, [StepToRecord(claimed, wait("paid#2", 1))])
    await finish(database, worker, claimed, ERROR)
    run_id = uuid4()
    assert await database.run(executions.resume, "order-1", run_id)
    (again,) = await claim(database, worker)
    assert (again.run_id, again.signals) == (run_id, 1)
    recorded = await journal(database, run_id)
    assert {name: one.result for name, one in recorded.items()} == {"paid": "1", "paid#2": None}
    assert recorded["paid#2"].is_open
    assert await take(database, worker, again, "paid", "paid#2") == {"paid#2": "2"}


@pytest.mark.parametrize("is_taken", [True, False])
async def test_signals_of_a_resumed_run(database: Database, is_taken: bool) -> None:  # noqa: FBT001
    """It is told of events only if there are any that were not taken; later ones wake it as any other."""
    worker = await register(database)
    claimed = await claim_one(database, worker)
    await start(database, "order-2")
    await offer(database, 9, execution_id="order-2")
    await offer(database, 1)
    if is_taken:
        await take(database, worker, claimed, "paid")
    await finish(database, worker, claimed, ERROR)
    await database.run(executions.resume, "order-1", uuid4())
    found = {one.execution_id: one for one in await claim(database, worker)}
    again = found["order-1"]
    assert again.signals == (0 if is_taken else 1)
    await database.run(tasks.put_down, worker, to_put_down(again))
    assert await offer(database, 2) == Offer(is_new=True, is_free=True)
    (woken,) = await claim(database, worker)
    assert woken.execution_id == "order-1"


async def test_offer_while_the_run_is_resumed(database: Database) -> None:
    """An offer that meets a run which is just being resumed finds either no run or the new one, and loses nothing."""
    worker = await register(database)
    await finish(database, worker, await claim_one(database, worker), ERROR)
    async with database.connected() as link:
        assert await link.run(executions.resume, "order-1", uuid4())
        assert await offer(database) is None
        await link.commit()
    assert await offer(database) == Offer(is_new=True, is_free=True)
    (again,) = await claim(database, worker)
    assert again.signals == 1
