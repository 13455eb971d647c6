"""What the database says of the tables: whether they are there, and at which revision."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sqlalchemy import Text, cast, func, select
from sqlalchemy.dialects.postgresql import OID

from zart_sqla.models.revision import revision_of

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from zart_sqla.table_names import TableNames


@dataclass(frozen=True, kw_only=True)
class Installation:
    """The tables of one set of names, as a database has them.

    Attributes:
        exists: whether they are there.
        revision: the revision that they say they are at; None if they are not there, or do not say.
    """

    exists: bool
    revision: str | None


def find_installation(connection: Connection, names: TableNames) -> Installation:
    """Return whether the database has the tables, and at which revision.

    The revision is in the comment of the executions table, so it is known whichever history made them.
    """
    table = cast(func.to_regclass(cast(names.qualified("executions"), Text)), OID)
    statement = select(table.is_not(None), func.obj_description(table, "pg_class"))
    exists, comment = connection.execute(statement).one()
    return Installation(exists=exists, revision=revision_of(comment))
