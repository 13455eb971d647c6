"""The pages that a reader sees, and the Python that stands on them."""

import ast
import inspect
import itertools
import re
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from sqlalchemy import Engine, make_url
from sqlalchemy.ext.asyncio import AsyncEngine

from zart_sqla import Durable, PostgresScheduler

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("changelog.d/*.md")])

_BLOCK = re.compile(r"^( *)```python\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)
_numbers = itertools.count()


def blocks(page: Path) -> list[str]:
    """Return the Python blocks of a page."""
    return [textwrap.dedent(code) for _, code in _BLOCK.findall(page.read_text())]


def block_with(page: str, text: str) -> str:
    """Return the one block of a page in which this text stands.

    Raises:
        ValueError: it stands in several blocks, or in none.
    """
    (found,) = [block for block in blocks(ROOT / page) if text in block]
    return found


@contextmanager
def module_of(*code: str) -> Iterator[ModuleType]:
    """Yield a module in which this code has run, where whoever imports it by its name finds it."""
    module = ModuleType(f"page_{next(_numbers)}")
    sys.modules[module.__name__] = module
    try:
        for block in code:
            exec(compile(block, module.__name__, "exec", dont_inherit=True), vars(module))  # noqa: S102 - it is our own
        yield module
    finally:
        del sys.modules[module.__name__]


@contextmanager
def code_of(page: str, name: str) -> Iterator[ModuleType]:
    """Yield the code of a page down to the first block that defines this, as a reader would put it into a module.

    What a page does with it in an application, with `await` at the top, is left out.

    Raises:
        LookupError: no block of the page defines it.
    """
    read: list[str] = []
    for block in blocks(ROOT / page):
        body = [statement for statement in ast.parse(block).body if not _awaits(statement)]
        read.append("\n".join(ast.unparse(statement) for statement in body))
        if name in {node.name for node in body if isinstance(node, ast.AsyncFunctionDef | ast.FunctionDef)}:
            with module_of(*read) as module:
                yield module
            return
    raise LookupError(f"{page} does not define {name}")


def _awaits(statement: ast.stmt) -> bool:
    """Tell whether a statement can stand only where `await` is allowed."""
    if isinstance(statement, ast.AsyncFunctionDef | ast.FunctionDef | ast.ClassDef):
        return False
    return any(isinstance(node, ast.Await | ast.AsyncWith | ast.AsyncFor) for node in ast.walk(statement))


async def carry_out(code: str, url: str) -> dict[str, Any]:
    """Run a block of a page, as an application whose database is at this URL; return its variables."""
    address = make_url(url)
    for driver in ("postgresql", "postgresql+asyncpg", "postgresql+psycopg"):
        own = address.set(drivername=driver).render_as_string(hide_password=False)
        code = code.replace(f'"{driver}://localhost/shop"', repr(own))
    variables: dict[str, Any] = {}
    running = eval(compile(code, "a page", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True), variables)  # noqa: S307
    try:
        if inspect.isawaitable(running):
            await running
    finally:
        for one in reversed(variables.values()):
            if isinstance(one, PostgresScheduler):
                await one.close()
            elif isinstance(one, AsyncEngine):
                await one.dispose()
            elif isinstance(one, Engine):
                one.dispose()
    return variables


def workflows_of(module: ModuleType) -> list[Durable[Any, Any]]:
    """Return the workflows that a module defines."""
    return [one for one in vars(module).values() if isinstance(one, Durable)]
