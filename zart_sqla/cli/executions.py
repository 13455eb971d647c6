"""The commands about executions: start, look, wait, tell of an event, follow a stream, cancel, resume."""

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from zart_sqla.cli import options, output
from zart_sqla.cli.database import Database, run
from zart_sqla.cli.exits import USAGE, CommandError
from zart_sqla.client import executions
from zart_sqla.client.handles import ExecutionHandle
from zart_sqla.codec import plain_json
from zart_sqla.errors import ExecutionCancelled, ExecutionFailed
from zart_sqla.records import DEFAULT_QUEUE, ExecutionInfo, ExecutionStatus


class OnConflict(StrEnum):
    """What `start` does if the id is taken."""

    RAISE = "raise"
    RETURN = "return"


def start(  # noqa: PLR0913, PLR0917 - options
    name: Annotated[str, typer.Argument(metavar="NAME", help="The task, by the name it has in the registry.")],
    data: Annotated[
        str | None,
        typer.Argument(metavar="[DATA]", help="Its input as JSON; @file reads a file, - the standard input."),
    ] = None,
    execution_id: Annotated[str | None, typer.Option("--id", metavar="ID", help="Its id. Default: a new UUID.")] = None,
    queue: Annotated[str, typer.Option("--queue", metavar="QUEUE", help="The queue of its tasks.")] = DEFAULT_QUEUE,
    on_conflict: Annotated[
        OnConflict, typer.Option("--on-conflict", help="If the id is taken: fail, or take the one that exists.")
    ] = OnConflict.RAISE,
    wait: Annotated[bool, typer.Option("--wait", help="Wait for its end, and print its output.")] = False,
    timeout: options.Timeout = None,
    url: options.Url = None,
    prefix: options.Prefix = None,
    schema: options.Schema = None,
    as_json: options.AsJson = False,
) -> None:
    """Start an execution, and print its id."""
    if timeout is not None and not wait:
        raise CommandError("--timeout is for waiting", "add --wait, or leave --timeout out", code=USAGE)
    payload = _read_data(data)
    database = Database.named(url, prefix, schema)

    async def main() -> None:
        async with database.open() as scheduler:
            handle = await scheduler.start(
                name, payload, execution_id=execution_id, queue=queue, on_conflict=on_conflict.value
            )
            if wait:
                await _print_end(handle, timeout, as_json=as_json)
            elif as_json:
                output.print_json(output.info_data(await handle.info()))
            else:
                typer.echo(handle.execution_id)

    run(main())


def status(
    execution_id: options.ExecutionId,
    url: options.Url = None,
    prefix: options.Prefix = None,
    schema: options.Schema = None,
    as_json: options.AsJson = False,
) -> None:
    """Show an execution and its steps."""
    database = Database.named(url, prefix, schema)

    async def main() -> None:
        async with database.open() as scheduler:
            handle = scheduler.handle(execution_id)
            info, steps = await handle.info(), await handle.steps()
        if as_json:
            output.print_json(output.info_data(info) | {"steps": [output.step_data(step) for step in steps]})
        else:
            output.print_info(info, steps)

    run(main())


def wait(
    execution_id: options.ExecutionId,
    timeout: options.Timeout = None,
    url: options.Url = None,
    prefix: options.Prefix = None,
    schema: options.Schema = None,
    as_json: options.AsJson = False,
) -> None:
    """Wait for the end of an execution, and print its output."""
    database = Database.named(url, prefix, schema)

    async def main() -> None:
        async with database.open() as scheduler:
            await _print_end(scheduler.handle(execution_id), timeout, as_json=as_json)

    run(main())


def result(
    execution_id: options.ExecutionId,
    url: options.Url = None,
    prefix: options.Prefix = None,
    schema: options.Schema = None,
    as_json: options.AsJson = False,
) -> None:
    """Print the output of an execution as JSON, without waiting for it."""
    database = Database.named(url, prefix, schema)

    async def main() -> None:
        async with database.open() as scheduler:
            ended = await scheduler.run(executions.ending, execution_id)
        if not ended.status.is_terminal:
            raise CommandError(
                f"execution {execution_id!r} is {ended.status} and has no output yet",
                f"wait for it with 'zart wait {execution_id}'",
            )
        output.print_json(executions.result_of(ended, execution_id, plain_json), compact=as_json)

    run(main())


def history(
    execution_id: options.ExecutionId,
    url: options.Url = None,
    prefix: options.Prefix = None,
    schema: options.Schema = None,
) -> None:
    """Print all that is recorded of an execution as JSON, for a test that replays it."""
    database = Database.named(url, prefix, schema)

    async def main() -> None:
        async with database.open() as scheduler:
            typer.echo((await scheduler.handle(execution_id).history()).to_json())

    run(main())


def event(  # noqa: PLR0913, PLR0917 - options
    execution_id: options.ExecutionId,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The event's name.")],
    data: Annotated[
        str | None,
        typer.Argument(metavar="[DATA]", help="Its value as JSON; @file reads a file, - the standard input."),
    ] = None,
    event_id: Annotated[
        str | None,
        typer.Option("--id", metavar="EVENT_ID", help="What tells it from others: an event of one id counts once."),
    ] = None,
    url: options.Url = None,
    prefix: options.Prefix = None,
    schema: options.Schema = None,
    as_json: options.AsJson = False,
) -> None:
    """Offer an event to an execution, which takes it when it waits for one of this name."""
    value = _read_data(data)
    database = Database.named(url, prefix, schema)

    async def main() -> None:
        async with database.open() as scheduler:
            is_new = await scheduler.handle(execution_id).offer_event(name, value, event_id=event_id)
        if as_json:
            output.print_json({"execution_id": execution_id, "name": name, "event_id": event_id, "is_new": is_new})
        else:
            typer.echo(f"{execution_id} {name} {'offered' if is_new else 'was offered before'}")

    run(main())


def stream(  # noqa: PLR0913, PLR0917 - options
    execution_id: options.ExecutionId,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The stream's name.")],
    offset: Annotated[int, typer.Option("--offset", metavar="N", help="The number of the first value, from 0.")] = 0,
    follow: Annotated[
        bool, typer.Option("--follow/--no-follow", help="Wait for what comes until the execution ends, or do not.")
    ] = True,
    url: options.Url = None,
    prefix: options.Prefix = None,
    schema: options.Schema = None,
) -> None:
    """Print what an execution emits into a stream, as it comes: a line of JSON for each value, with its offset."""
    database = Database.named(url, prefix, schema)

    async def main() -> None:
        async with database.open() as scheduler:
            reader = scheduler.handle(execution_id).stream(name, offset=offset, follow=follow)
            async for value in reader:
                output.print_json({"offset": reader.offset - 1, "value": value}, compact=True)

    run(main())


def cancel(
    execution_id: options.ExecutionId,
    url: options.Url = None,
    prefix: options.Prefix = None,
    schema: options.Schema = None,
    as_json: options.AsJson = False,
) -> None:
    """End an execution as cancelled."""
    database = Database.named(url, prefix, schema)

    async def main() -> None:
        async with database.open() as scheduler:
            handle = scheduler.handle(execution_id)
            await handle.cancel()
            _print_change(await handle.info(), as_json=as_json)

    run(main())


def resume(
    execution_id: options.ExecutionId,
    url: options.Url = None,
    prefix: options.Prefix = None,
    schema: options.Schema = None,
    as_json: options.AsJson = False,
) -> None:
    """Let a failed execution go on from its last checkpoint."""
    database = Database.named(url, prefix, schema)

    async def main() -> None:
        async with database.open() as scheduler:
            handle = scheduler.handle(execution_id)
            await handle.resume()
            _print_change(await handle.info(), as_json=as_json)

    run(main())


def list_(  # noqa: PLR0913, PLR0917 - options
    status: Annotated[ExecutionStatus | None, typer.Option("--status", help="Only those that stand there.")] = None,
    task: Annotated[str | None, typer.Option("--task", metavar="NAME", help="Only those of this task.")] = None,
    search: Annotated[
        str | None, typer.Option("--search", metavar="TEXT", help="Only those whose id starts with this.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="WHEN", help="Only those started then or later: a date, or an age as 2h."),
    ] = None,
    limit: Annotated[int, typer.Option("--limit", metavar="N", help="How many at most, up to 1000.")] = 50,
    cursor: Annotated[
        str | None, typer.Option("--cursor", metavar="CURSOR", help="Where an earlier list ended.")
    ] = None,
    url: options.Url = None,
    prefix: options.Prefix = None,
    schema: options.Schema = None,
    as_json: options.AsJson = False,
) -> None:
    """List executions, the newest first."""
    database = Database.named(url, prefix, schema)
    started_since = None if since is None else options.moment(since)

    async def main() -> None:
        async with database.open() as scheduler:
            page = await scheduler.list_executions(
                status=status, task_name=task, search=search, since=started_since, limit=limit, cursor=cursor
            )
        if as_json:
            output.print_json(output.page_data(page))
        else:
            output.print_page(page)

    run(main())


async def _print_end(handle: ExecutionHandle[Any], timeout: str | None, *, as_json: bool) -> None:  # noqa: ASYNC109
    """Wait, and print the output; as JSON the whole record, also of an execution that failed."""
    try:
        outcome = await handle.result(timeout=options.duration(timeout))
    except (ExecutionFailed, ExecutionCancelled):
        if as_json:
            output.print_json(output.info_data(await handle.info()))
        raise
    if as_json:
        output.print_json(output.info_data(await handle.info()))
    else:
        output.print_json(outcome)


def _print_change(info: ExecutionInfo, *, as_json: bool) -> None:
    if as_json:
        output.print_json(output.info_data(info))
    else:
        typer.echo(f"{info.execution_id} {info.status}")


def _read_data(given: str | None) -> Any:
    """Return the input that an argument means.

    Raises:
        CommandError: it is not JSON, or the file cannot be read.
    """
    if given is None:
        return None
    text = _read_text(given)
    try:
        return json.loads(text)
    except ValueError as error:
        shown = output.one_line(text, 60)
        advice = """quote it for the shell, such as '{"id": 42}' or '"text"'"""
        raise CommandError(f"DATA is not JSON: {error}, in {shown}", advice, code=USAGE) from error


def _read_text(given: str) -> str:
    if given == "-":
        return sys.stdin.read()
    if not given.startswith("@"):
        return given
    try:
        return Path(given[1:]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CommandError(f"cannot read {given[1:]!r}: {error}", code=USAGE) from error
