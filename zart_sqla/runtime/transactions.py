"""Steps whose own writes and whose checkpoint are one transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zart_sqla.errors import NotInWorkflowError
from zart_sqla.runtime._signals import TurnSignal
from zart_sqla.runtime.context import active_step

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncSession


async def trx() -> AsyncSession:
    """Return a session whose writes commit together with this step's checkpoint, or not at all.

    The transaction begins with this call and ends with the step: committed if the step returns, rolled back if it
    raises or times out, or if the worker loses the run. The step must not commit or roll back itself. What it writes
    in the app's own tables therefore happens exactly once, whatever crashes.

    Raises:
        NotInWorkflowError: it is called outside a step of a workflow, in a `def` step, or twice in a step.
    """
    step = active_step.get()
    if step is None:
        raise NotInWorkflowError("trx()", "works only in a step of a workflow that a worker runs")
    if not step.is_plain:
        raise NotInWorkflowError("trx()", "works only in an 'async def' step")
    if step.transaction is not None:
        raise NotInWorkflowError("trx()", f"was called before in step {step.name!r}: keep the session that it gave")
    try:
        step.transaction = await step.turn.recorder.begin()
    except TurnSignal as signal:
        raise step.turn.note(signal) from None
    return step.transaction.session
