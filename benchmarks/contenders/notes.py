"""Notes in a file: how a body tells when it began, to a process that cannot ask for its result."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NamedTuple


class Note(NamedTuple):
    """That a body began.

    Attributes:
        nanoseconds: when, by the clock that all processes of a machine share.
        pid: in which process.
    """

    nanoseconds: int
    pid: int


def add(file: str) -> None:
    """Note that a body begins now, in this process."""
    with Path(file).open("a") as notes:
        notes.write(f"{time.monotonic_ns()} {os.getpid()}\n")


def read(file: str) -> list[Note]:
    """Return the notes, the oldest first."""
    return [Note(*map(int, line.split())) for line in Path(file).read_text().splitlines()]
