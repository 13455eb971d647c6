"""The command that looks whether all is well, and says what to do where it is not."""

import configparser
from collections.abc import AsyncGenerator, Generator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

import typer
from alembic.config import Config
from alembic.util import CommandError
from rich.table import Table
from rich.text import Text

from zart_sqla.cli import options, output
from zart_sqla.cli.database import Database, run
from zart_sqla.cli.exits import FAILED, DatabaseUnreachable
from zart_sqla.client import diagnosis as connections
from zart_sqla.client.scheduler import PostgresScheduler
from zart_sqla.errors import SchemaOutdated
from zart_sqla.migrations import find_ignored_version_location
from zart_sqla.store import diagnosis
from zart_sqla.store.diagnosis import Lost, WorkerHealth
from zart_sqla.store.schema import check_schema, installed_revision

OLDEST_SERVER: Final = 14
NEWEST_SERVER: Final = 18
_OVERDUE_SECONDS: Final = 30.0
_LATE_SECONDS: Final = 10.0
_NAMED: Final = 5


class Level(StrEnum):
    """How grave a finding is."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


_STYLES: Final = {Level.OK: "green", Level.WARNING: "yellow", Level.PROBLEM: "bold red"}


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: what it is.
        level: how grave it is.
        message: what was found.
        advice: what to do, None where there is nothing to do.
    """

    subject: str
    level: Level
    message: str
    advice: str | None = None


def doctor(
    url: options.Url = None,
    prefix: options.Prefix = None,
    schema: options.Schema = None,
    as_json: options.AsJson = False,
) -> None:
    """Look whether all is well; exit with 1 if something is wrong."""
    database = Database.named(url, prefix, schema)
    findings = run(_examine(database))
    is_well = all(finding.level is not Level.PROBLEM for finding in findings)
    if as_json:
        output.print_json({"ok": is_well, "findings": [asdict(finding) for finding in findings]})
    else:
        _print(findings)
    if not is_well:
        raise typer.Exit(FAILED)


def _print(findings: list[Finding]) -> None:
    table = Table.grid(padding=(0, 2))
    for finding in findings:
        message = Text(finding.message)
        if finding.advice:
            message.append(f"\n-> {finding.advice}", "bold")
        table.add_row(Text(finding.level, _STYLES[finding.level]), Text(finding.subject), message)
    output.console().print(table)


async def _examine(database: Database) -> list[Finding]:
    try:
        async with database.connect() as scheduler:
            findings = [_ok("connection", database.shown)]
            findings += [finding async for finding in _examine_server(scheduler)]
            findings += [finding async for finding in _examine_tables(scheduler)]
    except DatabaseUnreachable as error:
        findings = [_problem("connection", error.problem, error.advice)]
    return [*findings, *_examine_alembic(Path.cwd())]


async def _examine_server(scheduler: PostgresScheduler) -> AsyncGenerator[Finding]:
    yield examine_version(scheduler.engine.dialect.server_version_info or ())
    if await connections.has_sessions(scheduler.engine):
        yield _ok("session lock", "works: the death of a worker is noticed within seconds")
    else:
        yield _warning(
            "session lock",
            "there is none: the death of a worker is noticed only when its lease is over",
            "connect past the transaction pooler, to the server itself or to a pooler of sessions",
        )
    if await connections.hears_news(scheduler.engine, scheduler.names):
        yield _ok("LISTEN", "works: workers hear of new work at once")
    else:
        yield _warning(
            "LISTEN",
            "no notification arrives: workers find new work only by polling",
            "connect past the transaction pooler, or lower --poll-interval",
        )


def examine_version(version: tuple[int | str, ...]) -> Finding:
    """Return whether zart_sqla works on this version of the server."""
    shown = "PostgreSQL " + ".".join(map(str, version))
    major = int(version[0]) if version else 0
    if major < OLDEST_SERVER:
        return _problem("server", f"{shown} is too old", f"upgrade it to PostgreSQL {OLDEST_SERVER} or later")
    if major > NEWEST_SERVER:
        return _warning("server", f"{shown} is newer than this release was tested with")
    return _ok("server", shown)


async def _examine_tables(scheduler: PostgresScheduler) -> AsyncGenerator[Finding]:
    tables = scheduler.names.qualified("executions")
    try:
        await scheduler.run(check_schema)
    except SchemaOutdated as error:
        found = f"at revision {error.actual}" if error.actual else "missing"
        advice = "run 'alembic upgrade heads' in the app that owns them, or 'zart migrate'"
        yield _problem("tables", f"{tables} is {found}; this release needs {error.expected}", advice)
        return
    yield _ok("tables", f"{tables} is at revision {await scheduler.run(installed_revision)}")
    workers = await scheduler.run(diagnosis.workers)
    for finding in _examine_workers(workers):
        yield finding
    for overdue in await scheduler.run(diagnosis.overdue, _OVERDUE_SECONDS):
        yield _problem(
            "queue",
            f"{overdue.tasks} of {overdue.task_name!r} in queue {overdue.queue!r} are due and not taken, "
            f"for up to {output.span(overdue.seconds)}",
            "run a worker whose registry has this task and that serves this queue; or more of them",
        )
    yield _examine_lost(await scheduler.run(diagnosis.lost, _NAMED))


def _examine_workers(workers: list[WorkerHealth]) -> Generator[Finding]:
    if not workers:
        yield _warning("workers", "none is running", "start one: zart worker myapp.jobs:registry")
    for worker in workers:
        who = f"process {worker.pid} on {worker.hostname}"
        heard = f"heard from {worker.silent_seconds:.1f} s ago, holds {worker.tasks} tasks"
        if not worker.is_alive:
            advice = "a worker that lives takes over what it holds within seconds; start one if there is none"
            yield _problem("worker", f"{who} is dead, {heard}", advice)
        elif worker.silent_seconds > _LATE_SECONDS:
            advice = "see whether it is stopped, starved or cut off; its tasks go to others when its lease is over"
            yield _warning("worker", f"{who} is late, {heard}", advice)
        elif not worker.has_lock:
            advice = "connect it past the transaction pooler"
            yield _warning("worker", f"{who} lives without a session lock, {heard}", advice)
        else:
            yield _ok("worker", f"{who}, {heard}")


def _examine_lost(lost: Lost) -> Finding:
    if not lost.total:
        return _ok("runs", "each that has not ended has its task")
    named = ", ".join(lost.execution_ids)
    more = ", ..." if lost.total > len(lost.execution_ids) else ""
    return _problem(
        "runs",
        f"{lost.total} have not ended and have no task, so nobody goes on with them: {named}{more}",
        "rows were deleted by hand or restored in part: restore the tasks too, or start these executions anew",
    )


def _examine_alembic(folder: Path) -> Generator[Finding]:
    """Look whether an Alembic configuration here means our revisions, and skips them."""
    ini, toml = folder / "alembic.ini", folder / "pyproject.toml"
    mentions = [path for path in (ini, toml) if path.is_file() and "zart" in path.read_text(errors="replace")]
    if not mentions:
        return
    config = Config(ini if ini.is_file() else None, toml_file=toml if toml.is_file() else None)
    try:
        ignored = find_ignored_version_location(config)
    except (CommandError, configparser.Error, ValueError) as error:
        yield _warning("alembic", f"cannot read {mentions[0].name}: {error}")
        return
    if ignored is None:
        return
    yield _problem(
        "alembic",
        f"{mentions[0].name} names {ignored!r} in version_locations, and Alembic skips it without a word",
        "write 'zart_sqla:migrations/versions' and set path_separator = space",
    )


def _ok(subject: str, message: str) -> Finding:
    return Finding(subject=subject, level=Level.OK, message=message)


def _warning(subject: str, message: str, advice: str | None = None) -> Finding:
    return Finding(subject=subject, level=Level.WARNING, message=message, advice=advice)


def _problem(subject: str, message: str, advice: str | None) -> Finding:
    return Finding(subject=subject, level=Level.PROBLEM, message=message, advice=advice)
