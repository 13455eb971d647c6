"""Durations: a `timedelta`, a number of seconds, or text."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zart_sqla.durations import to_positive_timedelta, to_timedelta
from zart_sqla.errors import ConfigError

BAD: list[Any] = [
    "",
    " ",
    "5",
    "s",
    "-5s",
    "+5s",
    "5 weeks",
    "5M",
    "1h30m",
    "1e3s",
    ".5s",
    "5.s",
    "five seconds",
    "\N{ARABIC-INDIC DIGIT FIVE}s",
    "9999999999d",
    "365001d",
    "9" * 400 + "s",
    -1,
    -0.001,
    10**400,
    1e15,
    float("inf"),
    float("-inf"),
    float("nan"),
    timedelta(microseconds=-1),
    True,
    None,
    b"5s",
    [5],
    1j,
]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("250ms", timedelta(milliseconds=250)),
        ("30s", timedelta(seconds=30)),
        ("5m", timedelta(minutes=5)),
        ("2h", timedelta(hours=2)),
        ("3d", timedelta(days=3)),
        ("0s", timedelta(0)),
        ("1.5h", timedelta(minutes=90)),
        ("0.5ms", timedelta(microseconds=500)),
        (" 5 m ", timedelta(minutes=5)),
        (0, timedelta(0)),
        (90, timedelta(seconds=90)),
        (0.25, timedelta(milliseconds=250)),
        (-0.0, timedelta(0)),
        (timedelta(days=1), timedelta(days=1)),
        ("365000d", timedelta(days=365_000)),
    ],
)
def test_durations(value: Any, expected: timedelta) -> None:
    """Each way to write a duration means the same duration."""
    assert to_timedelta(value) == expected


@pytest.mark.parametrize("value", BAD, ids=lambda value: repr(value)[:20])
@pytest.mark.parametrize("convert", [to_timedelta, to_positive_timedelta])
def test_not_a_duration(convert: Any, value: Any) -> None:
    """All else is refused, by the name of the setting and with what a duration is."""
    with pytest.raises(ConfigError) as caught:
        convert(value, setting="poll_interval")
    assert caught.value.setting == "poll_interval"
    assert caught.value.actual is value
    assert str(caught.value).startswith("poll_interval: expected a timedelta, a number of seconds, or text")


@pytest.mark.parametrize("value", [0, 0.0, "0s", "0ms", timedelta(0), 1e-9])
def test_nothing_is_not_positive(value: Any) -> None:
    """Where something must last, zero and what rounds to it is refused."""
    with pytest.raises(ConfigError, match="lease: expected a duration longer than zero, got"):
        to_positive_timedelta(value, setting="lease")


def test_positive() -> None:
    """What lasts is returned."""
    assert to_positive_timedelta("1ms") == timedelta(milliseconds=1)


@given(st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=365_000)))
def test_a_timedelta_stays_as_it_is(value: timedelta) -> None:
    """No precision is lost on the way."""
    assert to_timedelta(value) == value


@given(st.integers(min_value=0, max_value=365_000), st.sampled_from(["s", "m", "h", "d"]))
def test_whole_numbers_are_exact(count: int, unit: str) -> None:
    """Whole numbers of a unit are exactly that many seconds."""
    seconds = {"s": 1, "m": 60, "h": 3600, "d": 86400}[unit]
    assert to_timedelta(f"{count}{unit}") == to_timedelta(count * seconds) == timedelta(seconds=count * seconds)


@given(st.text())
def test_any_text_is_a_duration_or_an_error(text: str) -> None:
    """No text makes another error than `ConfigError`."""
    try:
        assert to_timedelta(text) >= timedelta(0)
    except ConfigError as error:
        assert error.actual is text  # noqa: PT017 - both ends are right
