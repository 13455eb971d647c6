"""Ids and names: what can be stored and found again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zart_sqla import InvalidNameError
from zart_sqla.codec import MAX_NAME_BYTES, checked_name


@pytest.mark.parametrize(
    "name",
    [
        "a",
        " ",
        "order_1%",
        "a/b:c",
        "'; DROP TABLE zart_tasks; --",
        '"quoted"',
        "back\\slash",
        "{braces}",
        "\N{GRINNING FACE}",
        "new\nline",
        "x" * 500,
        "\N{GRINNING FACE}" * 500,
        "x" * MAX_NAME_BYTES,
    ],
    ids=lambda name: f"{len(name)} {ascii(name)[:30]}",
)
def test_accepted(name: str) -> None:
    """Any text that is neither empty nor too long is a name as it stands."""
    assert checked_name("execution id", name) == name


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("", "is empty"),
        ("a\x00b", "has a NUL character, which PostgreSQL cannot hold"),
        ("a\ud800", "has a lone surrogate, which UTF-8 cannot express"),
        ("x" * (MAX_NAME_BYTES + 1), "is 2,001 bytes long, at most 2,000 can be stored"),
        ("\N{GRINNING FACE}" * 501, "is 2,004 bytes long"),
        (3, "is int, not text"),
        (None, "is NoneType, not text"),
        (b"x", "is bytes, not text"),
    ],
    ids=["empty", "nul", "surrogate", "too long", "too long in bytes", "number", "none", "bytes"],
)
def test_refused(name: object, problem: str) -> None:
    """The error says what is wrong with what, on one line."""
    with pytest.raises(InvalidNameError, match=f"^execution id .* {problem}") as caught:
        checked_name("execution id", name)
    assert (caught.value.noun, caught.value.actual) == ("execution id", name)
    assert caught.value.problem.startswith(problem)
    assert len(str(caught.value)) < 200
    assert isinstance(caught.value, ValueError)


@given(st.text())
def test_names_are_utf8(name: str) -> None:
    """What is accepted is text that PostgreSQL can hold."""
    try:
        accepted = checked_name("name", name)
    except InvalidNameError:
        return
    assert 0 < len(accepted.encode()) <= MAX_NAME_BYTES
    assert "\x00" not in accepted
