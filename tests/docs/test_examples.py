"""Examples that a page says how to run: two workers run their workflow to its end.

The line before such a block is a comment, which a reader does not see: `<!-- runs: workflow(input) == output -->`.
"""

import ast
import re
from dataclasses import dataclass
from typing import Any

import pytest

from tests.docs.pages import PAGES, ROOT, module_of, workflows_of
from tests.support.waiting import PATIENCE
from tests.support.working import working

EXAMPLE = re.compile(r"^<!-- runs: (.+?) -->\n```python\n(.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Example:
    """A block of Python on a page, with what it is to be run with and what then comes out."""

    page: str
    run: str
    code: str


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
    with module_of(example.code) as module:

        def value(expression: str) -> Any:
            return eval(expression, vars(module))  # noqa: S307 - it is our page

        async with working(migrated_url, *workflows_of(module), workers=2) as scheduler:
            handle = await scheduler.start(value(name), value(data))
            assert await handle.result(timeout=PATIENCE) == value(output)


def test_there_are_some() -> None:
    """The comments are found, also when the pages are written otherwise."""
    pages = {"fan-out", "workflows", "executions", "sagas", "streams"}
    assert {example.page for example in examples()} >= {f"docs/{page}.md" for page in pages}
