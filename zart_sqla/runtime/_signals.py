"""How a turn is ended from within: not errors, so that no `except Exception` of the user's can eat them."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from zart_sqla.runtime.outcomes import Continued, LeaseLost, Suspended


class TurnSignal(BaseException):
    """Ends the turn with an outcome that is not the body's to decide.

    Attributes:
        outcome: how the turn ends.
    """

    def __init__(self, outcome: Continued | Suspended | LeaseLost) -> None:
        self.outcome = outcome
        super().__init__(outcome)


def ends_turn(error: BaseException) -> bool:
    """Return whether the error ends the turn or the process: it is no error of the code in which it was raised."""
    if isinstance(error, BaseExceptionGroup):
        return any(map(ends_turn, cast("BaseExceptionGroup[BaseException]", error).exceptions))
    return isinstance(error, TurnSignal | KeyboardInterrupt | GeneratorExit)
