"""What a running workflow knows of itself, and how its calls find the turn that they belong to."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from zart_sqla.errors import NotInWorkflowError

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import datetime
    from uuid import UUID

    from zart_sqla.runtime.bridges import Bridge
    from zart_sqla.runtime.ports import StepTransaction
    from zart_sqla.runtime.turn import Turn


@dataclass(eq=False, slots=True)
class Branch:
    """What makes durable calls one after another: the function that the turn calls, or a task of its own.

    Attributes:
        task: the asyncio task.
        path: the numbers by which it is told from the others, such as `2` or `2.1`; empty for the function itself.
        branches: how many tasks have branched off from it.
    """

    task: asyncio.Task[Any] | None
    path: str = ""
    branches: int = 0

    def branch(self, task: asyncio.Task[Any] | None) -> Branch:
        """Return a new one, for a task that was made by this one.

        Tasks begin in the order in which they were made, so at each replay their first calls have the same order.
        """
        self.branches += 1
        return Branch(task, f"{self.path}.{self.branches}" if self.path else str(self.branches))

    def here(self, loop: asyncio.AbstractEventLoop | None) -> Branch:
        """Return the branch of the asyncio task that is running here, on this loop: this one, or a new one."""
        task = asyncio.current_task(loop)
        if task is self.task:
            return self
        found = self.branch(task)
        current_branch.set(found)
        return found


def is_part(path: str, *, of: str) -> bool:
    """Tell whether a branch is this one, or one that it has made, by their paths."""
    return not of or path == of or path.startswith(f"{of}.")


@dataclass(slots=True)
class ActiveStep:
    """The attempt of a step that is being made.

    Attributes:
        turn: the turn that makes it.
        name: the step's name in the run.
        attempt: its number, from 1.
        max_attempts: how many there can be.
        bridge: how its thread asks the loop; None if it runs on the loop itself.
        transaction: the transaction that it has asked for, None if it has not.
        on_progress: what `progress()` calls, from whatever thread; None if nobody wants to know.
    """

    turn: Turn
    name: str
    attempt: int
    max_attempts: int
    bridge: Bridge | None
    transaction: StepTransaction | None = None
    on_progress: Callable[[], None] | None = None


current_turn: Final[ContextVar[Turn | None]] = ContextVar("zart_sqla_turn", default=None)
current_body: Final[ContextVar[int]] = ContextVar("zart_sqla_body", default=0)
"""Which of the functions that its turn calls, the body or its `on_failure`, this is."""
current_branch: Final[ContextVar[Branch | None]] = ContextVar("zart_sqla_branch", default=None)
"""The branch to which the code here belongs, or from which its asyncio task was made."""
active_step: Final[ContextVar[ActiveStep | None]] = ContextVar("zart_sqla_step", default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What a workflow or a step can ask about the run that it is in.

    Attributes:
        execution_id: the execution.
        run_id: its current run.
        task_name: the task that it runs.
        data: its input.
        step_name: the step that asks; None in the body.
        attempt: the number of this attempt of the step, or of the body, from 1.
        max_attempts: how many attempts there can be.
        is_retry: whether this is not the first.
        deadline: when the execution times out; None if it does not.
    """

    execution_id: str
    run_id: UUID
    task_name: str
    data: Any
    step_name: str | None
    attempt: int
    max_attempts: int
    deadline: datetime | None

    @property
    def is_retry(self) -> bool:
        """Whether this is not the first attempt."""
        return self.attempt > 1


def context() -> Context:
    """Return what there is to know of the run that is going on here.

    Raises:
        NotInWorkflowError: no workflow is.
    """
    turn = require_turn("context()")
    step = active_step.get()
    task = turn.task
    return Context(
        execution_id=task.execution_id,
        run_id=task.run_id,
        task_name=task.task_name,
        data=turn.data,
        step_name=None if step is None else step.name,
        attempt=task.retries + 1 if step is None else step.attempt,
        max_attempts=turn.handler.retry.max_attempts if step is None else step.max_attempts,
        deadline=turn.deadline,
    )


def require_turn(call: str) -> Turn:
    """Return the turn that is going on here.

    Raises:
        NotInWorkflowError: none is.
    """
    turn = current_turn.get()
    if turn is None:
        raise NotInWorkflowError(call, "works only in a workflow that a worker runs")
    return turn


def require_body(call: str) -> Turn:
    """Return the turn whose body, not one of its steps, is running here.

    Raises:
        NotInWorkflowError: no body is.
    """
    turn = require_turn(call)
    step = active_step.get()
    if step is not None:
        raise NotInWorkflowError(call, f"works only in the body of a workflow, not in a step such as {step.name!r}")
    return turn


def body_turn() -> Turn | None:
    """Return the turn whose body is running here; None in a step, and where no workflow is running."""
    return None if active_step.get() is not None else current_turn.get()
