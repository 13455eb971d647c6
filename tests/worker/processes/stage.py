"""All that a test with worker processes needs: a client, the workers, their gates and ledger, and the checker."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

from tests.worker.processes.audit import FORBIDDEN, INSTALL, Database
from tests.worker.processes.crew import Crew, WorkerProcess, crew
from tests.worker.processes.ledger import Ledger
from zart_sqla import ExecutionHandle, PostgresScheduler

T = TypeVar("T")

PATIENCE = 60.0
"""How many seconds a test waits for what must come at last: only a hanging product takes so long."""


async def eventually(look: Callable[[], T], *, within: float = PATIENCE) -> T:
    """Return the first true value that `look` gives.

    Raises:
        AssertionError: there was none in time.
    """
    deadline = time.monotonic() + within
    while True:
        value = look()
        if value:
            return value
        assert time.monotonic() < deadline, f"not within {within:g} s"
        await asyncio.sleep(0.02)


class Stage:
    """Where a test plays.

    Attributes:
        scheduler: the client.
        database: the database, directly.
        crew: the workers.
        ledger: what their steps noted.
    """

    def __init__(self, scheduler: PostgresScheduler, database: Database, members: Crew, folder: Path) -> None:
        self.scheduler = scheduler
        self.database = database
        self.crew = members
        self.ledger = Ledger(folder / "ledger")
        self._folder = folder

    async def workers(self, count: int, **settings: Any) -> list[WorkerProcess]:
        """Start workers and return them when all work."""
        started = [self.crew.spawn(**settings) for _ in range(count)]
        await eventually(lambda: all(self._works(worker) for worker in started))
        return started

    async def worker(self, **settings: Any) -> WorkerProcess:
        """Start a worker and return it when it works."""
        (worker,) = await self.workers(1, **settings)
        return worker

    @asynccontextmanager
    async def manned(self, count: int, **settings: Any) -> AsyncGenerator[None]:
        """Keep so many workers running: whenever one ends, start another."""
        first = len(self.crew.workers)

        async def man() -> None:
            while True:
                running = sum(worker.is_running for worker in self.crew.workers[first:])
                for _ in range(count - running):
                    self.crew.spawn(**settings)
                await asyncio.sleep(0.05)

        manning = asyncio.create_task(man())
        try:
            yield
        finally:
            manning.cancel()

    def worker_id(self, worker: WorkerProcess) -> Any:
        """Return the id under which a worker is registered now, None if it is not."""
        rows = self.database.execute("SELECT worker_id FROM zart_workers WHERE pid = %s", worker.pid)
        return rows[0]["worker_id"] if rows else None

    async def start(self, *lines: str, execution_id: str, task: str = "script") -> ExecutionHandle[Any]:
        """Start an execution that does what the lines say."""
        return await self.scheduler.start(task, list(lines), execution_id=execution_id)

    def open(self, gate: str) -> None:
        """Open a gate: steps that wait for it, now or later, go on."""
        (self._folder / f"{gate}.gate").touch()

    async def began(
        self, step: str, execution_id: str | None = None, *, times: int = 1, within: float = PATIENCE
    ) -> str:
        """Return, when a step has begun so many times, the name of the worker in which it began last."""
        await eventually(lambda: len(self.ledger.began(step, execution_id)) >= times, within=within)
        return self.ledger.began(step, execution_id)[times - 1].worker

    def find(self, name: str) -> WorkerProcess:
        """Return the worker of this name."""
        return next(worker for worker in self.crew.workers if worker.name == name)

    def recorded(self) -> set[tuple[str, str]]:
        """Return `(execution_id, step)` of all checkpoints, but for children that were given up: one may just begin."""
        rows = self.database.execute(
            "SELECT execution_id, name FROM zart_steps s JOIN zart_execution_runs USING (run_id)"
            " WHERE s.error ->> 'category' IS DISTINCT FROM 'step_cancelled'"
        )
        return {(row["execution_id"], row["name"]) for row in rows}

    def count(self, outcome: str) -> int:
        """Return how many runs ended so."""
        return int(self.database.value("SELECT count(*) FROM zart_execution_runs WHERE outcome = %s", outcome))

    async def completed(self, count: int, *, within: float = PATIENCE) -> None:
        """Return when so many runs have completed."""
        await eventually(lambda: self.count("completed") >= count, within=within)

    def check(self) -> None:
        """Check what must be true at any time."""
        found = {problem: rows for problem, query in FORBIDDEN.items() if (rows := self.database.execute(query))}
        assert not found, str(found)

    def check_idle(self) -> None:
        """Check what must be true when all is done and all workers were stopped."""
        assert self.database.execute("SELECT * FROM zart_tasks") == []
        assert self.database.execute("SELECT * FROM zart_workers") == []

    def logs(self) -> str:
        """Return what all workers have logged, one after the other."""
        return "\n".join(f"--- {worker.name}\n{worker.log}" for worker in self.crew.workers)

    def _works(self, worker: WorkerProcess) -> bool:
        assert worker.is_running, f"{worker.name} has ended"
        return "works on" in worker.log


@asynccontextmanager
async def stage(url: str, folder: Path, *, worker_url: str | None = None) -> AsyncGenerator[Stage]:
    """Yield a stage in a database that has zart's tables; in the end, check it and send the workers home.

    Args:
        url: the database.
        folder: where ledger, gates and logs lie.
        worker_url: how workers reach the database. Default: as the test does.
    """
    database = Database(url)
    database.execute(INSTALL)
    with crew(worker_url or url, folder) as members:
        async with await PostgresScheduler.connect(url) as scheduler:
            made = Stage(scheduler, database, members, folder)
            try:
                yield made
                made.check()
            except BaseException:
                print(made.logs())  # noqa: T201  pytest shows it beside the failure
                raise
            finally:
                database.close()


def lines_of(count: int, command: str = "note") -> Sequence[str]:
    """Return the lines of an execution that takes so many steps."""
    return [f"{command} {command}-{number}" for number in range(count)]
