"""The revision of the schema that the models describe."""

from __future__ import annotations

from typing import Final

SCHEMA_REVISION: Final = "zart_0001"
"""The newest revision in `migrations/versions`."""


def schema_comment(revision: str = SCHEMA_REVISION) -> str:
    """Return the comment by which the tables say at which revision they are, however they were migrated."""
    return f"zart_sqla schema revision {revision}"


def revision_of(comment: str | None) -> str | None:
    """Return the revision that such a comment names, None if it names none."""
    prefix = schema_comment("")
    return comment.removeprefix(prefix) if comment and comment.startswith(prefix) else None
