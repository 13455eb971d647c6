"""What is recorded of a run, as a record that can be kept in a file."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Self
from uuid import UUID

from zart_sqla.errors import InvalidDataError
from zart_sqla.records import ErrorRecord, ExecutionStatus, RecordedStep, RunHistory, StepKind


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionHistory:
    """The current run of an execution, with all that is recorded of it: what `zart_sqla.testing.replay` reads.

    It holds the input and the results of all steps, with whatever is secret in them.

    Attributes:
        execution_id: the execution.
        task_name: the task that it runs.
        status: where it stood when it was read.
        run_id: the run.
        payload: its input as JSON text.
        retries: how often its body has been retried.
        started_at: when a worker first took it up, or else when it was started.
        recorded: its checkpoints, its failed attempts and its children that were not done.
    """

    execution_id: str
    task_name: str
    status: ExecutionStatus
    run_id: UUID
    payload: str
    retries: int
    started_at: datetime
    recorded: RunHistory

    def to_json(self) -> str:
        """Return it as JSON text, to be kept in a file."""
        return json.dumps(asdict(self), default=_plain, ensure_ascii=False, indent=2)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the history that the JSON text stands for.

        Raises:
            InvalidDataError: the text is something else.
        """
        try:
            return cls._from_data(json.loads(text))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            problem = f"it is not what ExecutionHistory.to_json() has written: {type(error).__name__}: {error}"
            raise InvalidDataError("the history", [problem]) from error

    @classmethod
    def _from_data(cls, data: dict[str, Any]) -> Self:
        recorded = data["recorded"]
        return cls(
            execution_id=data["execution_id"],
            task_name=data["task_name"],
            status=ExecutionStatus(data["status"]),
            run_id=UUID(data["run_id"]),
            payload=data["payload"],
            retries=data["retries"],
            started_at=datetime.fromisoformat(data["started_at"]),
            recorded=RunHistory(
                steps=[_step(step) for step in recorded["steps"]],
                attempts=recorded["attempts"],
                children=recorded["children"],
                executions=recorded["executions"],
            ),
        )


def _step(data: dict[str, Any]) -> RecordedStep:
    known: dict[str, Any] = dict(data)
    known["kind"] = StepKind(data["kind"])
    known["error"] = None if data["error"] is None else ErrorRecord(**data["error"])
    for name in ("started_at", "wake_at", "completed_at"):
        known[name] = _moment(data[name])
    return RecordedStep(**known)


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)


def _plain(value: object) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)
