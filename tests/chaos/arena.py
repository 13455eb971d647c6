"""All that takes part in a chaos run: the server, worker processes and drivers, and what is between them."""

import asyncio
import time
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import asyncpg

from tests.chaos.server import Server
from tests.support.proxies import Mode, Proxy, proxy
from tests.worker.processes.crew import Crew, WorkerProcess, crew

LEASE_SECONDS = 4.0
CLOCKS = (0.0, 1.0, -1.0, 0.0)
"""How many hours the clock of each worker is wrong."""

CUT_OFF = (False, True, True, False)
"""Which of the workers reach the database through a network that can be taken away."""

DEDICATED = (True, False, True, False)
"""Which of the workers are set up as by `zart worker`, with uvloop."""

WORKER: dict[str, Any] = {
    "lease_timeout": LEASE_SECONDS,
    "poll_interval": "2s",
    "max_concurrent_tasks": 40,
    "shutdown_timeout": "1s",
    "max_crashes": 1000,
}
"""A run that loses many workers in a row, through no fault of its own, is to complete all the same."""

DRIVERS = 3
AT_ONCE = 25
APPLICATION_NAME = "chaos"

OUTAGES = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""What whoever needs the server gets while a fault is in the way."""

Connection: TypeAlias = "asyncpg.Connection[Any]"


@dataclass
class Post:
    """A place where there is always a process: when one has ended, another takes its place.

    Attributes:
        crew: where its processes come from.
        settings: what they are told.
        network: what is between them and the database, if that can be taken away.
        process: the one that is there now.
        is_frozen: whether it stands still.
    """

    crew: Crew
    settings: dict[str, Any]
    network: Proxy | None = None
    process: WorkerProcess = field(init=False)
    is_frozen: bool = False

    def __post_init__(self) -> None:
        self.process = self.crew.spawn(**self.settings)

    def man(self) -> None:
        """Start another process if the last one has ended."""
        if not self.process.is_running:
            self.process = self.crew.spawn(**self.settings)


@dataclass(frozen=True)
class Arena:
    """Where the run takes place.

    Attributes:
        server: the server and the database.
        workers: the workers' posts.
        drivers: the drivers' posts.
        folder: where the ledger, the diary and logs lie.
        seed: of the plan and of the cases.
    """

    server: Server
    workers: Sequence[Post]
    drivers: Sequence[Post]
    folder: Path
    seed: int

    @property
    def posts(self) -> Sequence[Post]:
        """All of them."""
        return [*self.workers, *self.drivers]

    async def man(self, posts: Sequence[Post]) -> None:
        """Keep a process at each of the posts, until cancelled."""
        while True:
            for post in posts:
                post.man()
            await asyncio.sleep(0.05)

    async def heal(self) -> None:
        """Undo all that was done to it, but for the processes that are gone; return when the server can be reached."""
        await self.server.ensure_running()
        for post in self.workers:
            if post.is_frozen:
                post.process.thaw()
                post.is_frozen = False
            if post.network is not None:
                post.network.delay = 0
                is_lost = post.network.mode is Mode.DROP
                await post.network.set_mode(Mode.FORWARD)
                if is_lost:
                    post.network.abort()
        while not await self._can_connect():  # noqa: ASYNC110 - the server may be recovering
            await asyncio.sleep(0.1)

    async def _can_connect(self) -> bool:
        try:
            async with connected(self.server.url):
                return True
        except OUTAGES:
            return False


@asynccontextmanager
async def arena(server: Server, folder: Path, seed: int) -> AsyncGenerator[Arena]:
    """Yield an arena in a database that has all the tables; end all of its processes afterwards."""
    async with AsyncExitStack() as stack:
        workers = stack.enter_context(crew(server.url, folder))
        drivers = stack.enter_context(crew(server.url, folder, program="tests.chaos.drivers", called="driver"))
        networks = [await stack.enter_async_context(proxy(server.url)) if is_cut else None for is_cut in CUT_OFF]
        yield Arena(
            server,
            [
                Post(
                    workers,
                    {
                        **WORKER,
                        "hours": hours,
                        "is_dedicated": is_dedicated,
                        "url": network.url if network else None,
                    },
                    network,
                )
                for hours, is_dedicated, network in zip(CLOCKS, DEDICATED, networks, strict=True)
            ],
            [Post(drivers, {"seed": seed, "at_once": AT_ONCE}) for _ in range(DRIVERS)],
            folder,
            seed,
        )


@asynccontextmanager
async def connected(url: str, *, seconds: float = 10) -> AsyncGenerator[Connection]:
    """Lend a connection of the test's own, which no fault is meant for."""
    settings = {"application_name": APPLICATION_NAME, "statement_timeout": "0"}
    connection = await asyncpg.connect(url, timeout=seconds, server_settings=settings)
    try:
        yield connection
    finally:
        connection.terminate()


@asynccontextmanager
async def beside(coroutine: Coroutine[Any, Any, None]) -> AsyncGenerator[None]:
    """Run something beside what is done meanwhile, and cancel it then."""
    task = asyncio.create_task(coroutine)
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def now() -> float:
    """Return the time by the clock that all but some workers have right."""
    return time.time()
