"""Joining the app's transaction, whichever of SQLAlchemy's four kinds of session or connection it has."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from sqlalchemy import Connection, event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

from zart_sqla.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.orm import SessionTransaction

T = TypeVar("T")

AnyConnection = AsyncSession | Session | AsyncConnection | Connection
"""What the app's transaction can be joined through."""

_EXPECTED = "an AsyncSession, Session, AsyncConnection or Connection"


async def run_joined(joined: AnyConnection, function: Callable[[Connection], T]) -> T:
    """Return what the function returns, called with the connection of the app's transaction.

    Raises:
        ConfigError: it is none of the four kinds.
    """
    match joined:
        case AsyncSession():
            return await joined.run_sync(lambda session: function(session.connection()))
        case AsyncConnection():
            return await joined.run_sync(function)
        case _:
            return run_joined_sync(joined, function)


def run_joined_sync(joined: AnyConnection, function: Callable[[Connection], T]) -> T:
    """Return what the function returns, called with the connection of the app's transaction.

    Raises:
        ConfigError: it is neither a `Session` nor a `Connection`.
    """
    match joined:
        case Session():
            return function(joined.connection())
        case Connection():
            return function(joined)
        case AsyncSession() | AsyncConnection():
            raise ConfigError("session", expected="a Session or a Connection in a call without await", actual=joined)
        case _:
            raise ConfigError("session", expected=_EXPECTED, actual=joined)


def after_transaction(session: AsyncSession, call: Callable[[], None]) -> None:
    """Have the function called once, when the session's transaction has ended, whichever way."""
    listened = session.sync_session

    def on_end(_session: Session, transaction: SessionTransaction) -> None:
        if transaction.parent is None:
            event.remove(listened, "after_transaction_end", on_end)
            call()

    event.listen(listened, "after_transaction_end", on_end)
