"""Emitting values into streams, which those outside follow."""

from __future__ import annotations

from zart_sqla.codec import MAX_INNER_NAME_BYTES, checked_name, plain_json
from zart_sqla.errors import NotInWorkflowError
from zart_sqla.records import RecordedStep, StepKind
from zart_sqla.runtime.context import require_body


async def emit(stream: str, value: object, /) -> None:
    """Add a value to a stream of the execution, once and for all; return when those outside can see it.

    Whoever holds a handle of the execution follows the stream by its name; see `ExecutionHandle.stream`. The values
    of one stream are numbered without gaps, whatever crashes, and a replay adds nothing. In a step it cannot be
    called: a step may run twice.

    Args:
        stream: the stream's name, and the call's in the run. There is nothing to be made before.
        value: the value: anything that JSON can tell.

    Raises:
        InvalidDataError: the value cannot be stored; nothing is written.
        InvalidNameError: the name cannot be stored.
        NotInWorkflowError: it is called outside the body of a workflow, or in its `on_cancel`.
    """
    turn = require_body("emit(...)")
    if turn.task.is_cleanup:
        raise NotInWorkflowError("emit(...)", "comes too late after a cancellation: those who follow have gone")
    checked_name("stream name", stream, longest=MAX_INNER_NAME_BYTES)
    place = turn.enter(stream, StepKind.EMIT)
    if place.recorded is not None:
        return
    text, _ = plain_json.pack(value, subject=f"the value for the stream {stream!r}")
    step = RecordedStep(name=place.name, kind=place.kind, position=place.position, started_at=turn.recorder.now())
    with turn.calls.under_way():
        await turn.answer_of(turn.recorder.emit(step, stream, text))
