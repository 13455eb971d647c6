"""Time that passes only when a run waits for it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from zart_sqla.errors import ConfigError

START: Final = datetime(2030, 1, 1, tzinfo=UTC)
"""What a clock shows at first, unless it is told otherwise: the same in every test."""

_TICK: Final = timedelta(microseconds=1)


class VirtualClock:
    """Stands still while a run works, and is moved on when the run waits.

    Args:
        now: what it shows at first. Default: `START`.

    Raises:
        ConfigError: that has no time zone.
    """

    def __init__(self, now: datetime | None = None) -> None:
        if now is not None and now.tzinfo is None:
            raise ConfigError("now", expected="a datetime with a time zone", actual=now)
        self._now = now or START
        self._last_stamp = self._now

    def now(self) -> datetime:
        """Return what it shows."""
        return self._now

    def move_to(self, moment: datetime) -> None:
        """Move it on; what is past already does not move it back."""
        self._now = max(self._now, moment)

    def stamp(self) -> datetime:
        """Return the time, later than at the call before: what is recorded one after the other stays in order."""
        self._last_stamp = max(self._now, self._last_stamp + _TICK)
        return self._last_stamp
