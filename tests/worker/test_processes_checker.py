"""The checker of these tests itself: it must see what it is there to see."""

import asyncio
from contextlib import closing
from pathlib import Path
from typing import LiteralString

import pytest

from tests.worker.processes.audit import FORBIDDEN, Database
from tests.worker.processes.stage import eventually, stage

CRIMES: dict[str, LiteralString] = {
    "a run that has not ended has no task": "UPDATE zart_execution_runs SET outcome = NULL",
    "a run that has ended still has a task": """
        INSERT INTO zart_tasks (task_id, run_id, task_name, queue)
        SELECT run_id, run_id, 'x', 'x' FROM zart_execution_runs
    """,
    "an execution that was cancelled has left one behind that is bound to it": """
        UPDATE zart_execution_runs SET outcome = 'cancelled';
        INSERT INTO zart_execution_runs (run_id, execution_id, run_index, trigger, payload)
        VALUES (gen_random_uuid(), 'x', 0, 'initial', '1');
        INSERT INTO zart_executions (execution_id, task_name, queue, run_id, parent_id, is_bound)
        SELECT 'x', 'x', 'x', run_id, 'one', true FROM zart_execution_runs WHERE execution_id = 'x'
    """,
    "an execution is the child of a run that another one has followed": """
        INSERT INTO zart_executions (execution_id, task_name, queue, run_id, parent_id)
        VALUES ('x', 'x', 'x', gen_random_uuid(), 'one');
        INSERT INTO zart_tasks (task_id, run_id, task_name, queue, parent_run_id)
        SELECT run_id, run_id, 'x', 'x', gen_random_uuid() FROM zart_executions WHERE execution_id = 'x'
    """,
    "an execution that was started is not on record, or the other way round": """
        INSERT INTO zart_executions (execution_id, task_name, queue, run_id, parent_id)
        VALUES ('x', 'x', 'x', gen_random_uuid(), 'one')
    """,
    "a task is held by a worker that is not there": """
        INSERT INTO zart_tasks (task_id, run_id, task_name, queue, worker_id)
        SELECT run_id, run_id, 'x', 'x', gen_random_uuid() FROM zart_execution_runs
    """,
    "a run ended twice, or changed otherwise": "UPDATE zart_execution_runs SET outcome = 'failed'",
    "a recorded step changed": "DELETE FROM zart_steps",
    "a step was recorded by somebody who did not hold the run": """
        INSERT INTO zart_steps (run_id, name, kind, attempts) SELECT run_id, 'x', 'step', 1 FROM zart_execution_runs
    """,
    "a child is recorded and still has a task": """
        INSERT INTO zart_tasks (task_id, run_id, task_name, queue, parent_run_id, step)
        SELECT gen_random_uuid(), run_id, 'x', 'x', run_id, name FROM zart_steps
    """,
    "two workers wrote with one token": """
        INSERT INTO audit (kind, run_id, task_id, token, is_fenced, writer)
        SELECT kind, run_id, task_id, token, is_fenced, 'another' FROM audit WHERE kind = 'checkpoint'
    """,
    "an older turn wrote after a newer one": """
        INSERT INTO audit (kind, run_id, task_id, token, is_fenced) SELECT kind, run_id, task_id, token - 1, is_fenced
        FROM audit WHERE kind = 'checkpoint'
    """,
    "an event was taken twice, or by no wait, or a wait was done without one": """
        INSERT INTO zart_events (execution_id, name, payload, run_id, taken_at)
        SELECT execution_id, 'x', '1', run_id, now() FROM zart_execution_runs
    """,
    "a stream has a gap": """
        INSERT INTO zart_stream_items (execution_id, stream, seq, run_id, value)
        SELECT execution_id, 'x', 1, run_id, '1' FROM zart_execution_runs WHERE run_index = 0
    """,
    "a value was emitted without its checkpoint, or twice, or not at all": """
        INSERT INTO zart_stream_items (execution_id, stream, seq, run_id, value)
        SELECT execution_id, 'x', 0, run_id, '1' FROM zart_execution_runs WHERE run_index = 0
    """,
    "a step's own writes and its checkpoint are not both there, once each": "INSERT INTO deposits TABLE deposits",
}


async def test_sees(migrated_url: str, tmp_path: Path) -> None:
    """Each of the things that must never be is found where it is."""
    assert CRIMES.keys() == FORBIDDEN.keys()
    async with stage(migrated_url, tmp_path) as play:
        await play.worker()
        await (await play.start("deposit deposit-0", execution_id="one")).result(timeout="60s")
        for problem, crime in CRIMES.items():
            play.check()
            with play.database.changed(crime), pytest.raises(AssertionError, match=problem):
                play.check()


CHILDREN: dict[str, LiteralString] = {
    "of no task": "INSERT INTO zart_steps (run_id, name, kind, attempts) SELECT run_id, 'x', 'child', 1 FROM held",
    "of a task that nobody holds": """
        WITH freed AS (UPDATE zart_tasks SET worker_id = NULL WHERE step = 'hold-f-0' RETURNING run_id)
        INSERT INTO zart_steps (run_id, name, kind, attempts) SELECT run_id, 'hold-f-0', 'child', 1 FROM freed
    """,
    "of a task that is deleted with it": """
        WITH gone AS (DELETE FROM zart_tasks WHERE step = 'hold-f-0' RETURNING run_id)
        INSERT INTO zart_steps (run_id, name, kind, attempts) SELECT run_id, 'hold-f-0', 'child', 1 FROM gone
    """,
    "given up, of a run that nobody holds": """
        WITH gone AS (DELETE FROM zart_tasks WHERE step = 'hold-f-0' RETURNING run_id)
        INSERT INTO zart_steps (run_id, name, kind, attempts, error)
        SELECT run_id, 'hold-f-0', 'child', 1, '{"category": "step_cancelled"}' FROM gone
    """,
    "failed as if its worker had died, which lives": """
        WITH gone AS (DELETE FROM zart_tasks WHERE step = 'hold-f-0' RETURNING run_id)
        INSERT INTO zart_steps (run_id, name, kind, attempts, error)
        SELECT run_id, 'hold-f-0', 'child', 1, '{"error_type": "WorkerCrashed"}' FROM gone
    """,
}


async def test_sees_who_records_a_child(migrated_url: str, tmp_path: Path) -> None:
    """A child is recorded by who holds its task, or its run and gives it up, or takes over from the dead: no other."""
    async with stage(migrated_url, tmp_path) as play:
        await play.worker()
        handle = await play.start("fan f hold:1:gate", execution_id="one")
        await play.began("hold-f-0")
        play.database.execute("CREATE VIEW held AS SELECT run_id FROM zart_tasks WHERE step = 'hold-f-0'")
        await eventually(lambda: play.database.value("SELECT bool_or(awaits_open = 0) FROM zart_tasks"))
        play.check()
        for crime in CHILDREN.values():
            with play.database.changed(crime), pytest.raises(AssertionError, match="did not hold"):
                play.check()
        play.open("gate")
        await handle.result(timeout="60s")


async def test_lets_what_was_under_way_when_a_cancel_came(migrated_url: str, tmp_path: Path) -> None:
    """A checkpoint whose statement saw the turn alive may come in after the cancel; one that began later may not."""
    record: LiteralString = """
        WITH held AS (SELECT run_id, pg_advisory_lock(7) IS NULL FROM zart_executions)
        INSERT INTO zart_steps (run_id, name, kind, attempts) SELECT run_id, %s, 'step', 1 FROM held
    """
    with closing(Database(migrated_url)) as other:
        async with stage(migrated_url, tmp_path) as play:
            await play.worker()
            handle = await play.start("hold a gate", execution_id="one")
            await play.began("a")
            play.database.execute("SELECT pg_advisory_lock(7)")
            writing = asyncio.create_task(asyncio.to_thread(other.execute, record, "in time"))
            await eventually(
                lambda: play.database.value("SELECT count(*) FROM pg_locks WHERE NOT granted AND objid = 7")
            )
            await handle.cancel()
            play.database.execute("SELECT pg_advisory_unlock(7)")
            await writing
            play.check()
            other.execute("SELECT pg_advisory_unlock(7)")
            with play.database.changed("SELECT pg_advisory_unlock_all()"):
                play.database.execute(record, "too late")
                with pytest.raises(AssertionError, match="did not hold"):
                    play.check()
            play.open("gate")


async def test_lets_what_was_under_way_when_the_run_ended(migrated_url: str, tmp_path: Path) -> None:
    """A child whose statement saw its task may come in after the end of its run, which had no more need of it."""
    record: LiteralString = """
        WITH held AS (SELECT run_id, pg_advisory_lock(8) IS NULL FROM zart_executions)
        INSERT INTO zart_steps (run_id, name, kind, attempts) SELECT run_id, 'hold-s-0', 'child', 1 FROM held
    """
    with closing(Database(migrated_url)) as other:
        async with stage(migrated_url, tmp_path) as play:
            await play.worker()
            handle = await play.start("scatter s hold:1:never", "hold a gate", execution_id="one")
            await play.began("hold-s-0")
            await play.began("a")
            play.database.execute("SELECT pg_advisory_lock(8)")
            writing = asyncio.create_task(asyncio.to_thread(other.execute, record))
            await eventually(
                lambda: play.database.value("SELECT count(*) FROM pg_locks WHERE NOT granted AND objid = 8")
            )
            play.open("gate")
            await handle.result(timeout="60s")
            play.database.execute("SELECT pg_advisory_unlock(8)")
            await writing
            play.check()
            other.execute("SELECT pg_advisory_unlock(8)")
            other.execute("DELETE FROM zart_steps WHERE name = 'hold-s-0'")
            other.execute("TRUNCATE audit")
            with play.database.changed("SELECT pg_advisory_unlock_all()"):
                play.database.execute(record)
                with pytest.raises(AssertionError, match="did not hold"):
                    play.check()
