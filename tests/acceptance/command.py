"""The command `zart` as a user runs it, in the folder of an app: in this process, which is quick, or in its own."""

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar
from unittest import mock

import psycopg

import zart_sqla
from zart_sqla.cli import main

T = TypeVar("T")

PATIENCE: Final = 60.0
INSTALLED: Final = Path(sys.executable).with_name("zart")
EXECUTABLE: Final = [str(INSTALLED)] if INSTALLED.exists() else [sys.executable, "-m", "zart_sqla.cli"]


@dataclass(frozen=True)
class Answer:
    """What a command answered.

    Attributes:
        code: its exit code.
        out: what it printed.
        err: what it said on the standard error.
    """

    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        """What it printed, as JSON."""
        return json.loads(self.out)


class Running:
    """A command that runs.

    Attributes:
        process: its process.
        log: the file of its standard error.
    """

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self.log = log

    @property
    def text(self) -> str:
        """What it has said so far."""
        return self.log.read_text()

    @property
    def records(self) -> list[dict[str, Any]]:
        """What it has logged so far, as JSON."""
        return [json.loads(line) for line in self.text.splitlines()]

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def end(self) -> int:
        """Wait until it ends, and return its exit code."""
        return self.process.wait(PATIENCE)


@dataclass(frozen=True)
class Command:
    """Runs `zart`.

    Attributes:
        folder: where it runs.
        environment: the variables that it has beside those of this process.
    """

    folder: Path
    environment: Mapping[str, str]

    def __call__(self, *arguments: str, stdin: str = "", **environment: str) -> Answer:
        """Run it to its end in this process, without the second that a new one takes to start."""
        out, err, code = io.StringIO(), io.StringIO(), 0
        with (
            mock.patch.dict(os.environ, self.variables | environment, clear=True),
            mock.patch.object(sys, "argv", ["zart", *arguments]),
            mock.patch.object(sys, "stdin", io.StringIO(stdin)),
            contextlib.chdir(self.folder),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
        ):
            try:
                main()
            except SystemExit as ended:
                code = ended.code if isinstance(ended.code, int) else 0
        return Answer(code, out.getvalue(), err.getvalue())

    def process(self, *arguments: str, stdin: str = "", **environment: str) -> Answer:
        """Run it to its end in a process of its own."""
        done = subprocess.run(
            [*EXECUTABLE, *arguments],
            cwd=self.folder,
            env=self.variables | environment,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=PATIENCE,
            check=False,
        )
        return Answer(done.returncode, done.stdout, done.stderr)

    @contextmanager
    def started(self, *arguments: str, **environment: str) -> Iterator[Running]:
        """Start it, and kill it afterwards if it still runs."""
        log = self.folder / f"{time.monotonic_ns()}.log"
        with (
            log.open("w") as errors,
            subprocess.Popen(
                [*EXECUTABLE, *arguments],
                cwd=self.folder,
                env=self.variables | environment,
                stdin=subprocess.PIPE,
                stdout=errors,
                stderr=errors,
                text=True,
            ) as process,
        ):
            try:
                yield Running(process, log)
            finally:
                process.kill()

    @contextmanager
    def worker(self, *arguments: str, count: int = 1) -> Iterator[Running]:
        """Start a worker of the app, and wait until so many are registered."""
        with self.started("worker", "shop_jobs:registry", *arguments) as running:
            until(lambda: len(self.workers()) == count, running)
            yield running

    @property
    def url(self) -> str:
        """The database."""
        return self.environment["DATABASE_URL"]

    @property
    def variables(self) -> dict[str, str]:
        """All variables that it has: only the package itself is importable from everywhere."""
        package = str(Path(zart_sqla.__file__).parents[1])
        return {**os.environ, "PYTHONPATH": package, "COLUMNS": "200", "NO_COLOR": "1", **self.environment}

    def on(self, url: str) -> "Command":
        """Return the command on another database."""
        return replace(self, environment={"DATABASE_URL": url})

    def sql(self, statement: str) -> list[tuple[Any, ...]]:
        """Return the rows of a statement."""
        with psycopg.connect(self.url, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def workers(self) -> list[int]:
        """Return the processes of the workers that are registered."""
        return [pid for (pid,) in self.sql("SELECT pid FROM zart_workers ORDER BY started_at")]


def until(condition: Callable[[], T], running: Running | None = None) -> T:
    """Return what the condition gives once that is true.

    Raises:
        AssertionError: it never was, or the command that it depends on has ended.
    """
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited in vain\n{running.text if running else ''}"
        assert running is None or running.process.poll() is None, f"it has ended\n{running.text}"
        time.sleep(0.02)
    return value


def is_alive(pid: int) -> bool:
    """Return whether there is such a process, and it is not just waiting to be reaped."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return Path("/proc").exists() is False and _answers(pid)
    return state != "Z"


def _answers(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
