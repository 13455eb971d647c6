"""The table of the page on reliability."""

from tests.chaos.page import PAGE, filled
from tests.chaos.summary import Summary

SUMMARY = {
    "seed": 7,
    "seconds": 90.0,
    "runs": {"fan": 1200, "relay": 34},
    "steps": 5678,
    "effects": 90,
    "faults": {"crash": 1, "kill": 2},
    "glances": 12,
    "violations": {},
}


def test_fills_its_place() -> None:
    """The table is where the page has the place for it, and again where there was one."""
    once = filled(PAGE.read_text(), [SUMMARY])
    assert "| 7 | 1.5 | 1,234 | 5,678 | 90 | 3 | 12 | 0 |\n<!-- end -->" in once
    assert filled(once, [SUMMARY]) == once


def test_reads_what_is_written() -> None:
    """The table is made of what a summary has."""
    assert SUMMARY.keys() <= Summary.__dataclass_fields__.keys()
