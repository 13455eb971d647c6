"""How many runs end in each window of five seconds, and how that changes around a fault."""

from collections.abc import Sequence
from typing import LiteralString

from tests.chaos.arena import Connection
from tests.chaos.injector import Done

WINDOW_SECONDS = 5.0
WINDOWS_AFTER = 3

ENDS: LiteralString = """
SELECT extract(epoch FROM completed_at)::float8 AS at FROM zart_execution_runs WHERE completed_at IS NOT NULL
"""


class Rates:
    """The rate of runs that end.

    Args:
        ends: when each has ended, in seconds since 1970.
    """

    def __init__(self, ends: Sequence[float]) -> None:
        self._ends = sorted(ends)

    @classmethod
    async def read(cls, connection: Connection) -> "Rates":
        """Return the rates as the history tells them."""
        return cls([row["at"] for row in await connection.fetch(ENDS)])

    def window(self, first: float) -> float:
        """Return how many runs ended a second, in the window that begins there."""
        return sum(first <= end < first + WINDOW_SECONDS for end in self._ends) / WINDOW_SECONDS

    def around(self, fault: Done) -> tuple[float, list[float]]:
        """Return the rate in the window before the fault, and in those after its end."""
        after = [self.window(fault.ended + number * WINDOW_SECONDS) for number in range(WINDOWS_AFTER)]
        return self.window(fault.began - WINDOW_SECONDS), after

    def told(self, faults: Sequence[Done], began: float) -> list[str]:
        """Return a line for each fault that has hit somebody."""
        lines: list[str] = []
        for fault in faults:
            if fault.hit is not None:
                before, after = self.around(fault)
                rates = ", ".join(f"{rate:.1f}" for rate in after)
                lines.append(f"{fault.began - began:6.1f} s {fault.kind:>14}: {before:.1f} before; {rates} after")
        return lines
