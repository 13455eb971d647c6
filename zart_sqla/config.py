"""The settings, validated where they are made. Only this module reads the environment."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Final, cast

from zart_sqla.durations import to_positive_timedelta, to_timedelta
from zart_sqla.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from zart_sqla.durations import Duration

DATABASE_URL_VARIABLE: Final = "DATABASE_URL"
TEST_DATABASE_URL_VARIABLE: Final = "ZART_TEST_DATABASE_URL"

_SHORTEST_PATIENCE_SECONDS: Final = 5.0
_LONGEST_HEARTBEAT = timedelta(seconds=1.25)  # with the poll of an idle worker, one statement a second


def environment_variable(name: str) -> str | None:
    """Return the value of the environment variable, None if it is not set."""
    return os.environ.get(name)


def environment_with(**variables: str) -> dict[str, str]:
    """Return the environment for a child process: this one's, with these variables."""
    return {**os.environ, **variables}


@dataclass(frozen=True, kw_only=True)
class PoolConfig:
    """The connection pool of an engine that the scheduler makes for itself.

    Attributes:
        max_connections: how many connections there can be at once. Default 20.
        min_connections: how many are opened at the start, and kept. Default 2.
        acquire_timeout: how long a caller waits for a connection before `sqlalchemy.exc.TimeoutError`. Default 30 s.

    Raises:
        ConfigError: a value is out of range.
    """

    max_connections: int = 20
    min_connections: int = 2
    acquire_timeout: Duration = "30s"

    def __post_init__(self) -> None:
        check_count("max_connections", self.max_connections, minimum=1)
        check_count("min_connections", self.min_connections, minimum=0)
        if self.min_connections > self.max_connections:
            raise ConfigError(
                "min_connections",
                expected=f"at most max_connections ({self.max_connections})",
                actual=self.min_connections,
            )
        object.__setattr__(
            self, "acquire_timeout", to_positive_timedelta(self.acquire_timeout, setting="acquire_timeout")
        )

    @property
    def acquire_timeout_seconds(self) -> float:
        """The `acquire_timeout` in seconds."""
        return _seconds(self.acquire_timeout)


@dataclass(frozen=True, kw_only=True)
class WorkerConfig:
    """How a worker works.

    Attributes:
        poll_interval: how often it looks for work of which no notification told it. Default 5 s.
        max_tasks_per_poll: how many tasks one claim takes at most, up to 1000. Default 100.
        max_concurrent_tasks: how many tasks run at once; one that has ended, and is being written, does not count.
            Default 100.
        shutdown_timeout: how long a graceful stop lets running tasks finish before it hands them back. Default 30 s.
        lease_timeout: how long the worker's tasks stay its own without a heartbeat. Default 30 s. (A worker whose
            process died is noticed within seconds whatever this is.)
        heartbeat_interval: how often it says that it lives, and looks for workers that died. At most a third of
            `lease_timeout`. Default: a third of the lease, 1.25 s at most.
        max_crashes: how many workers in a row a task may take down before it is failed. Default 5.
        queues: the queues it serves. Default None: all.

    Raises:
        ConfigError: a value is out of range.
    """

    poll_interval: Duration = "5s"
    max_tasks_per_poll: int = 100
    max_concurrent_tasks: int = 100
    shutdown_timeout: Duration = "30s"
    lease_timeout: Duration = "30s"
    heartbeat_interval: Duration | None = None
    max_crashes: int = 5
    queues: Sequence[str] | None = None

    def __post_init__(self) -> None:
        check_count("max_tasks_per_poll", self.max_tasks_per_poll, minimum=1)
        check_count("max_concurrent_tasks", self.max_concurrent_tasks, minimum=1)
        check_count("max_crashes", self.max_crashes, minimum=1)
        for setting in ("poll_interval", "lease_timeout"):
            object.__setattr__(self, setting, to_positive_timedelta(getattr(self, setting), setting=setting))
        object.__setattr__(self, "shutdown_timeout", to_timedelta(self.shutdown_timeout, setting="shutdown_timeout"))
        object.__setattr__(self, "heartbeat_interval", self._checked_heartbeat())
        object.__setattr__(self, "queues", _checked_queues(self.queues))

    def _checked_heartbeat(self) -> timedelta:
        longest = timedelta(seconds=self.lease_seconds / 3)
        if self.heartbeat_interval is None:
            return min(longest, _LONGEST_HEARTBEAT)
        interval = to_positive_timedelta(self.heartbeat_interval, setting="heartbeat_interval")
        if interval > longest:
            raise ConfigError(
                "heartbeat_interval",
                expected=f"at most a third of lease_timeout ({longest.total_seconds():g} s)",
                actual=self.heartbeat_interval,
            )
        return interval

    @property
    def poll_seconds(self) -> float:
        """The `poll_interval` in seconds."""
        return _seconds(self.poll_interval)

    @property
    def shutdown_seconds(self) -> float:
        """The `shutdown_timeout` in seconds."""
        return _seconds(self.shutdown_timeout)

    @property
    def lease_seconds(self) -> float:
        """The `lease_timeout` in seconds."""
        return _seconds(self.lease_timeout)

    @property
    def answer_seconds(self) -> float:
        """How long the database may take for an answer before the connection counts as broken."""
        return max(self.lease_seconds / 3, _SHORTEST_PATIENCE_SECONDS)

    @property
    def heartbeat_seconds(self) -> float:
        """The `heartbeat_interval` in seconds."""
        return _seconds(self.heartbeat_interval)


def check_count(setting: str, value: object, *, minimum: int) -> None:
    """Check that a setting is a whole number of at least `minimum`.

    Raises:
        ConfigError: it is not.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < minimum:
        raise ConfigError(setting, expected=f"a whole number of at least {minimum}", actual=value)


def _checked_queues(queues: object) -> tuple[str, ...] | None:
    if queues is None:
        return None
    given = _members(queues)
    names = tuple(name for name in given if isinstance(name, str) and name)
    if not names or names != given:
        expected = "None for all, or a list of at least one queue's name"
        raise ConfigError("queues", expected=expected, actual=queues)
    return names


def _members(value: object) -> tuple[object, ...]:
    is_list = isinstance(value, Iterable) and not isinstance(value, str)
    return tuple(cast("Iterable[object]", value)) if is_list else ()


def _seconds(duration: Duration | None) -> float:
    assert isinstance(duration, timedelta)  # noqa: S101 - __post_init__ made it one
    return duration.total_seconds()
