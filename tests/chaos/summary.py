"""What a chaos run comes to."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, LiteralString

from tests.chaos.arena import Connection
from tests.chaos.cases import kind_of
from tests.chaos.checker import Violation
from tests.chaos.injector import Done

RUNS: LiteralString = "SELECT execution_id, outcome FROM zart_execution_runs"
STEPS: LiteralString = "SELECT count(*) FROM zart_steps"
EFFECTS: LiteralString = "SELECT count(*) FROM deposits"


@dataclass(frozen=True, kw_only=True)
class Summary:
    """The figures.

    Attributes:
        seed: of the plan and of the cases.
        seconds: for how long there were faults.
        server: what kind of server it was.
        runs: how many runs there were, by kind; each run of an endless one counts, and each child.
        outcomes: how many of them ended so.
        steps: how many checkpoints they have.
        effects: how many rows `trx()` steps have written.
        glances: how often the checker looked meanwhile.
        faults: how many there were, by kind.
        missed: how many could not be done, by kind.
        violations: what was found that must not be, by invariant.
    """

    seed: int
    seconds: float
    server: str
    runs: dict[str, int]
    outcomes: dict[str, int]
    steps: int
    effects: int
    glances: int
    faults: dict[str, int]
    missed: dict[str, int]
    violations: dict[str, int]

    def __str__(self) -> str:
        parts: list[tuple[str, dict[str, Any]]] = [
            ("runs by kind", self.runs),
            ("ended as", self.outcomes),
            ("faults", self.faults),
            ("faults that met nobody", self.missed),
            ("violations", self.violations),
        ]
        lines = [f"{name}: {_told(counts)}" for name, counts in parts]
        lines.append(f"{self.steps} checkpoints, {self.effects} rows of trx() steps, {self.glances} glances meanwhile")
        return "\n".join(lines)


def _told(counts: dict[str, Any]) -> str:
    listed = ", ".join(f"{name} {count}" for name, count in counts.items())
    return f"{sum(counts.values())} ({listed})" if counts else "none"


def _sorted(names: Sequence[str]) -> dict[str, int]:
    return dict(sorted(Counter(names).items()))


@dataclass(kw_only=True)
class Findings:
    """What is noted while a run is under way.

    Attributes:
        faults: what was done.
        violations: what was found, each problem once.
        glances: how often it was looked meanwhile.
    """

    faults: list[Done] = field(default_factory=list[Done])
    violations: list[Violation] = field(default_factory=list[Violation])
    glances: int = 0


async def summarise(connection: Connection, findings: Findings, *, seed: int, seconds: float, server: str) -> Summary:
    """Return the figures of a run that is over."""
    runs = await connection.fetch(RUNS)
    return Summary(
        seed=seed,
        seconds=seconds,
        server=server,
        runs=_sorted([kind_of(row["execution_id"]) for row in runs]),
        outcomes=_sorted([row["outcome"] or "not at all" for row in runs]),
        steps=await connection.fetchval(STEPS),
        effects=await connection.fetchval(EFFECTS),
        glances=findings.glances,
        faults=_sorted([fault.kind for fault in findings.faults if fault.hit is not None]),
        missed=_sorted([fault.kind for fault in findings.faults if fault.hit is None]),
        violations=_sorted([violation.invariant for violation in findings.violations]),
    )
