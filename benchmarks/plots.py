"""The plots of a benchmark: for each workload one, as SVG and as PNG."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib import pyplot as plt

from benchmarks.environments import CONTENDERS
from benchmarks.results import Results
from benchmarks.suite import ALL, Workload

COLORS: Final = dict(
    zip(
        (contender.name for contender in CONTENDERS),
        ("#0b6e4f", "#b0b0b0", "#c8553d", "#588b8b", "#f28f3b", "#8d6a9f"),
        strict=True,
    )
)
_MOST_LABELS: Final = 30


def plot_all(results: Results, folder: Path) -> None:
    """Draw all workloads that were measured into a folder."""
    mpl.rcParams["svg.hashsalt"] = "benchmarks"  # the same figures give the same file
    folder.mkdir(parents=True, exist_ok=True)
    for workload in ALL:
        if workload.name in results.measurements:
            _plot(results, workload, folder)


def _plot(results: Results, workload: Workload, folder: Path) -> None:
    heights = {case: _figures(results, workload, case) for case in results.measurements[workload.name]}
    cases = list(heights)
    names = [name for name in COLORS if any(name in figures for figures in heights.values())]
    figure: Any
    axes: Any
    figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
    width = 0.8 / max(1, len(names))
    for number, name in enumerate(names):
        places = [place + (number - (len(names) - 1) / 2) * width for place in range(len(cases))]
        values = [heights[case].get(name, 0.0) for case in cases]
        bars = axes.bar(places, values, width, label=name, color=COLORS[name])
        if len(cases) * len(names) <= _MOST_LABELS:
            labels = [f"{value:,.3g}" if value else "" for value in values]
            axes.bar_label(bars, labels, fontsize=7, rotation=90, padding=2)
    axes.set_xticks(range(len(cases)), cases, fontsize=8)
    axes.set_yscale("log")
    axes.set_ylabel("ms to the result, median" if workload.is_timed else workload.told[0].title, fontsize=8)
    axes.set_title(workload.title)
    axes.margins(y=0.2)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, ncols=len(names), frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.1))
    figure.savefig(folder / f"{workload.name}.svg", metadata={"Date": None})
    figure.savefig(folder / f"{workload.name}.png", dpi=120)
    plt.close(figure)


def _figures(results: Results, workload: Workload, case: str) -> dict[str, float]:
    if workload.is_timed:
        return results.waits(workload.name, case, "to_result", 0.5)
    found = results.figures(workload.name, case, workload.told[0].name)
    return {name: value for name, value in found.items() if value}
