"""Measures zart_sqla beside its peers and beside a floor, on one PostgreSQL, and keeps what was measured as JSON."""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import signal
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks import histories
from benchmarks.contenders.common import Options
from benchmarks.environments import CONTENDERS, Contender, Environments
from benchmarks.measurements import BrokenError, Measurement, measure
from benchmarks.results import Results, processor
from benchmarks.server import SETTINGS, Server, own_server
from benchmarks.suite import HELD, HISTORY, WORKLOADS, Case, Workload, history_case, minute_case, scaled

QUICK = ("zart", "floor")
QUICK_HISTORY = "0,100000"
QUICK_MINUTES = 0.05
SECONDS = 4.0
"""How long one measurement should take, where its units can be fewer."""
QUICK_UNITS = 2000
"""How much is done where nobody asks how long it takes."""
TIMES_BEFORE = 3
"""How often is measured what is before a transaction that is held open."""


class Benchmark:
    """Measures, one contender after the other, over and over, so that what disturbs the machine disturbs all of them.

    Args:
        server: the PostgreSQL.
        environments: those of the contenders.
        contenders: who takes part.
        repetitions: how often each measurement is made.
        seconds: how long one should take; 0 if that does not matter.
        file: where the results are kept.
    """

    def __init__(
        self,
        server: Server,
        environments: Environments,
        contenders: Sequence[Contender],
        *,
        repetitions: int,
        seconds: float,
        file: Path | None,
    ) -> None:
        self._server = server
        self._environments = environments
        self._contenders = contenders
        self._repetitions = repetitions
        self._seconds = seconds
        self._file = file
        self._began = time.monotonic()
        self._abilities = {contender.name: environments.abilities(contender) for contender in contenders}
        self._broken = 0
        self.results = Results(
            machine={
                "processor": processor(),
                "cores": os.cpu_count(),
                "system": platform.platform(),
                "python": platform.python_version(),
            },
            server={"version": server.version, "settings": SETTINGS},
            versions={contender.name: environments.versions(contender) for contender in contenders},
            cannot={name: abilities.cannot for name, abilities in self._abilities.items()},
        )
        if file is not None and file.exists():
            kept = Results.read(file)
            kept.update(self.results)
            self.results = kept

    @property
    def is_complete(self) -> bool:
        """Whether all that was asked for was measured."""
        return not self._broken

    def run(self, workload: Workload, case: Case) -> None:
        """Make the measurements of one case."""
        does = workload.script_name(case)
        fitted = {one.name: self._fitted(one, case, does) for one in self._able(does)}
        sizes: dict[str, Options] = {}
        for contender in self._able(does):
            self.results.forget(workload.name, case.label, contender.name)
            options = self._sized(contender, workload, fitted[contender.name], does)
            if options is not None:
                sizes[contender.name] = options
        for _ in range(min(self._repetitions, case.repetitions)):
            for contender in self._able(does):
                if contender.name in sizes:
                    one = self._try(contender, workload, case, does, sizes[contender.name])
                    if one is None or any(one.figure(figure.name) is None for figure in workload.told[:1]):
                        del sizes[contender.name]  # it would take as long, and come to nothing, again
        self._keep()

    def run_history(self, runs: Sequence[int]) -> None:
        """Make the measurements beside finished runs, one contender after the other, as that takes much space."""
        for contender in self._contenders:
            if "history" in self._abilities[contender.name].can:
                self._run_history(contender, runs)
                self._keep()

    def _run_history(self, contender: Contender, counts: Sequence[int]) -> None:
        with contextlib.ExitStack() as stack:
            urls: dict[int, str] = {}
            for runs in counts:
                url = stack.enter_context(self._server.database())
                if self._filled(contender, url, runs):
                    urls[runs] = url
            for workload in self._done_by(contender, HISTORY):
                does = workload.script_name(history_case(0))
                options = self._sized(contender, workload, self._fitted(contender, history_case(0), does), does)
                for runs in urls:
                    self.results.forget(workload.name, history_case(runs).label, contender.name)
                if options is not None:
                    for runs, url in list(urls.items()) * self._repetitions:
                        self._try(contender, workload, history_case(runs), does, options, url)

    def _filled(self, contender: Contender, url: str, runs: int) -> bool:
        """Tell whether the database has so many finished runs now."""
        needed = runs * histories.BYTES_A_RUN
        if needed > self._server.free_bytes():
            self._miss(HISTORY[0], history_case(runs), contender, f"it needs {needed / 1e9:.0f} GB of space")
            return False
        try:
            seed = measure(self._server, self._environments, contender, "history", Options(units=1), url=url)
        except BrokenError as error:
            self._miss(HISTORY[0], history_case(runs), contender, str(error))
            return False
        if runs:
            histories.fill(self._server, url, seed.more["copies"], runs)
        self._say(f"{contender.name}: {runs:,} finished runs are in its tables")
        return True

    def run_held(self, minutes: float) -> None:
        """Make the measurements beside a transaction that is held open, with a snapshot and an id."""
        for contender in self._contenders:
            with self._server.database() as url:
                self._run_held(contender, url, minutes)
            self._keep()

    def _run_held(self, contender: Contender, url: str, minutes: float) -> None:
        sizes: list[tuple[Workload, str, Options]] = []
        for workload in self._done_by(contender, HELD):
            does = workload.script_name(minute_case(0))
            options = self._sized(contender, workload, self._fitted(contender, minute_case(0), does), does)
            if options is not None:
                sizes.append((workload, does, options))
            for case in list(self.results.measurements.get(workload.name, {})):
                self.results.forget(workload.name, case, contender.name)
        for workload, does, options in sizes * min(TIMES_BEFORE, self._repetitions):
            self._try(contender, workload, minute_case(0), does, options, url)
        with self._server.connected(url) as holding:
            holding.execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
            holding.execute("SELECT pg_current_xact_id()")
            began = time.monotonic()
            while sizes and (passed := (time.monotonic() - began) / 60) < minutes:
                for workload, does, options in sizes:
                    self._try(contender, workload, minute_case(int(passed) + 1), does, options, url)

    def _able(self, does: str) -> list[Contender]:
        return [contender for contender in self._contenders if does in self._abilities[contender.name].can]

    def _done_by(self, contender: Contender, workloads: Iterable[Workload]) -> list[Workload]:
        return [one for one in workloads if one.does in self._abilities[contender.name].can]

    def _fitted(self, contender: Contender, case: Case, does: str) -> Case:
        """Return the case as it is for this contender: with its units, concurrency and rate."""
        options = replace(case.options, units=case.units_of.get(contender.name, case.options.units))
        if case.is_at_best:
            known = self.results.best_concurrency("steps" if does.startswith("steps") else "drain", contender.name)
            options = replace(options, concurrency=known or (500 if contender.name in QUICK else 100))
        if options.rate:  # it is a share of what this contender can do
            options = replace(options, rate=options.rate * self.results.best_rates("drain").get(contender.name, 0.0))
        return replace(case, options=options)

    def _sized(self, contender: Contender, workload: Workload, case: Case, does: str) -> Options | None:
        """Return how much is done in a measurement, by a first one that does not count; None if that failed."""
        if case.is_fixed:
            return case.options
        if not self._seconds:
            return replace(case.options, units=min(case.options.units, QUICK_UNITS))
        if case.options.rate and contender.name not in self.results.best_rates("drain"):
            self._miss(workload, case, contender, "half of what is not known: measure the workload `drain` too")
            return None
        try:
            one = self._measured(contender, workload, does, scaled(case, 0, self._seconds))
        except BrokenError as error:
            self._miss(workload, case, contender, str(error))
            return None
        return scaled(case, one.options["units"] / one.seconds, self._seconds)

    def _try(
        self, contender: Contender, workload: Workload, case: Case, does: str, options: Options, url: str | None = None
    ) -> Measurement | None:
        """Make one measurement, keep and print it; return None if it failed."""
        try:
            one = self._measured(contender, workload, does, options, url)
        except BrokenError as error:
            self._miss(workload, case, contender, str(error))
            return None
        self.results.add(workload.name, case.label, one)
        figure = workload.told[0]
        value = one.figure(figure.name)
        told = "not in time" if value is None else f"{value:,.{figure.digits}f} {figure.title.partition(' from')[0]}"
        self._say(f"{workload.name:<22}{case.label:<34}{contender.name:<15}{told:>24}")
        return one

    def _measured(
        self, contender: Contender, workload: Workload, does: str, options: Options, url: str | None = None
    ) -> Measurement:
        if url is not None:
            return measure(self._server, self._environments, contender, does, options, url=url)
        with self._server.database() as new:
            if workload.is_logged:
                self._server.log_statements(new)
            return measure(self._server, self._environments, contender, does, options, url=new)

    def _miss(self, workload: Workload, case: Case, contender: Contender, reason: str) -> None:
        self._broken += 1
        self.results.add_missing(workload.name, case.label, contender.name, reason)
        self._say(f"{workload.name}, {case.label}: {reason}")

    def _keep(self) -> None:
        if self._file is not None:
            self.results.write(self._file)

    def _say(self, line: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self._began), 60)
        print(f"{minutes:4}:{seconds:02}  {line}", flush=True)


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the options of the command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="ours and the floor only, in less than two minutes")
    parser.add_argument(
        "--workloads", default="", help="names, with commas between them, `history` and `held` too; default: all"
    )
    parser.add_argument("--contenders", default="", help="names, with commas between them; default: all")
    parser.add_argument("--repetitions", type=int, help="how often each measurement is made; default: 5, quickly 1")
    parser.add_argument("--seconds", type=float, help="how long one measurement should take; default: 4")
    parser.add_argument("--history", help="how many finished runs; default: 0,1000000,10000000, quickly 0,100000")
    parser.add_argument("--held-minutes", type=float, help="how long a transaction is held open; default: 10")
    parser.add_argument("--environments", type=Path, default=Path(".bench"), help="the folder for the peers' packages")
    parser.add_argument("--json", type=Path, help="the file for the results; what it has stays, unless measured anew")
    options = parser.parse_args(arguments)
    is_quick = options.quick
    options.repetitions = options.repetitions or (1 if is_quick else 5)
    if options.seconds is None:
        options.seconds = 0.0 if is_quick else SECONDS
    options.history = options.history or (QUICK_HISTORY if is_quick else "0,1000000,10000000")
    options.held_minutes = options.held_minutes or (QUICK_MINUTES if is_quick else 10.0)
    return options


def stopped(*_: object) -> None:
    """End this process as Ctrl-C does."""
    sys.exit("stopped")


def main() -> None:
    """Measure what is asked for."""
    options = parsed()
    signal.signal(signal.SIGTERM, stopped)  # so that nothing stays behind
    names = options.contenders.split(",") if options.contenders else QUICK if options.quick else ()
    contenders = [one for one in CONTENDERS if not names or one.name in names]
    wanted = options.workloads.split(",") if options.workloads else ()
    with own_server() as server:
        benchmark = Benchmark(
            server,
            Environments(options.environments),
            contenders,
            repetitions=options.repetitions,
            seconds=options.seconds,
            file=options.json,
        )
        for contender in contenders:
            versions = benchmark.results.versions[contender.name]
            print(
                f"{contender.name}: {', '.join(f'{package} {version}' for package, version in versions.items())}",
                flush=True,
            )
        for workload in WORKLOADS:
            if not wanted or workload.name in wanted:
                for case in workload.quick if options.quick else workload.cases:
                    benchmark.run(workload, case)
        if not wanted or "history" in wanted:
            benchmark.run_history([int(runs) for runs in options.history.split(",")])
        if not wanted or "held" in wanted:
            benchmark.run_held(options.held_minutes)
    if not benchmark.is_complete:
        sys.exit(1)


if __name__ == "__main__":
    main()
