"""What an error of the database means, by SQLSTATE: the same for every driver."""

from __future__ import annotations

from typing import Final

from asyncpg import InternalClientError
from sqlalchemy.exc import DataError, DBAPIError, SQLAlchemyError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

DATABASE_ERRORS: Final[tuple[type[Exception], ...]] = (SQLAlchemyError, OSError, InternalClientError)
"""What working with the database can raise, where nothing is wrong with the code.

asyncpg's own error comes past SQLAlchemy: the server has said that it ends the connection, and has not closed it yet.
"""

_QUERY_CANCELED: Final = "57014"
_TRANSIENT_STATES: Final = frozenset(
    {
        "40001",  # serialization_failure
        "40P01",  # deadlock_detected
        "55P03",  # lock_not_available
        "57P01",  # admin_shutdown
        "57P02",  # crash_shutdown
        "57P03",  # cannot_connect_now
        "25P03",  # idle_in_transaction_session_timeout
    }
)
_TRANSIENT_CLASSES: Final = frozenset(
    {
        "08",  # connection exceptions
        "53",  # insufficient resources: connection slots, disk, memory
    }
)
_DATA_CLASSES: Final = frozenset(
    {
        "22",  # data exceptions, such as text that is not JSON
        "23",  # integrity constraint violations
        "54",  # program limits, such as an index entry that is too long
    }
)


def sqlstate_of(error: BaseException) -> str | None:
    """Return the SQLSTATE that the server gave for the error, None if it gave none."""
    source = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    for name in ("sqlstate", "pgcode"):
        state = getattr(source, name, None)
        if isinstance(state, str):
            return state
    return None


def is_transient(error: BaseException) -> bool:
    """Return whether the error says nothing about what was asked, so that asking again later can succeed."""
    if isinstance(error, DBAPIError) and error.connection_invalidated:
        return True
    if isinstance(error, PoolTimeoutError | OSError | InternalClientError):
        return True
    state = sqlstate_of(error)
    return state is not None and (state in _TRANSIENT_STATES or state[:2] in _TRANSIENT_CLASSES)


def is_interruption(error: BaseException) -> bool:
    """Return whether the server has cancelled the statement: it took longer than it may, or somebody asked for it.

    That it took so long can be the statement's own fault. Of a statement of ours, all of which are short, it is not.
    """
    return sqlstate_of(error) == _QUERY_CANCELED


def is_data_fault(error: BaseException) -> bool:
    """Return whether the error is about the values of a row, so that the same row would fail again."""
    state = sqlstate_of(error)
    if state is None:
        return isinstance(error, DataError)  # the driver itself refuses the value
    return state[:2] in _DATA_CLASSES


def brief(error: BaseException) -> str:
    """Return the error's own words in one line, without the statement that it came from and its parameters."""
    source = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    text = str(source).strip() or type(source).__name__
    return text.splitlines()[0]
