"""Starting, finding, listing, cancelling and resuming executions."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.store.connections import Database, is_blocked
from tests.store.crew import (
    ERROR,
    claim,
    claim_one,
    finish,
    info,
    make_due,
    new,
    put_down,
    record,
    register,
    rows,
    start,
)
from zart_sqla import ConfigError, ExecutionStatus
from zart_sqla.records import ExecutionFilter, FailedAttempt, RecordedStep, StepKind, StepStatus
from zart_sqla.store import executions, tasks
from zart_sqla.store.tasks import AttemptToRecord, StepToRecord

NASTY = [
    "order_1%",
    "a/b:c",
    "'; DROP TABLE zart_tasks; --",
    '"quoted" {braces} $1 :name %(x)s %s',
    "back\\slash",
    "\N{GRINNING FACE}" * 500,
    " ",
    "new\nline",
]


async def test_insert(database: Database) -> None:
    """An execution has one run and one task, and is scheduled."""
    one = new("order-1", payload='{"a": [1, 1.0, 1e2, "x"], "b": null}', queue="slow")
    assert await database.run(executions.insert, [one]) == {one.run_id}
    found = await info(database)
    assert (found.execution_id, found.task_name, found.queue) == ("order-1", "task", "slow")
    assert (found.status, found.run_id, found.run_index) == (ExecutionStatus.SCHEDULED, one.run_id, 0)
    assert found.payload == {"a": [1, 1.0, 1e2, "x"], "b": None}
    assert (found.result, found.error, found.started_at, found.completed_at) == (None, None, None, None)
    (task,) = await rows(database, lambda tables: tables.tasks)
    assert (task["task_id"], task["run_id"], task["attempt"]) == (one.run_id, one.run_id, 0)


async def test_insert_thousands(database: Database) -> None:
    """Thousands are one statement."""
    many = [new(f"order-{number}") for number in range(3000)]
    assert await database.run(executions.insert, many) == {one.run_id for one in many}
    assert len(await rows(database, lambda tables: tables.tasks)) == 3000


async def test_insert_nothing(database: Database) -> None:
    """No executions are no rows."""
    assert await database.run(executions.insert, []) == set()


async def test_insert_conflict(database: Database) -> None:
    """An id that is taken is left as it is, with all that belongs to it; the others are inserted."""
    first, second, third = new("a"), new("a", payload="2"), new("b")
    await database.run(executions.insert, [first])
    assert await database.run(executions.insert, [second, third]) == {third.run_id}
    assert (await info(database, "a")).payload == 1
    for table in ("executions", "execution_runs", "tasks"):
        assert len(await rows(database, attrgetter(table))) == 2


async def test_insert_same_id_twice_at_once(database: Database) -> None:
    """Of two with one id in one statement, one is inserted."""
    assert len(await database.run(executions.insert, [new("a"), new("a")])) == 1
    assert len(await rows(database, lambda tables: tables.tasks)) == 1


async def test_insert_races(database: Database) -> None:
    """A start waits for the transaction that is starting the same id, and then sees who won."""
    async with database.connected() as one, database.connected() as other:
        await one.run(executions.insert, [new("a")])
        waiting = asyncio.create_task(other.run(executions.insert, [new("a")]))
        assert await is_blocked(waiting, database)
        await one.commit()
        assert await waiting == set()


async def test_insert_race_after_a_rollback(database: Database) -> None:
    """If that transaction is rolled back, the other one starts it."""
    async with database.connected() as other:
        async with database.connected() as one:
            await one.run(executions.insert, [new("a")])
            waiting = asyncio.create_task(other.run(executions.insert, [new("a")]))
            assert await is_blocked(waiting, database)
        assert len(await waiting) == 1


async def test_insert_in_opposite_orders(database: Database) -> None:
    """Two that start the same ids in opposite orders wait for each other, and do not deadlock."""
    ids = [f"order-{number}" for number in range(3000)]

    async def insert(order: list[str]) -> int:
        return len(await database.run(executions.insert, [new(one) for one in order]))

    counts = await asyncio.gather(insert(ids), insert(ids[::-1]), insert(ids), insert(ids[::-1]))
    assert sum(counts) == 3000


@pytest.mark.parametrize("execution_id", NASTY, ids=lambda name: ascii(name)[:20])
async def test_nasty_ids(database: Database, execution_id: str) -> None:
    """An id is taken as it is, in each place that it goes through."""
    await start(database, execution_id, "other")
    assert (await info(database, execution_id)).execution_id == execution_id
    assert await database.run(executions.cancel, execution_id)
    assert (await info(database, "other")).status == "scheduled"
    wanted = ExecutionFilter(status=None, task_name=None, search=execution_id, since=None, limit=10)
    page = await database.run(executions.browse, wanted, None)
    assert [one.execution_id for one in page] == [execution_id]


@given(value=st.recursive(st.none() | st.booleans() | st.integers() | st.text('a\x01\u2028\U0001f600"\\/'), st.lists))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
async def test_payloads_come_back(database: Database, value: Any) -> None:
    """A payload comes back as the JSON that it was."""
    execution_id = str(uuid4())
    await start(database, execution_id, payload=json.dumps(value))
    assert (await info(database, execution_id)).payload == value


async def test_statuses(database: Database) -> None:
    """An execution is scheduled, running, waiting, and then what it ended as."""
    worker = await register(database)
    claimed = await claim_one(database, worker)
    assert (await info(database)).status == "running"
    assert (await info(database)).started_at == claimed.started_at
    await put_down(database, worker, claimed, is_waiting=True, due_at=datetime.now(UTC) + timedelta(hours=1))
    assert (await info(database)).status == "waiting"
    await make_due(database)
    (claimed,) = await claim(database, worker)
    await put_down(database, worker, claimed)
    assert (await info(database)).status == "scheduled"
    (claimed,) = await claim(database, worker)
    assert await finish(database, worker, claimed)
    done = await info(database)
    assert (done.status, done.result, done.error, done.started_at) == ("completed", "done", None, claimed.started_at)
    assert done.completed_at is not None
    assert await rows(database, lambda tables: tables.tasks) == []


async def test_failed(database: Database) -> None:
    """A failed run keeps its error as data, without what is for replays only."""
    worker = await register(database)
    assert await finish(database, worker, await claim_one(database, worker), ERROR)
    failed = await info(database)
    assert (failed.status, failed.result) == ("failed", None)
    assert failed.error == {"error_type": "ValueError", "message": "no", "step": "charge", "attempts": 2}
    ending = await database.run(executions.ending, "order-1")
    assert ending is not None
    assert ending.error == ERROR


async def test_find(database: Database) -> None:
    """Only those that exist are found; an unknown one has no ending."""
    await start(database, "a", "b")
    assert set(await database.run(executions.find, ["a", "b", "c"])) == {"a", "b"}
    assert await database.run(executions.find, []) == {}
    assert await database.run(executions.ending, "c") is None
    assert await database.run(executions.steps_of, "c") == []


async def test_steps(database: Database) -> None:
    """Steps are listed in the order of recording, then those between two attempts."""
    worker = await register(database)
    claimed = await claim_one(database, worker)
    now = claimed.claimed_at
    recorded = [
        RecordedStep(name="a", kind=StepKind.STEP, position=0, result='{"x": 1}', attempts=2, started_at=now),
        RecordedStep(name="b", kind=StepKind.STEP, position=1, error=ERROR, started_at=now),
        RecordedStep(name="nap", kind=StepKind.SLEEP, position=2, wake_at=now + timedelta(hours=1)),
        RecordedStep(name="past", kind=StepKind.SLEEP, position=3, wake_at=now - timedelta(hours=1)),
    ]
    for one in recorded:
        await database.run(tasks.record_steps, worker, [StepToRecord(claimed, one)])
    for step, attempt in (("a", 1), ("d", 1), ("d", 2), ("", 1)):
        failed = FailedAttempt(step=step, attempt=attempt, error=ERROR, started_at=now)
        await database.run(tasks.record_attempts, worker, [AttemptToRecord(claimed, failed)])
    found = await database.run(executions.steps_of, "order-1")
    assert [(one.name, one.kind, one.status, one.attempts) for one in found] == [
        ("a", StepKind.STEP, StepStatus.COMPLETED, 2),
        ("b", StepKind.STEP, StepStatus.FAILED, 1),
        ("nap", StepKind.SLEEP, StepStatus.WAITING, 1),
        ("past", StepKind.SLEEP, StepStatus.COMPLETED, 1),
        ("d", StepKind.STEP, StepStatus.WAITING, 2),
    ]
    first, second, nap, _, between = found
    assert (first.result, first.error, first.started_at) == ({"x": 1}, None, now)
    assert (
        second.error == between.error == {"error_type": "ValueError", "message": "no", "step": "charge", "attempts": 2}
    )
    assert nap.completed_at == now + timedelta(hours=1)
    assert between.completed_at is None


async def test_cancel(database: Database) -> None:
    """Whatever has not ended can be cancelled, once; nothing else is touched."""
    worker = await register(database)
    await start(database, "order_1", "orderX1", "order_12")
    claimed = {one.execution_id: one for one in await claim(database, worker, limit=3)}
    assert await database.run(executions.cancel, "order_1")
    assert not await database.run(executions.cancel, "order_1")
    assert not await database.run(executions.cancel, "unknown")
    cancelled = await info(database, "order_1")
    assert (cancelled.status, cancelled.error) == ("cancelled", None)
    assert (cancelled.started_at, cancelled.completed_at is not None) == (claimed["order_1"].started_at, True)
    assert {(await info(database, one)).status for one in ("orderX1", "order_12")} == {"running"}


async def test_cancel_fences_the_worker(database: Database) -> None:
    """The worker of a cancelled run records nothing more, and cannot end it."""
    worker = await register(database)
    claimed = await claim_one(database, worker)
    await database.run(executions.cancel, "order-1")
    assert await record(database, worker, claimed, "a") == 0
    assert not await finish(database, worker, claimed)
    assert not await put_down(database, worker, claimed)
    assert (await info(database)).status == "cancelled"


async def test_cancel_after_the_end(database: Database) -> None:
    """What has ended stays as it is."""
    worker = await register(database)
    await finish(database, worker, await claim_one(database, worker))
    assert not await database.run(executions.cancel, "order-1")
    assert (await info(database)).status == "completed"


async def test_finish_and_cancel_at_the_same_time(database: Database) -> None:
    """A cancellation waits for the one who has just ended the run, and then changes nothing."""
    worker = await register(database)
    ended = tasks.RunToFinish(await claim_one(database, worker), '"done"', None)
    async with database.connected() as one, database.connected() as other:
        assert await one.run(tasks.finish, worker, [ended]) == {ended.task.task_id}
        waiting = asyncio.create_task(other.run(executions.cancel, "order-1"))
        assert await is_blocked(waiting, database)
        await one.commit()
        assert not await waiting
        await other.commit()
    assert (await info(database)).status == "completed"


@pytest.mark.parametrize("is_committed", [True, False])
@pytest.mark.parametrize("is_end", [True, False])
async def test_settling_beside_an_open_cancellation(database: Database, is_end: bool, is_committed: bool) -> None:  # noqa: FBT001
    """A worker does not wait for an app that cancels in a transaction of its own; it settles the others."""
    worker = await register(database)
    await start(database, "order-1", "order-2")
    held = await claim(database, worker, limit=2)
    ids = {one.execution_id: one.task_id for one in held}

    async def settle() -> set[UUID]:
        if is_end:
            return await database.run(tasks.finish, worker, [tasks.RunToFinish(one, '"done"', None) for one in held])
        down = [tasks.TaskToPutDown(one, None, is_waiting=False, retries=0) for one in held]
        return set(await database.run(tasks.put_down, worker, down))

    async with database.connected() as link:
        assert await link.run(executions.cancel, "order-1")
        assert await settle() == {ids["order-2"]}
        assert await database.run(tasks.held, worker, held) == {ids["order-1"]}
        await (link.commit() if is_committed else link.rollback())
    assert await settle() == (set() if is_committed else {ids["order-1"]})
    assert await database.run(tasks.held, worker, held) == set()
    unhindered = "completed" if is_end else "scheduled"
    assert (await info(database)).status == ("cancelled" if is_committed else unhindered)


async def test_many_cancel_and_finish_races(database: Database) -> None:
    """However they interleave, each run has exactly one end, and one of the two knows that it made it."""
    worker = await register(database)
    ids = [f"order-{number}" for number in range(10)]
    await start(database, *ids)
    claimed = {one.execution_id: one for one in await claim(database, worker)}

    async def race(execution_id: str) -> tuple[bool, bool]:
        cancelled, finished = await asyncio.gather(
            database.run(executions.cancel, execution_id), finish(database, worker, claimed[execution_id])
        )
        return bool(cancelled), finished

    for execution_id, (cancelled, finished) in zip(ids, await asyncio.gather(*map(race, ids)), strict=True):
        assert cancelled != finished
        assert (await info(database, execution_id)).status == ("cancelled" if cancelled else "completed")


@pytest.mark.parametrize(
    ("handled", "kept"),
    [
        (None, ["a", "b", "c", "on_failure"]),
        (frozenset[str](), ["a"]),
        (frozenset({"b"}), ["a", "b"]),
        (frozenset({"c", "on_failure"}), ["a", "c", "on_failure"]),
    ],
)
async def test_resume(database: Database, handled: frozenset[str] | None, kept: list[str]) -> None:
    """A failed run goes on in a new one, with the steps that succeeded, and the failed ones that it had gone behind."""
    worker = await register(database)
    claimed = await claim_one(database, worker)
    steps = [
        RecordedStep(name="a", kind=StepKind.STEP, position=0, result="1"),
        RecordedStep(name="b", kind=StepKind.STEP, position=1, error=ERROR),
        RecordedStep(name="c", kind=StepKind.STEP, position=2, error=ERROR),
        RecordedStep(name="on_failure", kind=StepKind.FAILURE, position=3, error=ERROR),
    ]
    await database.run(tasks.record_steps, worker, [StepToRecord(claimed, one) for one in steps])
    await database.run(tasks.finish, worker, [tasks.RunToFinish(claimed, None, ERROR, handled)])
    run_id = uuid4()
    assert await database.run(executions.resume, "order-1", run_id)
    resumed = await info(database)
    assert (resumed.run_id, resumed.run_index, resumed.status, resumed.error) == (run_id, 1, "scheduled", None)
    assert resumed.payload == 1
    (again,) = await claim(database, worker)
    assert (again.run_id, again.attempt) == (run_id, 2)
    history = (await database.run(tasks.journal, [run_id]))[run_id]
    assert sorted(one.name for one in history.steps) == kept
    assert await finish(database, worker, again)
    runs = await rows(database, lambda tables: tables.execution_runs)
    assert [(one["run_index"], one["outcome"]) for one in sorted(runs, key=lambda one: one["run_index"])] == [
        (0, "failed"),
        (1, "completed"),
    ]


@pytest.mark.parametrize("status", ["scheduled", "running", "completed", "cancelled", "unknown"])
async def test_resume_of_what_has_not_failed(database: Database, status: str) -> None:
    """Only a failed run can be resumed."""
    worker = await register(database)
    if status != "unknown":
        await start(database, "order-1")
    if status in {"running", "completed"}:
        (claimed,) = await claim(database, worker)
        if status == "completed":
            await finish(database, worker, claimed)
    if status == "cancelled":
        await database.run(executions.cancel, "order-1")
    assert not await database.run(executions.resume, "order-1", uuid4())


async def test_resume_twice_at_the_same_time(database: Database) -> None:
    """Of two that resume the same run, one does."""
    worker = await register(database)
    await finish(database, worker, await claim_one(database, worker), ERROR)
    async with database.connected() as one, database.connected() as other:
        assert await one.run(executions.resume, "order-1", uuid4())
        waiting = asyncio.create_task(other.run(executions.resume, "order-1", uuid4()))
        assert await is_blocked(waiting, database)
        await one.commit()
        assert not await waiting
    assert len(await rows(database, lambda tables: tables.tasks)) == 1


async def test_the_old_run_of_a_resumed_execution(database: Database) -> None:
    """A worker that still holds a token of the old run writes nothing into the new one."""
    worker = await register(database)
    claimed = await claim_one(database, worker)
    await finish(database, worker, claimed, ERROR)
    await database.run(executions.resume, "order-1", uuid4())
    assert await record(database, worker, claimed, "late") == 0
    assert not await finish(database, worker, claimed)
    assert (await info(database)).status == "scheduled"


def wanted(**options: Any) -> ExecutionFilter:
    """Return a filter."""
    return ExecutionFilter(**{"status": None, "task_name": None, "search": None, "since": None, "limit": 100} | options)


async def ids(database: Database, **options: Any) -> list[str]:
    """Return the ids of those that are listed."""
    page = await database.run(executions.browse, wanted(**options), None)
    return [one.execution_id for one in page]


async def test_browse(database: Database) -> None:
    """The newest comes first; each filter leaves out the rest."""
    worker = await register(database)
    await start(database, "a-1", "a-2")
    await finish(database, worker, (await claim(database, worker, limit=1))[0], ERROR)
    await start(database, "b-1", task_name="other")
    assert await ids(database) == ["b-1", "a-2", "a-1"]
    assert await ids(database, limit=2) == ["b-1", "a-2"]
    assert await ids(database, task_name="other") == ["b-1"]
    assert await ids(database, search="a-") == ["a-2", "a-1"]
    assert await ids(database, search="-1") == []
    assert await ids(database, status=ExecutionStatus.FAILED) == ["a-1"]
    assert await ids(database, status=ExecutionStatus.SCHEDULED) == ["b-1", "a-2"]
    assert await ids(database, status=ExecutionStatus.RUNNING) == []
    assert await ids(database, status=ExecutionStatus.SCHEDULED, task_name="task", search="a") == ["a-2"]
    middle = (await info(database, "a-2")).created_at
    assert await ids(database, since=middle) == ["b-1", "a-2"]
    assert await ids(database, since=datetime.now(UTC) + timedelta(days=1)) == []


async def test_search_takes_wildcards_literally(database: Database) -> None:
    """`%` and `_` and the escape itself stand for themselves."""
    await start(database, "100%", "100x", "a_b", "axb", "a/b", "a\\b")
    assert await ids(database, search="100%") == ["100%"]
    assert await ids(database, search="a_") == ["a_b"]
    assert await ids(database, search="a/") == ["a/b"]
    assert await ids(database, search="a\\") == ["a\\b"]
    assert await ids(database, search="%") == []


@pytest.mark.parametrize("size", [1, 3, 10, 11])
async def test_pages(database: Database, size: int) -> None:
    """Pages follow each other without gap or overlap, also through executions of the same instant."""
    await database.run(executions.insert, [new(f"order-{number:02}") for number in range(7)])
    await start(database, *(f"late {number}" for number in range(3)))
    seen: list[str] = []
    cursor: str | None = None
    while True:
        page = await database.run(executions.browse, wanted(limit=size), cursor)
        assert 0 < len(page) <= size
        seen += [one.execution_id for one in page]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == ["late 2", "late 1", "late 0", *(f"order-{number:02}" for number in reversed(range(7)))]


async def test_pages_while_more_are_started(database: Database) -> None:
    """What is started between two pages does not shift the second."""
    await start(database, "a", "b", "c")
    first = await database.run(executions.browse, wanted(limit=2), None)
    await start(database, "d")
    second = await database.run(executions.browse, wanted(limit=2), first.next_cursor)
    assert [one.execution_id for one in (*first, *second)] == ["c", "b", "a"]
    assert second.next_cursor is None


@pytest.mark.parametrize("cursor", ["", "x", "AAAA", "bnVsbA==", "WzEsMl0=", "\N{GRINNING FACE}", "WyJ4IiwgInkiXQ=="])
async def test_bad_cursor(database: Database, cursor: str) -> None:
    """A cursor that is none is refused before anything is asked."""
    with pytest.raises(ConfigError, match=r"^cursor: expected the next_cursor of an earlier page, got "):
        await database.run(executions.browse, wanted(), cursor)


async def test_empty_page(database: Database) -> None:
    """Nothing is a page without a next one."""
    page = await database.run(executions.browse, wanted(), None)
    assert (list(page), page.next_cursor) == ([], None)
