"""Databases for tests: each test has one of its own, copied from a template."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from uuid import uuid4

import psycopg
from psycopg import sql
from sqlalchemy import make_url


@dataclass(frozen=True, kw_only=True)
class Databases:
    """Creates and drops databases on one server; `prefix` tells this test run's from all others."""

    server_url: str
    prefix: str

    @contextmanager
    def temporary(self, template: str | None = None) -> Iterator[str]:
        """Yield the URL of a new database, empty or a copy of `template`, and drop it afterwards."""
        name = self.create(template)
        try:
            yield self.url(name)
        finally:
            self.drop(name)

    def create(self, template: str | None = None) -> str:
        """Create a database and return its name."""
        name = f"{self.prefix}_{uuid4().hex[:12]}"
        self._execute("CREATE DATABASE {} TEMPLATE {}", name, template or "template1")
        return name

    def create_template(self) -> str:
        """Create a database with zart's tables and return its name."""
        name = self.create()
        with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
            runner.run(_migrate(self.url(name)))
        return name

    def drop(self, name: str) -> None:
        """Drop a database, whoever is still connected to it."""
        self._execute("DROP DATABASE IF EXISTS {} WITH (FORCE)", name)

    def drop_all(self) -> None:
        """Drop every database of this test run."""
        with psycopg.connect(self._conninfo) as connection:
            names = connection.execute(
                "SELECT datname FROM pg_database WHERE starts_with(datname, %s)", (self.prefix,)
            ).fetchall()
        for (name,) in names:
            self.drop(name)

    def url(self, name: str) -> str:
        """Return the URL of one database, as a user would write it."""
        url = make_url(self.server_url).set(drivername="postgresql", database=name)
        return url.render_as_string(hide_password=False)

    @property
    def _conninfo(self) -> str:
        url = make_url(self.server_url).set(drivername="postgresql")
        return url.render_as_string(hide_password=False)

    def _execute(self, statement: str, *names: str) -> None:
        query = sql.SQL(statement).format(*map(sql.Identifier, names))
        with psycopg.connect(self._conninfo, autocommit=True) as connection:
            connection.execute(query)


async def _migrate(url: str) -> None:
    # Not above: a package that does not import should fail the tests that need it, not all of them.
    from zart_sqla import PostgresScheduler  # noqa: PLC0415

    async with await PostgresScheduler.connect(url) as scheduler:
        await scheduler.migrate()
