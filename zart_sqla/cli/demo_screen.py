"""What a demo shows: a live picture on a terminal, lines elsewhere."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Protocol

from rich.columns import Columns
from rich.console import Group
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from zart_sqla.cli.output import STATUS_STYLES
from zart_sqla.records import ExecutionStatus

if TYPE_CHECKING:
    from collections.abc import Generator

    from rich.console import Console, RenderableType

    from zart_sqla.cli.demo_figures import Figures
    from zart_sqla.cli.demo_workers import Crew, CrewMember

_BAR: Final = 28
_SHOWN_DEAD: Final = 4
_SHOWN_WORKERS: Final = 9
_LINE_SECONDS: Final = 2.0


class Screen(Protocol):
    """Where a demo shows how far it is."""

    def show(self, figures: Figures, crew: Crew) -> None:
        """Show the state of the demo."""
        ...

    def tell(self, text: str) -> None:
        """Tell that something happened."""
        ...


@contextmanager
def screen(console: Console, *, kills: int) -> Generator[Screen]:
    """Give the screen that fits where the output goes."""
    if not console.is_terminal:
        yield Lines(console)
        return
    with Live(console=console, refresh_per_second=10) as live:
        yield Picture(live, kills)


class Silence:
    """Shows nothing: for programs, which read the result."""

    def show(self, figures: Figures, crew: Crew) -> None:
        """Show nothing."""

    def tell(self, text: str) -> None:
        """Tell nothing."""


class Lines:
    """Shows the demo in lines, for logs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._started_at = self._shown_at = time.monotonic()

    def show(self, figures: Figures, crew: Crew) -> None:
        """Print a line every now and then."""
        if time.monotonic() - self._shown_at < _LINE_SECONDS:
            return
        self._shown_at = time.monotonic()
        self.tell(
            f"{figures.completed}/{figures.orders} orders completed, {figures.charges} charges, "
            f"{figures.charged_twice} charged twice, {figures.recorded}/{figures.steps} steps recorded, "
            f"{figures.run_again} interrupted and run again, {len(crew.alive)} workers alive, {crew.kills} killed"
        )

    def tell(self, text: str) -> None:
        """Print a line."""
        self._console.print(f"{time.monotonic() - self._started_at:5.1f} s  {text}", soft_wrap=True)


class Picture:
    """Shows the demo as a picture that changes."""

    def __init__(self, live: Live, kills: int) -> None:
        self._live = live
        self._kills = kills
        self._started_at = time.monotonic()
        self._news = ""

    def show(self, figures: Figures, crew: Crew) -> None:
        """Draw the picture anew."""
        self._live.update(self._draw(figures, crew))

    def tell(self, text: str) -> None:
        """Show it below the picture, until the next news."""
        self._news = text

    def _draw(self, figures: Figures, crew: Crew) -> RenderableType:
        seconds = f"{time.monotonic() - self._started_at:.0f} s"
        tables = Columns(
            [
                Panel(_orders(figures), title="orders", border_style="cyan", padding=(0, 1)),
                Panel(_workers(figures, crew), title="workers", border_style="cyan", padding=(0, 1)),
                Panel(
                    _promises(figures, crew, self._kills), title="exactly once", border_style="green", padding=(0, 1)
                ),
            ],
            padding=(0, 1),
        )
        title = Text.assemble(
            ("zart demo", "bold"), f"  {figures.orders} orders, workers killed with SIGKILL  {seconds}"
        )
        return Group(title, tables, Text(self._news, "dim"))


def _orders(figures: Figures) -> Table:
    table = Table.grid(padding=(0, 1))
    for status in ExecutionStatus:
        count = figures.by_status.get(status, 0)
        if status.is_terminal and status is not ExecutionStatus.COMPLETED and not count:
            continue
        style = STATUS_STYLES[status]
        width = round(_BAR * count / figures.orders)
        bar = Text("█" * max(width, 1 if count else 0), style).append(
            "·" * (_BAR - max(width, 1 if count else 0)), "dim"
        )
        table.add_row(Text(status, style), bar, Text(f"{count:>4}", "bold"))
    return table


def _workers(figures: Figures, crew: Crew) -> Table:
    table = Table.grid(padding=(0, 1))
    for member in crew.alive[:_SHOWN_WORKERS]:
        held = figures.held.get(member.pid)
        doing = Text("starting", "dim") if held is None else Text(f"{'▮' * held} {held}", "blue")
        table.add_row(Text(str(member.pid), "bold"), doing)
    dead = [member for member in crew.members if not member.is_alive]
    for member in reversed(dead[-_SHOWN_DEAD:]):
        table.add_row(Text(str(member.pid), "dim strike"), _epitaph(member))
    return table


def _epitaph(member: CrewMember) -> Text:
    return Text(f"killed at {member.held} orders" if member.is_killed else "died", "red")


def _promises(figures: Figures, crew: Crew, kills: int) -> Table:
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right")
    table.add_row(Text(f"{crew.kills}/{kills}", "red bold"), "workers killed")
    table.add_row(Text(str(figures.charges), "bold"), "charges")
    table.add_row(_zero(figures.charged_twice), "orders charged twice")
    table.add_row(Text(f"{figures.recorded}/{figures.steps}", "bold"), "steps recorded")
    table.add_row(Text(str(figures.run_again), "yellow bold"), "interrupted and run again")
    table.add_row(_zero(figures.begun_after_checkpoint), "run again once recorded")
    return table


def _zero(count: int) -> Text:
    return Text(str(count), "bold green" if count == 0 else "bold white on red")
