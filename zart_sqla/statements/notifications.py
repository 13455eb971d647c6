"""Telling other processes."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from sqlalchemy import Text, bindparam, func, select

from zart_sqla.statements.arrays import TEXT, rows_of

if TYPE_CHECKING:
    from sqlalchemy import Select


@functools.cache
def notify() -> Select[Any]:
    """Send a notification when the transaction commits. Parameters: `channel`, `payload`."""
    return select(func.pg_notify(bindparam("channel", type_=Text), bindparam("payload", type_=Text)))


@functools.cache
def notify_all() -> Select[Any]:
    """Send notifications when the transaction commits. Parameters: `channel`, and the `rows_of` list `payload`."""
    given = rows_of("given", payload=TEXT)
    return select(func.pg_notify(bindparam("channel", type_=Text), given.c.payload))
