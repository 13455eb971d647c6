"""The workflows of the pages survive a crash at every step, as their readers will expect."""

import ast
import contextlib
import itertools
import sys
from collections.abc import Iterator
from decimal import Decimal
from types import ModuleType
from typing import Any

import pytest

from tests.docs.test_pages import ROOT, blocks
from zart_sqla import Durable
from zart_sqla.testing import crash_at_every_step, override

PAID = ("paid", {"amount": "19.99", "reference": "R-7"})
numbers = itertools.count()


@pytest.mark.parametrize(
    ("page", "name", "data", "events", "expected"),
    [
        ("docs/workflows.md", "report", "monday", [], {"left": 1, "right": 1}),
        ("docs/workflows.md", "thumbnails", "cat", [], "small-cat"),
        ("docs/workflows.md", "pay", Decimal(5), [], "declined: expired"),
        ("docs/workflows.md", "pay_somehow", 100, [], "first paid 100"),
        ("docs/events.md", "payment", "42", [PAID], "R-7"),
        ("docs/events.md", "payment", "42", [(*PAID, "9d")], "R-7"),
        ("docs/events.md", "payment", "42", [], None),
        ("README.md", "fulfil", ("42", Decimal("19.99")), [], "payment-of-42"),
    ],
)
async def test_survives(page: str, name: str, data: Any, events: list[Any], expected: object) -> None:
    """Whatever its worker dies of, the workflow of the page ends as it does without that."""
    with code_of(page, name) as code, contextlib.ExitStack() as fakes:
        if name == "fulfil":
            data = code.Order(*data)
            fakes.enter_context(override(code.book, with_=lambda *_: None))
        report = await crash_at_every_step(getattr(code, name), data, events=events)
    assert report.output == expected
    assert (report.error is None) == (expected is not None)
    assert max(report.calls.values(), default=2) == 2


@contextlib.contextmanager
def code_of(page: str, name: str) -> Iterator[ModuleType]:
    """Give the module that the first block of the page is in which this workflow stands."""
    for block in blocks(ROOT / page):
        defined = {
            node.name for node in ast.parse(block).body if isinstance(node, ast.AsyncFunctionDef | ast.FunctionDef)
        }
        if name in defined:
            module = ModuleType(f"page_{next(numbers)}")
            sys.modules[module.__name__] = module
            try:
                exec(compile(block, page, "exec", dont_inherit=True), vars(module))  # noqa: S102 - it is our own page
                assert isinstance(getattr(module, name), Durable)
                yield module
            finally:
                del sys.modules[module.__name__]
            return
    pytest.fail(f"{page} has no workflow {name}")
