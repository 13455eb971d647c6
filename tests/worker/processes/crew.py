"""Worker processes, and what can be done to them."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.support.postgres import ROOT
from tests.worker.processes import program, workflows


@dataclass(frozen=True)
class WorkerProcess:
    """A worker: a process of its own.

    Attributes:
        name: its name, in the ledger and in the server's list of connections.
    """

    name: str
    _process: "subprocess.Popen[bytes]"
    _log: Path

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    @property
    def log(self) -> str:
        """All that it has logged."""
        return self._log.read_text()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def kill(self) -> None:
        """Kill it without warning; return when it is gone."""
        self._process.kill()
        self._process.wait()

    def freeze(self) -> None:
        """Stop it; return when it stands still."""
        self.signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)

    def thaw(self) -> None:
        """Let it go on."""
        self.signal(signal.SIGCONT)

    def ended(self) -> int | None:
        """Return its exit status once it has ended."""
        return self._process.poll()


class Crew:
    """The workers of one test."""

    def __init__(self, url: str, folder: Path) -> None:
        self._url = url
        self._folder = folder
        self.workers: list[WorkerProcess] = []

    def spawn(self, *, workflows_: Sequence[str] = (), url: str | None = None, **config: Any) -> WorkerProcess:
        """Start a worker.

        Args:
            workflows_: the workflows that it can run. Default: all.
            url: how it reaches the database. Default: as the test does.
            **config: its `WorkerConfig`.
        """
        name = f"worker-{len(self.workers)}"
        log = self._folder / f"{name}.log"
        environment = {
            **os.environ,
            "DATABASE_URL": url or self._url,
            workflows.FOLDER: str(self._folder),
            workflows.NAME: name,
            program.CONFIG: json.dumps(config),
            program.WORKFLOWS: json.dumps(list(workflows_)),
        }
        with log.open("w") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", program.__name__],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        worker = WorkerProcess(name, process, log)
        self.workers.append(worker)
        return worker

    def dismiss(self) -> None:
        """End all that still run."""
        for worker in self.workers:
            worker.kill()


@contextmanager
def crew(url: str, folder: Path) -> Iterator[Crew]:
    """Yield a crew without members; end those that it has got in the end."""
    made = Crew(url, folder)
    try:
        yield made
    finally:
        made.dismiss()
