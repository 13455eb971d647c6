"""What is measured: the workloads, and the cases of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Final

from benchmarks.contenders.common import Options


@dataclass(frozen=True)
class Case:
    """A workload with one set of options.

    Attributes:
        label: how its column or line is named.
        options: what it is done with; its `units` are the most that are done.
        does: what the contenders' modules call it, if not as the workload.
        is_fixed: whether exactly so many units are done, however long it takes.
        is_at_best: whether each contender has as many at once as are best for it in `drain` or `steps`.
        units_of: for whom it is another number of units.
        repetitions: how often it is measured at most.
    """

    label: str
    options: Options
    does: str = ""
    is_fixed: bool = False
    is_at_best: bool = False
    units_of: Mapping[str, int] = field(default_factory=dict[str, int])
    repetitions: int = 100


@dataclass(frozen=True)
class Figure:
    """Something that is measured.

    Attributes:
        name: by which a measurement has it.
        title: what a reader sees.
        digits: behind the point.
    """

    name: str
    title: str
    digits: int = 0


@dataclass(frozen=True)
class Workload:
    """Something that contenders do.

    Attributes:
        name: what it is called.
        title: what a reader sees.
        unit: what is counted.
        cases: with which options.
        quick: those of the quick run, in which nobody but zart_sqla and the floor takes part.
        is_timed: whether it is a wait that is measured, in milliseconds, and not a rate.
        figures: what is told of it, the most important one first. Default: the rate.
        is_logged: whether its statements are counted, which makes it slower.
        does: what the contenders' modules call it. Default: its name.
    """

    name: str
    title: str
    unit: str
    cases: tuple[Case, ...] = ()
    quick: tuple[Case, ...] = ()
    is_timed: bool = False
    figures: tuple[Figure, ...] = ()
    is_logged: bool = False
    does: str = ""

    @property
    def told(self) -> tuple[Figure, ...]:
        """What is told of it."""
        return self.figures or (Figure("rate", f"{self.unit}/s"),)

    def script_name(self, case: Case) -> str:
        """Return what the contenders' modules call one of its cases."""
        return case.does or self.does or self.name


def _at_once(most: int, *concurrencies: int) -> tuple[Case, ...]:
    """Return a case for each concurrency; with few at once, less is done in the time that a measurement takes."""
    return tuple(
        Case(f"{one:,} at once", Options(units=min(most, 1500 * one), concurrency=one)) for one in concurrencies
    )


def _with_payloads(units: int) -> tuple[Case, ...]:
    small = Options(units=units, concurrency=100, payload=1000)
    return Case("1 kB", small), Case("100 kB", replace(small, units=units // 20, payload=100_000))


def _starts(name: str, options: Options) -> tuple[Case, ...]:
    return (
        Case("no NOTIFY in the transaction", options, does=name),
        Case("NOTIFY in the transaction", options, does=f"{name}-notified"),
    )


def _long(steps: int, runs: int) -> Case:
    more = {"steps": steps, "warm_up": 100}
    return Case(f"{steps:,} steps", Options(units=steps * runs, concurrency=1, more=more), is_fixed=True, repetitions=3)


def _by_processes(units: int, *counts: int) -> tuple[Case, ...]:
    labels = {one: f"{one} processes" if one > 1 else "1 process" for one in counts}
    return tuple(Case(label, Options(units=units, processes=one), is_at_best=True) for one, label in labels.items())


def _waiting(units: int, *, dbos: int) -> tuple[Case, ...]:
    options = Options(units=units, concurrency=500)
    return (
        Case("asleep", options, does="sleeping", is_fixed=True, units_of={"dbos": dbos}, repetitions=1),
        Case("waiting for an event", options, does="waiting", is_fixed=True, units_of={"dbos": dbos}, repetitions=1),
    )


def _once(label: str, *, units: int = 1, repetitions: int = 5, **more: float) -> tuple[Case, ...]:
    return (Case(label, Options(units=units, more=more), is_fixed=True, repetitions=repetitions),)


def history_case(runs: int) -> Case:
    """Return the case of so many finished runs in the tables."""
    return Case(f"{runs:,} finished runs", Options(units=30_000), is_at_best=True)


_LATENCY = Options(units=300, concurrency=100)
_DRAINED = Workload("", "", "runs", does="drain")
_STEPPED = Workload("", "", "steps", does="steps")
WORKLOADS: Final = (
    Workload("drain", "Drain of runs that do nothing", "runs", _at_once(30_000, 10, 100, 500), _at_once(3000, 500)),
    Workload(
        "steps",
        "Runs of five steps",
        "steps",
        _at_once(15_000, 1, 10, 100, 500, 2000),
        (*_at_once(50, 1), *_at_once(2000, 500)),
    ),
    Workload(
        "long",
        "Steps of a long run",
        "steps",
        (_long(100, 10), _long(10_000, 1)),
        (_long(100, 2), _long(1000, 1)),
    ),
    Workload(
        "resume",
        "Resume of a long run after a kill",
        "runs",
        _once("10,000 steps done before", units=10_000, repetitions=3),
        _once("1,000 steps done before", units=1000, repetitions=1),
        figures=(
            Figure("resume_seconds", "s from the new worker's start to the first step that runs again", 2),
            Figure("with_imports_seconds", "s, with the process's start and its imports", 2),
        ),
    ),
    Workload("fan-out", "One run of many children", "children", _at_once(10_000, 500), _at_once(2000, 500)),
    Workload("payloads", "Runs of five steps with payloads", "steps", _with_payloads(4000), does="steps"),
    Workload("payloads-drain", "Runs that return their payload", "runs", _with_payloads(10_000), does="drain"),
    Workload(
        "starts",
        "Starts, one by one",
        "starts",
        _starts("starts", Options(units=5000, concurrency=1)),
        _starts("starts", Options(units=200, concurrency=1)),
    ),
    Workload(
        "starts-bulk",
        "Starts in bulk",
        "starts",
        _starts("starts-bulk", Options(units=50_000, concurrency=1)),
        _starts("starts-bulk", Options(units=5000, concurrency=1))[:1],
    ),
    Workload(
        "starts-transactional",
        "Starts in transactions of an app's own, 50 sessions",
        "starts",
        _starts("starts-transactional", Options(units=10_000, concurrency=50)),
        _starts("starts-transactional", Options(units=500, concurrency=50))[:1],
    ),
    Workload(
        "latency",
        "From the start to the first step, and to the result",
        "starts",
        (
            Case("idle", _LATENCY),
            Case("half loaded", replace(_LATENCY, rate=0.5), does="latency-loaded", is_at_best=True),
            Case("idle, worker in the same process", _LATENCY, does="latency-in-process"),
        ),
        (Case("idle", replace(_LATENCY, units=50)),),
        is_timed=True,
    ),
    Workload(
        "waiting",
        "Runs that wait",
        "runs",
        _waiting(100_000, dbos=10_000),
        _waiting(2000, dbos=2000),
        figures=(
            Figure("rate", "runs woken/s"),
            Figure("bytes_per_waiting_run", "bytes of the worker's memory for each that waits"),
            Figure("memory_before", "bytes of it before"),
            Figure("memory_after", "bytes of it while all of them wait"),
            Figure("seconds_until_all_wait", "s until all of them waited", 1),
        ),
    ),
    Workload(
        "processes-drain", "Drain by several processes", "runs", _by_processes(60_000, 1, 2, 4), does="drain-processes"
    ),
    Workload(
        "processes-steps",
        "Runs of five steps by several processes",
        "steps",
        _by_processes(30_000, 1, 2, 4),
        _by_processes(2000, 2),
        does="steps-processes",
    ),
    Workload(
        "kill",
        "From the kill of a worker to the second beginning of its step",
        "kills",
        _once("two workers", repetitions=5),
        _once("two workers", repetitions=1),
        figures=(Figure("rerun_seconds", "s", 2),),
    ),
    Workload(
        "idle",
        "One worker that has nothing to do",
        "seconds",
        _once("idle", repetitions=3, settle=10, seconds=60),
        _once("idle", repetitions=1, settle=3, seconds=5),
        figures=(
            Figure("statements_per_second", "statements/s", 2),
            Figure("commits_per_second", "commits/s", 2),
            Figure("connections", "connections"),
            Figure("pool_connections", "of them in the app's pool"),
        ),
        is_logged=True,
    ),
)
HISTORY: Final = (
    replace(_DRAINED, name="history-drain", title="Drain beside finished runs"),
    replace(_STEPPED, name="history-steps", title="Runs of five steps beside finished runs"),
)
"""Both in one database, which is filled for them."""
HELD: Final = (
    replace(_DRAINED, name="held-drain", title="Drain beside a transaction that is held open"),
    replace(_STEPPED, name="held-steps", title="Runs of five steps beside a transaction that is held open"),
)
"""Both in turn, in one database, as long as the transaction is open."""
BEFORE: Final = "before"
ALL: Final = (*WORKLOADS, *HISTORY, *HELD)


def minute_case(minute: int) -> Case:
    """Return the case of what is measured in this minute of a transaction that is held open; 0 is before it."""
    return Case(f"minute {minute}" if minute else BEFORE, Options(units=30_000), is_at_best=True)


def scaled(case: Case, units_a_second: float, seconds: float) -> Options:
    """Return the case's options, with as many units as are done in that time at a rate that was seen, or its most.

    There are at least enough of them for all that is under way at once, and a twentieth of the most.
    """
    options = case.options
    least = min(options.units, max(2 * options.concurrency * options.processes, options.units // 20, 20))
    return replace(options, units=min(options.units, max(int(units_a_second * seconds), least)))
