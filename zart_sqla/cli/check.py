"""The gate of a deploy: would the runs that are under way go on with this code?"""

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Annotated, Final

import typer

from zart_sqla.cli import options, output
from zart_sqla.cli.database import Database, run
from zart_sqla.cli.exits import FAILED
from zart_sqla.cli.loading import load_registry
from zart_sqla.client.scheduler import PostgresScheduler
from zart_sqla.config import check_count
from zart_sqla.errors import InvalidDataError, NonDeterminismError
from zart_sqla.histories import ExecutionHistory
from zart_sqla.records import ExecutionFilter
from zart_sqla.runtime.handlers import TaskRegistry
from zart_sqla.runtime.replay import replay
from zart_sqla.store import executions, histories

_PAGE: Final = 50  # so many journals are in memory at once


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A run that would not go on.

    Attributes:
        execution_id: its execution.
        task_name: the task that it runs.
        problem: what is wrong.
        breaks: whether the code does not fit it; if not, there is none for it.
        position: at which place in the run, from 0; None where that is not known.
        recorded: the step that is recorded there.
        called: the step that the code calls there.
    """

    execution_id: str
    task_name: str
    problem: str
    breaks: bool
    position: int | None = None
    recorded: str | None = None
    called: str | None = None


@dataclass(slots=True)
class _Counts:
    checked: int = 0
    broken: int = 0
    unknown: int = 0


def check(  # noqa: PLR0913, PLR0917 - options
    registry: Annotated[
        str, typer.Argument(metavar="MODULE:REGISTRY", help="The TaskRegistry, such as myapp.jobs:registry.")
    ],
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="WHEN", help="Only those started then or later: a date, or an age as 7d."),
    ] = None,
    task: Annotated[str | None, typer.Option("--task", metavar="NAME", help="Only those of this task.")] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", metavar="N", help="Look at so many at most, the newest first.")
    ] = None,
    url: options.Url = None,
    prefix: options.Prefix = None,
    schema: options.Schema = None,
    as_json: options.AsJson = False,
) -> None:
    """Replay the executions that have not ended with this code; exit with 1 if it would break one."""
    database = Database.named(url, prefix, schema)
    started_since = None if since is None else options.moment(since)
    if limit is not None:
        check_count("--limit", limit, minimum=1)
    loaded = load_registry(registry)
    counts = run(_check(database, loaded, _Wanted(started_since, task, limit), as_json=as_json))
    output.say(
        f"{counts.checked} executions replayed, {counts.broken} would break; {counts.unknown} have no handler here"
    )
    if counts.broken:
        raise typer.Exit(FAILED)


@dataclass(frozen=True)
class _Wanted:
    since: datetime | None
    task_name: str | None
    limit: int | None


async def _check(database: Database, registry: TaskRegistry, wanted: _Wanted, *, as_json: bool) -> _Counts:
    counts = _Counts()
    async with database.open() as scheduler:
        async for finding in _findings(scheduler, registry, wanted, counts):
            if as_json:
                output.print_json(asdict(finding), compact=True)
            else:
                typer.echo(f"{finding.execution_id}  {finding.task_name}  {finding.problem}")
    return counts


async def _findings(
    scheduler: PostgresScheduler, registry: TaskRegistry, wanted: _Wanted, counts: _Counts
) -> AsyncGenerator[Finding]:
    cursor: str | None = None
    left = wanted.limit
    while left is None or left > 0:
        filter_ = ExecutionFilter(
            status=None,
            task_name=wanted.task_name,
            search=None,
            since=wanted.since,
            limit=_PAGE if left is None else min(left, _PAGE),
            is_unfinished=True,
        )
        page = await scheduler.run(executions.browse, filter_, cursor)
        known = [info.execution_id for info in page if registry.get(info.task_name) is not None]
        for info in page:
            if registry.get(info.task_name) is None:
                counts.unknown += 1
                yield Finding(
                    execution_id=info.execution_id,
                    task_name=info.task_name,
                    problem="no handler for it is registered",
                    breaks=False,
                )
        found = await scheduler.run(histories.histories, known)
        counts.checked += len(found)
        for finding in await asyncio.gather(*(_replayed(registry, history) for history in found.values())):
            if finding is not None:
                counts.broken += 1
                yield finding
        left = None if left is None else left - len(page)
        cursor = page.next_cursor
        if cursor is None:
            return


async def _replayed(registry: TaskRegistry, history: ExecutionHistory) -> Finding | None:
    """Return what is wrong with the run, None if the code fits it."""
    handler = registry.get(history.task_name)
    assert handler is not None  # noqa: S101 - the caller has looked
    try:
        await replay(handler, history)
    except NonDeterminismError as error:
        return Finding(
            execution_id=history.execution_id,
            task_name=history.task_name,
            problem=f"at position {error.position}: recorded {_name(error.recorded)}, called {_name(error.called)}",
            breaks=True,
            position=error.position,
            recorded=error.recorded,
            called=error.called,
        )
    except InvalidDataError as error:
        return Finding(execution_id=history.execution_id, task_name=history.task_name, problem=str(error), breaks=True)
    return None


def _name(step: str | None) -> str:
    return "nothing" if step is None else repr(step)
