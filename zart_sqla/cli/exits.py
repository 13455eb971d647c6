"""How a command ends: its exit code, and what it says on the standard error."""

from __future__ import annotations

import shlex
from typing import Final

import typer
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from zart_sqla.errors import (
    ConfigError,
    ExecutionAlreadyExists,
    ExecutionFailed,
    ExecutionFinished,
    ExecutionNotFound,
    InvalidDataError,
    InvalidIdentifierError,
    InvalidNameError,
    WaitTimedOut,
    ZartError,
)
from zart_sqla.store.failures import sqlstate_of

DONE: Final = 0
FAILED: Final = 1
USAGE: Final = 2
NOT_FOUND: Final = 3
TIMED_OUT: Final = 4
SIGNALLED: Final = 128
"""To this the number of the signal is added."""

EXPECTED: Final = (ZartError, SQLAlchemyError, OSError)
"""The errors that end a command without a traceback."""

_CODES: Final[dict[type[Exception], int]] = {
    ConfigError: USAGE,
    InvalidDataError: USAGE,
    InvalidIdentifierError: USAGE,
    InvalidNameError: USAGE,
    ExecutionNotFound: NOT_FOUND,
    WaitTimedOut: TIMED_OUT,
}
_ADVICE: Final[dict[type[Exception], str]] = {
    ExecutionAlreadyExists: "look at it with: zart status {id}; or start with --on-conflict return",
    ExecutionFailed: "zart status {id} shows its steps; zart resume {id} lets it go on from its last checkpoint",
    ExecutionFinished: "look at it with: zart status {id}",
    ExecutionNotFound: "zart list shows the executions that there are; --prefix and --schema choose the tables",
    WaitTimedOut: "wait again with: zart wait {id}",
}
_CANNOT_CONNECT: Final = frozenset({"3D000", "57P03", "53300"})  # no such database, starting up, too many clients
_CANNOT_CONNECT_CLASSES: Final = frozenset({"08", "28"})  # connection exceptions, failed authentication


class CommandError(ZartError):
    """A command cannot do what it was asked to.

    Attributes:
        problem: what is in the way.
        advice: what to do next, None if the problem says it.
        code: the exit code.
    """

    def __init__(self, problem: str, advice: str | None = None, *, code: int = FAILED) -> None:
        self.problem = problem
        self.advice = advice
        self.code = code
        super().__init__(problem)


class DatabaseUnreachable(CommandError):
    """No connection to the database can be had."""

    def __init__(self, reason: str, *, database: str | None = None) -> None:
        where = f" {database}" if database else ""
        super().__init__(
            f"cannot connect to the database{where}: {reason}",
            "see whether the server runs, and whether --url or DATABASE_URL names the right one",
        )


def code_of(error: BaseException) -> int:
    """Return the exit code for an expected error."""
    if isinstance(error, CommandError):
        return error.code
    return next((code for kind, code in _CODES.items() if isinstance(error, kind)), FAILED)


def fail(error: BaseException) -> int:
    """Tell of an expected error on the standard error: what is wrong, and what to do next. Return the exit code."""
    typer.echo(f"error: {problem_of(error)}", err=True)
    advice = advice_for(error)
    if advice:
        typer.echo(f"next:  {advice}", err=True)
    return code_of(error)


def problem_of(error: BaseException) -> str:
    """Return what is wrong, without the remarks that a library adds."""
    if isinstance(error, ZartError):
        return str(error)
    if isinstance(error, DBAPIError) and error.orig is not None:
        text = str(error.orig).partition(": ")[2] if "<class" in str(error.orig) else str(error.orig)
        return f"the database says: {text.splitlines()[0] if text else type(error.orig).__name__}"
    return str(error) or type(error).__name__


def advice_for(error: BaseException) -> str | None:
    """Return what to do next, None if the error itself says it."""
    if isinstance(error, CommandError):
        return error.advice
    template = next((advice for kind, advice in _ADVICE.items() if isinstance(error, kind)), None)
    return template and template.format(id=shlex.quote(str(getattr(error, "execution_id", ""))))


def is_unreachable(error: BaseException) -> bool:
    """Return whether the error says that there is no connection to be had."""
    if isinstance(error, OSError | TimeoutError):
        return True
    state = sqlstate_of(error)
    return state is not None and (state in _CANNOT_CONNECT or state[:2] in _CANNOT_CONNECT_CLASSES)
