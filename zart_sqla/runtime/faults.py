"""Exceptions as data, and back again."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, get_type_hints

from pydantic_core import to_jsonable_python

from zart_sqla.codec import codec_for, plain_json
from zart_sqla.errors import ExecutionTimeout, RetryExhausted, StepError, StepFailed, StepTimeout
from zart_sqla.records import ErrorRecord

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import timedelta

MAX_MESSAGE: Final = 65_536
"""How many characters of an error's text are kept."""

BUSINESS: Final = "business"
"""The category of an error that a step declares in `raises`: an answer, not a fault."""

_STEP_ERRORS: Final[dict[str, type[StepError]]] = {
    "step_failed": StepFailed,
    "retry_exhausted": RetryExhausted,
    "step_timeout": StepTimeout,
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
            category=_CATEGORIES[type(error)],
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


def business_record(step: str, error: BaseException, *, attempts: int) -> ErrorRecord:
    """Return a declared error of a step as data from which a replay can raise it again as itself."""
    state = {
        "type": _path_of(type(error)),
        "args": _jsonable(error.args),
        "attributes": {name: _jsonable(value) for name, value in _attributes_of(error).items()},
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
    error = kind.__new__(kind, *state["args"])
    error.args = tuple(state["args"])
    hints = get_type_hints(kind)
    for name, value in state["attributes"].items():
        codec = codec_for(hints[name]) if name in hints else plain_json
        object.__setattr__(error, name, codec.unpack(json.dumps(value), subject=f"{kind.__name__}.{name}"))
    return error


def _attributes_of(error: BaseException) -> dict[str, Any]:
    return {name: value for name, value in vars(error).items() if name != "__notes__"}


def _jsonable(value: object) -> Any:
    return to_jsonable_python(value, bytes_mode="base64", inf_nan_mode="null", fallback=str)


def _path_of(kind: type[BaseException]) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _with_subclasses(kinds: Iterable[type[BaseException]]) -> Iterator[type[BaseException]]:
    for kind in kinds:
        yield kind
        yield from _with_subclasses(kind.__subclasses__())
