"""The time by the database's clock, the only one that counts."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta


class DatabaseClock:
    """Tells the database's time between two readings of it, by this machine's monotonic clock."""

    def __init__(self) -> None:
        self._reading = (datetime.now(UTC), time.monotonic())  # until the worker is registered: nothing runs before

    def set(self, now: datetime) -> None:
        """Take a reading: the database said just now that it is so late."""
        self._reading = (now.astimezone(UTC), time.monotonic())

    def now(self) -> datetime:
        """Return the time."""
        reading, read_at = self._reading
        return reading + timedelta(seconds=time.monotonic() - read_at)
