"""One measurement: a contender does a workload, once, in a database of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import threading
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, replace
from typing import IO, Any, Final

from benchmarks.contenders.common import Options, let_go
from benchmarks.environments import ROOT, Contender, Environments
from benchmarks.server import Sample, Server

_STOP_SECONDS: Final = 60.0
_LIMIT_SECONDS: Final = 2400.0


class BrokenError(Exception):
    """A contender did not come to the end of a workload."""


@dataclass(frozen=True)
class Measurement:
    """What one measurement gave.

    Attributes:
        contender: who.
        workload: what.
        options: with what.
        units: how much was done.
        seconds: how long it took.
        client_cpu_seconds: time on the processor of the contender's processes that have ended, and its own.
        server: what the server's counters rose by, and how many connections there were in the end.
        more: what else the workload measures.
    """

    contender: str
    workload: str
    options: dict[str, Any]
    units: int
    seconds: float
    client_cpu_seconds: float
    server: dict[str, float]
    more: dict[str, Any]

    @property
    def rate(self) -> float:
        """Units a second."""
        return self.units / self.seconds

    def figure(self, name: str) -> float | None:
        """Return what was measured under this name; None if it did not come about in time."""
        if name == "rate":
            return self.rate
        if name.endswith("_per_second"):
            return self.server[name.removesuffix("_per_second")] / self.seconds
        value: float | None = {**self.server, **self.more}[name]
        return value


def measure(  # noqa: PLR0913 - what there is to a measurement
    server: Server,
    environments: Environments,
    contender: Contender,
    workload: str,
    options: Options,
    *,
    url: str,
    beside: Callable[[int], AbstractContextManager[object]] = nullcontext,
) -> Measurement:
    """Have a contender do a workload in a database.

    Commits are counted until its sessions have ended; those of its preparation are among them that were not told then.

    Args:
        server: where the database is.
        environments: where the contender's interpreter is.
        contender: who does it.
        workload: what.
        options: with what.
        url: of the database.
        beside: what goes on beside the measured part, given the process.

    Raises:
        BrokenError: it did not.
    """
    with tempfile.TemporaryFile("w+") as errors:
        try:
            with _started(environments, contender, workload, options, url, errors) as process:
                _, earlier = _sample_at(process, "begin", server, url)
                with beside(process.pid):
                    let_go(process)
                    end, later = _sample_at(process, "end", server, url)
                    let_go(process)
                    process.wait(_STOP_SECONDS)
        except (BrokenError, subprocess.TimeoutExpired) as error:
            errors.seek(0)
            message = f"{contender.name} did not come to the end of {workload}: {error}: {errors.read()[-2000:]}"
            raise BrokenError(message) from error
    known = {name: end.pop(name) for name in ("units", "seconds", "cpu_seconds")}
    return Measurement(
        contender=contender.name,
        workload=workload,
        options=asdict(options),
        units=known["units"],
        seconds=known["seconds"],
        client_cpu_seconds=known["cpu_seconds"],
        server=replace(later, commits=server.commits(url)).since(earlier),
        more={name: value for name, value in end.items() if name != "mark"},
    )


@contextmanager
def _started(
    environments: Environments, contender: Contender, workload: str, options: Options, url: str, errors: IO[str]
) -> Generator[subprocess.Popen[str]]:
    """Yield the contender's process; leave none of those behind that it starts."""
    command = [str(environments.python(contender)), "-m", contender.module, url, workload, json.dumps(asdict(options))]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        start_new_session=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
    )
    limit = threading.Timer(_LIMIT_SECONDS, process.kill)
    limit.start()
    try:
        yield process
    finally:
        limit.cancel()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def _sample_at(process: subprocess.Popen[str], mark: str, server: Server, url: str) -> tuple[dict[str, Any], Sample]:
    """Return what the process tells at a mark, where it waits, and the server's counters then."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("{") and (told := json.loads(line)).get("mark") == mark:
            return told, server.sample(url)
    raise BrokenError(f"it never came to the {mark}")
