"""Histories as text: kept in a file, and read back alike."""

from dataclasses import replace
from datetime import UTC, datetime
from uuid import uuid4

import pytest

from zart_sqla import ExecutionHistory, ExecutionStatus, InvalidDataError
from zart_sqla.records import ErrorRecord, RecordedStep, RunHistory, StepKind

MOMENT = datetime(2030, 1, 2, 3, 4, 5, 678, tzinfo=UTC)
HISTORY = ExecutionHistory(
    execution_id="order-ö",
    task_name="order",
    status=ExecutionStatus.WAITING,
    run_id=uuid4(),
    payload='{"id":  1.10}',
    retries=2,
    started_at=MOMENT,
    recorded=RunHistory(
        steps=[
            RecordedStep(name="a", kind=StepKind.STEP, position=0, result="1", started_at=MOMENT, completed_at=MOMENT),
            RecordedStep(name="nap", kind=StepKind.SLEEP, position=None, wake_at=MOMENT),
            RecordedStep(
                name="b",
                kind=StepKind.CHILD,
                position=2,
                attempts=3,
                error=ErrorRecord(error_type="KeyError", message="'x'", step="b", attempts=3, state="{}"),
            ),
        ],
        attempts={"c": 2},
        children={"d": 3},
        executions=["e"],
    ),
)


def test_comes_back() -> None:
    """What comes back is equal, to the time at which each step was recorded."""
    back = ExecutionHistory.from_json(HISTORY.to_json())
    assert back == HISTORY
    assert [step.completed_at for step in back.recorded.steps] == [MOMENT, None, None]
    assert "order-ö" in HISTORY.to_json()


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", "7", HISTORY.to_json().replace('"waiting"', '"asleep"'), HISTORY.to_json()[:-2]]
)
def test_something_else(text: str) -> None:
    """Text that is something else is refused."""
    with pytest.raises(InvalidDataError, match="the history"):
        ExecutionHistory.from_json(text)


def test_unknown_field() -> None:
    """A step with a field that this release does not know is refused, not half read."""
    with pytest.raises(InvalidDataError, match="surprise"):
        ExecutionHistory.from_json(HISTORY.to_json().replace('"wake_at"', '"surprise": 1, "wake_at"'))


def test_empty() -> None:
    """A run of which nothing is recorded comes back, too."""
    empty = replace(HISTORY, recorded=RunHistory())
    assert ExecutionHistory.from_json(empty.to_json()).recorded.steps == []
