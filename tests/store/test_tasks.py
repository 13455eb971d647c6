"""The queue: claiming, recording, putting down, finishing, and the fence around all of it."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import func, update

from tests.store.connections import Database, is_blocked
from tests.store.crew import (
    ERROR,
    GRACE,
    claim,
    claim_one,
    finish,
    info,
    kill,
    make_due,
    new,
    put_down,
    record,
    register,
    rows,
    start,
    step,
)
from zart_sqla.models.mapping import tables_of
from zart_sqla.records import ClaimedTask, FailedAttempt, RecordedStep, StepKind
from zart_sqla.store import executions, tasks, workers
from zart_sqla.store.tasks import AttemptToRecord, RunToFinish, StepToRecord


async def record_attempt(database: Database, worker: UUID, claimed: ClaimedTask, name: str, attempt: int) -> bool:
    """Record a failed attempt; return whether it is there now."""
    failed = FailedAttempt(step=name, attempt=attempt, error=ERROR, started_at=claimed.claimed_at)
    written = await database.run(tasks.record_attempts, worker, [AttemptToRecord(claimed, failed)])
    return written == {(claimed.run_id, name)}


async def seconds_to_next(database: Database, worker: UUID, **options: Any) -> float | None:
    """Return in how many seconds a claim says that the next task is due."""
    known: dict[str, Any] = {"task_names": ["task"], "queues": None, "limit": 0} | options
    return (await database.run(tasks.claim, worker, **known))[1]


async def test_claim(database: Database) -> None:
    """A claim gives all that a turn needs, and a token that counts."""
    worker = await register(database)
    (run_id,) = await start(database, "order-1", payload='{"a": 1}')
    (claimed,) = await claim(database, worker)
    assert (claimed.task_id, claimed.run_id, claimed.execution_id) == (run_id, run_id, "order-1")
    assert (claimed.task_name, claimed.payload) == ("task", '{"a": 1}')
    assert (claimed.attempt, claimed.retries, claimed.crashes) == (1, 0, 0)
    assert claimed.started_at == claimed.claimed_at
    await put_down(database, worker, claimed, retries=2)
    (again,) = await claim(database, worker)
    assert (again.attempt, again.retries) == (2, 2)
    assert again.started_at == claimed.started_at
    assert again.claimed_at > claimed.claimed_at


async def test_one_task_two_workers(database: Database) -> None:
    """One of them gets it."""
    await start(database, "order-1")
    crew = [await register(database) for _ in range(5)]
    claimed = await asyncio.gather(*(claim(database, worker) for worker in crew))
    assert sorted(map(len, claimed)) == [0, 0, 0, 0, 1]


async def test_many_tasks_many_workers(database: Database) -> None:
    """Each task goes to one worker, however their claims interleave."""
    await database.run(executions.insert, [new(f"order-{number}") for number in range(50)])
    crew = [await register(database) for _ in range(5)]
    rounds = [await asyncio.gather(*(claim(database, worker, limit=3) for worker in crew)) for _ in range(4)]
    claimed = [one.execution_id for batches in rounds for batch in batches for one in batch]
    assert len(claimed) == len(set(claimed)) == 50


async def test_claims_do_not_wait(database: Database) -> None:
    """A task that another transaction is claiming is passed over, not waited for."""
    one, other = await register(database), await register(database)
    await start(database, "a", "b")
    known: dict[str, Any] = {"task_names": ["task"], "queues": None, "limit": 1}
    async with database.connected() as link:
        ((first,), _) = await link.run(tasks.claim, one, **known)
        (second,) = await claim(database, other)
        assert {first.execution_id, second.execution_id} == {"a", "b"}
        await link.commit()


async def test_limit_and_order(database: Database) -> None:
    """The longest due come first, and no more than asked for."""
    worker = await register(database)
    await start(database, "a", "b", "c")
    assert [one.execution_id for one in await claim(database, worker, limit=2)] == ["a", "b"]
    assert [one.execution_id for one in await claim(database, worker, limit=2)] == ["c"]


async def test_task_names(database: Database) -> None:
    """A worker gets only what it has handlers for, and leaves the rest to others."""
    worker = await register(database)
    await start(database, "a", task_name="known")
    await start(database, "b", task_name="unknown")
    assert [one.execution_id for one in await claim(database, worker, task_names=["known", "other"])] == ["a"]
    assert await claim(database, worker, task_names=[]) == []
    assert [one.execution_id for one in await claim(database, worker, task_names=["unknown"])] == ["b"]


async def test_queues(database: Database) -> None:
    """A worker gets what is in its queues; with none named, all."""
    worker = await register(database)
    for queue in ("x", "y", "z"):
        await start(database, queue, queue=queue)
    assert await claim(database, worker, queues=["none"]) == []
    assert {one.execution_id for one in await claim(database, worker, queues=["x", "y"])} == {"x", "y"}
    assert [one.execution_id for one in await claim(database, worker)] == ["z"]


async def test_what_is_not_due(database: Database) -> None:
    """A task is not claimed before its time, and the claim tells how long that is."""
    worker = await register(database)
    assert await seconds_to_next(database, worker) is None
    await start(database, "order-1")
    await make_due(database, later=timedelta(seconds=90))
    assert await claim(database, worker) == []
    assert await seconds_to_next(database, worker) == pytest.approx(90, abs=30)
    assert await seconds_to_next(database, worker, ahead_seconds=30) is None
    assert await seconds_to_next(database, worker, task_names=["other"]) is None
    assert await seconds_to_next(database, worker, queues=["other"]) is None
    await make_due(database)
    assert await seconds_to_next(database, worker) is None
    assert len(await claim(database, worker)) == 1


async def test_seconds_to_the_soonest(database: Database) -> None:
    """Of several to come the soonest counts, beside what was claimed."""
    worker = await register(database)
    for hours in (3, 1, 2):
        claimed = await claim_one(database, worker, f"order-{hours}")
        await put_down(database, worker, claimed, due_at=claimed.claimed_at + timedelta(hours=hours))
    await start(database, "now")
    known: dict[str, Any] = {"task_names": ["task"], "queues": None, "limit": 9}
    claimed_now, seconds = await database.run(tasks.claim, worker, **known)
    assert [one.execution_id for one in claimed_now] == ["now"]
    assert seconds == pytest.approx(3600, abs=60)


async def test_task_without_time(database: Database) -> None:
    """A task that only a wake-up makes due is never claimed by time."""
    worker = await register(database)
    await start(database, "order-1")

    def forget(connection: Any, names: Any) -> None:
        connection.execute(update(tables_of(names).tasks).values(due_at=None))

    await database.run(forget)
    assert await claim(database, worker) == []
    assert await seconds_to_next(database, worker) is None


async def test_claim_of_a_stranger(database: Database) -> None:
    """A worker that is not registered gets nothing, but hears what is to come."""
    await start(database, "order-1")
    assert await claim(database, uuid4()) == []
    await make_due(database, later=timedelta(seconds=60))
    assert await seconds_to_next(database, uuid4()) is not None


async def test_suspects_come_one_at_a_time(database: Database) -> None:
    """Of the tasks that crash again and again a worker gets one beside harmless ones, or none."""
    worker = await register(database)
    await start(database, "a", "b", "c", "harmless")

    def suspect(connection: Any, names: Any) -> None:
        tables = tables_of(names)
        harmless = tables.executions.select().where(tables.executions.c.execution_id == "harmless").subquery()
        is_other = tables.tasks.c.run_id.not_in(harmless.select().with_only_columns(harmless.c.run_id))
        connection.execute(update(tables.tasks).where(is_other).values(crashes=2, due_at=func.now()))

    await database.run(suspect)
    assert [one.execution_id for one in await claim(database, worker, takes_suspect=False)] == ["harmless"]
    first = await claim(database, worker)
    second = await claim(database, worker)
    assert (len(first), len(second)) == (1, 1)
    assert first[0].crashes == second[0].crashes == 2
    assert first != second


async def test_record(database: Database) -> None:
    """Checkpoints are written once, and read back as they were."""
    worker = await register(database)
    claimed = await claim_one(database, worker)
    now = claimed.claimed_at
    steps = [
        RecordedStep(name="a", kind=StepKind.STEP, position=0, result='{"x": [1.0, 1e2, "é"]}', started_at=now),
        RecordedStep(name="b", kind=StepKind.STEP, position=None, error=ERROR, attempts=3),
        RecordedStep(name="nap", kind=StepKind.SLEEP, position=1, wake_at=now + timedelta(hours=1)),
        RecordedStep(name="null", kind=StepKind.CAPTURE, position=2, result="null"),
        RecordedStep(name="%_/:\"'\N{GRINNING FACE}", kind=StepKind.STEP, position=3, result="1"),
    ]
    written = await database.run(tasks.record_steps, worker, [StepToRecord(claimed, one) for one in steps])
    assert written == len(steps)
    history = (await database.run(tasks.journal, [claimed.run_id]))[claimed.run_id]
    assert sorted(history.steps, key=lambda one: one.name) == sorted(steps, key=lambda one: one.name)


async def test_record_again(database: Database) -> None:
    """A checkpoint that is there is not written again, and the first one stays."""
    worker = await register(database)
    claimed = await claim_one(database, worker)
    assert await record(database, worker, claimed, "a", "b") == 2
    other = StepToRecord(claimed, step("a", result='"other"'))
    assert await database.run(tasks.record_steps, worker, [other, StepToRecord(claimed, step("c", 2))]) == 1
    key = (claimed.run_id, "a")
    found = await database.run(tasks.find_steps, [key, (claimed.run_id, "unknown"), (uuid4(), "a")])
    assert {known: one.result for known, one in found.items()} == {key: "1"}


async def test_record_for_several_tasks(database: Database) -> None:
    """Checkpoints of several runs are one statement; those of a task that is lost are left out."""
    worker = await register(database)
    await start(database, "a", "b", "c")
    batch = await claim(database, worker)
    await database.run(executions.cancel, "b")
    written = await database.run(tasks.record_steps, worker, [StepToRecord(one, step("x")) for one in batch])
    assert written == 2
    recorded = await database.run(tasks.find_steps, [(one.run_id, "x") for one in batch])
    assert recorded.keys() == {(one.run_id, "x") for one in batch if one.execution_id != "b"}
    assert await database.run(tasks.held, worker, batch) == {one.task_id for one in batch if one.execution_id != "b"}


async def test_result_that_postgresql_refuses(database: Database) -> None:
    """What is no JSON text fails the statement, and nothing of it is written."""
    worker = await register(database)
    claimed = await claim_one(database, worker)
    steps = [StepToRecord(claimed, step("a")), StepToRecord(claimed, step("b", 1, result="{"))]
    with pytest.raises(Exception, match="json"):
        await database.run(tasks.record_steps, worker, steps)
    assert (await database.run(tasks.journal, [claimed.run_id]))[claimed.run_id].steps == []


async def test_attempts(database: Database) -> None:
    """Failed attempts are counted until the step is recorded; to write one again changes nothing."""
    worker = await register(database)
    claimed = await claim_one(database, worker)
    assert await record_attempt(database, worker, claimed, "a", 1)
    assert await record_attempt(database, worker, claimed, "a", 2)
    assert await record_attempt(database, worker, claimed, "a", 2)
    assert await record_attempt(database, worker, claimed, "b", 1)
    assert await record_attempt(database, worker, claimed, "", 1)
    await record(database, worker, claimed, "b")
    history = (await database.run(tasks.journal, [claimed.run_id]))[claimed.run_id]
    assert history.attempts == {"a": 2}
    assert len(await rows(database, lambda tables: tables.step_attempts)) == 4


async def test_journals(database: Database) -> None:
    """Each run has its own; one that has recorded nothing has an empty one."""
    worker = await register(database)
    one, other = await claim_one(database, worker, "a"), await claim_one(database, worker, "b")
    await record(database, worker, one, "x")
    found = await database.run(tasks.journal, [one.run_id, other.run_id])
    assert [step.name for step in found[one.run_id].steps] == ["x"]
    assert (list(found[other.run_id].steps), found[other.run_id].attempts) == ([], {})
    assert await database.run(tasks.journal, []) == {}


async def test_put_down(database: Database) -> None:
    """A task that is put down is free, due when it was said, and has no crashes any more."""
    worker = await register(database)
    claimed = await claim_one(database, worker)
    due_at = datetime(2100, 1, 1, tzinfo=UTC)
    assert await put_down(database, worker, claimed, due_at=due_at, is_waiting=True, retries=3)
    (task,) = await rows(database, lambda tables: tables.tasks)
    assert (task["worker_id"], task["due_at"], task["is_waiting"], task["retries"]) == (None, due_at, True, 3)
    assert not await put_down(database, worker, claimed)


async def test_release_others(database: Database) -> None:
    """What a broken claim took is freed, but for what the worker knows of."""
    worker, other = await register(database), await register(database)
    await start(database, "a", "b", "c")
    kept, lost = await claim(database, worker, limit=2)
    (foreign,) = await claim(database, other)
    assert await database.run(tasks.release_others, worker, [kept.task_id]) == {lost.task_id: True}
    assert await database.run(tasks.held, worker, [kept, lost]) == {kept.task_id}
    assert await database.run(tasks.held, other, [foreign]) == {foreign.task_id}
    assert await database.run(tasks.release_others, worker) == {kept.task_id: True}


async def test_release_others_beside_an_open_cancellation(database: Database) -> None:
    """What an app has locked is left for later, and does not hold up the rest."""
    worker = await register(database)
    await start(database, "a", "b")
    ids = {one.execution_id: one.task_id for one in await claim(database, worker, limit=2)}
    async with database.connected() as link:
        assert await link.run(executions.cancel, "a")
        assert await database.run(tasks.release_others, worker) == {ids["a"]: False, ids["b"]: True}
        await link.rollback()
    assert await database.run(tasks.release_others, worker) == {ids["a"]: True}


async def test_finish(database: Database) -> None:
    """Several runs end in one statement, each as it is to."""
    worker = await register(database)
    await start(database, "a", "b", "c")
    a, b, c = await claim(database, worker)
    await database.run(executions.cancel, "c")
    ended = [RunToFinish(a, '{"x": null}', None), RunToFinish(b, None, ERROR), RunToFinish(c, "1", None)]
    assert await database.run(tasks.finish, worker, ended) == {a.task_id, b.task_id}
    assert await database.run(tasks.finish, worker, ended) == set()
    assert [(await info(database, one)).status for one in "abc"] == ["completed", "failed", "cancelled"]
    assert (await info(database, "a")).result == {"x": None}


async def test_output_of_none(database: Database) -> None:
    """A run that gave None has completed with it."""
    worker = await register(database)
    claimed = await claim_one(database, worker)
    await database.run(tasks.finish, worker, [RunToFinish(claimed, "null", None)])
    ending = await database.run(executions.ending, "order-1")
    assert ending is not None
    assert (ending.status, ending.result) == ("completed", "null")


async def fenced(database: Database, worker: UUID, claimed: ClaimedTask) -> None:
    """Expect that the worker can do nothing with the task any more."""
    before = [await rows(database, lambda tables: tables.tasks), await rows(database, lambda tables: tables.steps)]
    assert await record(database, worker, claimed, "late") == 0
    assert not await record_attempt(database, worker, claimed, "late", 1)
    assert not await put_down(database, worker, claimed)
    assert not await finish(database, worker, claimed)
    assert await database.run(tasks.held, worker, [claimed]) == set()
    after = [await rows(database, lambda tables: tables.tasks), await rows(database, lambda tables: tables.steps)]
    assert before == after


async def test_fence_of_a_buried_worker(database: Database) -> None:
    """A worker that was taken for dead can neither claim nor write, even before its tasks are taken over."""
    dead, undertaker = await register(database), await register(database)
    claimed = await claim_one(database, dead)
    await start(database, "order-2")
    await kill(database, dead)
    assert [one.worker_id for one in await database.run(workers.bury, undertaker, grace_seconds=GRACE)] == [dead]
    await fenced(database, dead, claimed)
    assert await claim(database, dead) == []


async def test_fence_of_a_task_that_was_taken_over(database: Database) -> None:
    """The one who had it before writes nothing, while the one who has it now goes on."""
    dead, other = await register(database), await register(database)
    claimed = await claim_one(database, dead)
    await kill(database, dead)
    await database.run(workers.bury, other, grace_seconds=GRACE)
    await database.run(workers.take_over, [dead], max_crashes=5)
    (again,) = await claim(database, other)
    assert again.attempt == claimed.attempt + 1
    await fenced(database, dead, claimed)
    assert await record(database, other, again, "a") == 1
    assert await finish(database, other, again)


async def test_fence_of_an_older_claim(database: Database) -> None:
    """A worker that has claimed a task again cannot write with the token that it had before."""
    worker = await register(database)
    claimed = await claim_one(database, worker)
    await put_down(database, worker, claimed)
    (again,) = await claim(database, worker)
    await fenced(database, worker, claimed)
    assert await finish(database, worker, again)


async def test_fence_of_another_worker(database: Database) -> None:
    """A worker cannot write with another one's token."""
    worker, other = await register(database), await register(database)
    claimed = await claim_one(database, worker)
    await fenced(database, other, claimed)
    assert await finish(database, worker, claimed)


@pytest.mark.parametrize("write", ["record", "finish", "put_down"])
async def test_burial_waits_for_a_write_that_is_under_way(database: Database, write: str) -> None:
    """A worker is not buried while one of its transactions writes: it is passed over, and buried later."""
    dead, undertaker = await register(database), await register(database)
    claimed = await claim_one(database, dead)
    await kill(database, dead)
    async with database.connected() as link:
        if write == "record":
            await link.run(tasks.record_steps, dead, [StepToRecord(claimed, step("a"))])
        elif write == "finish":
            await link.run(tasks.finish, dead, [RunToFinish(claimed, "1", None)])
        else:
            await link.run(tasks.put_down, dead, [tasks.TaskToPutDown(claimed, None, is_waiting=False, retries=0)])
        assert await database.run(workers.bury, undertaker, grace_seconds=GRACE) == []
        await link.commit()
    assert len(await database.run(workers.bury, undertaker, grace_seconds=GRACE)) == 1
    history = (await database.run(tasks.journal, [claimed.run_id]))[claimed.run_id]
    assert len(history.steps) == (write == "record")


async def test_a_write_waits_for_a_burial_that_is_under_way(database: Database) -> None:
    """A write that comes while its worker is being buried waits, and then writes nothing."""
    dead, undertaker = await register(database), await register(database)
    claimed = await claim_one(database, dead)
    await kill(database, dead)
    async with database.connected() as link:
        assert len(await link.run(workers.bury, undertaker, grace_seconds=GRACE)) == 1
        waiting = asyncio.create_task(record(database, dead, claimed, "late"))
        assert await is_blocked(waiting, database)
        await link.commit()
    assert await waiting == 0


async def test_a_claim_while_the_worker_is_buried(database: Database) -> None:
    """What a claim took just before its worker was buried is freed with the rest."""
    dead, undertaker = await register(database), await register(database)
    await start(database, "order-1")
    await kill(database, dead)
    known: dict[str, Any] = {"task_names": ["task"], "queues": None, "limit": 1}
    async with database.connected() as link:
        await link.run(tasks.claim, dead, **known)
        assert await database.run(workers.bury, undertaker, grace_seconds=GRACE) == []
        await link.commit()
    await database.run(workers.bury, undertaker, grace_seconds=GRACE)
    assert len(await database.run(workers.take_over, [dead], max_crashes=5)) == 1
    assert len(await claim(database, undertaker)) == 1


async def test_heartbeats_do_not_wait_for_writes(database: Database) -> None:
    """A beat goes through while a transaction of the same worker holds the fence."""
    worker = await register(database)
    claimed = await claim_one(database, worker)
    async with database.connected() as link:
        await link.run(tasks.record_steps, worker, [StepToRecord(claimed, step("a"))])
        beat = await database.run(workers.beat, worker, running=[], lease_seconds=30, grace_seconds=GRACE)
        assert beat.is_alive
        await link.commit()
