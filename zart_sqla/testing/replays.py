"""Whether today's code fits a run that was recorded earlier."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zart_sqla.runtime import replay as replays
from zart_sqla.testing.simulation import handler_of

if TYPE_CHECKING:
    from zart_sqla.histories import ExecutionHistory
    from zart_sqla.runtime.handlers import Durable, TaskObject


async def replay(workflow: Durable[Any, Any] | TaskObject, history: ExecutionHistory) -> None:
    """Check that a workflow still fits a recorded run, as a worker would that goes on with it.

    The body is called and gets what is recorded, up to its first calls that are not. No step is run, nothing is
    written, and no database is needed.

    Args:
        workflow: a `@durable` function, or an object with a method `run(data)`.
        history: the run: of `handle.history()`, of `zart history`, or of a `Simulation`; or read from a file by
            `ExecutionHistory.from_json(text)`.

    Raises:
        NonDeterminismError: the code calls something else than what is recorded, or does not come to all of it.
        InvalidDataError: the input or a recorded result does not fit its type any more.
        ConfigError: it is no workflow.
    """
    await replays.replay(handler_of(workflow), history)
