"""The public face of the kit."""

import inspect

import pytest

from zart_sqla import testing


def test_all_is_sorted() -> None:
    """`__all__` is sorted, and names nothing twice."""
    assert testing.__all__ == sorted(set(testing.__all__))


@pytest.mark.parametrize("name", testing.__all__)
def test_names_are_there_and_documented(name: str) -> None:
    """Each name is there, and says what it is."""
    assert inspect.getdoc(getattr(testing, name))


def test_nothing_else_is_public() -> None:
    """What has no underscore and is no module is in `__all__`."""
    public = {name for name, value in vars(testing).items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert public <= set(testing.__all__)
