"""What a whole benchmark gave: kept as JSON, and read by the plots and the page."""

from __future__ import annotations

import json
import platform
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from benchmarks.environments import CONTENDERS
from benchmarks.measurements import Measurement


def processor() -> str:
    """Return what the processor calls itself."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


@dataclass(frozen=True)
class Costs:
    """What a unit of work costs.

    Attributes:
        commits: of its database.
        wal_bytes: of write-ahead log.
        client_us: microseconds of the clients' processors.
        server_us: microseconds of the server's processors.
    """

    commits: float
    wal_bytes: float
    client_us: float
    server_us: float


@dataclass
class Results:
    """The measurements of a benchmark, and where they were made.

    Attributes:
        machine: its processor, cores, kernel and Python.
        server: the version of PostgreSQL, and the settings that are not its own.
        versions: the packages of each contender.
        cannot: what contenders cannot do, and why.
        measurements: by workload, case and contender, one for each repetition.
        missing: what a contender did not do, and why: by workload, case and contender, with commas between them.
        profiles: the shares of our processor time, by workload and by whose code is at work.
    """

    machine: dict[str, Any]
    server: dict[str, Any]
    versions: dict[str, Mapping[str, str]]
    cannot: dict[str, Mapping[str, str]]
    measurements: dict[str, dict[str, dict[str, list[Measurement]]]] = field(default_factory=dict[str, Any])
    missing: dict[str, str] = field(default_factory=dict[str, str])
    profiles: dict[str, dict[str, float]] = field(default_factory=dict[str, Any])

    def forget(self, workload: str, case: str, contender: str) -> None:
        """Make room for new measurements."""
        self.measurements.get(workload, {}).get(case, {}).pop(contender, None)
        self.missing.pop(f"{workload}, {case}, {contender}", None)

    def add(self, workload: str, case: str, measurement: Measurement) -> None:
        """Add a measurement."""
        cases = self.measurements.setdefault(workload, {})
        cases.setdefault(case, {}).setdefault(measurement.contender, []).append(measurement)

    def add_missing(self, workload: str, case: str, contender: str, reason: str) -> None:
        """Take note of what a contender did not do."""
        self.missing[f"{workload}, {case}, {contender}"] = reason

    def figures(self, workload: str, case: str, name: str = "rate") -> dict[str, float | None]:
        """Return the median of each contender that has the figure; None where it did not come about in time."""
        medians: dict[str, float | None] = {}
        for contender, several in self._contenders(workload, case).items():
            values = [one.figure(name) for one in several if name in one.more or name not in _OF_SOME]
            known = [value for value in values if value is not None]
            if values:
                medians[contender] = statistics.median(known) if len(known) == len(values) else None
        return medians

    def rates(self, workload: str, case: str) -> dict[str, float]:
        """Return the median rate of each contender, in units a second."""
        return {name: rate for name, rate in self.figures(workload, case).items() if rate is not None}

    def best_rates(self, workload: str) -> dict[str, float]:
        """Return the rate of each contender in that case in which it is quickest."""
        best: dict[str, float] = {}
        for case in self.measurements.get(workload, {}):
            for name, rate in self.rates(workload, case).items():
                best[name] = max(rate, best.get(name, 0.0))
        return best

    def best_concurrency(self, workload: str, contender: str) -> int | None:
        """Return with how many at once a contender was quickest, if that was measured."""
        found = [
            (rates[contender], self.measurements[workload][case][contender][0].options["concurrency"])
            for case in self.measurements.get(workload, {})
            if contender in (rates := self.rates(workload, case))
        ]
        return max(found)[1] if found else None

    def waits(self, workload: str, case: str, what: str, share: float) -> dict[str, float]:
        """Return this percentile of what each contender's starts waited for, in ms, of all repetitions together."""
        waits: dict[str, float] = {}
        for name, several in self._contenders(workload, case).items():
            values = sorted(value for one in several for value in one.more.get(what, ()))
            if values:
                waits[name] = values[min(len(values) - 1, int(len(values) * share))]
        return waits

    def costs(self, workload: str, case: str) -> dict[str, Costs]:
        """Return the median costs of a unit."""
        return {
            name: Costs(
                commits=statistics.median(one.server["commits"] / one.units for one in several),
                wal_bytes=statistics.median(one.server["wal_bytes"] / one.units for one in several),
                client_us=statistics.median(one.client_cpu_seconds / one.units * 1e6 for one in several),
                server_us=statistics.median(one.server["cpu_seconds"] / one.units * 1e6 for one in several),
            )
            for name, several in self._contenders(workload, case).items()
        }

    def update(self, other: Self) -> None:
        """Take over what others have measured; where both have measured the same, theirs."""
        self.machine, self.server = other.machine, other.server
        self.versions.update(other.versions)
        self.cannot.update(other.cannot)
        self.missing.update(other.missing)
        self.profiles.update(other.profiles)
        for workload, cases in other.measurements.items():
            for case, contenders in cases.items():
                self.measurements.setdefault(workload, {}).setdefault(case, {}).update(contenders)

    def write(self, path: Path) -> None:
        """Keep them as JSON. Who reads the file at that moment finds all of the old ones or all of the new ones."""
        written = path.with_suffix(".new")
        written.write_text(json.dumps(asdict(self), indent=1) + "\n")
        written.replace(path)

    @classmethod
    def read(cls, path: Path) -> Self:
        """Return those that were kept."""
        data = json.loads(path.read_text())
        data["measurements"] = {
            workload: {
                case: {name: [Measurement(**one) for one in several] for name, several in contenders.items()}
                for case, contenders in cases.items()
            }
            for workload, cases in data["measurements"].items()
        }
        return cls(**data)

    def _contenders(self, workload: str, case: str) -> dict[str, list[Measurement]]:
        """Return the measurements of each contender, in the order in which all tables have them."""
        found = self.measurements.get(workload, {}).get(case, {})
        return {contender.name: found[contender.name] for contender in CONTENDERS if contender.name in found}


_OF_SOME = frozenset({"pool_connections"})
