"""The options and arguments that several commands have."""

from datetime import UTC, datetime
from typing import Annotated

import typer

from zart_sqla.durations import Duration, to_timedelta
from zart_sqla.errors import ConfigError

Url = Annotated[
    str | None,
    typer.Option(
        "--url",
        metavar="URL",
        help="The database, as postgresql://user@host/database. Default: the variable DATABASE_URL.",
    ),
]
Prefix = Annotated[
    str | None,
    typer.Option(
        "--prefix",
        metavar="PREFIX",
        help="What the tables' names start with. Default: the variable ZART_TABLE_PREFIX, or zart_.",
    ),
]
Schema = Annotated[
    str | None,
    typer.Option(
        "--schema",
        metavar="SCHEMA",
        help="The schema of the tables. Default: the variable ZART_SCHEMA, or the search path.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
ExecutionId = Annotated[str, typer.Argument(metavar="ID", help="The id of the execution.", show_default=False)]
Timeout = Annotated[
    str | None,
    typer.Option("--timeout", metavar="DURATION", help="How long to wait, such as 30s or 5m. Default: for ever."),
]


def duration(text: str | None) -> Duration | None:
    """Return the duration that the text of an option means: a bare number is seconds."""
    if text is None:
        return None
    try:
        return float(text)
    except ValueError:
        return text


def moment(text: str) -> datetime:
    """Return the time that `--since` means: an age, or a date with or without a time zone."""
    try:
        return datetime.now(UTC) - to_timedelta(text)
    except ConfigError:
        pass
    try:
        return datetime.fromisoformat(text).astimezone()
    except ValueError:
        expected = "an age such as '2h' or '3d', or a date such as '2030-01-31' or '2030-01-31T12:00:00+00:00'"
        raise ConfigError("--since", expected=expected, actual=text) from None
