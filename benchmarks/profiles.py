"""Where the processor time of a worker goes: a sampling profile of drains, told by whose code was at work."""

from __future__ import annotations

import argparse
import functools
import subprocess
import tempfile
from collections import Counter
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

from benchmarks.contenders.common import Options
from benchmarks.environments import CONTENDERS, Environments
from benchmarks.measurements import measure
from benchmarks.results import Results
from benchmarks.server import own_server

WORKLOADS: Final = {"drain": Options(units=60_000), "steps": Options(units=30_000)}
LAYERS: Final = {
    "benchmarks/": "the workflow and its steps",
    "zart_sqla/runtime/": "turns: contexts, retries, the journal",
    "zart_sqla/codec": "the codec",
    "zart_sqla/worker/": "the worker: slots, batches, answers",
    "zart_sqla/": "rows and parameters of statements",
    "sqlalchemy/": "SQLAlchemy",
    "asyncpg/": "asyncpg",
}
"""Whose code a frame is, by the beginning of its file's name; what the standard library does counts for its caller."""
LOOP: Final = "the event loop and what it wakes"
_SAMPLES_A_SECOND: Final = 500
_ROOT: Final = "(asyncio/runners.py:"


def shares(stacks: Iterable[str]) -> dict[str, float]:
    """Return the share of each layer, the largest first.

    Args:
        stacks: lines of frames, the outermost first, with semicolons between them, and of how often each was seen.
    """
    seen: Counter[str] = Counter()
    for line in stacks:
        stack, _, count = line.rpartition(" ")
        seen[_layer(stack.split(";"))] += int(count)
    return {layer: times / seen.total() for layer, times in seen.most_common()}


def _layer(frames: list[str]) -> str:
    """Return whose code the innermost frame is that is anybody's, above the event loop."""
    for frame in reversed(frames):
        if _ROOT in frame:
            break
        file = frame.rpartition("(")[2]
        for beginning, layer in LAYERS.items():
            if file.startswith(beginning):
                return layer
    return LOOP


@contextmanager
def sampled(pid: int, file: Path) -> Generator[None]:
    """Write into a file which stacks of a process hold the interpreter, for as long as the context lasts."""
    command = ("py-spy", "record", "--gil", "--format", "raw", "--rate", str(_SAMPLES_A_SECOND))
    with subprocess.Popen([*command, "--output", str(file), "--pid", str(pid)], stdout=subprocess.PIPE) as sampler:
        assert sampler.stdout is not None
        sampler.stdout.readline()  # it says that it begins
        try:
            yield
        except BaseException:
            sampler.kill()
            raise
        sampler.wait()  # it ends with the process


def main() -> None:
    """Profile our drains, each with as many at once as are best for it, and keep the shares among the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profiles", description=__doc__)
    parser.add_argument("results", type=Path, help="the JSON file of a benchmark")
    options = parser.parse_args()
    results = Results.read(options.results)
    ours = next(one for one in CONTENDERS if one.name == "zart")
    with own_server() as server, tempfile.TemporaryDirectory() as folder:
        for workload, chosen in WORKLOADS.items():
            best = results.best_concurrency(workload, ours.name) or chosen.concurrency
            stacks = Path(folder) / workload
            with server.database() as url:
                measure(
                    server,
                    Environments(Path(folder)),
                    ours,
                    workload,
                    replace(chosen, concurrency=best),
                    url=url,
                    beside=functools.partial(sampled, file=stacks),
                )
            results.profiles[workload] = shares(stacks.read_text().splitlines())
    results.write(options.results)


if __name__ == "__main__":
    main()
