"""Fill the table of docs/reliability.md: `python -m tests.chaos.page results/*.json`, with files of `--json`."""

import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.postgres import ROOT

PAGE = ROOT / "docs" / "reliability.md"
PLACE = re.compile(r"(<!-- figures -->\n).*?(<!-- end -->)", re.DOTALL)
HEAD = "| seed | minutes | runs | checkpoints | rows of `trx()` steps | faults | looks meanwhile | violations |"


def row(summary: dict[str, Any]) -> str:
    """Return the table's row of one run."""
    runs, faults, violations = (sum(summary[name].values()) for name in ("runs", "faults", "violations"))
    cells = (
        summary["seed"],
        f"{summary['seconds'] / 60:g}",
        f"{runs:,}",
        f"{summary['steps']:,}",
        f"{summary['effects']:,}",
        faults,
        f"{summary['glances']:,}",
        violations,
    )
    return f"| {' | '.join(map(str, cells))} |"


def table(summaries: Sequence[dict[str, Any]]) -> str:
    """Return the table of several runs, in the order of their seeds."""
    in_order = sorted(summaries, key=lambda summary: summary["seed"])
    return "\n".join([HEAD, "|---" * (HEAD.count("|") - 1) + "|", *map(row, in_order)])


def filled(page: str, summaries: Sequence[dict[str, Any]]) -> str:
    """Return the page with the table in its place."""
    return PLACE.sub(lambda place: f"{place[1]}{table(summaries)}\n{place[2]}", page)


if __name__ == "__main__":
    read = [summary for name in sys.argv[1:] for summary in json.loads(Path(name).read_text())]
    PAGE.write_text(filled(PAGE.read_text(), read))
