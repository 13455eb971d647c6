"""The command's subcommands, and how it ends."""

import sys
from importlib import metadata
from typing import Annotated, Final

import typer

from zart_sqla.cli import check, demo, doctor, executions, migrations, worker
from zart_sqla.cli.exits import EXPECTED, fail

app: Final = typer.Typer(
    name="zart",
    help="Durable execution in PostgreSQL: run workers, start executions and look after them.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 timed out, 130 and 143 a second signal.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if not wanted:
        return
    try:
        typer.echo(metadata.version("zart-sqla"))
    except metadata.PackageNotFoundError:
        typer.echo("unknown: the package is used without being installed")
    raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version, and exit."),
    ] = False,
) -> None:
    """Take what stands before the subcommand."""


for _command in (
    migrations.migrate,
    worker.worker,
    check.check,
    executions.start,
    executions.status,
    executions.wait,
    executions.result,
    executions.history,
    executions.event,
    executions.stream,
    executions.cancel,
    executions.resume,
):
    app.command()(_command)
app.command("list")(executions.list_)
app.command()(doctor.doctor)
app.command()(demo.demo)


def main() -> None:
    """Run the command. An expected error is told on the standard error, in a line or two, without a traceback."""
    try:
        app()
    except EXPECTED as error:
        sys.exit(fail(error))
