"""What all contenders share: how they talk to the runner, and what they count.

Each contender is a module that runs in an environment of its own, so this needs nothing but the standard library. It is
started with the URL of an empty database, the name of a workload and its options as JSON. It prepares, says that it
begins, does the work, says that it ends, and waits after either until the runner has read the server's counters.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ctypes
import functools
import importlib
import inspect
import json
import os
import random
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STEPS = 5
"""How many steps a workflow of the workload `steps` has."""
POLL_SECONDS = 0.02
PATIENCE_SECONDS = 600.0
_PR_SET_PDEATHSIG = 1


_spawned: list[subprocess.Popen[str]] = []


def cpu_seconds() -> float:
    """Return the time on the processor of this process and of those that it has spawned, also where they have ended."""
    used = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    living = [Path(f"/proc/{process.pid}/stat").read_text() for process in _spawned if process.poll() is None]
    ticks = sum(int(ticks) for stat in living for ticks in stat.rpartition(")")[2].split()[11:13])
    return sum(one.ru_utime + one.ru_stime for one in used) + ticks / os.sysconf("SC_CLK_TCK")


def memory_bytes(pid: int) -> int:
    """Return how much memory a process holds now."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@functools.cache
def text(size: int) -> str:
    """Return a text of that size, always the same one, which cannot be compressed by much."""
    return base64.b64encode(random.Random(size).randbytes(size))[:size].decode()  # noqa: S311 - no secret


@dataclass
class Meter:
    """Tells the runner when the measured part begins and ends.

    Attributes:
        first: when the first unit of work was begun, by the clock that all processes of a machine share, in seconds.
        count: how many were begun since.
        laps: how long each part took that was measured by itself, in seconds.
    """

    first: float | None = None
    count: int = 0
    laps: list[float] = field(default_factory=list[float])
    _cpu: float = field(default=0.0, init=False)
    _began: float = field(default=0.0, init=False)

    def begin(self) -> None:
        """Begin the measured part."""
        _tell({"mark": "begin"})
        self.first, self.count = None, 0
        self.laps.clear()
        self._cpu, self._began = cpu_seconds(), time.monotonic()

    def tick(self) -> None:
        """Take note that a unit of work begins: a drain is measured from the first one on."""
        self.count += 1
        if self.first is None:
            self.first = time.monotonic()

    @contextlib.contextmanager
    def lap(self) -> Generator[None]:
        """Take note of how long the context takes."""
        began = time.monotonic()
        yield
        self.laps.append(time.monotonic() - began)

    def end(self, units: int, seconds: float | None = None, **figures: Any) -> None:
        """End it.

        Args:
            units: how much was done.
            seconds: how long it took. Default: since the first unit, or since the beginning.
            **figures: what else was measured.
        """
        took = time.monotonic() - (self.first or self._began)
        used = cpu_seconds() - self._cpu
        _tell({"mark": "end", "units": units, "seconds": seconds or took, "cpu_seconds": used, **figures})


@dataclass(frozen=True)
class Options:
    """What a workload is to be done with.

    Attributes:
        units: how many runs, steps or starts, as the workload counts.
        concurrency: how many at once.
        payload: how many bytes an input and a result have.
        rate: how many runs a second are started beside what is measured.
        processes: how many worker processes there are.
        more: what only some workloads know.
    """

    units: int = 1000
    concurrency: int = 100
    payload: int = 0
    rate: float = 0.0
    processes: int = 1
    more: Mapping[str, Any] = field(default_factory=dict[str, Any])


Workload = Callable[[str, Options, Meter], Any]


def runner_on_uvloop() -> asyncio.Runner:
    """Return what runs a coroutine, on uvloop where the environment has it."""
    try:
        uvloop = importlib.import_module("uvloop")
    except ImportError:
        return asyncio.Runner()
    return asyncio.Runner(loop_factory=uvloop.new_event_loop)


def die_with_parent() -> None:
    """Have the kernel kill this process when the one that started it is gone, however that ended."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main(
    workloads: Mapping[str, Workload],
    make_runner: Callable[[], asyncio.Runner] = runner_on_uvloop,
    *,
    cannot: Mapping[str, str] | None = None,
) -> None:
    """Do the workload that the runner asks for; without arguments, print what can be asked for.

    Args:
        workloads: what this contender does, by its name.
        make_runner: what runs those that are coroutines.
        cannot: what it cannot do, and why.
    """
    if len(sys.argv) == 1:
        print(json.dumps({"can": sorted(workloads), "cannot": dict(cannot or {})}))
        return
    die_with_parent()
    url, name, options = sys.argv[1], sys.argv[2], Options(**json.loads(sys.argv[3]))
    done = workloads[name](url, options, Meter())
    if inspect.iscoroutine(done):
        with make_runner() as runner:
            runner.run(done)


async def until(
    is_done: Callable[[], Awaitable[object]],
    *,
    is_near: Callable[[], bool] = lambda: True,
    seconds: float = PATIENCE_SECONDS,
    every: float = POLL_SECONDS,
) -> None:
    """Return when the condition holds.

    Args:
        is_done: the condition.
        is_near: before this, which costs nothing, the condition is not looked at.
        seconds: for how long to wait.
        every: how often to look.

    Raises:
        TimeoutError: it takes too long.
    """
    deadline = time.monotonic() + seconds
    while not (is_near() and await is_done()):
        if time.monotonic() > deadline:
            raise TimeoutError
        await asyncio.sleep(every)


def spawn(workload: str, url: str, **options: Any) -> subprocess.Popen[str]:
    """Start this very contender in a process of its own, which does another workload, and let it go at once."""
    process = prepare(workload, url, **options)
    let_go(process)
    return process


def prepare(workload: str, url: str, **options: Any) -> subprocess.Popen[str]:
    """Start this very contender in a process of its own; return when it is about to begin another workload."""
    module = sys.modules["__main__"].__spec__
    assert module is not None
    command = [sys.executable, "-m", module.name, url, workload, json.dumps(options)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    _spawned.append(process)
    assert process.stdout is not None
    if not process.stdout.readline():
        raise RuntimeError(f"{workload} did not begin")
    return process


def let_go(process: subprocess.Popen[str]) -> None:
    """Let a process begin that was prepared."""
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()


def stop(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> None:
    """Stop a process that was spawned."""
    process.send_signal(number)
    process.communicate()


def _tell(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)
    sys.stdin.readline()
