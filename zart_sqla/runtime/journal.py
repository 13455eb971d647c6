"""What a run has recorded, and the place of each durable call in it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from zart_sqla.codec import checked_name
from zart_sqla.errors import NonDeterminismError
from zart_sqla.records import RecordedStep, StepKind
from zart_sqla.runtime.context import is_part

if TYPE_CHECKING:
    from collections.abc import Iterable

    from zart_sqla.records import ErrorRecord, RunHistory


@dataclass(slots=True)
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
    """The checkpoints of one run, and its children, looked up in the order in which the code calls.

    Args:
        history: what earlier turns recorded.
    """

    def __init__(self, history: RunHistory) -> None:
        self._recorded = {step.name: step for step in history.steps}
        self._known = {name: (StepKind.CHILD, position) for name, position in history.children.items()}
        self._known |= {step.name: (step.kind, step.position) for step in history.steps}
        self._name_at = {position: name for name, (_, position) in self._known.items() if position is not None}
        self._failed_attempts = history.attempts
        # What a task of the body's own has scheduled may be scheduled later than the body ends.
        scheduled = {name for name, position in history.children.items() if position is not None}
        self._unmet = scheduled | set(self._recorded)
        self._last_number: dict[str, int] = {}
        self._owners: dict[str, str] = {}
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

    def enter(self, name: str, kind: StepKind, *, branch: str = "", is_own: bool = False) -> Place:
        """Return the place of the next call.

        Args:
            name: what the call is named; a name that was met before gets a number.
            kind: what is called.
            branch: the path of the task of the body's own that calls; empty for the body. The order between branches
                is not the same at each replay.
            is_own: whether the name was given to this call alone. If not, that of the branch is added.

        Raises:
            InvalidNameError: the name cannot be stored.
            NonDeterminismError: another call is recorded at this place, or another branch has used the name.
        """
        checked_name("step name", name)
        if is_own:
            self._own(name, branch)
        unique = self._numbered(f"{name}@{branch}" if branch and not is_own else name)
        position = None if branch else self._advance()
        recorded = self._recorded.get(unique)
        self._check(unique, kind, position)
        self._unmet.discard(unique)
        return Place(unique, kind, position, recorded, self._failed_attempts.get(unique, 0))

    def mark(
        self, name: str, kind: StepKind, error: ErrorRecord | None = None, handled: Iterable[str] = ()
    ) -> RecordedStep:
        """Return the record that something else takes over here, for `skip_to` in this turn and later ones.

        Args:
            name: what it is named.
            kind: what takes over.
            error: why.
            handled: the failed steps behind which the body had gone on.
        """
        place = self.enter(name, kind)
        known = json.dumps({"numbers": self._last_number, "handled": sorted(handled)})
        return RecordedStep(name=place.name, kind=kind, position=place.position, result=known, error=error)

    def skip_to(self, marker: RecordedStep) -> set[str]:
        """Go on behind the place that is marked, without calling what came before.

        Returns:
            The failed steps behind which the body had gone on.
        """
        position = marker.position or 0
        before = [name for name in self._known if self._position_of(name) <= position]
        self._unmet.difference_update(before)
        known = json.loads(marker.result or "{}")
        self._last_number = known["numbers"]
        self._next_position = position + 1
        return set(known["handled"])

    @property
    def failures(self) -> set[str]:
        """The names of the failed steps that are recorded."""
        return {step.name for step in self._recorded.values() if step.error is not None}

    def skip_to_end(self) -> None:
        """Go on behind all that is known, without calling it."""
        known = (*self._known, *self._failed_attempts)
        self._last_number = dict.fromkeys(known, 1) | self._last_number
        self._next_position = max((self._next_position, *(position + 1 for position in self._name_at)))
        self._unmet.clear()

    def check_end(self) -> None:
        """Check that all that is known has been called.

        Raises:
            NonDeterminismError: something was not.
        """
        if self._unmet:
            missed = min(self._unmet, key=self._position_of)
            raise NonDeterminismError(self._position_of(missed), recorded=missed, called=None)

    def _position_of(self, name: str) -> int:
        return self._known[name][1] or 0

    def _numbered(self, name: str) -> str:
        number = self._last_number.get(name, 0) + 1
        unique = name
        while number > 1 and (unique := f"{name}#{number}") in self._last_number:
            number += 1
        self._last_number[name] = number
        if unique != name:
            self._last_number[unique] = 1
        return unique

    def _own(self, name: str, branch: str) -> None:
        """Check that no other branch uses the name: which of the two had it first would not be the same on replay."""
        before, self._owners[name] = self._owners.get(name, branch), branch
        if not (is_part(before, of=branch) or is_part(branch, of=before)):
            raise NonDeterminismError(
                self._next_position,
                recorded=None,
                called=name,
                problem=f"{name!r} is called by two tasks of the body, whose order is not fixed: "
                "give the calls names of their own",
            )

    def _advance(self) -> int:
        position = self._next_position
        self._next_position += 1
        return position

    def _check(self, name: str, kind: StepKind, position: int | None) -> None:
        expected = None if position is None else self._name_at.get(position)
        if expected is not None and expected != name:
            raise NonDeterminismError(position or 0, recorded=expected, called=name)
        if self._known.get(name, (kind, position)) != (kind, position):
            raise NonDeterminismError(position or 0, recorded=expected, called=f"{name} ({kind})")
