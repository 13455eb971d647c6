"""The turns of a simulated run: those of a worker, which also count what they call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from zart_sqla.runtime.calls import Calls
from zart_sqla.runtime.child_turn import ChildTurn
from zart_sqla.runtime.turn import Turn

if TYPE_CHECKING:
    from zart_sqla.records import ClaimedTask, RunHistory
    from zart_sqla.runtime.handlers import Handler
    from zart_sqla.testing.recorder import MemoryRecorder

_QUIET_SECONDS: Final = 0.01  # nothing in a test takes long, and each turn of a body with tasks of its own waits for it


class SimulatedTurn(Turn):
    """One turn of a simulated run.

    Attributes:
        memory: where it is recorded.
    """

    def __init__(
        self, task: ClaimedTask, handler: Handler[Any, Any], history: RunHistory, recorder: MemoryRecorder
    ) -> None:
        super().__init__(task, handler, history, recorder)
        self.memory: MemoryRecorder = recorder
        self.calls: Calls = Calls(_QUIET_SECONDS)

    def note_call(self, name: str) -> None:
        """Count the call."""
        self.memory.note_call(name)


class SimulatedChildTurn(SimulatedTurn, ChildTurn):
    """One turn of a child of a simulated run."""
