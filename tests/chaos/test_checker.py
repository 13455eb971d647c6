"""The checker of the chaos run itself: each of its checks sees what it is there to see."""

import asyncio
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, LiteralString

from tests.chaos.arena import Connection, connected
from tests.chaos.audit import CHECKS, INVARIANTS, WAKES
from tests.chaos.checker import COMPARISONS, PASSING, PASSING_SECONDS, Checker, Violation
from tests.chaos.diary import Diary
from tests.chaos.drivers import Driver
from tests.chaos.timeline import timeline
from tests.support.waiting import eventually
from tests.support.working import scheduler_on
from tests.worker.processes.crew import crew
from tests.worker.processes.ledger import Ledger
from tests.worker.test_processes_checker import CRIMES as CRIMES_OF_PROCESSES
from zart_sqla import ExecutionHandle

SEED = 1
KINDS = ("cancel", "event", "family", "fan", "money", "relay", "savings", "steps")

CRIMES: dict[str, LiteralString] = {
    "a task of a run waits, and nothing will wake it": """
        UPDATE zart_execution_runs SET outcome = NULL;
        INSERT INTO zart_tasks (task_id, run_id, task_name, queue)
        SELECT run_id, run_id, 'x', 'x' FROM zart_execution_runs
    """,
    "a run waits for an event that is there": """
        UPDATE zart_execution_runs SET outcome = NULL;
        UPDATE zart_events SET taken_at = NULL;
        INSERT INTO zart_tasks (task_id, run_id, task_name, queue, awaits)
        SELECT run_id, run_id, 'x', 'x', '["paid"]' FROM zart_execution_runs
    """,
    "an execution's current run is not its last one, or an earlier one has not ended": """
        UPDATE zart_executions SET run_id = r.run_id FROM zart_execution_runs r
        WHERE zart_executions.execution_id = r.execution_id AND r.run_index = 0
    """,
    "a run was ended by somebody who did not hold it": "UPDATE audit SET holder = NULL WHERE kind = 'end'",
    "a step was recorded over the connection of another worker than holds the task": "UPDATE seats SET name = 'x'",
    "a row of the app's is there without the execution that was started with it, or the other way round": """
        DELETE FROM orders
    """,
    "the doctor finds lost runs": "UPDATE zart_execution_runs SET outcome = NULL",
    "it has not ended": "UPDATE zart_execution_runs SET outcome = NULL",
    "a driver saw its start committed, and it is not there": "DELETE FROM zart_executions",
    "an event that a driver offered is not there": "DELETE FROM zart_events",
    "it has not ended as it must": """
        UPDATE zart_execution_runs SET result = '77' WHERE execution_id LIKE 'family%'
    """,
    "it was cancelled, and has ended otherwise": "UPDATE zart_execution_runs SET outcome = 'completed', result = '1'",
    "a driver saw another end than there is": """
        UPDATE zart_execution_runs SET outcome = 'failed' WHERE execution_id LIKE 'fan%'
    """,
    "not all of its deposits are there, once each": "DELETE FROM deposits WHERE execution_id LIKE 'savings%'",
    "a turn ran a step that was recorded before it began": """
        UPDATE audit SET at = at - INTERVAL '1 hour' WHERE kind = 'checkpoint'
    """,
    "there is still a task when all has ended": """
        INSERT INTO zart_tasks (task_id, run_id, task_name, queue)
        SELECT run_id, run_id, 'x', 'x' FROM zart_execution_runs
    """,
    "a worker that has stopped is still registered": """
        INSERT INTO zart_workers (worker_id, hostname, pid, lease_until) VALUES (gen_random_uuid(), 'x', 1, now())
    """,
}
"""What makes each of its own checks find something."""


@asynccontextmanager
async def played(url: str, folder: Path) -> AsyncGenerator[Checker]:
    """Yield the checker of a run in which some executions came to their ends, and nothing went wrong."""
    checker = Checker(url, folder, SEED)
    await checker.install()
    with crew(url, folder) as members:
        worker = members.spawn()
        async with scheduler_on(url) as scheduler:
            driver = Driver(scheduler, Diary(folder), SEED)
            async with asyncio.TaskGroup() as tasks:
                for kind in KINDS:
                    tasks.create_task(driver.play(f"{kind}-d.1"))
            one: ExecutionHandle[Any] = await scheduler.start("script", ["deposit deposit-0"], execution_id="one")
            await one.result(timeout="60s")
        worker.signal(signal.SIGTERM)
        await eventually(lambda: not worker.is_running)
        yield checker


@asynccontextmanager
async def undone(connection: Connection) -> AsyncGenerator[None]:
    """Change something for a while."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        yield
    finally:
        await transaction.rollback()


async def problems(checker: Checker, connection: Connection) -> set[str]:
    """Return all that the checker finds."""
    return {one.problem for one in [*await checker.look(connection), *await checker.sum_up(connection)]}


def test_all_are_tried() -> None:
    """There is a crime for each check, and a check for each invariant."""
    assert {**CRIMES_OF_PROCESSES, **CRIMES, **LIES}.keys() == {**CHECKS, **COMPARISONS}.keys()
    assert CHECKS.keys() >= PASSING
    assert {invariant for invariant, _ in CHECKS.values()} | set(COMPARISONS.values()) == set(INVARIANTS)


async def test_sees(migrated_url: str, tmp_path: Path) -> None:
    """Each of the things that must not be is found where it is, and none where all is well."""
    async with played(migrated_url, tmp_path) as checker, connected(migrated_url) as connection:
        for problem, crime in {**CRIMES_OF_PROCESSES, **CRIMES}.items():
            async with undone(connection):
                assert await problems(checker, connection) == set()
            async with undone(connection):
                await connection.execute(crime)
                assert problem in await problems(checker, connection)


LIES: dict[str, dict[str, Any]] = {
    "a driver saw its start committed, and it is not there": {"did": "started", "execution_id": "money-d.2"},
    "an event that a driver offered is not there": {"did": "offered", "execution_id": "event-d.1", "event": "x"},
    "it was cancelled, and has ended otherwise": {"did": "cancelled", "execution_id": "money-d.1"},
    "a driver read something else than was emitted": {"did": "read", "execution_id": "relay-d.1", "values": ["0-0"]},
    "a driver saw another end than there is": {"did": "saw", "execution_id": "money-d.1", "outcome": "failed"},
}
"""What a driver may have been told that is not so."""


async def test_believes_the_diary(migrated_url: str, tmp_path: Path) -> None:
    """What a driver was told, and is not so, is found."""
    async with played(migrated_url, tmp_path) as checker, connected(migrated_url) as connection:
        told: set[str] = set()
        for problem, lie in LIES.items():
            Diary(tmp_path).write(**lie)
            told.add(problem)
            async with undone(connection):
                assert await problems(checker, connection) == told


async def test_believes_the_ledger(migrated_url: str, tmp_path: Path) -> None:
    """A step that begins again, in a turn that was claimed after the step had been recorded, is found."""
    async with played(migrated_url, tmp_path) as checker, connected(migrated_url) as connection:
        await connection.execute(
            "INSERT INTO audit (kind, run_id, holder) SELECT kind, run_id, holder FROM audit WHERE kind = 'claim'"
        )
        Ledger(tmp_path / "ledger").write("one", "deposit-0", "began", worker="worker-0")
        assert await problems(checker, connection) == {"a turn ran a step that was recorded before it began"}


def test_sifts(tmp_path: Path) -> None:
    """What may be for a moment is told when it has been seen each time for long; all else at once."""
    checker = Checker("", tmp_path, SEED)
    task = Violation.of(WAKES, "a task is held by a worker that is not there", [{"task_id": 1}])
    other = Violation.of(WAKES, "the doctor finds lost runs", [{"run_id": 1}])
    later, long_after = (replace(task, at=task.at + seconds) for seconds in (PASSING_SECONDS, PASSING_SECONDS * 3))
    assert checker.sift([task, other]) == [other]
    assert checker.sift([later]) == []
    assert checker.sift([]) == []
    assert checker.sift([later]) == []
    assert checker.sift([long_after]) == [long_after]


async def test_tells_the_time(migrated_url: str, tmp_path: Path) -> None:
    """The timeline of a run has its claim, its steps and its end, in this order."""
    async with played(migrated_url, tmp_path), connected(migrated_url) as connection:
        run_id = await connection.fetchval("SELECT run_id FROM zart_executions WHERE execution_id = 'one'")
        told = await timeline(connection, run_id, [])
        places = [
            told.index(word) for word in ("created", "claim of the run", "checkpoint deposit-0", "ended as completed")
        ]
        assert places == sorted(places)
