"""The error of a migration that cannot be run."""

from __future__ import annotations

from zart_sqla.errors import ZartError


class MigrationError(ZartError):
    """The tables cannot be migrated from here.

    Attributes:
        tables: the qualified name of the table that was looked at.
        revision: the revision that it is at, None if it is not there or does not say.
        problem: what is in the way, and what to do about it.
    """

    def __init__(self, tables: str, *, revision: str | None, problem: str) -> None:
        self.tables = tables
        self.revision = revision
        self.problem = problem
        super().__init__(f"the tables of zart_sqla ({tables}) cannot be migrated: {problem}")
