"""What the turns of a simulated run write, counted, and the write at which its worker dies."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True, kw_only=True)
class Crash:
    """The point at which the worker dies, once.

    Attributes:
        number: at which write, from 1.
        is_after: whether it dies when that is done, not before.
        place: which point that was, in words; None while it has not come.
    """

    number: int
    is_after: bool
    place: str | None = None


class Writes:
    """Counts what is written.

    Args:
        crash: where the worker dies; None: nowhere.

    Attributes:
        count: how many writes have been begun.
    """

    def __init__(self, crash: Crash | None = None) -> None:
        self.count: int = 0
        self._crash = crash

    def begin(self) -> int:
        """Begin one; return its number, from 1. Several can go on side by side."""
        self.count += 1
        return self.count

    def dies(self, number: int, what: str, *, is_after: bool) -> bool:
        """Return whether the worker dies before, or after, this is written."""
        crash = self._crash
        if crash is None or crash.place is not None or (crash.number, crash.is_after) != (number, is_after):
            return False
        crash.place = f"{'after' if is_after else 'before'} {what} was written"
        return True
