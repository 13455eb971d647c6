"""Joining the app's transaction, whichever of SQLAlchemy's four kinds of session or connection it has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeVar

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

_CALLS: Final = "zart_sqla_after_transaction"
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
    if _CALLS not in listened.info:  # it stays: SQLAlchemy has no event remove its own listener
        event.listen(listened, "after_transaction_end", _on_end)
    calls: list[Callable[[], None]] = listened.info.setdefault(_CALLS, [])
    if call not in calls:
        calls.append(call)


def _on_end(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None:
        calls: list[Callable[[], None]] = session.info[_CALLS]
        session.info[_CALLS] = []
        for call in calls:
            call()
