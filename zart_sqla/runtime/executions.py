"""Executions: what is needed to start one, and those that a workflow starts itself."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, NoReturn, TypeVar, overload

from zart_sqla.codec import checked_name, plain_json
from zart_sqla.errors import ConfigError, NotInWorkflowError
from zart_sqla.ids import new_id
from zart_sqla.records import DEFAULT_QUEUE, NewExecution, RecordedStep, StepKind
from zart_sqla.runtime import faults
from zart_sqla.runtime._signals import TurnSignal
from zart_sqla.runtime.context import require_body
from zart_sqla.runtime.handlers import Durable
from zart_sqla.runtime.outcomes import Continued

if TYPE_CHECKING:
    from zart_sqla.codec import Codec
    from zart_sqla.records import Ending
    from zart_sqla.runtime.journal import Place
    from zart_sqla.runtime.turn import Turn

D = TypeVar("D")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

LOOK_AGAIN: Final = timedelta(seconds=5)
"""How often a workflow looks for the end of an execution of which nobody would tell it."""

OnParentCancel = Literal["cancel", "leave"]
"""What becomes of an execution when the one that started it is cancelled."""


def prepare(
    workflow: Durable[Any, Any] | str, data: object, *, execution_id: str | None, queue: str = DEFAULT_QUEUE
) -> NewExecution:
    """Return the execution to be started, its input checked and encoded.

    Raises:
        ConfigError: it is neither a `@durable` function nor the name of a task.
        InvalidDataError: the data does not fit the workflow's input, or cannot be stored.
        InvalidNameError: the id, the task name or the queue cannot be stored.
    """
    name, codec = _described(workflow)
    payload, _ = codec.pack(data, subject=f"the input of {name!r}")
    run_id = new_id()
    return NewExecution(
        execution_id=str(new_id()) if execution_id is None else checked_name("execution id", execution_id),
        run_id=run_id,
        task_name=name,
        payload=payload,
        queue=checked_name("queue", queue),
    )


def _described(workflow: Durable[Any, Any] | str) -> tuple[str, Codec[Any]]:
    match workflow:
        case Durable():
            return workflow.name, workflow.handler.data_codec
        case str():
            return checked_name("task name", workflow), plain_json
        case _:
            raise ConfigError("workflow", expected="a @durable function or the name of a task", actual=workflow)


def result_codec(workflow: Durable[Any, Any] | str | None) -> Codec[Any]:
    """Return the codec of the workflow's output: plain JSON where only its name is known."""
    return workflow.handler.result_codec if isinstance(workflow, Durable) else plain_json


class ChildExecution(Generic[R_co]):
    """An execution that the workflow has started with `start_child`.

    Attributes:
        execution_id: its id.
    """

    def __init__(self, execution_id: str, name: str, codec: Codec[R_co]) -> None:
        self.execution_id: str = execution_id
        self._name = name
        self._codec = codec

    def __repr__(self) -> str:
        return f"<child execution {self.execution_id!r}>"

    async def result(self) -> R_co:
        """Return its output when it has completed. The workflow costs a row meanwhile.

        Raises:
            ExecutionFailed: it failed.
            ExecutionCancelled: it was cancelled.
            InvalidDataError: its output does not fit the declared type.
            NotInWorkflowError: it is called outside the body of the workflow.
        """
        turn = require_body("result()")
        place = turn.enter(f"{self._name}.result", StepKind.RESULT, is_own=True)
        with turn.calls.under_way():
            recorded = place.recorded or await self._met(turn, place)
        if recorded.error is not None:
            raise turn.from_step(faults.execution_error_from(recorded.error), recorded.error)
        return self._codec.unpack(recorded.result or "null", subject=f"the output of execution {self.execution_id!r}")

    async def _met(self, turn: Turn, place: Place) -> RecordedStep:
        """Return what it came to.

        Raises:
            TurnSignal: it has not ended; the turn ends.
        """
        if self.execution_id in turn.children.executions:
            await turn.pause(None, awaits_done=1)
        while True:
            ending = await turn.answer_of(turn.recorder.ending_of(self.execution_id))
            if ending is not None and ending.status.is_terminal:
                return await turn.record(self._checkpoint(place, ending))
            # It goes on although it had ended, or was no child of this run: nobody will tell of its end.
            await turn.pause(turn.recorder.now() + LOOK_AGAIN)

    def _checkpoint(self, place: Place, ending: Ending) -> RecordedStep:
        is_completed = ending.status == "completed"
        return RecordedStep(
            name=place.name,
            kind=place.kind,
            position=place.position,
            result=(ending.result or "null") if is_completed else None,
            error=None if is_completed else faults.ending_record(place.name, self.execution_id, ending),
        )


@overload
async def start_child(
    workflow: Durable[None, R],
    data: None = None,
    *,
    execution_id: str | None = None,
    queue: str | None = None,
    on_parent_cancel: OnParentCancel = "cancel",
) -> ChildExecution[R]: ...
@overload
async def start_child(
    workflow: Durable[D, R],
    data: D,
    *,
    execution_id: str | None = None,
    queue: str | None = None,
    on_parent_cancel: OnParentCancel = "cancel",
) -> ChildExecution[R]: ...
@overload
async def start_child(
    workflow: str,
    data: Any = None,
    *,
    execution_id: str | None = None,
    queue: str | None = None,
    on_parent_cancel: OnParentCancel = "cancel",
) -> ChildExecution[Any]: ...
async def start_child(
    workflow: Durable[Any, Any] | str,
    data: Any = None,
    *,
    execution_id: str | None = None,
    queue: str | None = None,
    on_parent_cancel: OnParentCancel = "cancel",
) -> ChildExecution[Any]:
    """Start another execution, once, however often this workflow is replayed.

    It is an execution like others, with its own id, steps, timeout and result. The workflow can wait for it, with
    `await child.result()`, or go on and end without: the child goes on then.

    Args:
        workflow: a `@durable` function, or the name of a task.
        data: its input: what the function is annotated with; plain JSON data where only the name is known.
        execution_id: its id, unique among all executions. Default: a new UUID of version 7.
        queue: the queue of its tasks. Default: that of this workflow.
        on_parent_cancel: what becomes of it when this execution is cancelled: `cancel` it too, or `leave` it.

    Raises:
        ExecutionAlreadyExists: the id is taken.
        ConfigError: it is no workflow, or `on_parent_cancel` is neither of the two.
        InvalidDataError: the data does not fit the workflow's input, or cannot be stored; nothing is written.
        InvalidNameError: an id or a name cannot be stored; nothing is written.
        NotInWorkflowError: it is called outside the body of a workflow.
    """
    turn = require_body("start_child(...)")
    if on_parent_cancel not in ("cancel", "leave"):
        raise ConfigError("on_parent_cancel", expected="'cancel' or 'leave'", actual=on_parent_cancel)
    new = prepare(workflow, data, execution_id=execution_id, queue=turn.task.queue if queue is None else queue)
    place = turn.enter(new.task_name, StepKind.EXECUTION)
    with turn.calls.under_way():
        recorded = place.recorded or await _started(turn, place, new, is_bound=on_parent_cancel == "cancel")
    if recorded.error is not None:
        raise turn.from_step(faults.execution_error_from(recorded.error), recorded.error)
    return ChildExecution(json.loads(recorded.result or "null"), place.name, result_codec(workflow))


async def _started(turn: Turn, place: Place, new: NewExecution, *, is_bound: bool) -> RecordedStep:
    step = RecordedStep(
        name=place.name,
        kind=place.kind,
        position=place.position,
        result=json.dumps(new.execution_id),
        started_at=turn.recorder.now(),
    )
    task = turn.task
    child = replace(new, parent_id=task.execution_id, parent_run_id=task.run_id, is_bound=is_bound)
    recorded = await turn.answer_of(turn.recorder.start_execution(step, child))
    if recorded.error is None:
        turn.children.executions.add(new.execution_id)
    return recorded


async def continue_as_new(data: object = None) -> NoReturn:
    """End this run, and begin another one of the same execution, with this input and no history.

    It is for workflows that go on for ever: the history of each run stays short. Those who wait for the execution's
    result go on waiting. Events that were not taken, and executions that were started, are the next run's; steps that
    were scheduled and not waited for are cancelled. A `timeout` of the workflow counts for each run anew.

    Args:
        data: the input of the next run, typed as the workflow's own.

    Raises:
        InvalidDataError: the data does not fit, or cannot be stored; this run goes on.
        NonDeterminismError: the run has recorded steps that it has not called again.
        NotInWorkflowError: it is called outside the body of a workflow, or after the execution was cancelled.
    """
    turn = require_body("continue_as_new(...)")
    if turn.task.is_cleanup:
        raise NotInWorkflowError("continue_as_new(...)", "cannot go on with an execution that was cancelled")
    turn.check_open()
    payload, _ = turn.handler.data_codec.pack(data, subject="the input of the next run")
    turn.check_all_called()
    raise turn.note(TurnSignal(Continued(payload)))
