"""The cases of a chaos run."""

import pytest

from tests.chaos.cases import KINDS, case_of, is_started_by_driver, kind_of
from tests.worker.processes.workflows import ALL


@pytest.mark.parametrize("kind", KINDS)
def test_follows_from_seed_and_id(kind: str) -> None:
    """The same seed and the same id mean the same case, of a workflow that workers know."""
    cases = [case_of(1, f"{kind}-driver0.{number}") for number in range(50)]
    assert cases == [case_of(1, f"{kind}-driver0.{number}") for number in range(50)]
    assert {case.workflow for case in cases} <= ALL.keys()
    assert all((case.outcomes == {"completed"}) >= (case.cancel_after is None and kind != "failing") for case in cases)


def test_knows_children() -> None:
    """Executions that others start have the ids of those, and are of their kind."""
    assert is_started_by_driver("family-driver0.1")
    assert not is_started_by_driver("family-driver0.1-2")
    assert kind_of("family-driver0.1-2") == "family"
