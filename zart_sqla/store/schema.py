"""Whether the database's tables are the ones that this code was written for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zart_sqla.errors import SchemaOutdated
from zart_sqla.migrations import find_installation, known_revisions
from zart_sqla.models import SCHEMA_REVISION

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from zart_sqla.table_names import TableNames


def installed_revision(connection: Connection, names: TableNames) -> str | None:
    """Return the revision that the tables say they are at; None if they are not there, or do not say."""
    return find_installation(connection, names).revision


def check_schema(connection: Connection, names: TableNames) -> None:
    """Refuse a database whose tables this code cannot work with.

    A revision that this release does not know is a newer one and is allowed: a deployment migrates first,
    while workers of the old release go on. Each migration leaves the statements of the release before it
    working.

    Raises:
        SchemaOutdated: the tables are missing, at an older revision, or do not say at which.
    """
    found = find_installation(connection, names)
    if found.revision == SCHEMA_REVISION:
        return
    if found.revision is None or found.revision in known_revisions():
        actual = found.revision or ("unknown" if found.exists else None)
        raise SchemaOutdated(names.qualified("executions"), expected=SCHEMA_REVISION, actual=actual)
