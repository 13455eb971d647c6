"""What the product promises of its speed, as ratios within one benchmark, and whether that was so."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from benchmarks.environments import CONTENDERS
from benchmarks.results import Results
from benchmarks.suite import BEFORE, history_case

DURABLE: Final = [contender.name for contender in CONTENDERS if contender.is_durable and contender.requirements]
PEERS: Final = [contender.name for contender in CONTENDERS if contender.requirements]
MOST_RUNS: Final = 10_000_000
MOST_MINUTES: Final = 10
MOST_WAITING: Final = 100_000
MEGABYTE: Final = 1e6


@dataclass(frozen=True)
class Target:
    """One promise.

    Attributes:
        claim: what is to be so.
        wanted: the bound.
        value: what was measured; None if it was not.
        is_most: whether the bound is the most that it may be, and not the least.
        unit: of both.
    """

    claim: str
    wanted: float
    value: float | None
    is_most: bool = False
    unit: str = ""

    @property
    def is_met(self) -> bool | None:
        """Whether it was so; None if it was not measured."""
        if self.value is None:
            return None
        return self.value <= self.wanted if self.is_most else self.value >= self.wanted


def targets(results: Results) -> list[Target]:
    """Return all promises, with what was measured."""
    return [
        *_rates(results, "steps", "Steps at the best concurrency", 20),
        *_rates(results, "drain", "Drain at the best concurrency", 8),
        *_latencies(results),
        *_long_runs(results),
        *_beside(results),
        *_others(results),
    ]


def _rates(results: Results, workload: str, claim: str, times: float) -> Iterator[Target]:
    best = results.best_rates(workload)
    ours = best.get("zart")
    yield Target(f"{claim}, as a multiple of the best durable peer", times, _ratio(ours, _most(best, DURABLE)))
    yield Target(f"{claim}, as a share of the floor", 0.5, _ratio(ours, best.get("floor")))


def _latencies(results: Results) -> Iterator[Target]:
    names = {"to_step": "the first step", "to_result": "the result"}
    for case in results.measurements.get("latency", {}):
        for what, name in names.items():
            for share in (0.5, 0.99):
                waits = results.waits("latency", case, what, share)
                best = min((waits[peer] for peer in PEERS if peer in waits), default=None)
                claim = f"Start to {name}, {case}, p{share * 100:.0f}, as a share of the best peer's"
                yield Target(claim, 1.0, _ratio(waits.get("zart"), best), is_most=True)


def _long_runs(results: Results) -> Iterator[Target]:
    short, long = (results.rates("long", case).get("zart") for case in ("100 steps", "10,000 steps"))
    yield Target("A step of 10,000, as a multiple of one of 100", 1.3, _ratio(short, long), is_most=True)
    resumed = results.figures("resume", "10,000 steps done before", "resume_seconds").get("zart")
    yield Target("From a new worker's start to the first step after 10,000", 1.0, resumed, is_most=True, unit="s")


def _beside(results: Results) -> Iterator[Target]:
    for does, name in (("drain", "Drain"), ("steps", "Steps")):
        empty, full = (_of(results, f"history-{does}", history_case(runs).label) for runs in (0, MOST_RUNS))
        yield Target(
            f"{name} beside {MOST_RUNS:,} finished runs, as a share of empty tables", 0.95, _ratio(full, empty)
        )
    for does, name in (("drain", "Drain"), ("steps", "Steps")):
        before, after = (_of(results, f"held-{does}", case) for case in (BEFORE, f"minute {MOST_MINUTES}"))
        claim = f"{name} in minute {MOST_MINUTES} of a transaction that is held open, as a share of before"
        yield Target(claim, 0.8, _ratio(after, before))


def _others(results: Results) -> Iterator[Target]:
    for case in results.measurements.get("waiting", {}):
        weight = _weight(results, case)
        yield Target(
            f"Memory that {MOST_WAITING:,} runs {case} take in the worker", 1.0, weight, is_most=True, unit="MB"
        )
    rerun = results.figures("kill", "two workers", "rerun_seconds").get("zart")
    yield Target("From a kill to the step's second beginning", 3.0, rerun, is_most=True, unit="s")
    idle = results.figures("idle", "idle", "statements_per_second").get("zart")
    yield Target("Statements a second of an idle worker", 1.0, idle, is_most=True)
    all_of_them, pooled = (results.figures("idle", "idle", name) for name in ("connections", "pool_connections"))
    beyond = _difference(all_of_them.get("zart"), pooled.get("zart"))
    yield Target("Connections of an idle worker beyond the pool", 1.0, beyond, is_most=True)


def _weight(results: Results, case: str) -> float | None:
    """Return the megabytes by which the worker grew while the most runs waited."""
    measured = results.measurements["waiting"][case].get("zart", [])
    grown = [one.more["memory_after"] - one.more["memory_before"] for one in measured if one.units >= MOST_WAITING]
    return statistics.median(grown) / MEGABYTE if grown else None


def _of(results: Results, workload: str, case: str) -> float | None:
    return results.rates(workload, case).get("zart")


def _most(rates: dict[str, float], names: Iterable[str]) -> float | None:
    return max((rates[name] for name in names if name in rates), default=None)


def _ratio(one: float | None, other: float | None) -> float | None:
    return None if one is None or not other else one / other


def _difference(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one - other
