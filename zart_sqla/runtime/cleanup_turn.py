"""One turn of what a workflow does after it was cancelled."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zart_sqla.records import StepKind
from zart_sqla.runtime.outcomes import CleanedUp, Failed
from zart_sqla.runtime.turn import Turn

if TYPE_CHECKING:
    from datetime import datetime

    from zart_sqla.runtime.outcomes import Outcome


class CleanupTurn(Turn):
    """One turn of a workflow's `on_cancel`. Its steps are recorded with those of the body; the run stays cancelled."""

    async def run(self) -> Outcome:
        """Run the turn to its end."""
        outcome = await super().run()
        return CleanedUp() if isinstance(outcome, Failed) else outcome

    async def _run_handler(self) -> Outcome:
        on_cancel = self.handler.on_cancel
        if on_cancel is None:  # the code has changed since
            return CleanedUp()
        marker = self.journal.cancellation
        if marker is None:
            self.journal.skip_to_end()
            marker = await self.record(self.journal.mark("on_cancel", StepKind.CANCELLATION))
        self.journal.skip_to(marker)
        self.deadline: datetime | None = None  # it was the body's
        try:
            await self._call(on_cancel, self.data)
            self.journal.check_end()
        except BaseException as error:
            if not self._is_own(error):
                raise
            self._log_fault(error)
        return CleanedUp()
