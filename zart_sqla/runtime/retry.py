"""When a failed attempt is made again."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self

from zart_sqla.config import check_count
from zart_sqla.durations import LONGEST, to_timedelta
from zart_sqla.errors import ConfigError

if TYPE_CHECKING:
    from zart_sqla.durations import Duration

ErrorTypes = type[BaseException] | tuple[type[BaseException], ...]
"""One exception type or several."""

_MAX_EXPONENT = 62


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """How often a failed attempt is made again, and after how long.

    Make one with `none`, `fixed` or `exponential`.

    Attributes:
        retries: how many attempts follow the first.
        delay: the delay before the first of them.
        is_exponential: whether the delay doubles each time, and is jittered.
        max_delay: the longest that it grows to.
        on: the errors that it is for.
        give_up_on: the errors among them that it is not for.
    """

    retries: int = 0
    delay: timedelta = timedelta(0)
    is_exponential: bool = False
    max_delay: timedelta | None = None
    on: tuple[type[BaseException], ...] = (Exception,)
    give_up_on: tuple[type[BaseException], ...] = ()

    def __post_init__(self) -> None:
        check_count("retries", self.retries, minimum=0)

    @classmethod
    def none(cls) -> Self:
        """Return the retry that makes no further attempt."""
        return cls()

    @classmethod
    def fixed(cls, retries: int, delay: Duration, *, on: ErrorTypes = Exception, give_up_on: ErrorTypes = ()) -> Self:
        """Return the retry with the same delay before each further attempt.

        Args:
            retries: how many attempts follow the first.
            delay: the delay before each.
            on: the errors that it is for. Default: every `Exception`.
            give_up_on: the errors among them that it is not for.

        Raises:
            ConfigError: a value is out of range.
        """
        return cls(
            retries=retries,
            delay=to_timedelta(delay, setting="delay"),
            on=error_types("on", on),
            give_up_on=error_types("give_up_on", give_up_on),
        )

    @classmethod
    def exponential(
        cls,
        retries: int,
        base: Duration,
        max_delay: Duration | None = None,
        *,
        on: ErrorTypes = Exception,
        give_up_on: ErrorTypes = (),
    ) -> Self:
        """Return the retry whose delay doubles, with full jitter.

        The delay before retry k is uniform between 0 and `min(max_delay, base * 2 ** (k - 1))`: "full jitter" in
        Marc Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015.

        Args:
            retries: how many attempts follow the first.
            base: the longest delay before the first of them.
            max_delay: the longest delay before any. Default: it doubles without bound.
            on: the errors that it is for. Default: every `Exception`.
            give_up_on: the errors among them that it is not for.

        Raises:
            ConfigError: a value is out of range.
        """
        return cls(
            retries=retries,
            delay=to_timedelta(base, setting="base"),
            is_exponential=True,
            max_delay=None if max_delay is None else to_timedelta(max_delay, setting="max_delay"),
            on=error_types("on", on),
            give_up_on=error_types("give_up_on", give_up_on),
        )

    @property
    def max_attempts(self) -> int:
        """How many attempts are made at most."""
        return self.retries + 1

    def covers(self, error: BaseException) -> bool:
        """Return whether an attempt that failed with this error may be made again."""
        return isinstance(error, self.on) and not isinstance(error, self.give_up_on)

    def delay_after(self, attempt: int) -> timedelta:
        """Return how long to wait after this attempt, counted from 1, has failed."""
        if not self.is_exponential:
            return self.delay
        longest = self.delay.total_seconds() * 2.0 ** min(attempt - 1, _MAX_EXPONENT)
        bound = (LONGEST if self.max_delay is None else self.max_delay).total_seconds()
        return timedelta(seconds=random.uniform(0, min(longest, bound)))  # noqa: S311 - jitter is no secret


def checked_retry(retry: object) -> Retry:
    """Return the retry, or the one that makes no further attempt where there is none.

    Raises:
        ConfigError: it is something else.
    """
    if retry is None:
        return Retry.none()
    if not isinstance(retry, Retry):
        raise ConfigError("retry", expected="a Retry, such as Retry.fixed(3, '10s')", actual=retry)
    return retry


def error_types(setting: str, types: ErrorTypes) -> tuple[type[BaseException], ...]:
    """Return the exception types as a tuple.

    Raises:
        ConfigError: one of them is not an exception type.
    """
    several: tuple[Any, ...] = types if isinstance(types, tuple) else (types,)
    for one in several:
        if not _is_error_type(one):
            raise ConfigError(setting, expected="an exception type or a tuple of them", actual=one)
    return several


def _is_error_type(one: object) -> bool:
    return isinstance(one, type) and issubclass(one, BaseException)
