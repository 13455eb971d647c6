"""The errors: the tree is as drawn, and each says what was expected, what came and what to do next."""

import inspect
import re
from datetime import timedelta

import pytest

import zart_sqla
from zart_sqla import errors
from zart_sqla.errors import (
    ConfigError,
    EventTimeout,
    ExecutionAlreadyExists,
    ExecutionCancelled,
    ExecutionFailed,
    ExecutionFinished,
    ExecutionNotFound,
    ExecutionTimeout,
    InvalidDataError,
    InvalidIdentifierError,
    InvalidNameError,
    NonDeterminismError,
    NotInWorkflowError,
    RetryExhausted,
    SchemaOutdated,
    StepCancelled,
    StepFailed,
    StepStalled,
    StepTimeout,
    WaitTimedOut,
    ZartError,
)

CLASSES = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if kind.__module__ == errors.__name__]

EXAMPLES: list[tuple[ZartError, str]] = [
    (
        ConfigError("poll_interval", expected="a duration", actual="soon"),
        "poll_interval: expected a duration, got 'soon'",
    ),
    (
        InvalidIdentifierError("prefix", "my-app", problem="has a dash", variable="ZART_TABLE_PREFIX"),
        (
            "table name prefix 'my-app' (from the environment variable ZART_TABLE_PREFIX) has a dash; "
            "expected ASCII letters, digits and '_', starting with a letter"
        ),
    ),
    (InvalidNameError("execution id", "", problem="is empty"), "execution id '' is empty"),
    (
        InvalidNameError("execution id", "x" * 3000, problem="is too long"),
        f"execution id '{'x' * 75}...' is too long",
    ),
    (
        InvalidDataError("the input of 'look'", ["a: no integer", "b: missing"]),
        "the input of 'look' cannot be stored: a: no integer; b: missing",
    ),
    (
        SchemaOutdated('"zart_executions"', expected="zart_0002", actual="zart_0001"),
        (
            "the tables of zart_sqla (\"zart_executions\") are at revision 'zart_0001', this code needs revision "
            "'zart_0002'; run 'alembic upgrade heads' in the app that owns them, or 'zart migrate'"
        ),
    ),
    (NotInWorkflowError("trx()", "works only in a step"), "trx() works only in a step"),
    (
        ExecutionAlreadyExists("order-1", "running"),
        "execution 'order-1' already exists and is running; start with on_conflict='return' to get its handle instead",
    ),
    (ExecutionNotFound("order-1"), "no execution has the id 'order-1' in these tables"),
    (ExecutionFinished("order-1", "failed"), "execution 'order-1' is failed and cannot change any more"),
    (
        ExecutionFailed("order-1", error_type="ValueError", message="no", step="charge"),
        "execution 'order-1' failed in step 'charge': ValueError: no",
    ),
    (
        ExecutionFailed("order-1", error_type="ValueError", message="no", step=None),
        "execution 'order-1' failed: ValueError: no",
    ),
    (ExecutionCancelled("order-1"), "execution 'order-1' was cancelled"),
    (
        WaitTimedOut("order-1", timedelta(seconds=1.5)),
        "execution 'order-1' had not ended after 1.5 s; it goes on",
    ),
    (ExecutionTimeout("look", timedelta(hours=1)), "'look' had not ended 3600 s after its first turn began"),
    (
        NonDeterminismError(3, recorded="a", called=None),
        (
            "at position 3 of this run step 'a' is recorded, but the code ended without calling it; a workflow must "
            "call the same steps in the same order when it is replayed: bring the old code back and resume the run, "
            "or start it anew"
        ),
    ),
    (
        StepFailed("charge", error_type="ValueError", message="no", attempts=1),
        "step 'charge' failed: ValueError: no",
    ),
    (
        RetryExhausted("charge", error_type="ValueError", message="no", attempts=4),
        "step 'charge' failed on all of 4 attempts, last with ValueError: no",
    ),
    (
        StepTimeout("charge", error_type="StepTimeout", message="it had not ended after 5 s", attempts=1),
        "step 'charge' timed out: it had not ended after 5 s",
    ),
    (StepStalled("charge", timedelta(seconds=30)), "step 'charge' has made no progress for 30 s"),
    (
        StepCancelled("charge", error_type="CancelledError", message="others were enough", attempts=0),
        "step 'charge' was cancelled: others were enough",
    ),
    (
        EventTimeout("approved", error_type="EventTimeout", message="none in 5 s", attempts=1),
        "no event came for 'approved': none in 5 s",
    ),
]


@pytest.mark.parametrize(
    ("error", "message"), EXAMPLES, ids=[f"{i}-{type(e).__name__}" for i, (e, _) in enumerate(EXAMPLES)]
)
def test_message(error: ZartError, message: str) -> None:
    """An error builds its own message from its data, and keeps the data."""
    assert str(error) == message
    assert all(value is not None for name, value in vars(error).items() if name not in {"variable", "step", "called"})


def test_every_error_has_an_example() -> None:
    """No error of the tree is without a message that is tested."""
    shown = {type(error) for error, _ in EXAMPLES}
    assert set(CLASSES) - shown == {ZartError, errors.StepError}


def test_tree() -> None:
    """The tree in the docstring is the one of the classes, with the standard errors beside them."""
    drawn: dict[str, tuple[str, str | None]] = {}
    parents: list[str] = []
    for line in inspect.cleandoc(errors.__doc__ or "").partition("```\n")[2].splitlines():
        match = re.match(r"([ │├└─]*)(\w+)(?: +\((\w+)\))?", line)
        if match is None:
            break
        depth = len(match[1]) // 4
        parents[depth:] = [match[2]]
        drawn[match[2]] = (parents[depth - 1] if depth else "Exception", match[3])
    actual = {
        kind.__name__: (kind.__bases__[0].__name__, kind.__bases__[1].__name__ if len(kind.__bases__) > 1 else None)
        for kind in CLASSES
    }
    assert drawn == actual


def test_every_error_is_public() -> None:
    """Each can be imported from the package."""
    assert {kind.__name__ for kind in CLASSES} <= set(zart_sqla.__all__)
