"""The command about the tables themselves."""

from typing import Annotated

import typer

from zart_sqla.cli import options, output
from zart_sqla.cli.database import Database, run
from zart_sqla.migrations import Migration, upgrade
from zart_sqla.store.schema import installed_revision


def migrate(
    revision: Annotated[
        str, typer.Option("--revision", metavar="REVISION", help="The revision to bring the tables to.")
    ] = "head",
    check: Annotated[
        bool, typer.Option("--check", help="Change nothing; exit with 1 if the tables are behind this release.")
    ] = False,
    url: options.Url = None,
    prefix: options.Prefix = None,
    schema: options.Schema = None,
    as_json: options.AsJson = False,
) -> None:
    """Create the tables, or bring them to the revision of this release."""
    database = Database.named(url, prefix, schema)
    run(_check(database, as_json=as_json) if check else _migrate(database, revision, as_json=as_json))


async def _check(database: Database, *, as_json: bool) -> None:
    async with database.open() as scheduler:
        revision = await scheduler.run(installed_revision)
    tables = database.names.qualified("executions")
    if as_json:
        output.print_json({"tables": tables, "revision": revision})
    else:
        typer.echo(f"{tables}: at {revision}, nothing to do")


async def _migrate(database: Database, revision: str, *, as_json: bool) -> None:
    async with database.connect() as scheduler:
        migration = await scheduler.run(upgrade, revision)
    if as_json:
        output.print_json(_data(migration))
    else:
        typer.echo(migration.summary)


def _data(migration: Migration) -> dict[str, object]:
    return {
        "tables": migration.names.qualified("executions"),
        "before": migration.before,
        "after": migration.after,
        "has_changed": migration.has_changed,
        "is_app_managed": migration.is_app_managed,
        "is_newer": migration.is_newer,
    }
