"""The database's clock, as a worker knows it between two readings."""

import time
from datetime import UTC, datetime, timedelta

import pytest

from zart_sqla.worker.clock import DatabaseClock

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> DatabaseClock:
    """Return a clock that was set at noon, on a machine that has been up for 100 s and stands still."""
    monkeypatch.setattr(time, "monotonic", lambda: 100.0)
    made = DatabaseClock()
    made.set(NOON, asked_at=100.0)
    return made


def test_goes_on(clock: DatabaseClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two readings the machine's monotonic clock counts."""
    assert clock.now() == NOON
    monkeypatch.setattr(time, "monotonic", lambda: 107.0)
    assert clock.now() == NOON + 7 * SECOND


@pytest.mark.parametrize(
    ("now", "asked_at", "expected"),
    [
        (NOON - 2 * SECOND, 97.0, NOON),  # the answer took three seconds, so noon is as likely
        (NOON - 2 * SECOND, 99.0, NOON - 2 * SECOND),  # the server's clock was put back
        (NOON + 2 * SECOND, 97.0, NOON + 2 * SECOND),  # it was late, or the server's clock was put on
    ],
)
def test_readings(clock: DatabaseClock, now: datetime, asked_at: float, expected: datetime) -> None:
    """A reading that came slowly does not put back the clock, unless it proves it wrong."""
    clock.set(now, asked_at=asked_at)
    assert clock.now() == expected


def test_advance(clock: DatabaseClock) -> None:
    """What the database has said in passing puts the clock on, and never back."""
    clock.advance(NOON - SECOND)
    assert clock.now() == NOON
    clock.advance(NOON + SECOND)
    assert clock.now() == NOON + SECOND
