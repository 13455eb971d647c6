"""What a run in memory has recorded: in place of the tables."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from zart_sqla.records import (
    GIVEN_UP,
    Ending,
    ErrorRecord,
    ExecutionStatus,
    RecordedStep,
    RunHistory,
    StepKind,
)
from zart_sqla.runtime.faults import taken_id_record

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from zart_sqla.records import Child, FailedAttempt, NewExecution
    from zart_sqla.testing.clock import VirtualClock


class Storage:
    """The record of one run, and what is there for it.

    Args:
        clock: what tells when something was recorded.
        captured: values that `capture` and its kind are to give, by their names, whatever they find themselves.

    Attributes:
        steps: the checkpoints, in the order of recording.
        attempts: the failed attempts; those of the body have an empty name.
        events: the names and values, as JSON text, of the events that were offered and not taken.
        children: the children that are not done, in the order in which they were scheduled.
        emitted: the streams and values, as JSON text, of what was emitted.
        started: the executions that the run has started, by their ids.
        endings: how they stand, and others that there are.
        calls: how often the function of each step was called.
        repeated: the steps whose function was called although they were recorded. There should be none.
    """

    def __init__(self, clock: VirtualClock, captured: Mapping[str, RecordedStep] | None = None) -> None:
        self.steps: dict[str, RecordedStep] = {}
        self.attempts: list[FailedAttempt] = []
        self.events: list[tuple[str, str]] = []
        self.children: dict[str, Child] = {}
        self.emitted: list[tuple[str, str]] = []
        self.started: dict[str, NewExecution] = {}
        self.endings: dict[str, Ending] = {}
        self.calls: Counter[str] = Counter()
        self.repeated: list[str] = []
        self._clock = clock
        self._captured = captured or {}

    @property
    def history(self) -> RunHistory:
        """What a worker would read before the next turn of the run."""
        return RunHistory(
            steps=list(self.steps.values()),
            attempts=self._counts(),
            children={child.name: child.position for child in self.children.values()},
            executions=self.open_executions,
        )

    @property
    def open_executions(self) -> list[str]:
        """The ids of the executions that the run has started and that have not ended."""
        return [one for one in self.started if not self.endings[one].status.is_terminal]

    @property
    def open_count(self) -> int:
        """How many children there are that are not done, of both kinds."""
        return len(self.children) + len(self.open_executions)

    def begin_anew(self) -> None:
        """Forget what belongs to a run that another one of its execution follows."""
        self.steps.clear()
        self.attempts.clear()
        self.children.clear()

    def history_of(self, child: str) -> RunHistory:
        """Return what a worker would read before the next turn of a child."""
        counts = self._counts()
        done = [self.steps[child]] if child in self.steps else []
        return RunHistory(steps=done, attempts={child: counts[child]} if child in counts else {})

    def _counts(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for failed in self.attempts:
            if failed.step and failed.step not in self.steps:
                counts[failed.step] = max(failed.attempt, counts.get(failed.step, 0))
        return counts

    def note_call(self, name: str) -> None:
        """Note that the function of a step is called."""
        self.calls[name] += 1
        if name in self.steps:
            self.repeated.append(name)

    def keep(self, step: RecordedStep) -> RecordedStep:
        """Keep a checkpoint, unless one of that name is there and done; return the one that is there then."""
        known = self.steps.get(step.name)
        if known is None or (known.is_open and not step.is_open):
            known = self._as_captured(step)
            self.steps[step.name] = replace(known, completed_at=None if step.is_open else self._clock.stamp())
        self.children.pop(step.name, None)
        return known

    def _as_captured(self, step: RecordedStep) -> RecordedStep:
        captured = self._captured.get(step.name) if step.kind is StepKind.CAPTURE else None
        return step if captured is None else replace(step, result=captured.result, error=captured.error)

    def give_up(self, names: Iterable[str]) -> None:
        """Cancel those of the children that are not done."""
        for name in names:
            child = self.children.get(name)
            if child is not None:
                self.keep(_given_up(child))

    def add(self, children: Sequence[Child]) -> None:
        """Add those of the children that are neither there nor done."""
        for child in children:
            if child.name not in self.steps:
                self.children.setdefault(child.name, child)

    def start(self, step: RecordedStep, new: NewExecution) -> RecordedStep:
        """Start an execution, unless that is recorded; return what is recorded of it then."""
        if step.name in self.steps:
            return self.steps[step.name]
        if new.execution_id in self.endings:
            status = self.endings[new.execution_id].status
            error = taken_id_record(step.name, new.execution_id, status)
            return self.keep(replace(step, result=None, error=error))
        self.endings[new.execution_id] = Ending(new.run_id, ExecutionStatus.SCHEDULED, None, None)
        self.started[new.execution_id] = new
        return self.keep(step)

    def emit(self, step: RecordedStep, stream: str, value: str) -> None:
        """Add a value to a stream, unless that is recorded."""
        if step.name not in self.steps:
            self.keep(step)
            self.emitted.append((stream, value))

    def take(self, wait: RecordedStep, name: str) -> RecordedStep:
        """Give the wait the first event of this name, if there is one; return what is recorded of it then."""
        known = self.steps.get(wait.name, wait)
        if not known.is_open:
            return known
        for event in self.events:
            if event[0] == name:
                self.events.remove(event)
                return self.keep(replace(wait, result=event[1]))
        return known

    def has_event(self, names: Iterable[str]) -> bool:
        """Return whether one of these events is there."""
        wanted = set(names)
        return any(name in wanted for name, _ in self.events)


def _given_up(child: Child) -> RecordedStep:
    error = ErrorRecord(
        error_type="CancelledError",
        message="it was cancelled, since others were enough",
        step=child.name,
        category=GIVEN_UP,
    )
    return RecordedStep(name=child.name, kind=StepKind.CHILD, position=child.position, error=error)
