"""Throwaway databases for tests: each a copy of one with zart's tables, on a server for one run of the tests."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

from sqlalchemy import NullPool, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from zart_sqla.client.engines import ASYNC_DRIVER, url_for
from zart_sqla.client.scheduler import PostgresScheduler
from zart_sqla.config import TEST_DATABASE_URL_VARIABLE, environment_variable
from zart_sqla.embedded import EmbeddedServerError, embedded_server

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator

    from zart_sqla.table_names import TableNames

_QUICK: Final = {"fsync": "off", "full_page_writes": "off", "synchronous_commit": "off"}


@contextmanager
def open_databases(names: TableNames) -> Generator[Databases]:
    """Start an embedded server, or take that which the environment names; drop what was made there afterwards.

    Args:
        names: the names of the tables that the databases have.

    Raises:
        EmbeddedServerError: no server is named, and there is no embedded one.
    """
    with _server() as url:
        databases = Databases(url, names)
        try:
            yield databases
        finally:
            databases.close()


@contextmanager
def _server() -> Generator[str]:
    named = environment_variable(TEST_DATABASE_URL_VARIABLE)
    if named:
        yield named
        return
    try:
        server = embedded_server(settings=_QUICK)
        url = server.__enter__()
    except EmbeddedServerError as error:
        advice = f"{error.problem}; or have {TEST_DATABASE_URL_VARIABLE} name a server on which databases can be made"
        raise EmbeddedServerError(advice) from error
    try:
        yield url
    finally:
        server.__exit__(None, None, None)


class Databases:
    """Makes and drops databases on one server.

    Its calls work wherever they are made, also where an event loop runs.

    Args:
        server_url: a database on the server, as a role that may create others.
        names: the names of the tables that they have.
    """

    def __init__(self, server_url: str, names: TableNames) -> None:
        self._server_url = server_url
        self._names = names
        self._prefix = f"zart_test_{uuid4().hex[:8]}"
        self._template: str | None = None

    @contextmanager
    def temporary(self) -> Generator[str]:
        """Give the URL of a new database, and drop that afterwards, whoever is still connected to it."""
        template = self._template or self._make_template()
        name = f"{self._prefix}_{uuid4().hex[:8]}"
        self._execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        try:
            yield self._url(name)
        finally:
            self._drop(name)

    def close(self) -> None:
        """Drop what is left."""
        if self._template is not None:
            self._drop(self._template)
            self._template = None

    def _make_template(self) -> str:
        name = f"{self._prefix}_template"
        self._execute(f'CREATE DATABASE "{name}"')
        self._template = name
        _wait_for(_migrate(self._url(name), self._names))
        return name

    def _drop(self, name: str) -> None:
        self._execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')

    def _url(self, name: str) -> str:
        url = make_url(self._server_url).set(drivername="postgresql", database=name)
        return url.render_as_string(hide_password=False)

    def _execute(self, statement: str) -> None:
        _wait_for(_executed(self._server_url, statement))


async def _executed(url: str, statement: str) -> None:
    engine = create_async_engine(url_for(url, ASYNC_DRIVER), poolclass=NullPool, isolation_level="AUTOCOMMIT")
    async with engine.connect() as connection:
        await connection.execute(text(statement))


async def _migrate(url: str, names: TableNames) -> None:
    async with await PostgresScheduler.connect(url, names=names) as scheduler:
        await scheduler.migrate()


def _wait_for(coroutine: Coroutine[Any, Any, None]) -> None:
    """Run the coroutine to its end on a loop of its own, in a thread: here another loop may run."""
    with ThreadPoolExecutor(1, thread_name_prefix="zart-databases") as executor:
        executor.submit(asyncio.run, coroutine).result()
