"""The checker: it reads the history, the audit, the ledger, the diary and the app's rows, and says what must not be.

It knows the tables, and asks them over a connection of its own. Of the product it uses one thing, the text of the query
that `zart doctor` asks for lost runs, because that query is itself on trial.
"""

import json
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast
from uuid import UUID

from sqlalchemy import URL, Select

from tests.chaos.arena import Connection, connected, now
from tests.chaos.audit import CHECKS, FENCED, INSTALL, LOST, REWRITTEN, TERMINAL, TWICE, WAKES
from tests.chaos.cases import case_of, is_started_by_driver
from tests.chaos.diary import Diary
from tests.worker.processes.audit import INSTALL as INSTALL_OF_PROCESSES
from tests.worker.processes.ledger import Ledger
from zart_sqla import TableNames
from zart_sqla.statements import diagnosis

NAMED = 5
"""How many of those that a check finds are named."""

DOCTOR = str(
    cast("Select[Any]", diagnosis.lost(TableNames.default()))
    .params(limit=NAMED)
    .compile(dialect=URL.create("postgresql+asyncpg").get_dialect()(), compile_kwargs={"literal_binds": True})
)

EXECUTIONS = """
SELECT e.execution_id, r.run_id, r.outcome, r.result::text AS result, r.error::text AS error
FROM zart_executions e JOIN zart_execution_runs r USING (run_id)
"""

BEGUN_AGAIN = """
SELECT r.run_id, b.execution_id, b.step, b.worker, b.at, recorded.at AS recorded, claimed.at AS claimed
FROM begun b JOIN zart_execution_runs r USING (execution_id)
JOIN zart_steps s ON s.run_id = r.run_id AND s.name = b.step
JOIN LATERAL (
    SELECT min(at) AS at FROM audit WHERE run_id = r.run_id AND kind = 'checkpoint' AND detail = s.name
) recorded ON recorded.at < b.at
JOIN LATERAL (
    SELECT a.at FROM audit a JOIN seats ON worker_id = holder
    WHERE a.kind = 'claim' AND a.run_id = r.run_id AND seats.name = b.worker AND a.at < b.at
    AND a.detail IS NOT DISTINCT FROM CASE WHEN s.kind = 'child' THEN s.name END
    ORDER BY a.at DESC LIMIT 1
) claimed ON claimed.at > recorded.at
"""
"""Beginnings of steps, noted in the ledger, in turns that were claimed after the step had been recorded."""


COMPARISONS = {
    "the doctor finds lost runs": WAKES,
    "it has not ended": LOST,
    "a driver saw its start committed, and it is not there": LOST,
    "an event that a driver offered is not there": LOST,
    "it has not ended as it must": TERMINAL,
    "it was cancelled, and has ended otherwise": TERMINAL,
    "a driver saw another end than there is": TERMINAL,
    "a driver read something else than was emitted": TWICE,
    "not all of its deposits are there, once each": TWICE,
    "a turn ran a step that was recorded before it began": REWRITTEN,
    "there is still a task when all has ended": TERMINAL,
    "a worker that has stopped is still registered": FENCED,
}
"""What is found otherwise than by one of the `CHECKS`, and which invariant it breaks."""


PASSING = {
    "a child is recorded and still has a task",
    "a task is held by a worker that is not there",
}
"""What may be for a moment: somebody has locked the task, and whoever was to delete or to free it comes back for it."""

PASSING_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Violation:
    """Something that must not be.

    Attributes:
        invariant: what it breaks.
        problem: what it is.
        found: some of those of which that is true.
        run_ids: their runs, as far as known.
        at: when it was seen, in seconds since 1970.
    """

    invariant: str
    problem: str
    found: Sequence[str]
    run_ids: Sequence[UUID]
    at: float

    @classmethod
    def of(cls, invariant: str, problem: str, rows: Sequence[Any]) -> "Violation":
        """Return the violation that these rows are."""
        found = [", ".join(f"{key} {value}" for key, value in dict(row).items()) for row in rows[:NAMED]]
        if len(rows) > NAMED:
            found.append(f"and {len(rows) - NAMED} more")
        run_ids = list({row["run_id"]: None for row in rows[:NAMED] if "run_id" in dict(row)})
        return cls(invariant=invariant, problem=problem, found=found, run_ids=run_ids, at=now())

    def __str__(self) -> str:
        return "\n".join((f"{self.invariant}: {self.problem}", *(f"    {one}" for one in self.found)))


class Checker:
    """Checks one run.

    Args:
        url: the database.
        folder: where the ledger and the diary lie.
        seed: the seed of the cases.
    """

    def __init__(self, url: str, folder: Path, seed: int) -> None:
        self._url = url
        self._seed = seed
        self._ledger = Ledger(folder / "ledger")
        self._diary = Diary(folder)
        self._since: dict[tuple[str, str], float] = {}

    async def install(self) -> None:
        """Have triggers keep a record from now on."""
        async with connected(self._url) as connection:
            await connection.execute(INSTALL_OF_PROCESSES)
            await connection.execute(INSTALL)

    async def glance(self) -> list[Violation]:
        """Return what must never be, or not for long, as it is seen in one snapshot, whatever is under way."""
        async with connected(self._url) as connection, connection.transaction(isolation="repeatable_read"):
            return self.sift(await self.look(connection))

    def sift(self, seen: Sequence[Violation]) -> list[Violation]:
        """Return what was seen, but for what may be for a moment, and has not been seen each time for long."""
        passing = {(one.problem, row): one.at for one in seen if one.problem in PASSING for row in one.found}
        self._since = {key: self._since.get(key, at) for key, at in passing.items()}
        lasting = {
            problem for (problem, row), at in passing.items() if at - self._since[problem, row] > PASSING_SECONDS
        }
        return [one for one in seen if one.problem not in PASSING or one.problem in lasting]

    async def conclude(self) -> list[Violation]:
        """Return what must not be when all has ended and all workers have stopped."""
        async with connected(self._url) as connection:
            return [*await self.look(connection), *await self.sum_up(connection)]

    async def look(self, connection: Connection) -> list[Violation]:
        """Return what must never be."""
        found: list[Violation] = []
        for problem, (invariant, query) in CHECKS.items():
            if rows := await connection.fetch(query):
                found.append(Violation.of(invariant, problem, rows))
        return [*found, *_some("the doctor finds lost runs", await connection.fetch(DOCTOR))]

    async def sum_up(self, connection: Connection) -> list[Violation]:
        """Return what must not be in the end, beside that."""
        return [
            *await self._compare(connection),
            *await self._look_for_repeats(connection),
            *await self._look_for_remains(connection),
        ]

    async def _compare(self, connection: Connection) -> list[Violation]:
        """Compare how executions have ended with their cases and with what drivers were told."""
        executions = {row["execution_id"]: row for row in await connection.fetch(EXECUTIONS)}
        deposits = Deposits(await connection.fetch("SELECT execution_id, step FROM deposits"))
        open_ones = [row for row in executions.values() if row["outcome"] is None]
        ended = [row for name, row in executions.items() if row["outcome"] is not None and is_started_by_driver(name)]
        events = {(row["execution_id"], row["name"]) for row in await connection.fetch("TABLE zart_events")}
        return [
            *_some("it has not ended", open_ones),
            *_some("a driver saw its start committed, and it is not there", self._unknown(executions)),
            *_some("an event that a driver offered is not there", self._lost_offers(events)),
            *_some("it has not ended as it must", [row for row in ended if self._is_otherwise(row)]),
            *_some("it was cancelled, and has ended otherwise", self._not_cancelled(executions)),
            *_some("a driver saw another end than there is", self._seen_otherwise(executions)),
            *_some("a driver read something else than was emitted", self._read_otherwise()),
            *_some("not all of its deposits are there, once each", self._not_deposited(ended, deposits)),
        ]

    def _unknown(self, executions: dict[str, Any]) -> list[Any]:
        return [one for one in self._diary.entries("started") if one["id"] not in executions]

    def _lost_offers(self, events: set[tuple[str, str]]) -> list[Any]:
        return [one for one in self._diary.entries("offered") if (one["id"], one["event"]) not in events]

    def _is_otherwise(self, row: Any) -> bool:
        case = case_of(self._seed, row["execution_id"])
        if row["outcome"] == "completed":
            return "completed" not in case.outcomes or json.loads(row["result"] or "null") != case.result
        return row["outcome"] not in case.outcomes

    def _not_cancelled(self, executions: dict[str, Any]) -> list[Any]:
        told = [executions.get(one["id"]) for one in self._diary.entries("cancelled")]
        return [row for row in told if row is not None and row["outcome"] != "cancelled"]

    def _seen_otherwise(self, executions: dict[str, Any]) -> list[Any]:
        def end(execution_id: str) -> tuple[Any, Any]:
            row = executions[execution_id]
            return row["outcome"], json.loads(row["result"] or "null")

        seen = [one for one in self._diary.entries("saw") if one["id"] in executions]
        return [one for one in seen if end(one["id"]) != (one["outcome"], one.get("result"))]

    def _read_otherwise(self) -> list[Any]:
        read = self._diary.entries("read")
        return [one for one in read if one["values"] != case_of(self._seed, one["id"]).emitted]

    def _not_deposited(self, ended: Iterable[Any], deposits: "Deposits") -> list[Any]:
        cases = [(row, case_of(self._seed, row["execution_id"])) for row in ended if row["outcome"] != "cancelled"]
        return [row for row, case in cases if deposits.of(row["execution_id"]) != Counter(case.deposits)]

    async def _look_for_repeats(self, connection: Connection) -> list[Violation]:
        offset = time.time() - time.monotonic()  # the ledger's clock is the machine's monotonic one
        begun = [
            (one.execution_id, one.step, one.worker, datetime.fromtimestamp(one.at + offset, UTC))
            for one in self._ledger.entries()
            if one.event == "began"
        ]
        await connection.execute(
            "CREATE TEMPORARY TABLE begun (execution_id text, step text, worker text, at timestamptz)"
        )
        await connection.copy_records_to_table("begun", records=begun)
        await connection.execute("CREATE INDEX ON begun (execution_id); ANALYZE begun; ANALYZE audit")
        rows = await connection.fetch(BEGUN_AGAIN)
        return _some("a turn ran a step that was recorded before it began", rows)

    async def _look_for_remains(self, connection: Connection) -> list[Violation]:
        tasks = await connection.fetch("SELECT run_id, task_name, step, worker_id, due_at FROM zart_tasks")
        workers = await connection.fetch("SELECT worker_id, pid, lease_until FROM zart_workers")
        return [
            *_some("there is still a task when all has ended", tasks),
            *_some("a worker that has stopped is still registered", workers),
        ]


class Deposits:
    """The rows that steps have written in the app's table, by the execution that a driver started."""

    def __init__(self, rows: Iterable[Any]) -> None:
        self._of: dict[str, Counter[str]] = {}
        for row in rows:
            parts = row["execution_id"].split("-", 2)
            step = " ".join([*parts[2:], row["step"]])
            self._of.setdefault("-".join(parts[:2]), Counter())[step] += 1

    def of(self, execution_id: str) -> Counter[str]:
        """Return how often each step has written, `<child> <step>` for those of a child."""
        return self._of.get(execution_id, Counter())


def _some(problem: str, rows: Sequence[Any]) -> list[Violation]:
    return [Violation.of(COMPARISONS[problem], problem, rows)] if rows else []
