"""The command that shows, in half a minute, what durable execution is."""

import asyncio
import random
import secrets
import signal
import tempfile
import time
from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.panel import Panel
from rich.text import Text

from zart_sqla import migrations
from zart_sqla.cli import demo_figures, options, output
from zart_sqla.cli.database import Database, run
from zart_sqla.cli.demo_figures import Figures
from zart_sqla.cli.demo_screen import Screen, Silence, screen
from zart_sqla.cli.demo_workers import CONCURRENCY, Crew
from zart_sqla.cli.demo_workflow import Order, demo_tables, fulfil
from zart_sqla.cli.exits import FAILED, SIGNALLED, CommandError
from zart_sqla.client.scheduler import PostgresScheduler
from zart_sqla.config import DATABASE_URL_VARIABLE, environment_variable
from zart_sqla.embedded import embedded_server
from zart_sqla.table_names import TableNames

_LOOK_SECONDS: Final = 0.2
_BETWEEN_KILLS_SECONDS: Final = 0.6
_STALLED_SECONDS: Final = 60.0
_LOG_LINES: Final = 20


def demo(
    orders: Annotated[int, typer.Option("--orders", metavar="N", min=1, max=5000, help="How many orders.")] = 200,
    workers: Annotated[int, typer.Option("--workers", metavar="N", min=1, max=20, help="How many processes.")] = 3,
    kills: Annotated[int, typer.Option("--kills", metavar="N", min=0, help="How many of them to kill.")] = 8,
    url: Annotated[
        str | None,
        typer.Option("--url", metavar="URL", help="A database. Default: DATABASE_URL, or a server of its own."),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Kill workers while they work, and see that every order is charged exactly once."""
    try:
        with _database(url, quiet=as_json) as database:
            figures, facts = run(_perform(database, orders, workers, kills, as_json=as_json))
    except KeyboardInterrupt:
        raise typer.Exit(SIGNALLED + signal.SIGINT) from None
    except asyncio.CancelledError:
        raise typer.Exit(SIGNALLED + signal.SIGTERM) from None
    is_kept = all(kept for kept, _ in figures.verdict())
    if as_json:
        output.print_json({"ok": is_kept, **facts})
    else:
        _print_verdict(figures, facts, is_kept=is_kept)
    if not is_kept:
        raise typer.Exit(FAILED)


@contextmanager
def _database(url: str | None, *, quiet: bool) -> Generator[Database]:
    """Give a place for tables of the demo's own: in the database that is named, or on a server of its own."""
    names = TableNames.with_prefix(f"zart_demo_{secrets.token_hex(3)}_")
    named = url or environment_variable(DATABASE_URL_VARIABLE)
    if named:
        yield Database(named, names)
        return
    if not quiet:
        output.say("starting a PostgreSQL of its own ...")
    with embedded_server() as own:
        yield Database(own, names)


async def _perform(
    database: Database, orders: int, workers: int, kills: int, *, as_json: bool
) -> tuple[Figures, dict[str, Any]]:
    """Run the demo, and return how it ended."""
    _stop_on_sigterm()
    started_at = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="zart-demo-") as folder:
        crew = Crew(database, workers, Path(folder) / "workers.log")
        async with database.connect() as scheduler, _tables(scheduler), _at_work(crew):
            show = _Show(scheduler, crew, orders=orders, kills=kills)
            if as_json:
                figures = await show.run(Silence())
            else:
                with screen(output.console(), kills=kills) as shown:
                    figures = await show.run(shown)
    return figures, {
        "seconds": round(time.monotonic() - started_at, 1),
        "orders": figures.orders,
        "completed": figures.completed,
        "workers_started": len(crew.members),
        "workers_killed": crew.kills,
        "charges": figures.charges,
        "charged_twice": figures.charged_twice,
        "steps": figures.steps,
        "steps_recorded": figures.recorded,
        "steps_run_again": figures.run_again,
        "steps_run_again_once_recorded": figures.begun_after_checkpoint,
    }


def _orders(first: int, count: int) -> list[tuple[str, Order]]:
    ids = [f"order-{number:04}" for number in range(first, first + count)]
    return [(one, Order(one, random.randint(500, 20_000))) for one in ids]  # noqa: S311 - no secret


class _Show:
    """Sends in orders, watches the workers, kills some of them, and ends when all orders have."""

    def __init__(self, scheduler: PostgresScheduler, crew: Crew, *, orders: int, kills: int) -> None:
        self._scheduler = scheduler
        self._crew = crew
        self._orders = orders
        self._kills = kills
        self._started = 0
        self._killed_at = self._moved_at = time.monotonic()
        self._seen = -1

    async def run(self, shown: Screen) -> Figures:
        while True:
            await self._crew.fill_up()
            figures = await self._scheduler.run(demo_figures.read, self._orders)
            if figures.ended == self._orders:
                shown.tell("all orders have ended")
            shown.show(figures, self._crew)
            if figures.ended == self._orders:
                return figures
            self._check_movement(figures)
            await self._send_in(figures)
            await self._kill_one(figures, shown)
            await asyncio.sleep(_LOOK_SECONDS)

    async def _send_in(self, figures: Figures) -> None:
        """Start more orders when few are left to be taken up, as customers would."""
        enough = CONCURRENCY * self._crew.size
        count = min(enough, self._orders - self._started)
        if count and figures.scheduled < enough:
            await self._scheduler.start_many(fulfil, _orders(self._started + 1, count))
            self._started += count

    async def _kill_one(self, figures: Figures, shown: Screen) -> None:
        """Kill the busiest worker, if it is time: the kills are spread over the work that there is."""
        crew = self._crew
        is_time = figures.progress > crew.kills / (self._kills + 1) if self._kills else False
        waited = time.monotonic() - self._killed_at >= _BETWEEN_KILLS_SECONDS
        if crew.kills >= self._kills or not (is_time and waited):
            return
        victim = max(crew.alive, key=lambda member: figures.held.get(member.pid, 0))
        held = figures.held.get(victim.pid, 0)
        if held:
            await crew.kill(victim, held=held)
            self._killed_at = time.monotonic()
            shown.tell(f"kill -9 {victim.pid}: it was at {held} orders; a new worker starts")

    def _check_movement(self, figures: Figures) -> None:
        """Give up if nothing moves any more.

        Raises:
            CommandError: nothing has, for a long time.
        """
        now = time.monotonic()
        if figures.begun + figures.recorded != self._seen:
            self._seen, self._moved_at = figures.begun + figures.recorded, now
        elif now - self._moved_at > _STALLED_SECONDS:
            output.say(self._crew.complaints(_LOG_LINES))
            raise CommandError("the demo stands still; above is what its workers logged last")


@asynccontextmanager
async def _at_work(crew: Crew) -> AsyncGenerator[None]:
    try:
        yield
    finally:
        await crew.stop()


@asynccontextmanager
async def _tables(scheduler: PostgresScheduler) -> AsyncGenerator[None]:
    """Have the tables of zart_sqla and of the application; drop them afterwards."""
    metadata = demo_tables(scheduler.names).metadata
    try:
        await scheduler.migrate()
        await scheduler.run(lambda connection, _: metadata.create_all(connection))
        yield
    finally:
        await scheduler.run(lambda connection, _: metadata.drop_all(connection))
        await scheduler.run(migrations.downgrade)


def _stop_on_sigterm() -> None:
    """Have SIGTERM do what Ctrl-C does: leave nothing behind."""
    performing = asyncio.current_task()
    assert performing is not None  # noqa: S101 - a coroutine runs in a task
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, performing.cancel)


def _print_verdict(figures: Figures, facts: dict[str, Any], *, is_kept: bool) -> None:
    text = Text()
    for kept, promise in figures.verdict():
        text.append("kept    " if kept else "BROKEN  ", "bold green" if kept else "bold red")
        text.append(f"{promise}\n")
    text.append(
        f"\n{facts['workers_started']} workers were started, {facts['workers_killed']} of them killed with SIGKILL; "
        f"it took {facts['seconds']} s"
    )
    title = "every order charged exactly once" if is_kept else "a promise was broken"
    console = output.console()
    width = None if console.is_terminal else 110
    console.print(Panel(text, title=title, border_style="green" if is_kept else "red", expand=False, width=width))
