"""The workflows of the pages survive a crash at every step, as their readers will expect."""

import ast
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.docs.pages import PAGES, ROOT, blocks, code_of, workflows_of
from zart_sqla.testing import crash_at_every_step, override

TESTED_ELSEWHERE = {"flights.md", "testing.md"}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
PAID = ("paid", {"amount": "19.99", "reference": "R-7"})


@dataclass(frozen=True)
class Case:
    """A workflow of a page, what it is given, how it ends, and how often a step is then called at most."""

    page: str
    name: str
    data: Any
    output: Any = None
    events: Sequence[Any] = ()
    error: str | None = None
    calls: int = 2


def trip(hotel: str) -> Callable[[ModuleType], Any]:
    """Return what makes a trip of the page's own class."""
    return lambda module: module.Trip("t", "LX 1", hotel, 100)


CASES = {
    "readme": Case("README.md", "fulfil", lambda module: module.Order("42", Decimal("19.99")), "payment-of-42"),
    "started": Case("docs/client.md", "greet", "Ada", "Hello Ada"),
    "worked": Case("docs/workers.md", "greet", "Ada", "Hello Ada"),
    "report": Case("docs/workflows.md", "report", "monday", {"left": 1, "right": 1}),
    "thumbnails": Case("docs/workflows.md", "thumbnails", "cat", "small-cat"),
    "declined": Case("docs/workflows.md", "pay", Decimal(5), "declined: expired"),
    "outcome": Case("docs/workflows.md", "pay_by_card", 100, "first paid 130"),
    "step_or_else": Case("docs/workflows.md", "pay_somehow", 100, "first paid 100"),
    "event": Case("docs/events.md", "payment", "42", "R-7", events=[PAID]),
    "late event": Case("docs/events.md", "payment", "42", "R-7", events=[(*PAID, "9d")]),
    "no event": Case("docs/events.md", "payment", "42", error="EventTimeout"),
    "fan-out": Case("docs/fan-out.md", "survey", ["a", "b", "", "c"], {"a": 1, "b": 1, "": "empty", "c": 1}),
    "children": Case(
        "docs/executions.md",
        "order",
        lambda module: module.Order("42", [Decimal(1)] * 2),
        ["payment-of-42"] * 2,
        calls=3,  # by either child, and by one of them again
    ),
    "child": Case("docs/executions.md", "instalment", Decimal(1), "payment-of-42"),
    "endless": Case("docs/executions.md", "account", 7, 107, events=[("booking", 1)] * 100 + [("booking", 0)]),
    "cancellable": Case("docs/cancellation.md", "reservation", "42"),
    "saga": Case("docs/sagas.md", "book", trip("Ritz"), "100 for t"),
    "undone": Case("docs/sagas.md", "book", trip("full"), error="SoldOut"),
    "in time": Case("docs/sagas.md", "book_in_time", trip("Ritz"), "100 for t"),
    "on_failure": Case("docs/sagas.md", "book_in_time", trip("full"), "not booked: full"),
    "stream": Case("docs/streams.md", "book", 3, 3),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_survives(case: Case) -> None:
    """Whatever its worker dies of, the workflow of the page ends as it does without that."""
    with code_of(case.page, case.name) as code, ExitStack() as fakes:
        if case.name == "fulfil":  # it writes in the application's tables, with a test of their own
            fakes.enter_context(override(code.book, with_=lambda *_: None))
        data = case.data(code) if callable(case.data) else case.data
        report = await crash_at_every_step(
            getattr(code, case.name), data, events=case.events, workflows=workflows_of(code)
        )
    assert report.output == case.output
    assert (report.error and report.error.error_type.rpartition(".")[2]) == case.error
    assert max(report.calls.values(), default=case.calls) == case.calls


def test_no_workflow_is_left_out() -> None:
    """Each workflow that stands on a page for users is one of the cases, or on a page with tests of its own."""
    pages = [page for page in PAGES if page.parent in (ROOT, ROOT / "docs") and page.name not in TESTED_ELSEWHERE]
    there = {(str(page.relative_to(ROOT)), name) for page in pages for name in durables(page)}
    assert there == {(case.page, case.name) for case in CASES.values()}


def durables(page: Path) -> list[str]:
    """Return the names of the functions on a page that are workflows."""
    functions = [node for block in blocks(page) for node in ast.walk(ast.parse(block)) if isinstance(node, FUNCTIONS)]
    return [
        function.name
        for function in functions
        if any(ast.unparse(decorator).partition("(")[0] == "durable" for decorator in function.decorator_list)
    ]
