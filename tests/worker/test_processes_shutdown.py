"""Workers that are asked to stop: nothing is lost, nothing is held, and nothing waits for a lease or a poll."""

import signal
from collections import Counter
from pathlib import Path

import pytest

from tests.worker.processes.crew import WorkerProcess
from tests.worker.processes.stage import eventually, stage

PATIENT = {"lease_timeout": "300s", "poll_interval": "300s"}
"""Settings with which a worker that merely waits finds nothing before the test is over."""

HURRIED = {**PATIENT, "shutdown_timeout": "200ms"}

# To SIGINT, `asyncio.run` has an answer of its own: it cancels the main task, waits for it, and ends as Python does.
EXIT_CODES = {signal.SIGTERM: 0, signal.SIGINT: -signal.SIGINT}

WAITING_FOR_TASKS = "SELECT count(*) FROM pg_locks WHERE relation = 'zart_tasks'::regclass AND NOT granted"

both_signals = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])


async def ended(worker: WorkerProcess) -> int | None:
    """Return the exit code of a worker when it has ended."""
    await eventually(lambda: not worker.is_running)
    return worker.exit_code


@both_signals
async def test_idle(number: signal.Signals, migrated_url: str, tmp_path: Path) -> None:
    """An idle worker ends at once, and unregisters."""
    async with stage(migrated_url, tmp_path) as play:
        worker = await play.worker(**PATIENT)
        worker.signal(number)
        assert await ended(worker) == EXIT_CODES[number]
        play.check_idle()


@both_signals
async def test_busy(number: signal.Signals, migrated_url: str, tmp_path: Path) -> None:
    """What runs may finish; what comes is left to others."""
    async with stage(migrated_url, tmp_path) as play:
        worker = await play.worker(**PATIENT)
        first = await play.start("hold a gate", "note b", execution_id="first")
        await play.began("a")
        worker.signal(number)
        await play.worker(**PATIENT)
        second = await play.start("note c", execution_id="second")
        await second.result(timeout="60s")
        assert worker.is_running
        play.open("gate")
        assert await first.result(timeout="60s") == 2
        assert await ended(worker) == EXIT_CODES[number]
        assert [play.ledger.began(step)[0].worker for step in "abc"] == ["worker-0", "worker-0", "worker-1"]


async def test_claiming(migrated_url: str, tmp_path: Path) -> None:
    """A claim that is under way when the worker is asked to stop is its last one, and what it took may finish."""
    async with stage(migrated_url, tmp_path) as play:
        handle = await play.start("note a", "nap b 100ms", "note c", execution_id="one")
        with play.database.changed("LOCK TABLE zart_tasks IN ACCESS EXCLUSIVE MODE"):
            worker = await play.worker(**PATIENT)
            await eventually(lambda: play.database.value(WAITING_FOR_TASKS))
            worker.signal(signal.SIGTERM)
            await eventually(lambda: " stops" in worker.log)
        assert await handle.result(timeout="60s") == 3
        assert await ended(worker) == 0
        assert set(play.ledger.begun().values()) == {1}


@pytest.mark.parametrize(
    ("task", "command"),
    [
        ("script", "hold"),
        ("script", "hold_thread"),
        ("script", "defy"),
        ("script", "deposit"),
        ("script", "deposit_thread"),
        ("script_thread", "hold_thread"),
        ("script_thread", "wait"),
    ],
)
async def test_handed_back(task: str, command: str, migrated_url: str, tmp_path: Path) -> None:
    """What does not finish in time runs elsewhere at once, even if it ignores its end; it costs no attempt."""
    async with stage(migrated_url, tmp_path) as play:
        worker = await play.worker(**HURRIED)
        label = f"{command}-0"
        handle = await play.start(f"{command} {label} gate", "block_thread b 0", execution_id="one", task=task)
        await play.began(label)
        other = await play.worker(**HURRIED)
        worker.signal(signal.SIGTERM)
        assert await play.began(label, times=2) == other.name
        assert play.database.execute("SELECT attempt, retries, crashes FROM zart_tasks") == [
            {"attempt": 2, "retries": 0, "crashes": 0}
        ]
        play.open("gate")
        assert await handle.result(timeout="60s") == 2
        assert {step.attempts for step in await handle.steps()} == {1}
        assert await ended(worker) == 0
        other.signal(signal.SIGTERM)
        assert await ended(other) == 0
        play.check_idle()


@pytest.mark.parametrize("first", EXIT_CODES)
@pytest.mark.parametrize("second", EXIT_CODES)
async def test_second_signal(first: signal.Signals, second: signal.Signals, migrated_url: str, tmp_path: Path) -> None:
    """After a second signal, what runs is handed back without being waited for."""
    async with stage(migrated_url, tmp_path) as play:
        worker = await play.worker(**PATIENT, shutdown_timeout="300s")
        await play.start("hold a gate", execution_id="one")
        await play.began("a")
        worker.signal(first)
        await eventually(lambda: "stops" in worker.log)
        worker.signal(second)
        assert await ended(worker) in EXIT_CODES.values()
        assert play.database.value("SELECT worker_id IS NULL AND due_at <= now() FROM zart_tasks") is True
        assert play.database.execute("SELECT * FROM zart_workers") == []


async def test_many(migrated_url: str, tmp_path: Path) -> None:
    """All that a worker was running is handed over, and what sleeps goes on sleeping."""
    async with stage(migrated_url, tmp_path) as play:
        worker = await play.worker(**HURRIED)
        sleeper = await play.start("nap z 1h", execution_id="sleeper")
        await play.scheduler.start_many("script", [(f"run-{number}", ["hold a gate"]) for number in range(50)])
        await play.began("a", times=50)
        await eventually(lambda: play.database.value("SELECT count(*) FROM zart_tasks WHERE is_waiting") == 1)
        other = await play.worker(**HURRIED)
        worker.signal(signal.SIGTERM)
        await play.began("a", times=100)
        play.open("gate")
        await play.completed(50)
        assert Counter(entry.worker for entry in play.ledger.began("a")) == {worker.name: 50, other.name: 50}
        assert await ended(worker) == 0
        assert await sleeper.status() == "waiting"


@pytest.mark.slow
async def test_rolling_restart(migrated_url: str, tmp_path: Path) -> None:
    """Workers replaced one after the other under load lose nothing and repeat nothing."""
    lines = ["note a", "nap b 200ms", "note c", "nap d 700ms", "deposit deposit-e"]
    async with stage(migrated_url, tmp_path) as play:
        await play.scheduler.start_many("script", [(f"run-{number}", lines) for number in range(100)])
        settings = {"max_concurrent_tasks": 5, "lease_timeout": "300s"}
        workers = await play.workers(2, **settings)
        for _ in range(5):
            workers.append(await play.worker(**settings))
            await eventually(lambda: workers[-1].name in play.ledger.workers() or play.count("completed") == 100)
            leaving = workers.pop(0)
            leaving.signal(signal.SIGTERM)
            assert await ended(leaving) == 0
        await play.completed(100)
        assert set(play.ledger.begun().values()) == {1}
        for worker in workers:
            worker.signal(signal.SIGTERM)
            assert await ended(worker) == 0
        play.check_idle()
