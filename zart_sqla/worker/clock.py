"""The time by the database's clock, the only one that counts."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta


class DatabaseClock:
    """Tells the database's time between two readings of it, by this machine's monotonic clock.

    A reading is older than its answer by as much as that was on its way, on a busy machine by seconds. So the clock may
    be late, and what it has learned since keeps it from being later than that.
    """

    def __init__(self) -> None:
        self._reading = (datetime.now(UTC), time.monotonic())  # until the worker is registered: nothing runs before

    def set(self, now: datetime, *, asked_at: float) -> None:
        """Take a reading.

        Args:
            now: how late the database said that it is.
            asked_at: when it was asked, by the monotonic clock.
        """
        answered_at = time.monotonic()
        latest = now + timedelta(seconds=answered_at - asked_at)
        if not now <= self.now() <= latest:
            self._reading = (now.astimezone(UTC), answered_at)

    def advance(self, now: datetime) -> None:
        """Take note that by the database's clock it is at least so late."""
        if now > self.now():
            self._reading = (now.astimezone(UTC), time.monotonic())

    def now(self) -> datetime:
        """Return the time."""
        reading, read_at = self._reading
        return reading + timedelta(seconds=time.monotonic() - read_at)
