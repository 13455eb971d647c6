"""Durations as people write them."""

from __future__ import annotations

import math
import re
from datetime import timedelta
from typing import Final

from zart_sqla.errors import ConfigError

Duration = timedelta | float | str
"""A `timedelta`, a number of seconds, or text such as `"250ms"`, `"30s"`, `"5m"`, `"2h"`, `"3d"`."""

LONGEST: Final = timedelta(days=365_000)
"""The longest duration: a thousand years, so that the moment that it leads to can still be told."""

_EXPECTED = (
    "a timedelta, a number of seconds, or text such as '250ms', '30s', '5m', '2h' or '3d', "
    f"not negative and up to '{LONGEST.days}d'"
)
_TEXT = re.compile(r"\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)\s*", re.ASCII)
_SECONDS = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}


def to_timedelta(value: Duration, *, setting: str = "duration") -> timedelta:
    """Return the duration as a `timedelta`.

    Args:
        value: the duration.
        setting: the name to use in the error.

    Raises:
        ConfigError: it is not a duration, is negative, or is longer than 1,000 years.
    """
    try:
        duration = _convert(value)
    except (OverflowError, ValueError, TypeError):
        raise ConfigError(setting, expected=_EXPECTED, actual=value) from None
    if not timedelta(0) <= duration <= LONGEST:
        raise ConfigError(setting, expected=_EXPECTED, actual=value)
    return duration


def to_positive_timedelta(value: Duration, *, setting: str = "duration") -> timedelta:
    """Return the duration as a `timedelta` that is longer than nothing.

    Raises:
        ConfigError: as `to_timedelta`, and also if it is zero.
    """
    duration = to_timedelta(value, setting=setting)
    if not duration:
        raise ConfigError(setting, expected="a duration longer than zero", actual=value)
    return duration


def _convert(value: Duration) -> timedelta:
    match value:
        case timedelta():
            return value
        case bool():
            raise TypeError
        case int() | float():
            if not math.isfinite(value):
                raise ValueError
            return timedelta(seconds=value)
        case str():
            match = _TEXT.fullmatch(value)
            if match is None:
                raise ValueError
            return timedelta(seconds=float(match[1]) * _SECONDS[match[2]])
        case _:
            raise TypeError
