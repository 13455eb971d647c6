"""A process that makes workers by forking, so that the imports of each are done already.

It reads orders, one line of JSON each, and answers each with a line. When its input ends it kills the workers and ends.
`python -m tests.worker.processes.nursery PROGRAM HOURS`: the workers run `main` of this module, and their clocks are so
many hours late or early.
"""

import asyncio
import importlib
import json
import os
import signal
import sys
import warnings
from types import ModuleType
from typing import Any

from tests.support.skewed_worker import shift_clock

_children: set[int] = set()
_ended: dict[int, int] = {}
_programs: list[ModuleType] = []


def main(program: str, hours: float) -> None:
    """Do what is ordered, until there are no more orders."""
    if hours:
        shift_clock(hours)
        warnings.filterwarnings("ignore", message="datetime.datetime size changed")  # it has more than the C code knows
    _programs.append(importlib.import_module(program))
    try:
        for line in sys.stdin:
            order = json.loads(line)
            print(json.dumps(DUTIES[order.pop("do")](**order)), flush=True)  # noqa: T201  the answer
    finally:
        for pid in _children:
            os.kill(pid, signal.SIGKILL)


def spawn(environment: dict[str, str], log: str, *, is_dedicated: bool) -> int:
    """Start a worker and return its process id; if it is dedicated, its process is set up as by `zart worker`."""
    pid = os.fork()
    if pid:
        _children.add(pid)
        return pid
    _children.clear()
    os.environ.update(environment)
    _replace(sys.stdin.fileno(), os.devnull, os.O_RDONLY)
    for output in (sys.stdout, sys.stderr):
        _replace(output.fileno(), log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    from zart_sqla.worker.process import make_runner  # noqa: PLC0415 - it must not see the right clock

    with make_runner() if is_dedicated else asyncio.Runner() as runner:
        runner.run(_programs[0].main())
    raise SystemExit


def _replace(file: int, path: str, flags: int) -> None:
    opened = os.open(path, flags)
    os.dup2(opened, file)
    os.close(opened)


def freeze(pid: int) -> None:
    """Stop a worker; return when it stands still, or has ended before."""
    os.kill(pid, signal.SIGSTOP)
    _, status = os.waitpid(pid, os.WUNTRACED)
    if not os.WIFSTOPPED(status):
        _ended[pid] = status


def ended(pid: int, *, is_awaited: bool) -> int | None:
    """Return the exit code of a worker, the signal's negative number if one ended it, None while it runs."""
    found, status = (pid, _ended[pid]) if pid in _ended else os.waitpid(pid, 0 if is_awaited else os.WNOHANG)
    if not found:
        return None
    _children.discard(pid)
    return os.waitstatus_to_exitcode(status)


DUTIES: dict[str, Any] = {"spawn": spawn, "freeze": freeze, "ended": ended}

if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))
