"""The database that a command works on."""

from __future__ import annotations

import asyncio
import signal
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self, TypeVar

import typer
from sqlalchemy import make_url
from sqlalchemy.exc import ArgumentError

from zart_sqla.cli.exits import SIGNALLED, USAGE, CommandError, DatabaseUnreachable, is_unreachable, problem_of
from zart_sqla.client.scheduler import PostgresScheduler
from zart_sqla.config import DATABASE_URL_VARIABLE, PoolConfig, environment_variable
from zart_sqla.store.schema import check_schema
from zart_sqla.table_names import TableNames

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Coroutine


T = TypeVar("T")


@dataclass(frozen=True)
class Database:
    """Where the tables are.

    Attributes:
        url: the database.
        names: the names of the tables.
    """

    url: str
    names: TableNames

    @classmethod
    def named(cls, url: str | None, prefix: str | None, schema: str | None) -> Self:
        """Return what the options name, and the environment where they do not.

        Raises:
            CommandError: neither names a database.
            InvalidIdentifierError: PostgreSQL identifiers cannot be made from the prefix or the schema.
        """
        found = url or environment_variable(DATABASE_URL_VARIABLE)
        if not found:
            raise CommandError(
                "no database is named",
                f"give --url or set {DATABASE_URL_VARIABLE}, such as postgresql://user@host/database",
                code=USAGE,
            )
        given = {"prefix": prefix, "schema": schema}
        wanted: dict[str, Any] = {part: value for part, value in given.items() if value is not None}
        return cls(found, replace(TableNames.from_env_or_default(), **wanted))

    @property
    def shown(self) -> str:
        """The database without its password."""
        try:
            return make_url(self.url).render_as_string(hide_password=True)
        except (ArgumentError, ValueError):
            return "***"

    @asynccontextmanager
    async def connect(self, pool: PoolConfig | None = None) -> AsyncGenerator[PostgresScheduler]:
        """Connect, whatever tables are there.

        Raises:
            DatabaseUnreachable: no connection can be had.
        """
        config = pool or PoolConfig(max_connections=2, min_connections=0)
        try:
            scheduler = await PostgresScheduler.connect_with_pool(self.url, config, names=self.names)
        except Exception as error:
            if is_unreachable(error):
                raise DatabaseUnreachable(problem_of(error), database=self.shown) from error
            raise
        async with scheduler:
            yield scheduler

    @asynccontextmanager
    async def open(self, pool: PoolConfig | None = None) -> AsyncGenerator[PostgresScheduler]:
        """Connect, and see that the tables are those that this code was written for.

        Raises:
            DatabaseUnreachable: no connection can be had.
            SchemaOutdated: the tables are not there, or not those.
        """
        async with self.connect(pool) as scheduler:
            await scheduler.run(check_schema)
            yield scheduler


def run(main: Coroutine[Any, Any, T]) -> T:
    """Return what the coroutine returns; Ctrl-C ends the command as a signal does, without a word."""
    try:
        return asyncio.run(main)
    except KeyboardInterrupt:
        raise typer.Exit(SIGNALLED + signal.SIGINT) from None
