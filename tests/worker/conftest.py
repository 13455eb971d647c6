"""Fixtures for tests with real workers."""

from collections.abc import Iterator

import pytest

from tests.support.scene import Scene, new_scene


@pytest.fixture
def scene() -> Iterator[Scene]:
    """Yield what the steps of `tests.support.scene` meet in this test."""
    with new_scene() as made:
        yield made
