"""The names of everything that zart_sqla owns in a database, made from one prefix and one schema."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from typing import Final, Self

from zart_sqla.config import environment_variable
from zart_sqla.errors import InvalidIdentifierError

PREFIX_VARIABLE: Final = "ZART_TABLE_PREFIX"
SCHEMA_VARIABLE: Final = "ZART_SCHEMA"

TABLES: Final = (
    "executions",
    "execution_runs",
    "tasks",
    "steps",
    "step_attempts",
    "events",
    "stream_items",
    "schedules",
    "pause_rules",
    "queues",
    "workers",
)
"""Every table, by the name it has without its prefix."""

_MAX_IDENTIFIER_BYTES = 63  # PostgreSQL's NAMEDATALEN - 1
_LONGEST_SUFFIX = len("execution_runs_execution_id_key")  # the longest name that is made from a prefix
_MAX_PREFIX_BYTES = _MAX_IDENTIFIER_BYTES - _LONGEST_SUFFIX
_IDENTIFIER = re.compile(r"[A-Za-z][A-Za-z0-9_]*")


@dataclass(frozen=True, slots=True)
class TableNames:
    """The names of the tables and of all that belongs to them.

    Two of these in one database share nothing: no table, type, index, notification channel or lock.

    Attributes:
        prefix: what each table's name starts with, `"zart_"` by default.
        schema: the schema that the tables are in; None leaves it to the connection's search path.

    Raises:
        InvalidIdentifierError: PostgreSQL identifiers cannot be made from the prefix or the schema.
    """

    prefix: str = "zart_"
    schema: str | None = None

    def __post_init__(self) -> None:
        _check("prefix", self.prefix, max_bytes=_MAX_PREFIX_BYTES)
        if self.schema is not None:
            _check("schema", self.schema, max_bytes=_MAX_IDENTIFIER_BYTES)
            if self.schema.startswith("pg_"):
                raise InvalidIdentifierError("schema", self.schema, problem="starts with 'pg_', as system schemas do")

    @classmethod
    def default(cls) -> Self:
        """Return the names with the prefix `zart_` on the connection's search path."""
        return cls()

    @classmethod
    def with_prefix(cls, prefix: str) -> Self:
        """Return the names that start with this prefix."""
        return cls(prefix)

    @classmethod
    def from_env_or_default(cls) -> Self:
        """Return the names that `ZART_TABLE_PREFIX` and `ZART_SCHEMA` ask for, the default where one is not set.

        Raises:
            InvalidIdentifierError: as for the class, naming the environment variable.
        """
        names = cls.default()
        for field, variable in (("prefix", PREFIX_VARIABLE), ("schema", SCHEMA_VARIABLE)):
            value = environment_variable(variable)
            if value is None:
                continue
            try:
                names = replace(names, **{field: value})
            except InvalidIdentifierError as error:
                raise InvalidIdentifierError(
                    error.part, error.actual, problem=error.problem, variable=variable
                ) from None
        return names

    def with_schema(self, schema: str) -> Self:
        """Return the same names in this schema."""
        return replace(self, schema=schema)

    @property
    def executions(self) -> str:
        return self.table("executions")

    @property
    def execution_runs(self) -> str:
        return self.table("execution_runs")

    @property
    def tasks(self) -> str:
        return self.table("tasks")

    @property
    def steps(self) -> str:
        return self.table("steps")

    @property
    def step_attempts(self) -> str:
        return self.table("step_attempts")

    @property
    def events(self) -> str:
        return self.table("events")

    @property
    def stream_items(self) -> str:
        return self.table("stream_items")

    @property
    def schedules(self) -> str:
        return self.table("schedules")

    @property
    def pause_rules(self) -> str:
        return self.table("pause_rules")

    @property
    def queues(self) -> str:
        return self.table("queues")

    @property
    def workers(self) -> str:
        return self.table("workers")

    @property
    def version_table(self) -> str:
        """The table in which `migrate()` keeps the revision, where the app has no Alembic of its own."""
        return f"{self.prefix}alembic_version"

    @property
    def work_channel(self) -> str:
        """The notification channel on which workers hear of work and of cancelled runs."""
        return self._channel("work")

    @property
    def done_channel(self) -> str:
        """The notification channel on which those who wait for a result hear of finished runs."""
        return self._channel("done")

    def table(self, name: str) -> str:
        """Return the name in the database of one of `TABLES`.

        Raises:
            KeyError: there is no such table.
        """
        if name not in TABLES:
            raise KeyError(name)
        return self.prefix + name

    def qualified(self, name: str) -> str:
        """Return the quoted name of one of `TABLES`, with its schema if there is one, for use in SQL text."""
        table = f'"{self.table(name)}"'
        return table if self.schema is None else f'"{self.schema}".{table}'

    def _channel(self, purpose: str) -> str:
        # A channel belongs to the whole database, so the schema must be in its name; a digest keeps it short.
        digest = hashlib.blake2s(f"{self.schema or ''}.{self.prefix}".encode(), digest_size=8).hexdigest()
        return f"{self.prefix}{purpose}_{digest}"


def _check(part: str, value: str, *, max_bytes: int) -> None:
    problem = _problem(value, max_bytes)
    if problem is not None:
        raise InvalidIdentifierError(part, value, problem=problem)


def _problem(value: object, max_bytes: int) -> str | None:
    if not isinstance(value, str):
        return f"is {type(value).__name__}, not text"
    if not value:
        return "is empty"
    if not _IDENTIFIER.fullmatch(value):
        first = value[0]
        if not (first.isascii() and first.isalpha()):
            return "does not start with an ASCII letter"
        return "has characters other than ASCII letters, digits and '_'"
    if len(value) > max_bytes:
        return (
            f"is {len(value)} bytes long; with more than {max_bytes} the longest name made from it would pass "
            f"PostgreSQL's limit of {_MAX_IDENTIFIER_BYTES}"
        )
    return None
