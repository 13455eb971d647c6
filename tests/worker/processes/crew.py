"""Worker processes, and what can be done to them."""

import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from tests.support.postgres import ROOT
from tests.worker.processes import program, workflows

PROGRAM = program.__name__


class Nursery:
    """The process from which workers are forked. It ends them, and itself, when this process ends."""

    def __init__(self, program: str, hours: float) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.worker.processes.nursery", program, str(hours)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def order(self, do: str, **arguments: Any) -> Any:
        """Return the answer to an order."""
        orders, answers = self._process.stdin, self._process.stdout
        assert orders is not None
        assert answers is not None
        print(json.dumps({"do": do, **arguments}), file=orders, flush=True)
        return json.loads(answers.readline())


@functools.cache
def nursery(program: str, hours: float) -> Nursery:
    """Return this process's nursery for a program, whose workers have clocks that are so many hours late or early."""
    return Nursery(program, hours)


@dataclass
class WorkerProcess:
    """A worker, or another program: a process of its own.

    Attributes:
        name: its name, in the ledger and in the server's list of connections.
        pid: its process id.
        exit_code: how it ended: an exit code, or the negative number of a signal. None before that has been looked at.
    """

    name: str
    pid: int
    _log: Path
    _nursery: Nursery
    exit_code: int | None = None

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        if self.exit_code is None:
            self.exit_code = cast("int | None", self._nursery.order("ended", pid=self.pid, is_awaited=False))
        return self.exit_code is None

    @property
    def log(self) -> str:
        """All that it has logged."""
        return self._log.read_text()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        if self.is_running:
            os.kill(self.pid, number)

    def kill(self) -> None:
        """Kill it without warning; return when it is gone."""
        self.signal(signal.SIGKILL)
        if self.exit_code is None:
            self.exit_code = cast("int", self._nursery.order("ended", pid=self.pid, is_awaited=True))

    def freeze(self) -> None:
        """Stop it; return when it stands still."""
        self._nursery.order("freeze", pid=self.pid)

    def thaw(self) -> None:
        """Let it go on."""
        self.signal(signal.SIGCONT)


class Crew:
    """The workers of one test, or other processes that run a program.

    Args:
        url: how they reach the database.
        folder: where their logs and the ledger lie.
        program: the module whose `main` they run.
        called: how their names begin.
    """

    def __init__(self, url: str, folder: Path, *, program: str = PROGRAM, called: str = "worker") -> None:
        self._url = url
        self._folder = folder
        self._program = program
        self._called = called
        self.workers: list[WorkerProcess] = []

    def spawn(
        self,
        *,
        can: Sequence[str] = (),
        url: str | None = None,
        hours: float = 0,
        is_dedicated: bool = False,
        dies: Sequence[str] = (),
        **config: Any,
    ) -> WorkerProcess:
        """Start a worker.

        Args:
            can: the workflows that it can run. Default: all.
            url: how it reaches the database. Default: as the test does.
            hours: how wrong its clock is.
            is_dedicated: whether its process is set up as by `zart worker`: with uvloop, if that is installed.
            dies: the point and the moment at which it takes itself down, of `tests.worker.processes.points`.
            **config: its `WorkerConfig`, or what else its program is told.
        """
        name = f"{self._called}-{len(self.workers)}"
        log = self._folder / f"{name}.log"
        log.touch()
        environment = {
            "DATABASE_URL": url or self._url,
            workflows.FOLDER: str(self._folder),
            workflows.NAME: name,
            program.CONFIG: json.dumps(config),
            program.WORKFLOWS: json.dumps(list(can)),
            program.DIES: json.dumps(list(dies)),
        }
        home = nursery(self._program, hours)
        pid = cast("int", home.order("spawn", environment=environment, log=str(log), is_dedicated=is_dedicated))
        worker = WorkerProcess(name, pid, log, home)
        self.workers.append(worker)
        return worker

    def dismiss(self) -> None:
        """End all that still run."""
        for worker in self.workers:
            worker.kill()


@contextmanager
def crew(url: str, folder: Path, *, program: str = PROGRAM, called: str = "worker") -> Generator[Crew]:
    """Yield a crew without members; end those that it has got in the end."""
    made = Crew(url, folder, program=program, called=called)
    try:
        yield made
    finally:
        made.dismiss()
