"""The PostgreSQL that is measured on, and its counters."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self
from uuid import uuid4

import psycopg

from zart_sqla.embedded import embedded_server

SETTINGS: Final = {"shared_buffers": "1GB", "max_connections": "300", "log_line_prefix": "%d "}
"""All others are PostgreSQL's own: fsync is on."""
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_STATEMENT: Final = re.compile(rb"LOG:  (statement|execute [^:]*): *(?P<command>\w*)")
_BOUNDS: Final = {b"BEGIN", b"COMMIT", b"ROLLBACK"}


@dataclass(frozen=True)
class Sample:
    """The server's counters at one moment.

    Attributes:
        wal_bytes: of write-ahead log.
        cpu_seconds: of all its processes.
        commits: transactions that were committed in the database, as far as their sessions have told.
        connections: to the database, now.
        statements: that are in the log, if it is on; a transaction's begin and end are none.
    """

    wal_bytes: int
    cpu_seconds: float
    commits: int
    connections: int
    statements: int

    def since(self, earlier: Self) -> dict[str, float]:
        """Return what the counters rose by, and how many connections there are."""
        risen: dict[str, float] = {name: value - getattr(earlier, name) for name, value in vars(self).items()}
        return {**risen, "connections": self.connections}


class Server:
    """A PostgreSQL server with databases for single measurements.

    Args:
        url: of its first database.

    Attributes:
        version: what it calls itself.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        with self.connected() as connection:
            self.version: str = _one(connection, "SHOW server_version")
            self._data = Path(_one(connection, "SHOW data_directory"))
        self._postmaster = int((self._data / "postmaster.pid").read_text().split()[0])

    @contextmanager
    def connected(self, url: str | None = None) -> Generator[psycopg.Connection[Any]]:
        """Yield a connection in autocommit."""
        with psycopg.connect(url or self._url, autocommit=True) as connection:
            yield connection

    @contextmanager
    def database(self) -> Generator[str]:
        """Yield the URL of an empty database."""
        name = f"bench_{uuid4().hex}"
        with self.connected() as connection:
            connection.execute(f"CREATE DATABASE {name}".encode())
            connection.execute("CHECKPOINT")
        base, _, query = self._url.partition("?")
        try:
            yield f"{base.rpartition('/')[0]}/{name}" + (f"?{query}" if query else "")
        finally:
            with self.connected() as connection:
                connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())

    def log_statements(self, url: str) -> None:
        """Have all statements logged that sessions send to a database which begin from now on."""
        with self.connected() as connection:
            connection.execute(f"ALTER DATABASE {_name(url)} SET log_statement = 'all'".encode())

    def sample(self, url: str) -> Sample:
        """Return its counters now, those of this database among them."""
        cpu_seconds = self._cpu_seconds()
        with self.connected() as connection:
            wal_bytes = int(_one(connection, "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')"))
            backends = "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND backend_type = 'client backend'"
            connections = int(_one(connection, backends, _name(url)))
        return Sample(wal_bytes, cpu_seconds, self.commits(url), connections, self._statements(url))

    def commits(self, url: str) -> int:
        """Return how many transactions were committed in a database, as far as their sessions have told.

        Those that have ended have told all.
        """
        with self.connected() as connection:
            query = "SELECT xact_commit FROM pg_stat_database WHERE datname = %s"
            return int(_one(connection, query, _name(url)))

    def free_bytes(self) -> int:
        """Return how much space is left where its data are."""
        return shutil.disk_usage(self._data).free

    def _statements(self, url: str) -> int:
        """Return how many statements of a database are in the log."""
        prefix = f"{_name(url)} ".encode()
        with (self._data / "log").open("rb") as log:
            found = (_STATEMENT.search(line) for line in log if line.startswith(prefix))
            return sum(one is not None and one["command"].upper() not in _BOUNDS for one in found)

    def _cpu_seconds(self) -> float:
        """Return the time on the processor of the postmaster, of its children, and of those of them that have ended."""
        ticks = 0
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(folder.name) == self._postmaster:
                ticks += sum(map(int, fields[11:15]))
            elif int(fields[1]) == self._postmaster:
                ticks += sum(map(int, fields[11:13]))
        return ticks / _TICKS


@contextmanager
def own_server(settings: Mapping[str, str] = SETTINGS) -> Generator[Server]:
    """Yield a server of our own: an embedded PostgreSQL 18."""
    with embedded_server(18, settings=settings) as url:
        yield Server(url)


def _name(url: str) -> str:
    return url.partition("?")[0].rpartition("/")[2]


def _one(connection: psycopg.Connection[Any], query: str, *values: str) -> Any:
    row = connection.execute(query.encode(), values).fetchone()
    assert row is not None
    return row[0]
