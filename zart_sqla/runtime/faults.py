"""Exceptions as data, and back again."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, cast, get_type_hints

from pydantic_core import to_jsonable_python

from zart_sqla.codec import codec_for, tagged_json
from zart_sqla.errors import (
    ConfigError,
    EventTimeout,
    ExecutionAlreadyExists,
    ExecutionCancelled,
    ExecutionFailed,
    ExecutionTimeout,
    InvalidDataError,
    RetryExhausted,
    StepCancelled,
    StepError,
    StepFailed,
    StepTimeout,
    ZartError,
)
from zart_sqla.records import GIVEN_UP, ErrorRecord

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import timedelta

    from zart_sqla.records import Ending

MAX_MESSAGE: Final = 65_536
"""How many characters of an error's text are kept."""

BUSINESS: Final = "business"
"""The category of an error that a step declares in `raises`: an answer, not a fault."""

TAKEN_ID: Final = "execution_exists"
"""The category of the error that an execution could not be started, since its id is taken."""

FAILED: Final = "execution_failed"
"""The category of the error of an execution that the run has started, and that failed."""

CANCELLED: Final = "execution_cancelled"
"""The category of the same that was cancelled."""

_STEP_ERRORS: Final[dict[str, type[StepError]]] = {
    "step_failed": StepFailed,
    "retry_exhausted": RetryExhausted,
    "step_timeout": StepTimeout,
    "event_timeout": EventTimeout,
    GIVEN_UP: StepCancelled,
}
_CATEGORIES: Final = {error: category for category, error in _STEP_ERRORS.items()}


def message_of(error: BaseException) -> str:
    """Return the error's own text, however badly its class behaves."""
    try:
        text = str(error)
    except Exception as failure:  # noqa: BLE001 - a broken __str__ must not hide the error
        text = f"(its text cannot be had: {type(failure).__name__})"
    # PostgreSQL holds neither NUL nor a lone surrogate, and an error must not fail to be recorded for its text.
    return text[:MAX_MESSAGE].encode("utf-8", "backslashreplace").decode().replace("\x00", "\\x00")


def record_of(error: BaseException) -> ErrorRecord:
    """Return the error as data, as it is to those who await the run."""
    if isinstance(error, StepError):
        return ErrorRecord(
            error_type=error.error_type,
            message=error.message,
            step=error.step,
            attempts=error.attempts,
            category=_CATEGORIES.get(type(error), "step_failed"),
        )
    category = "execution_timeout" if isinstance(error, ExecutionTimeout) else "error"
    return ErrorRecord(error_type=type(error).__name__, message=message_of(error), category=category)


def step_error(kind: type[StepError], step: str, cause: BaseException, *, attempts: int) -> StepError:
    """Return the error that stands for a step's failure, with the cause in it."""
    error = kind(step, error_type=type(cause).__name__, message=message_of(cause), attempts=attempts)
    error.__cause__ = cause
    return error


def step_timeout(step: str, timeout: timedelta, *, attempts: int) -> StepTimeout:
    """Return the error for a step that ran for longer than its timeout."""
    message = f"it had not ended after {timeout.total_seconds():g} s"
    return StepTimeout(step, error_type="StepTimeout", message=message, attempts=attempts)


def event_timeout(step: str, timeout: timedelta) -> EventTimeout:
    """Return the error for an event that has not come in time."""
    return EventTimeout(step, error_type="EventTimeout", message=f"none in {timeout.total_seconds():g} s", attempts=1)


def taken_id_record(step: str, execution_id: str, status: str) -> ErrorRecord:
    """Return the error that an execution could not be started, since its id is taken, as data."""
    error = ExecutionAlreadyExists(execution_id, status)
    state = json.dumps({"execution_id": execution_id, "status": status})
    return replace(record_of(error), step=step, category=TAKEN_ID, state=state)


def ending_record(step: str, execution_id: str, ending: Ending) -> ErrorRecord:
    """Return what the run awaits of an execution that has failed or was cancelled, as data."""
    if ending.error is None:
        error = record_of(ExecutionCancelled(execution_id))
        return replace(error, step=step, category=CANCELLED, state=json.dumps({"execution_id": execution_id}))
    state = json.dumps({"execution_id": execution_id, "step": ending.error.step})
    error_type, message = ending.error.error_type, ending.error.message
    return ErrorRecord(error_type=error_type, message=message, step=step, category=FAILED, state=state)


def execution_error_from(record: ErrorRecord) -> ZartError:
    """Return the error that a run gets of an execution that it has started."""
    state = json.loads(record.state or "{}")
    if record.category == TAKEN_ID:
        return ExecutionAlreadyExists(**state)
    if record.category == CANCELLED:
        return ExecutionCancelled(**state)
    return ExecutionFailed(error_type=record.error_type, message=record.message, **state)


def business_record(step: str, error: BaseException, *, attempts: int) -> ErrorRecord:
    """Return a declared error of a step as data from which a replay can raise it again as itself."""
    annotated = _annotations_of(type(error))
    state = {
        "type": _path_of(type(error)),
        "args": [_tagged(argument) for argument in error.args],
        "attributes": {
            name: _jsonable(value) if name in annotated else _tagged(value)
            for name, value in _attributes_of(error).items()
        },
    }
    return ErrorRecord(
        error_type=type(error).__name__,
        message=message_of(error),
        step=step,
        attempts=attempts,
        category=BUSINESS,
        state=json.dumps(state),
    )


def error_from(record: ErrorRecord, declared: Iterable[type[BaseException]]) -> BaseException:
    """Return the error that a recorded step raises when it is replayed.

    Args:
        record: the error as data.
        declared: the types that the step declares now.
    """
    step = record.step or ""
    if record.category == BUSINESS and record.state is not None:
        state = json.loads(record.state)
        for known in _with_subclasses(declared):
            if _path_of(known) == state["type"]:
                return _restored(known, state)
    kind = _STEP_ERRORS.get(record.category, StepFailed)
    return kind(step, error_type=record.error_type, message=record.message, attempts=record.attempts)


def _restored(kind: type[BaseException], state: dict[str, Any]) -> BaseException:
    error = _made(kind, [_attribute(json.dumps(argument), None) for argument in state["args"]])
    annotated = _annotations_of(kind)
    for name, value in state["attributes"].items():
        object.__setattr__(error, name, _attribute(json.dumps(value), annotated.get(name)))
    return error


def _made(kind: type[BaseException], args: list[Any]) -> BaseException:
    """Return the error without calling what its own class does to make one: that may ask for other arguments."""
    builtin: Any = next(base for base in kind.__mro__ if base.__module__ == "builtins")
    try:
        error = kind.__new__(kind, *args)
    except Exception:  # noqa: BLE001 - whatever it asked for
        error = cast("BaseException", builtin.__new__(kind))
    try:
        builtin.__init__(error, *args)
    except Exception:  # noqa: BLE001 - the same
        BaseException.__init__(error, *args)
    return error


def _attribute(text: str, declared: Any) -> Any:
    with contextlib.suppress(ConfigError, InvalidDataError):
        if declared is not None:
            return codec_for(declared).unpack(text, subject="an attribute")
    with contextlib.suppress(InvalidDataError):
        return tagged_json.unpack(text, subject="an attribute")
    return json.loads(text)


def _annotations_of(kind: type[BaseException]) -> dict[str, Any]:
    try:
        return get_type_hints(kind)
    except Exception:  # noqa: BLE001 - an annotation may be for type checkers only
        return {}


def _attributes_of(error: BaseException) -> dict[str, Any]:
    slots = {
        name: getattr(error, name)
        for base in type(error).__mro__
        for name in getattr(base, "__slots__", ())
        if hasattr(error, name)
    }
    return slots | {name: value for name, value in vars(error).items() if name != "__notes__"}


def _tagged(value: object) -> Any:
    try:
        text, _ = tagged_json.pack(value, subject="an attribute")
        return json.loads(text)
    except Exception:  # noqa: BLE001 - what cannot be kept must not hide the error
        return _jsonable(value)


def _jsonable(value: object) -> Any:
    try:
        return to_jsonable_python(value, bytes_mode="base64", inf_nan_mode="null", fallback=str)
    except Exception as failure:  # noqa: BLE001 - what cannot be kept must not hide the error
        return f"(cannot be kept: {type(failure).__name__})"


def _path_of(kind: type[BaseException]) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _with_subclasses(kinds: Iterable[type[BaseException]]) -> Iterator[type[BaseException]]:
    for kind in kinds:
        yield kind
        yield from _with_subclasses(kind.__subclasses__())
