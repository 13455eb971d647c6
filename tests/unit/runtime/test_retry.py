"""When a failed attempt is made again."""

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zart_sqla import ConfigError, Retry
from zart_sqla.durations import LONGEST

attempts = st.integers(min_value=1, max_value=10_000)
delays = st.timedeltas(min_value=timedelta(0), max_value=LONGEST)


def test_none() -> None:
    """It makes no further attempt."""
    assert Retry.none() == Retry()
    assert (Retry.none().retries, Retry.none().max_attempts) == (0, 1)


def test_max_attempts() -> None:
    """So many retries follow the first attempt."""
    assert Retry.fixed(3, "1s").max_attempts == 4


@given(attempts, delays)
def test_fixed(attempt: int, delay: timedelta) -> None:
    """Each delay is the same."""
    assert Retry.fixed(3, delay).delay_after(attempt) == delay


@given(attempts, delays, st.none() | st.just(timedelta(0)) | delays)
def test_exponential_is_within_its_bounds(attempt: int, base: timedelta, longest: timedelta | None) -> None:
    """Every delay is between 0 and `min(max_delay, base * 2 ** (k - 1))`, however large k is."""
    delay = Retry.exponential(3, base, longest).delay_after(attempt)
    bound = base.total_seconds() * 2.0 ** min(attempt - 1, 1000)
    assert timedelta(0) <= delay
    assert delay.total_seconds() <= bound
    assert delay <= (timedelta.max if longest is None else longest)


@pytest.mark.parametrize(("attempt", "bound"), [(1, 2), (2, 4), (3, 8), (4, 10), (50, 10), (10**9, 10)])
def test_exponential_jitter(attempt: int, bound: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The delay is uniform over all of its range: full jitter."""
    retry = Retry.exponential(9, "2s", "10s")
    monkeypatch.setattr("random.uniform", lambda low, _high: low)
    assert retry.delay_after(attempt) == timedelta(0)
    monkeypatch.setattr("random.uniform", lambda _low, high: high)
    assert retry.delay_after(attempt) == timedelta(seconds=bound)


def test_exponential_without_bound() -> None:
    """Without `max_delay` it doubles up to the longest duration."""
    retry = Retry.exponential(9, LONGEST)
    assert all(retry.delay_after(attempt) <= LONGEST for attempt in (1, 2, 100, 10**9))


def test_on_and_give_up_on() -> None:
    """It is for the errors that `on` names, without those that `give_up_on` does."""
    retry = Retry.fixed(1, "1s", on=(OSError, KeyError), give_up_on=FileNotFoundError)
    assert [retry.covers(error) for error in (OSError(), ConnectionResetError(), KeyError())] == [True] * 3
    assert [retry.covers(error) for error in (ValueError(), FileNotFoundError(), LookupError())] == [False] * 3


def test_every_exception_by_default() -> None:
    """It is for every Exception, and for nothing that is none."""
    retry = Retry.exponential(1, "1s")
    assert retry.covers(ValueError())
    assert not retry.covers(SystemExit())
    assert Retry.fixed(1, "1s", on=BaseException).covers(SystemExit())


BAD: dict[str, tuple[Any, str]] = {
    "negative": (lambda: Retry.fixed(-1, "1s"), "retries"),
    "a fraction": (lambda: Retry.fixed(1.5, "1s"), "retries"),  # type: ignore[arg-type]
    "a truth": (lambda: Retry.fixed(True, "1s"), "retries"),  # noqa: FBT003
    "text": (lambda: Retry.fixed("3", "1s"), "retries"),  # type: ignore[arg-type]
    "no duration": (lambda: Retry.fixed(1, "soon"), "delay"),
    "negative duration": (lambda: Retry.fixed(1, -1), "delay"),
    "no base": (lambda: Retry.exponential(1, "soon"), "base"),
    "no longest": (lambda: Retry.exponential(1, "1s", "soon"), "max_delay"),
    "a name": (lambda: Retry.fixed(1, "1s", on="OSError"), "on"),  # type: ignore[arg-type]
    "an error": (lambda: Retry.fixed(1, "1s", on=OSError()), "on"),  # type: ignore[arg-type]
    "no error": (lambda: Retry.fixed(1, "1s", on=(OSError, int)), "on"),  # type: ignore[arg-type]
    "a list": (lambda: Retry.exponential(1, "1s", give_up_on=[OSError]), "give_up_on"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize(("make", "setting"), list(BAD.values()), ids=list(BAD))
def test_bad_values(make: Any, setting: str) -> None:
    """A wrong value is refused with the setting's name, what it can be, and what came."""
    with pytest.raises(ConfigError, match=rf"^{setting}: expected .*, got ") as caught:
        make()
    assert caught.value.setting == setting


def test_frozen() -> None:
    """It can be shared: it is frozen and hashable."""
    assert hash(Retry.fixed(1, "1s")) == hash(Retry.fixed(1, timedelta(seconds=1)))
    with pytest.raises(AttributeError):
        Retry.none().retries = 3  # type: ignore[misc]
