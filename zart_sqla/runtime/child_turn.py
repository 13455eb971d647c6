"""One turn of a child: a step that a run has scheduled, as a task of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zart_sqla.errors import ConfigError, InvalidDataError, StepFailed
from zart_sqla.records import RecordedStep, StepKind
from zart_sqla.runtime import arguments, faults
from zart_sqla.runtime.attempts import Attempts
from zart_sqla.runtime.journal import Place
from zart_sqla.runtime.outcomes import Done
from zart_sqla.runtime.turn import Turn

if TYPE_CHECKING:
    from datetime import datetime

    from zart_sqla.records import ClaimedTask, RunHistory
    from zart_sqla.runtime.handlers import Handler
    from zart_sqla.runtime.outcomes import Outcome
    from zart_sqla.runtime.ports import Recorder


class ChildTurn(Turn):
    """One turn of a child. Its checkpoint is one of the run, and ends the child."""

    def __init__(self, task: ClaimedTask, handler: Handler[Any, Any], history: RunHistory, recorder: Recorder) -> None:
        super().__init__(task, handler, history, recorder)
        assert task.child is not None  # noqa: S101 - the dispatcher has looked
        self._child = task.child

    async def _run_handler(self) -> Outcome:
        place = self._place()
        if place.recorded is not None:  # it was scheduled a second time, by a write whose answer had not arrived
            await self.record(place.recorded)
            return Done()
        try:
            call = arguments.unpack(self._child.call, place.name, self.handler.module)
        except (ConfigError, InvalidDataError) as error:
            await self.record(_failed(place, error))
            return Done()
        try:
            with self.calls.under_way():
                await Attempts(self, place, call).run()
        except BaseException as error:
            if self.record_of(error) is None:
                raise
        return Done()

    def _bounded(self, moment: datetime | None) -> datetime | None:
        """Return the moment: the deadline is the run's to meet, and its end will be the child's."""
        return moment

    def _place(self) -> Place:
        child = self._child
        recorded = next(iter(self.history.steps), None)
        return Place(child.name, StepKind.CHILD, child.position, recorded, self.history.attempts.get(child.name, 0))


def _failed(place: Place, error: Exception) -> RecordedStep:
    failed = faults.step_error(StepFailed, place.name, error, attempts=place.failed_attempts + 1)
    return RecordedStep(name=place.name, kind=place.kind, position=place.position, error=faults.record_of(failed))
