"""What a run has recorded, and the place of each durable call in it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zart_sqla.codec import checked_name
from zart_sqla.errors import NonDeterminismError
from zart_sqla.records import RecordedStep, StepKind

if TYPE_CHECKING:
    from zart_sqla.records import ErrorRecord, RunHistory


@dataclass(frozen=True, slots=True)
class Place:
    """The place of one durable call in its run.

    Attributes:
        name: its name, unique in the run.
        kind: what it is.
        position: its place in the order of calls, from 0; None where the order of calls is not fixed.
        recorded: what an earlier turn recorded there, None if it is to be done now.
        failed_attempts: how many attempts failed in earlier turns.
    """

    name: str
    kind: StepKind
    position: int | None
    recorded: RecordedStep | None
    failed_attempts: int


class Journal:
    """The checkpoints of one run, looked up in the order in which the code calls.

    Args:
        history: what earlier turns recorded.
    """

    def __init__(self, history: RunHistory) -> None:
        self._recorded = {step.name: step for step in history.steps}
        self._by_position = {step.position: step for step in history.steps if step.position is not None}
        self._failed_attempts = history.attempts
        self._unmet = set(self._recorded)
        self._last_number: dict[str, int] = {}
        self._next_position = 0

    @property
    def failure(self) -> RecordedStep | None:
        """The record of the body's failure, where its `on_failure` has taken over."""
        return self._marker(StepKind.FAILURE)

    @property
    def cancellation(self) -> RecordedStep | None:
        """The record of the run's cancellation, where its `on_cancel` has taken over."""
        return self._marker(StepKind.CANCELLATION)

    def _marker(self, kind: StepKind) -> RecordedStep | None:
        return next((step for step in self._recorded.values() if step.kind is kind), None)

    def enter(self, name: str, kind: StepKind, *, is_ordered: bool = True) -> Place:
        """Return the place of the next call.

        Args:
            name: what the call is named; a name that was met before gets a number.
            kind: what is called.
            is_ordered: whether the order of such calls is the same at each replay.

        Raises:
            InvalidNameError: the name cannot be stored.
            NonDeterminismError: another call is recorded at this place.
        """
        unique = self._numbered(checked_name("step name", name))
        position = self._advance() if is_ordered else None
        recorded = self._recorded.get(unique)
        self._check(unique, kind, position, recorded)
        self._unmet.discard(unique)
        return Place(unique, kind, position, recorded, self._failed_attempts.get(unique, 0))

    def mark(self, name: str, kind: StepKind, error: ErrorRecord | None = None) -> RecordedStep:
        """Return the record that something else takes over here, for `skip_to` in this turn and later ones."""
        place = self.enter(name, kind)
        numbers = json.dumps(self._last_number)
        return RecordedStep(name=place.name, kind=kind, position=place.position, result=numbers, error=error)

    def skip_to(self, marker: RecordedStep) -> None:
        """Go on behind the place that is marked, without calling what came before."""
        position = marker.position or 0
        before = [name for name, step in self._recorded.items() if (step.position or 0) <= position]
        self._unmet.difference_update(before)
        self._last_number = json.loads(marker.result or "{}")
        self._next_position = position + 1

    def skip_to_end(self) -> None:
        """Go on behind all that is recorded, without calling it."""
        known = (*self._recorded, *self._failed_attempts)
        self._last_number = dict.fromkeys(known, 1) | self._last_number
        self._next_position = max((self._next_position, *(position + 1 for position in self._by_position)))
        self._unmet.clear()

    def check_end(self) -> None:
        """Check that all that is recorded has been called.

        Raises:
            NonDeterminismError: something was not.
        """
        if self._unmet:
            missed = min((self._recorded[name] for name in self._unmet), key=lambda step: step.position or 0)
            raise NonDeterminismError(missed.position or 0, recorded=missed.name, called=None)

    def _numbered(self, name: str) -> str:
        number = self._last_number.get(name, 0) + 1
        unique = name
        while number > 1 and (unique := f"{name}#{number}") in self._last_number:
            number += 1
        self._last_number[name] = number
        if unique != name:
            self._last_number[unique] = 1
        return unique

    def _advance(self) -> int:
        position = self._next_position
        self._next_position += 1
        return position

    def _check(self, name: str, kind: StepKind, position: int | None, recorded: RecordedStep | None) -> None:
        expected = None if position is None else self._by_position.get(position)
        if expected is not None and expected.name != name:
            raise NonDeterminismError(position or 0, recorded=expected.name, called=name)
        if recorded is not None and (recorded.position != position or recorded.kind is not kind):
            raise NonDeterminismError(
                position or 0, recorded=expected.name if expected else None, called=f"{name} ({kind})"
            )
