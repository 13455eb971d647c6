"""Between rows of the tables and records."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from zart_sqla.records import (
    ErrorRecord,
    ExecutionInfo,
    ExecutionStatus,
    RecordedStep,
    StepInfo,
    StepKind,
    StepStatus,
)

if TYPE_CHECKING:
    from sqlalchemy import Row


def error_to_json(error: ErrorRecord | None) -> str | None:
    """Return the JSON text of an error."""
    if error is None:
        return None
    return json.dumps(asdict(error))


def error_from_json(text: str | None) -> ErrorRecord | None:
    """Return the error that the JSON text stands for."""
    return None if text is None else ErrorRecord(**json.loads(text))


def _data(text: str | None) -> Any:
    return None if text is None else json.loads(text)


def _public_error(text: str | None) -> dict[str, Any] | None:
    error = error_from_json(text)
    if error is None:
        return None
    return {
        "error_type": error.error_type,
        "message": error.message,
        "step": error.step,
        "attempts": error.attempts,
    }


def execution_info(row: Row[Any]) -> ExecutionInfo:
    """Return the record of a row of `statements.executions.describe`."""
    return ExecutionInfo(
        execution_id=row.execution_id,
        task_name=row.task_name,
        status=ExecutionStatus(row.status),
        run_id=row.run_id,
        run_index=row.run_index,
        payload=_data(row.payload),
        result=_data(row.result),
        error=_public_error(row.error),
        queue=row.queue,
        parent_id=row.parent_id,
        created_at=row.created_at,
        started_at=row.started_at,
        completed_at=row.completed_at,
    )


def step_info(row: Row[Any]) -> StepInfo:
    """Return the record of a row of `statements.steps.describe`."""
    done = StepStatus.COMPLETED if row.error is None else StepStatus.FAILED
    is_marker = row.kind in {StepKind.FAILURE, StepKind.CANCELLATION}  # its result is for replays only
    return StepInfo(
        name=row.name,
        kind=StepKind(row.kind),
        status=StepStatus.WAITING if row.is_waiting else done,
        attempts=row.attempts,
        result=None if is_marker else _data(row.result),
        error=_public_error(row.error),
        started_at=row.started_at,
        completed_at=row.completed_at,
    )


def recorded_step(row: Row[Any]) -> RecordedStep:
    """Return the record of a checkpoint's row."""
    return RecordedStep(
        name=row.name,
        kind=StepKind(row.kind),
        position=row.position,
        attempts=row.attempts,
        result=row.result,
        error=error_from_json(row.error),
        started_at=row.started_at,
        wake_at=row.wake_at,
        completed_at=row.completed_at,
    )
