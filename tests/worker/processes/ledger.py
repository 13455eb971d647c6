"""A file in which workers note what their steps do, beside the database; it outlives the worker that wrote."""

import os
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Self


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What happened in a worker: `began` or `ended` a step, at a time by the machine's monotonic clock."""

    execution_id: str
    step: str
    event: str
    worker: str
    pid: int
    at: float

    @classmethod
    def parse(cls, line: str) -> Self:
        """Return the entry of a line."""
        execution_id, step, event, worker, pid, at = line.split("\t")
        return cls(execution_id=execution_id, step=step, event=event, worker=worker, pid=int(pid), at=float(at))


class Ledger:
    """The file. One write appends one line, so it needs no lock between processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def write(self, execution_id: str, step: str, event: str, *, worker: str) -> None:
        """Append an entry of this process."""
        line = "\t".join((execution_id, step, event, worker, str(os.getpid()), repr(time.monotonic())))
        file = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(file, f"{line}\n".encode())
        finally:
            os.close(file)

    def entries(self, *, after: int = 0) -> list[Entry]:
        """Return the entries, but for the first `after` of them; a line whose end is not there yet is being written."""
        *lines, _ = self.path.read_text().split("\n")
        return [Entry.parse(line) for line in lines[after:]]

    def began(self, step: str, execution_id: str | None = None) -> list[Entry]:
        """Return the entries of beginning this step, in one execution or in all."""
        return [
            entry
            for entry in self.entries()
            if (entry.step, entry.event) == (step, "began") and execution_id in (None, entry.execution_id)
        ]

    def workers(self) -> set[str]:
        """Return the names of the workers that have noted something."""
        return {entry.worker for entry in self.entries()}

    def begun(self) -> Counter[tuple[str, str]]:
        """Return how often each `(execution_id, step)` has begun."""
        return Counter((entry.execution_id, entry.step) for entry in self.entries() if entry.event == "began")

    def repeated(self, recorded: Collection[tuple[str, str]], *, after: int) -> list[Entry]:
        """Return the entries after the first `after` that begin a step which was recorded before."""
        return [
            entry
            for entry in self.entries(after=after)
            if entry.event == "began" and (entry.execution_id, entry.step) in recorded
        ]
