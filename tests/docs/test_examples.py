"""Examples that a page says how to run: a worker runs their workflow to its end.

The line before such a block is a comment, which a reader does not see: `<!-- runs: workflow(input) == output -->`.
"""

import ast
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest

from tests.docs.test_pages import PAGES, ROOT
from tests.support.waiting import PATIENCE
from tests.support.working import working

EXAMPLE = re.compile(r"^<!-- runs: (.+?) -->\n```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Example:
    """A block of Python on a page, with what it is to be run with and what then comes out."""

    page: str
    run: str
    code: str

    @contextmanager
    def module(self) -> Iterator[ModuleType]:
        """Yield the block as a module: other processes, and so workers, find its steps by the module's name."""
        module = ModuleType(f"example_of_{re.sub(r'[^a-z]', '_', self.page)}")
        sys.modules[module.__name__] = module
        try:
            exec(compile(self.code, self.page, "exec", dont_inherit=True), vars(module))  # noqa: S102 - it is our page
            yield module
        finally:
            del sys.modules[module.__name__]


def examples() -> list[Example]:
    """Return the examples of all pages."""
    found = [(page, *example) for page in PAGES for example in EXAMPLE.findall(page.read_text())]
    return [Example(str(page.relative_to(ROOT)), run, code) for page, run, code in found]


def parts(run: str) -> tuple[str, str, str]:
    """Return the workflow, the input and the output of `workflow(input) == output`."""
    match ast.parse(run, mode="eval").body:
        case ast.Compare(
            left=ast.Call(func=ast.Name(id=workflow), args=[data], keywords=[]), ops=[ast.Eq()], comparators=[output]
        ):
            return workflow, ast.unparse(data), ast.unparse(output)
        case _:
            raise AssertionError(run)


@pytest.mark.parametrize("example", examples(), ids=lambda example: f"{example.page}: {example.run}")
async def test_runs(example: Example, migrated_url: str) -> None:
    """The workflow of the example gives what the page says."""
    name, data, output = parts(example.run)
    with example.module() as module:

        def value(expression: str) -> Any:
            return eval(expression, vars(module))  # noqa: S307 - it is our page

        async with working(migrated_url, value(name), workers=2) as scheduler:
            handle = await scheduler.start(value(name), value(data))
            assert await handle.result(timeout=PATIENCE) == value(output)


def test_there_are_some() -> None:
    """The comments are found, also when the pages are written otherwise."""
    assert {example.page for example in examples()} >= {"docs/fan-out.md", "docs/workflows.md"}
