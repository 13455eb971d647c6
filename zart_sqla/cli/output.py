"""What commands print: JSON for programs, tables for people."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable

    from zart_sqla.records import ExecutionInfo, Page, StepInfo

STATUS_STYLES: Final = {
    "scheduled": "cyan",
    "running": "blue",
    "waiting": "magenta",
    "completed": "green",
    "failed": "red",
    "cancelled": "yellow",
}

_MINUTE = 60
_HOUR = 60 * _MINUTE
_DAY = 24 * _HOUR


def console() -> Console:
    """Return where people read: as wide as the terminal, or as the text where there is none."""
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=200)


def say(text: str) -> None:
    """Print a remark on the standard error, where it is in nobody's way."""
    typer.echo(text, err=True)


def print_json(data: Any, *, compact: bool = False) -> None:
    """Print data as JSON: the records of the client, and what is in them."""
    indent = None if compact else 2
    typer.echo(json.dumps(data, indent=indent, ensure_ascii=False, default=str))


def info_data(info: ExecutionInfo) -> dict[str, Any]:
    """Return the record of an execution as JSON data."""
    return {name: _plain(value) for name, value in asdict(info).items()}


def step_data(step: StepInfo) -> dict[str, Any]:
    """Return the record of a step as JSON data."""
    return {name: _plain(value) for name, value in asdict(step).items()}


def page_data(page: Page[ExecutionInfo]) -> dict[str, Any]:
    """Return a page of executions as JSON data."""
    return {"items": [info_data(info) for info in page], "next_cursor": page.next_cursor}


def print_info(info: ExecutionInfo, steps: Iterable[StepInfo]) -> None:
    """Print an execution and its steps for people."""
    out = console()
    facts = Table.grid(padding=(0, 2))
    for name, value in _facts(info):
        facts.add_row(Text(name, "bold"), value)
    out.print(facts)
    rows = list(steps)
    if rows:
        out.print()
        out.print(_steps_table(rows))


def _facts(info: ExecutionInfo) -> Iterable[tuple[str, Text]]:
    yield "execution", Text(info.execution_id)
    yield "task", Text(info.task_name)
    yield "status", status_text(info.status)
    if info.run_index:
        yield "run", Text(f"{info.run_index + 1}, resumed")
    yield "queue", Text(info.queue)
    yield "created", Text(moment(info.created_at))
    if info.started_at:
        yield "started", Text(moment(info.started_at))
    if info.completed_at:
        yield "ended", Text(moment(info.completed_at))
    yield "input", Text(one_line(info.payload))
    if info.status == "completed":
        yield "output", Text(one_line(info.result))
    if info.error:
        yield "error", Text(error_text(info.error), "red")


def _steps_table(steps: Iterable[StepInfo]) -> Table:
    table = Table("step", "kind", "status", "attempts", "recorded", "result", box=None, pad_edge=False)
    for step in steps:
        result = Text(error_text(step.error), "red") if step.error else Text(one_line(step.result))
        table.add_row(
            Text(step.name),
            step.kind,
            status_text(step.status),
            str(step.attempts),
            moment(step.completed_at) if step.completed_at else "",
            result,
        )
    return table


def print_page(page: Page[ExecutionInfo]) -> None:
    """Print a page of executions for people."""
    if not page.items:
        say("no executions found")
        return
    table = Table("execution", "task", "status", "created", "age", "took", "error", box=None, pad_edge=False)
    for info in page:
        table.add_row(
            Text(info.execution_id),
            Text(info.task_name),
            status_text(info.status),
            moment(info.created_at),
            age(info.created_at),
            span((info.completed_at - info.created_at).total_seconds()) if info.completed_at else "",
            Text(error_text(info.error), "red") if info.error else "",
        )
    console().print(table)
    if page.next_cursor:
        say(f"there are more: zart list --cursor {page.next_cursor}")


def status_text(status: str) -> Text:
    """Return the status in its colour."""
    return Text(status, STATUS_STYLES.get(status, ""))


def error_text(error: dict[str, Any]) -> str:
    """Return an error that was recorded, in one line."""
    place = f"{error['step']}: " if error.get("step") else ""
    return f"{place}{error.get('error_type')}: {error.get('message')}"


def one_line(value: Any, longest: int = 100) -> str:
    """Return JSON data in one line that is not too long."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def moment(at: datetime) -> str:
    """Return a time as people here read it, to the second."""
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def age(at: datetime) -> str:
    """Return how long ago a time is."""
    return span((datetime.now(UTC) - at).total_seconds())


def span(seconds: float) -> str:
    """Return a length of time in the unit that fits it."""
    for unit, name in ((_DAY, "d"), (_HOUR, "h"), (_MINUTE, "min")):
        if seconds >= 2 * unit:
            return f"{seconds / unit:.0f} {name}"
    return f"{max(seconds, 0):.1f} s"


def _plain(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value
