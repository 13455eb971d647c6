"""Writes the figures of a benchmark into its page, between the two comments that say where."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks.plots import plot_all
from benchmarks.results import Results
from benchmarks.suite import ALL, Figure, Workload
from benchmarks.targets import Target, targets

PAGE: Final = Path("docs/benchmarks.md")
_FIGURES: Final = re.compile(r"(?<=<!-- figures -->\n).*(?=<!-- end of figures -->)", re.DOTALL)
_PROFILED: Final = {"drain": "a run that does nothing", "steps": "a step"}
_VERDICTS: Final = {True: "yes", False: "**no**", None: "not measured"}


def figures(results: Results, plots: Path) -> str:
    """Return the machine, the versions, the targets and a section for each workload, as Markdown."""
    parts = [*_made_on(results), "", *_target_table(targets(results)), "", *_profile_table(results)]
    for workload in ALL:
        if workload.name in results.measurements:
            parts += [f"### {workload.title}", "", f"![{workload.title}]({plots.name}/{workload.name}.svg)", ""]
            parts += [*(_waits if workload.is_timed else _table)(results, workload), ""]
            parts += [*_costs(results, workload), "", *_not_done(results, workload)]
    return "\n".join(parts) + "\n"


def _made_on(results: Results) -> Iterator[str]:
    machine, server = results.machine, results.server
    settings = ", ".join(f"`{name} = {value}`" for name, value in server["settings"].items())
    yield (
        f"{machine['processor']}, {machine['cores']} cores, shared by clients and server; {machine['system']}; "
        f"Python {machine['python']}; PostgreSQL {server['version']} with {settings}, else its defaults."
    )
    yield ""
    for name, versions in results.versions.items():
        yield f"- {name}: {', '.join(f'{package} {version}' for package, version in versions.items())}"


def _target_table(all_of_them: list[Target]) -> Iterator[str]:
    yield "### Targets"
    yield ""
    yield from _header(["what", "target", "measured", "met"])
    for one in all_of_them:
        bound = f"at {'most' if one.is_most else 'least'} {one.wanted:g} {one.unit}".rstrip()
        measured = "" if one.value is None else f"{one.value:.3g} {one.unit}".rstrip()
        yield f"| {one.claim} | {bound} | {measured} | {_VERDICTS[one.is_met]} |"


def _profile_table(results: Results) -> Iterator[str]:
    """Tell how many microseconds of our processor each part takes, of a unit of the workloads that were profiled."""
    if not results.profiles:
        return
    yield "### Where our time goes"
    yield ""
    spent = {workload: _spent(results, workload) for workload in results.profiles}
    yield from _header(["µs of the worker's processor", *(f"of {_PROFILED[name]}" for name in spent)])
    layers = dict.fromkeys(layer for shares in results.profiles.values() for layer in shares)
    for layer in layers:
        cells = (f"{results.profiles[name].get(layer, 0.0) * spent[name]:.1f}" for name in spent)
        yield f"| {layer} | {' | '.join(cells)} |"
    yield f"| all | {' | '.join(f'{us:.1f}' for us in spent.values())} |"
    yield ""


def _spent(results: Results, workload: str) -> float:
    """Return the microseconds of a unit where ours is quickest."""
    rates = {case: results.rates(workload, case).get("zart", 0.0) for case in results.measurements[workload]}
    return results.costs(workload, max(rates, key=lambda case: rates[case]))["zart"].client_us


def _table(results: Results, workload: Workload) -> Iterator[str]:
    """Tell each figure of each case; in brackets how many times ours is the other's, where it is a rate."""
    cases = results.measurements[workload.name]
    lines = [(case, figure) for case in cases for figure in workload.told]
    found = {(case, figure): results.figures(workload.name, case, figure.name) for case, figure in lines}
    names = list(dict.fromkeys(name for values in found.values() for name in values))
    yield from _header(["", *names])
    for (case, figure), values in found.items():
        if values:
            label = case if len(workload.told) == 1 else f"{case}: {figure.title}"
            yield f"| {label} | {' | '.join(_cell(values, name, figure) for name in names)} |"
    if len(workload.told) == 1:
        yield ""
        yield f"Figures are {workload.told[0].title}."


def _cell(values: dict[str, float | None], name: str, figure: Figure) -> str:
    if name not in values:
        return ""
    value, ours = values[name], values.get("zart")
    if value is None:
        return "not in time"
    ratio = f" ({ours / value:.2g})" if figure.name == "rate" and name != "zart" and ours and value else ""
    return f"{value:,.{figure.digits}f}{ratio}"


def _waits(results: Results, workload: Workload) -> Iterator[str]:
    yield from _header(["ms", "who", "to the first step: p50", "p99", "to the result: p50", "p99"])
    for case, measured in results.measurements[workload.name].items():
        kinds = [(what, share) for what in ("to_step", "to_result") for share in (0.5, 0.99)]
        waits = [results.waits(workload.name, case, what, share) for what, share in kinds]
        for name in measured:
            cells = (f"{wait[name]:.1f}" if name in wait else "" for wait in waits)
            yield f"| {case} | {name} | {' | '.join(cells)} |"


def _costs(results: Results, workload: Workload) -> Iterator[str]:
    """Tell what one of the units costs, in the last case."""
    case = list(results.measurements[workload.name])[-1]
    if workload.told[0].name == "rate" and not workload.is_timed:
        yield from _header(
            [f"each of the {workload.unit}, {case}", "commits", "bytes of WAL", "client µs", "server µs"]
        )
        for name, cost in results.costs(workload.name, case).items():
            costs = (cost.commits, cost.wal_bytes, cost.client_us, cost.server_us)
            yield f"| {name} | {' | '.join(map(_rounded, costs))} |"


def _not_done(results: Results, workload: Workload) -> Iterator[str]:
    """Tell what contenders cannot do, and what they did not do though they can."""
    scripts = {workload.script_name(case): case.label for case in workload.cases} or {workload.does: ""}
    reasons: dict[str, list[str]] = {}
    for name, cannot in results.cannot.items():
        for script, label in scripts.items():
            if script in cannot:
                of_one = f" ({label})" if len(scripts) > 1 else ""
                reasons.setdefault(f"{of_one}: {cannot[script]}", []).append(name)
    for reason, names in reasons.items():
        yield f"- {', '.join(names)} cannot{reason}."
    for what, reason in results.missing.items():
        if what.startswith(f"{workload.name}, "):
            yield f"- {what.removeprefix(f'{workload.name}, ')}: not measured: {reason.splitlines()[0]}"
    yield ""


def _header(titles: list[str]) -> Iterator[str]:
    yield f"| {' | '.join(titles)} |"
    yield f"|{'---|' * len(titles)}"


def _rounded(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"  # noqa: PLR2004 - three digits of each


def main() -> None:
    """Draw the plots, and put the figures into the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page", description=__doc__)
    parser.add_argument("results", type=Path, nargs="+", help="JSON files of benchmarks; the later ones have the say")
    parser.add_argument("--page", type=Path, default=PAGE, help="what it is written into; the plots are beside it")
    options = parser.parse_args()
    first, *others = [Results.read(path) for path in options.results]
    for other in others:
        first.update(other)
    plots = options.page.parent / "benchmarks"
    plot_all(first, plots)
    written = figures(first, plots)
    options.page.write_text(_FIGURES.sub(lambda _: written, options.page.read_text()))


if __name__ == "__main__":
    main()
