"""The table in docs/costs.md is what is measured."""

from dataclasses import fields
from pathlib import Path

import pytest

from tests.support.postgres import QUIET, private_server
from tests.worker.costs.actions import MANY, costs_of, office
from tests.worker.costs.meter import Cost

PAGE = Path(__file__).parents[2] / "docs" / "costs.md"
ACTIONS = {
    "`start`": "start",
    "`start(session=...)`, with your commit": "start in own",
    "`start_many`, each of many": "start, many",
    "claim": "claim",
    "claim, each of many": "claim, many",
    "step": "step",
    "step, each of many": "step, many",
    "step with `trx()`, with its commit": "trx",
    "failed attempt": "attempt",
    "`emit`": "emit",
    "`sleep`": "sleep",
    "to wake up": "wake-up",
    "`wait_for_event`, when there is none": "wait",
    "`offer_event`, to a run that waits for it": "offer",
    "to wake up and take it": "take",
    "scheduled step, from `schedule` to its end": "child",
    "`wait` for a group, besides its steps": "group",
    "finish": "finish",
    "finish, each of many": "finish, many",
}
"""What the lines of the table are about, and under which name it is measured."""
SHARED = {"claim, many", "finish, many", "start, many", "step, many", "child", "group"}
"""What shares statements with others, as many as there are just then."""
BYTES = 48
"""How much more or less WAL there may be than the page says: less than an index entry would be."""
SHARE = 0.7
"""How much of what the page says there is at least, where it depends on who shares a page or a transaction."""


@pytest.mark.slow
async def test_costs(postgres_version: int, subtests: pytest.Subtests) -> None:
    """What an app does costs what the page says, to the statement and the row, and to a few bytes of WAL."""
    with private_server(postgres_version, QUIET) as server:
        async with office(server.get_uri()) as opened:
            costs = await costs_of(opened)
    documented = table()
    assert set(documented) == set(ACTIONS)
    for line, expected in documented.items():
        name = ACTIONS[line]
        with subtests.test(line):
            check(costs[name] / MANY if name.endswith(", many") else costs[name], expected, is_shared=name in SHARED)


def test_a_run_of_ten_steps() -> None:
    """What the page says of a run of ten steps is the sum of what it says of the parts."""
    lines = table()
    start, claim, step, finish = (lines[name] for name in ("`start`", "claim", "step", "finish"))
    alone = [sum(parts) for parts in zip(*(one.numbers for one in (start, claim, finish, *[step] * 10)), strict=True)]
    many = [lines[f"{name}, each of many"].wal for name in ("`start_many`", "claim", "step", "finish")]
    statements, _, inserted, updated, _, deleted, wal = alone
    changes, kilobytes = inserted + updated + deleted, (many[0] + many[1] + 10 * many[2] + many[3]) / 1000
    said = f"{statements:g} statements, {changes:g} changes of rows and {wal / 1000:.1f} kB of WAL when it is alone"
    assert f"a run of ten steps is {said}; as one of many, at most {kilobytes:.1f} kB." in PAGE.read_text()


def check(actual: Cost, expected: Cost, *, is_shared: bool) -> None:
    """Fail if something costs other than what is documented."""
    exact = [field.name for field in fields(Cost) if field.name != "wal"]
    if is_shared:
        exact = ["inserted", "updated", "deleted"]
    assert {name: getattr(actual, name) for name in exact} == {name: getattr(expected, name) for name in exact}
    least, most = (SHARE * expected.wal, expected.wal) if is_shared else (expected.wal - BYTES, expected.wal + BYTES)
    assert least <= actual.wal <= most, f"{actual.wal} bytes of WAL, not {least} to {most}"


def table() -> dict[str, Cost]:
    """Return the lines of the table."""
    rows = [line.strip("|").split("|") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    return {name.strip(): Cost(*(float(cell.strip() or 0) for cell in cells)) for name, *cells in rows[1:]}
