"""The pages a reader sees: their Python compiles, and what they name and link to exists."""

import ast
import importlib
import importlib.util
import re
from pathlib import Path

import pytest

from tests.docs.pages import PAGES, ROOT, blocks

LINK = re.compile(r"\]\((?!https?:|mailto:|#)([^)#\s]+)")

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


@every_page
def test_python_compiles(page: Path) -> None:
    """Each Python block is valid Python, where `await` may stand at the top."""
    for block in blocks(page):
        compile(block, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)


@every_page
def test_imported_names_exist(page: Path) -> None:
    """Each name that a page imports from the package is there."""
    missing = [f"{module}.{name}" for module, name in imports(page) if not exists(module, name)]
    assert not missing


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    """Each relative link leads to a file or folder."""
    targets = LINK.findall(page.read_text())
    assert [target for target in targets if not (page.parent / target).exists()] == []


def imports(page: Path) -> list[tuple[str, str]]:
    """Return (module, name) for each `from zart_sqla... import name` on a page."""
    statements = (node for block in blocks(page) for node in ast.walk(ast.parse(block)))
    return [
        (node.module, alias.name)
        for node in statements
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "zart_sqla"
        for alias in node.names
    ]


def exists(module: str, name: str) -> bool:
    """Tell whether `from module import name` works."""
    if hasattr(importlib.import_module(module), name):
        return True
    return importlib.util.find_spec(f"{module}.{name}") is not None
