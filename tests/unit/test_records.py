"""The records that the client hands out."""

import pytest

from zart_sqla import ExecutionStatus, Page


def test_status() -> None:
    """A status is text, and knows whether it is the last."""
    assert ExecutionStatus("failed") == "failed"
    assert [status for status in ExecutionStatus if status.is_terminal] == ["completed", "failed", "cancelled"]


@pytest.mark.parametrize("items", [[], [1], [1, 2]], ids=len)
def test_page(items: list[int]) -> None:
    """A page is iterable and has a length."""
    page = Page(items, "next")
    assert (list(page), len(page), page.items, page.next_cursor) == (items, len(items), items, "next")
