"""The durable calls of a body that are under way: more than one only where it has them side by side."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from zart_sqla.runtime.outcomes import Suspended

QUIET_SECONDS: Final = 0.1
"""For how long nothing is heard of a body's own tasks before they count as waiting."""

_QUIET_ROUNDS: Final = 20  # of the loop: it may be so busy that the time is over before a task has had its turn


class Calls:
    """Has a turn end when all its calls wait for something, not as soon as one of them does.

    A body may have tasks of its own. Between two calls such a task is seen by nobody here, so while there are any, all
    calls have to wait for a moment before nothing else counts as going on.

    Args:
        quiet_seconds: for how long.

    Attributes:
        has_tasks: whether tasks of the body's own have made calls.
        waiting: what the calls wait for that have paused.
    """

    def __init__(self, quiet_seconds: float = QUIET_SECONDS) -> None:
        self._quiet_seconds = quiet_seconds
        self.has_tasks: bool = False
        self.waiting: list[Suspended] = []
        self._under_way = 0
        self._paused = 0
        self._changes = 0
        self._changed = asyncio.Event()

    def under_way(self) -> Calls:
        """Return what counts a call for as long as it takes."""
        return self

    def __enter__(self) -> None:
        self._under_way += 1

    def __exit__(self, *_: object) -> None:
        self._under_way -= 1
        self._tell()

    async def pause(self, outcome: Suspended, seconds: float | None) -> bool:
        """Wait until all calls that are under way wait.

        Args:
            outcome: what the call waits for.
            seconds: when that comes by itself; None if it does not.

        Returns:
            Whether they all wait; False if that took longer.
        """
        self.waiting.append(outcome)
        self._paused += 1
        self._tell()
        try:
            async with asyncio.timeout(seconds):
                await self._all_pause()
        except TimeoutError:
            self.waiting.remove(outcome)
            return False
        finally:
            self._paused -= 1
        return True

    async def _all_pause(self) -> None:
        await asyncio.sleep(0)  # a task that the body has just begun comes to its first call
        while True:
            while self._under_way != self._paused:
                await self._changed.wait()
            if not self.has_tasks or await self._is_quiet():
                return

    async def _is_quiet(self) -> bool:
        known = self._changes
        await asyncio.sleep(self._quiet_seconds)
        for _ in range(_QUIET_ROUNDS):
            await asyncio.sleep(0)
        return self._changes == known and self._under_way == self._paused

    def _tell(self) -> None:
        self._changes += 1
        self._changed.set()
        self._changed.clear()
