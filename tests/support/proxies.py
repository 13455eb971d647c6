"""A proxy before the database, with which a test takes the network away."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from enum import Enum

from sqlalchemy import make_url

CHUNK = 65_536


class Mode(Enum):
    """What happens to what is sent."""

    FORWARD = "it arrives"
    HOLD = "it arrives later, as after an outage that TCP gets over"
    DROP = "it never arrives, and nobody is told, as when a firewall forgets a connection"


class Link:
    """One connection through the proxy.

    Attributes:
        heard: what the client has sent, from the beginning.
    """

    def __init__(self, proxy: "Proxy") -> None:
        self._proxy = proxy
        self._mode: Mode | None = None
        self._is_mute = False
        self._last_words: bytes | None = None
        self._writers: list[asyncio.StreamWriter] = []
        self.heard = bytearray()

    def drop(self) -> None:
        """Forward nothing any more, without telling either side."""
        self._mode = Mode.DROP

    def mute(self, last_words: bytes = b"") -> None:
        """Let what the client sends arrive, but none of the answers; not before it has sent these words."""
        self._last_words = last_words
        self._is_mute = not last_words

    def abort(self) -> None:
        """Reset the connection."""
        for writer in self._writers:
            writer.transport.abort()

    async def run(self, client: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
        """Forward until both sides have ended."""
        self._writers.append(client[1])
        with contextlib.suppress(OSError):
            await self._proxy.passing(self._current)
            server = await self._proxy.connect()
            self._writers.append(server[1])
            await asyncio.gather(self._pump(client[0], server[1], self.heard), self._pump(server[0], client[1]))
        self.abort()

    def _current(self) -> Mode:
        return self._mode or self._proxy.mode

    async def _pump(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, heard: bytearray | None = None
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(CHUNK):
                if heard is not None:
                    heard += data
                    self._is_mute |= self._last_words is not None and self._last_words in data
                await self._proxy.passing(self._current)
                if self._current() is Mode.FORWARD and not (self._is_mute and heard is None):
                    target.write(data)
                    await target.drain()
        await self._proxy.passing(self._current)
        if self._current() is Mode.FORWARD:
            target.close()


class Proxy:
    """The proxy.

    Attributes:
        mode: what happens on all connections, and on new ones.
        delay: how many seconds later all of it arrives, that is forwarded.
        links: the connections that there are or were.
    """

    def __init__(self, database_url: str) -> None:
        self._url = make_url(database_url)
        self._changed = asyncio.Condition()
        self.mode = Mode.FORWARD
        self.delay = 0.0
        self.links: list[Link] = []

    @property
    def url(self) -> str:
        """The URL of the database through the proxy."""
        url = self._url.set(host="127.0.0.1", port=self._port, query={})
        return url.render_as_string(hide_password=False)

    async def set_mode(self, mode: Mode) -> None:
        """Do something else from now on, on all connections but those that were dropped singly."""
        self.mode = mode
        async with self._changed:
            self._changed.notify_all()

    def abort(self) -> None:
        """Reset all connections."""
        for link in self.links:
            link.abort()

    async def passing(self, mode: Callable[[], Mode]) -> None:
        """Return when nothing is to be held back any more."""
        if self.delay:
            await asyncio.sleep(self.delay)  # what is simulated, not a wait for something
        async with self._changed:
            await self._changed.wait_for(lambda: mode() is not Mode.HOLD)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Return a connection to the server."""
        folder = self._url.query.get("host")
        if isinstance(folder, str) and folder.startswith("/"):
            return await asyncio.open_unix_connection(f"{folder}/.s.PGSQL.{self._url.port or 5432}")
        return await asyncio.open_connection(self._url.host, self._url.port or 5432)

    @asynccontextmanager
    async def running(self) -> AsyncGenerator["Proxy"]:
        """Accept connections meanwhile."""
        serving: set[asyncio.Task[None]] = set()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            link = Link(self)
            self.links.append(link)
            task = asyncio.current_task()
            assert task is not None
            serving.add(task)
            with contextlib.suppress(asyncio.CancelledError):  # the streams complain of tasks that are cancelled
                await link.run((reader, writer))

        server = await asyncio.start_server(accept, "127.0.0.1", 0)
        self._port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            self.abort()
            for task in serving:
                task.cancel()
            await asyncio.gather(*serving, return_exceptions=True)


@asynccontextmanager
async def proxy(database_url: str) -> AsyncGenerator[Proxy]:
    """Yield a proxy before the database."""
    async with Proxy(database_url).running() as made:
        yield made
