"""`zart worker`: signals, logs, processes that die, and modules that are not there."""

import functools
import os
import re
import signal
from pathlib import Path

import pytest

from tests.acceptance.command import Command, Running, is_alive, until
from zart_sqla.cli.supervisor import Pauses

HOLDING = "SELECT worker_id IS NOT NULL FROM zart_tasks"


def begin(zart: Command, worker: Running, task: str = "hold") -> Path:
    """Start an execution that holds a worker, wait until it does, and return the file that lets it go on."""
    path = zart.folder / "go"
    assert zart("start", task, f'"{path}"', "--id", "order-1").code == 0
    until(lambda: list(zart.folder.glob("go.*")), worker)
    return path


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("shop_jobs", "expected module:attribute"),
        ("missing:registry", "there is no module 'missing'"),
        ("shop_jobs.missing:registry", "shop_jobs.missing"),
        ("shop_jobs:missing", "did you mean shop_jobs:registry?"),
        ("shop_jobs:number", "is of type int, not a TaskRegistry"),
        ("shop_jobs:nothing", "is empty"),
        ("broken:registry", "cannot import 'broken': ModuleNotFoundError: No module named 'not_installed'"),
    ],
)
def test_bad_target(zart: Command, target: str, message: str) -> None:
    """A module or an attribute that will not do ends with 2, and says what is wrong with which."""
    (zart.folder / "broken.py").write_text("import not_installed\n")
    answer = zart.process("worker", target)
    assert answer.code == 2
    assert message in answer.err
    assert "Traceback" not in answer.err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_one_signal_is_graceful(zart: Command, number: int) -> None:
    """After one signal the worker takes nothing more, finishes what runs, and ends with 0."""
    with zart.worker() as worker:
        path = begin(zart, worker)
        worker.signal(number)
        until(lambda: "stopping" in worker.text, worker)
        zart("start", "add", "1", "--id", "order-2")
        path.touch()
        assert worker.end() == 0
    assert zart("status", "order-1", "--json").data["status"] == "completed"
    assert zart("status", "order-2", "--json").data["status"] == "scheduled"
    assert zart.workers() == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_second_signal(zart: Command, number: int, code: int) -> None:
    """A second signal does not wait: what runs goes back to the queue, and the exit code tells the signal."""
    with zart.worker() as worker:
        begin(zart, worker)
        worker.signal(number)
        until(lambda: "stopping" in worker.text, worker)
        worker.signal(number)
        assert worker.end() == code
    assert zart.sql(HOLDING) == [(False,)]
    assert zart.workers() == []


def test_third_signal(zart: Command) -> None:
    """A worker whose event loop a workflow blocks ends at the third signal, and another worker goes on."""
    with zart.worker() as worker:
        path = begin(zart, worker, "freeze")
        for _ in range(3):
            until(functools.partial(_handles_another, worker, _naps(worker)))
            worker.signal(signal.SIGTERM)
        assert worker.end() == 143
    path.touch()
    with zart.worker(count=2):
        assert zart("wait", "order-1").code == 0


def _handles_another(worker: Running, naps: int) -> bool:
    """Return whether a signal sent now is not merged with one before.

    It is not when the main thread has gone to sleep often enough since then: before each nap it calls the handlers.
    """
    return _naps(worker) >= naps + 5


def _naps(worker: Running) -> int:
    """Return how often the main thread of the process has gone to sleep."""
    status = Path(f"/proc/{worker.process.pid}/status").read_text()
    return int(re.findall(r"^voluntary_ctxt_switches:\s*(\d+)", status, re.MULTILINE)[0])


def test_stuck_thread(zart: Command) -> None:
    """A step that blocks its thread is left behind: the process ends, with 0, and its task is free."""
    with zart.worker("--shutdown-timeout", "0.1") as worker:
        begin(zart, worker, "block")
        worker.signal(signal.SIGTERM)
        assert worker.end() == 0
        assert "something still runs in it" in worker.text
    assert zart.sql(HOLDING) == [(False,)]


def test_check(zart: Command) -> None:
    """`--check` says whether a worker could start, and starts none."""
    answer = zart.process("worker", "shop_jobs:registry", "--check")
    assert answer.code == 0
    assert "add, block, fragile, freeze, hold" in answer.out


def test_json_logs(zart: Command) -> None:
    """Each line of the log is JSON, and what is about an execution names it."""
    with zart.worker("--log-format", "json", "--log-level", "debug") as worker:
        zart("start", "add", "1", "--id", "order-1", "--wait")
        zart("start", "fragile", '"nowhere"', "--id", "order-2", "--wait")
        worker.signal(signal.SIGTERM)
        worker.end()
        records = worker.records
    assert all({"time", "level", "logger", "message"} <= record.keys() for record in records)
    (own,) = (
        record for record in records if record["message"] == "increasing 1" and record["execution_id"] == "order-1"
    )
    assert (own["logger"], own["level"], own["task_name"]) == ("shop", "info", "add")
    assert (own["step"], own["attempt"]) == ("increase", 1)
    failed = [record for record in records if record["level"] == "warning"]
    assert "order-2" in {record.get("execution_id") for record in failed}
    assert any("ValueError: no such file" in record.get("exception", "") for record in failed)


def test_text_logs(zart: Command) -> None:
    """As text, a line ends with what it is about; below the level it is left out."""
    with zart.worker("--log-level", "warning") as worker:
        zart("start", "fragile", '"nowhere"', "--id", "order-1", "--wait")
        until(lambda: "execution_id=order-1" in worker.text, worker)
        assert "works on" not in worker.text


def test_queues(zart: Command) -> None:
    """A worker serves only the queues that it is given."""
    with zart.worker("--queue", "fast", "--queue", "slow"):
        zart("start", "add", "1", "--id", "elsewhere")
        assert zart("start", "add", "1", "--queue", "fast", "--wait").code == 0
        assert zart("start", "add", "1", "--queue", "slow", "--wait").code == 0
        assert zart("status", "elsewhere", "--json").data["status"] == "scheduled"


def test_processes(zart: Command) -> None:
    """A supervisor replaces a worker that was killed, and one signal stops all of them gracefully."""
    with zart.worker("--processes", "2", count=2) as supervisor:
        path = begin(zart, supervisor)
        (held,) = (int(file.suffix[1:]) for file in zart.folder.glob("go.*"))
        os.kill(held, signal.SIGKILL)
        until(lambda: len(list(zart.folder.glob("go.*"))) == 2, supervisor)
        until(lambda: len(workers := zart.workers()) == 2 and held not in workers, supervisor)
        assert f"process {held}, was killed by SIGKILL" in supervisor.text
        workers = zart.workers()
        supervisor.signal(signal.SIGTERM)
        path.touch()
        assert supervisor.end() == 0
    assert zart.workers() == []
    assert not any(is_alive(pid) for pid in workers)
    assert zart("status", "order-1", "--json").data["status"] == "completed"


def test_processes_second_signal(zart: Command) -> None:
    """A second signal makes the workers put back what they run, and the exit code tells the signal."""
    with zart.worker("--processes", "2", count=2) as supervisor:
        begin(zart, supervisor)
        supervisor.signal(signal.SIGINT)
        until(lambda: supervisor.text.count("stopping") == 3, supervisor)
        supervisor.signal(signal.SIGINT)
        assert supervisor.end() == 130
    assert zart.sql(HOLDING) == [(False,)]
    assert zart.workers() == []


def test_killed_supervisor(zart: Command) -> None:
    """The workers of a supervisor that was killed stop gracefully by themselves."""
    with zart.worker("--processes", "2", count=2) as supervisor:
        workers = zart.workers()
        supervisor.signal(signal.SIGKILL)
        supervisor.end()
        until(lambda: not any(is_alive(pid) for pid in workers))
    assert zart.workers() == []


def test_processes_that_cannot_start(zart: Command) -> None:
    """What would keep every worker from starting is told once, and ends the supervisor with the same code."""
    bad = zart.process("worker", "missing:registry", "--processes", "3")
    assert bad.code == 2
    assert bad.err.count("there is no module 'missing'") == 1
    outdated = zart.process("worker", "shop_jobs:registry", "--processes", "3", "--prefix", "other_")
    assert outdated.code == 1
    assert outdated.err.count("zart migrate") == 1


def test_pauses() -> None:
    """A process that dies soon again is started anew after ever longer pauses; one that lived a while, at once."""
    pauses = Pauses()
    assert [pauses.after(1.0) for _ in range(4)] == [0.0, 0.2, 0.4, 0.8]
    assert max(pauses.after(1.0) for _ in range(20)) == 30.0
    assert [pauses.after(60.0), pauses.after(1.0)] == [0.0, 0.2]
