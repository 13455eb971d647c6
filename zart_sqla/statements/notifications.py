"""Telling other processes."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from sqlalchemy import Text, bindparam, func, select

if TYPE_CHECKING:
    from sqlalchemy import Select


@functools.cache
def notify() -> Select[Any]:
    """Send a notification when the transaction commits. Parameters: `channel`, `payload`."""
    return select(func.pg_notify(bindparam("channel", type_=Text), bindparam("payload", type_=Text)))
