"""The options and arguments that several commands have."""

from typing import Annotated

import typer

from zart_sqla.durations import Duration

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
