"""Steps whose own writes and whose checkpoint are one transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zart_sqla.errors import NotInWorkflowError
from zart_sqla.runtime.context import ActiveStep, active_step

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

    from zart_sqla.runtime.ports import StepTransaction


def trx() -> Coroutine[Any, Any, AsyncSession]:
    """Return a session whose writes commit together with this step's checkpoint, or not at all; await it.

    The transaction begins with this call and ends with the step: committed if the step returns, rolled back if it
    raises or times out, or if the worker loses the run. The step must not commit or roll back itself. What it writes
    in the app's own tables therefore happens exactly once, whatever crashes.

    A `def` step gets a `Session` from `zart_sqla.sync.trx()`.

    Raises:
        NotInWorkflowError: it is called outside a step of a workflow, in a `def` step, or twice in a step.
    """
    step = _require_step("trx()")
    if step.bridge is not None:  # told at once: nobody there would await
        raise NotInWorkflowError("trx()", "is for 'async def' steps: here write 'sync.trx()'")
    return _session(step)


async def _session(step: ActiveStep) -> AsyncSession:
    return (await _begun(step, "trx()")).session


def trx_in_thread() -> Session:
    """Return the same for a `def` step; see `zart_sqla.sync.trx`."""
    step = _require_step("sync.trx()")
    if step.bridge is None:
        raise NotInWorkflowError("sync.trx()", f"is for 'def' steps: in {step.name!r} write 'await trx()'")
    return step.bridge.wait_for(_begun(step, "sync.trx()")).session.sync_session


def _require_step(call: str) -> ActiveStep:
    step = active_step.get()
    if step is None:
        raise NotInWorkflowError(call, "works only in a step of a workflow that a worker runs")
    return step


async def _begun(step: ActiveStep, call: str) -> StepTransaction:
    """Begin the transaction, and leave it with the step. That is done on the loop, where the attempt ends too."""
    if step.transaction is not None:
        raise NotInWorkflowError(call, f"was called before in step {step.name!r}: keep the session that it gave")
    step.transaction = await step.turn.answer_of(step.turn.recorder.begin(step.bridge))
    return step.transaction
