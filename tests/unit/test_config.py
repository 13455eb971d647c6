"""The settings: their defaults, how they are read, and which values are refused."""

from collections.abc import Callable
from dataclasses import FrozenInstanceError
from datetime import timedelta
from typing import Any

import pytest

from zart_sqla.config import DATABASE_URL_VARIABLE, PoolConfig, WorkerConfig, environment_variable
from zart_sqla.errors import ConfigError

Config = Callable[..., Any]
COUNTS: list[tuple[Config, str, int]] = [
    (PoolConfig, "max_connections", 1),
    (PoolConfig, "min_connections", 0),
    (WorkerConfig, "max_tasks_per_poll", 1),
    (WorkerConfig, "max_concurrent_tasks", 1),
    (WorkerConfig, "max_crashes", 1),
]
DURATIONS: list[tuple[Config, str]] = [
    (PoolConfig, "acquire_timeout"),
    (WorkerConfig, "poll_interval"),
    (WorkerConfig, "shutdown_timeout"),
    (WorkerConfig, "lease_timeout"),
    (WorkerConfig, "heartbeat_interval"),
]
QUEUES = "queues: expected None for all, or a list of at least one queue's name, got"


def pred(number: int) -> int:
    """Return the number before."""
    return number - 1


def test_pool_defaults() -> None:
    """A pool keeps 2 connections of at most 20, for which it waits 30 seconds."""
    config = PoolConfig()
    assert (config.max_connections, config.min_connections) == (20, 2)
    assert config.acquire_timeout == timedelta(seconds=30)
    assert config.acquire_timeout_seconds == 30.0


def test_worker_defaults() -> None:
    """What a worker does if it is told nothing."""
    config = WorkerConfig()
    assert (config.poll_seconds, config.shutdown_seconds, config.lease_seconds) == (5, 30, 30)
    assert config.heartbeat_seconds == 1.25
    assert (config.max_tasks_per_poll, config.max_concurrent_tasks, config.max_crashes) == (100, 100, 5)
    assert config.queues is None


def test_durations_are_read_once() -> None:
    """However a duration was written, the setting is a `timedelta`."""
    config = WorkerConfig(poll_interval=0.5, shutdown_timeout="0s", lease_timeout=timedelta(minutes=1))
    assert config.poll_interval == timedelta(seconds=0.5)
    assert config.shutdown_timeout == timedelta(0)
    assert config.lease_timeout == timedelta(minutes=1)


@pytest.mark.parametrize(("config", "setting", "minimum"), COUNTS)
@pytest.mark.parametrize("convert", [float, str, bool, pred, type])
def test_bad_count(config: Config, setting: str, minimum: int, convert: Callable[[int], Any]) -> None:
    """A count that is too small, or no whole number, is refused."""
    bad = convert(minimum)
    with pytest.raises(ConfigError) as caught:
        config(**{setting: bad})
    assert str(caught.value) == f"{setting}: expected a whole number of at least {minimum}, got {bad!r}"


@pytest.mark.parametrize(("config", "setting", "minimum"), COUNTS)
def test_smallest_count(config: Config, setting: str, minimum: int) -> None:
    """The smallest count is accepted."""
    settings: dict[str, Any] = {"min_connections": 0} if config is PoolConfig else {}
    settings[setting] = minimum
    assert getattr(config(**settings), setting) == minimum


@pytest.mark.parametrize(("config", "setting"), DURATIONS)
@pytest.mark.parametrize("bad", ["soon", -1, True])
def test_bad_duration(config: Config, setting: str, bad: Any) -> None:
    """What is not a duration is refused by the name of its setting."""
    with pytest.raises(ConfigError) as caught:
        config(**{setting: bad})
    assert (caught.value.setting, caught.value.actual) == (setting, bad)


@pytest.mark.parametrize(("config", "setting"), [each for each in DURATIONS if each[1] != "shutdown_timeout"])
def test_zero_duration(config: Config, setting: str) -> None:
    """Only a shutdown may take no time at all."""
    with pytest.raises(ConfigError, match=f"{setting}: expected a duration longer than zero, got 0"):
        config(**{setting: 0})


def test_more_kept_than_allowed() -> None:
    """A pool cannot keep more connections than it may have."""
    with pytest.raises(ConfigError, match=r"min_connections: expected at most max_connections \(4\), got 5"):
        PoolConfig(max_connections=4, min_connections=5)
    assert PoolConfig(max_connections=4, min_connections=4).min_connections == 4


@pytest.mark.parametrize(("lease", "heartbeat"), [("30s", 1.25), ("3.75s", 1.25), ("3s", 1.0), ("300ms", 0.1)])
def test_heartbeat_follows_the_lease(lease: str, heartbeat: float) -> None:
    """Without a heartbeat of its own, a lease gets three, and one every 1.25 seconds at least."""
    assert WorkerConfig(lease_timeout=lease).heartbeat_seconds == heartbeat


def test_heartbeat_is_a_third_of_the_lease() -> None:
    """A slower heartbeat would lose the lease when two of them fail."""
    assert WorkerConfig(lease_timeout="30s", heartbeat_interval="10s").heartbeat_seconds == 10
    expected = r"heartbeat_interval: expected at most a third of lease_timeout \(10 s\), got '11s'"
    with pytest.raises(ConfigError, match=expected):
        WorkerConfig(lease_timeout="30s", heartbeat_interval="11s")


@pytest.mark.parametrize("queues", [["a", "b"], ("a", "b"), (queue for queue in "ab")])
def test_queues(queues: Any) -> None:
    """Queues are kept as a tuple, which nobody changes afterwards."""
    assert WorkerConfig(queues=queues).queues == ("a", "b")


@pytest.mark.parametrize(
    "queues", ["mail", "", [], (), [""], ["mail", ""], ["mail", None], [b"mail"], 5, {"a": 1, 2: 3}]
)
def test_bad_queues(queues: Any) -> None:
    """Text alone, nothing at all, and names that are none are refused."""
    with pytest.raises(ConfigError) as caught:
        WorkerConfig(queues=queues)
    assert str(caught.value) == f"{QUEUES} {queues!r}"


@pytest.mark.parametrize("config", [PoolConfig, WorkerConfig])
def test_frozen_and_by_keyword(config: Any) -> None:
    """Settings are named where they are made, and do not change."""
    with pytest.raises(FrozenInstanceError):
        setattr(config(), next(iter(config.__dataclass_fields__)), 1)
    with pytest.raises(TypeError):
        config(1)


def test_error_is_a_value_error() -> None:
    """Code that knows nothing of us catches it as `ValueError`."""
    with pytest.raises(ValueError, match="max_crashes"):
        WorkerConfig(max_crashes=0)


def test_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that is not set is None; an empty one is empty."""
    monkeypatch.delenv(DATABASE_URL_VARIABLE, raising=False)
    assert environment_variable(DATABASE_URL_VARIABLE) is None
    monkeypatch.setenv(DATABASE_URL_VARIABLE, "")
    assert environment_variable(DATABASE_URL_VARIABLE) == ""
