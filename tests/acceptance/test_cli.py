"""What all commands have in common: help, errors without a traceback, exit codes."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.command import Command
from zart_sqla.client.engines import ASYNC_DRIVER, SYNC_DRIVER, url_for

COMMANDS = (
    "migrate",
    "worker",
    "start",
    "status",
    "wait",
    "result",
    "event",
    "stream",
    "cancel",
    "resume",
    "list",
    "doctor",
    "demo",
)
UNREACHABLE = "postgresql://nobody:secret@localhost:1/nothing"


@pytest.fixture
def lonely(tmp_path: Path) -> Command:
    """Return the command where no database is named."""
    return Command(tmp_path, {})


def test_help_names_every_command(lonely: Command) -> None:
    """`zart --help` lists the commands and the exit codes."""
    answer = lonely.process("--help")
    assert answer.code == 0
    assert [name for name in COMMANDS if f" {name} " not in answer.out] == []
    assert "Exit codes" in answer.out


def test_it_runs_as_a_module(lonely: Command) -> None:
    """`python -m zart_sqla.cli` is the same command."""
    done = subprocess.run(
        [sys.executable, "-m", "zart_sqla.cli", "--version"],
        env=lonely.variables,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip()
    assert lonely.process("--version").out == done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["status", "x"], "give --url or set DATABASE_URL"),
        (["status", "x", "--url", "nonsense"], "expected a URL such as 'postgresql://user@host/database'"),
        (["status", "x", "--url", "postgresql://localhost:port/shop"], "expected a URL such as"),
        (["status", "x", "--url", "mysql://localhost/shop"], "got 'mysql://'"),
        (["status", "x", "--url", UNREACHABLE, "--prefix", "1st"], "table name prefix '1st'"),
        (["status"], "Missing argument"),
        (["nonsense"], "No such command"),
        (["start", "add", "--url", UNREACHABLE, "--timeout", "1s"], "add --wait"),
        (["start", "add", "{id: 1}", "--url", UNREACHABLE], "DATA is not JSON"),
        (["start", "add", "@missing.json", "--url", UNREACHABLE], "cannot read 'missing.json'"),
        (["list", "--since", "lately", "--url", UNREACHABLE], "--since: expected an age such as"),
        (["list", "--status", "asleep", "--url", UNREACHABLE], "asleep"),
        (["worker", "x:y", "--url", UNREACHABLE, "--poll-interval", "never"], "poll_interval: expected"),
        (["worker", "x:y", "--url", UNREACHABLE, "--pool-size", "0"], "max_connections: expected"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_usage(lonely: Command, arguments: list[str], message: str) -> None:
    """Wrong usage ends with 2 and says what was expected."""
    answer = lonely(*arguments)
    assert answer.code == 2
    assert message in answer.err
    assert "Traceback" not in answer.err


def test_sslmode() -> None:
    """A URL as hosts of databases hand it out means the same to both drivers, which spell it differently."""
    url = "postgresql://host/shop?sslmode=require"
    assert url_for(url, ASYNC_DRIVER).query == {"ssl": "require"}
    assert url_for(url, SYNC_DRIVER).query == {"sslmode": "require"}


def test_wrong_environment(lonely: Command) -> None:
    """A wrong table prefix from the environment is blamed on its variable."""
    answer = lonely("list", "--url", UNREACHABLE, ZART_TABLE_PREFIX="no-good")
    assert answer.code == 2
    assert "ZART_TABLE_PREFIX" in answer.err


@pytest.mark.parametrize("arguments", [["list"], ["migrate"], ["worker", "shop_jobs:registry"]], ids=" ".join)
def test_unreachable_database(folder: Path, arguments: list[str]) -> None:
    """A database that is not there ends a command with 1, says where it looked, and shows no password."""
    answer = Command(folder, {"DATABASE_URL": UNREACHABLE}).process(*arguments)
    assert answer.code == 1
    assert "cannot connect to the database postgresql://nobody:***@localhost:1/nothing" in answer.err
    assert "--url or DATABASE_URL" in answer.err
    assert "Traceback" not in answer.err
    assert "secret" not in answer.err


def test_exit_codes(zart: Command) -> None:
    """The codes of a real process: 0 done, 1 failed, 2 wrong usage, 3 not found, 4 timed out; no traceback for any."""
    commands = {
        0: ["start", "add", "1", "--id", "order-1"],
        4: ["wait", "order-1", "--timeout", "0.1"],
        3: ["wait", "order-2"],
        2: ["wait"],
        1: ["result", "order-1"],
    }
    answers = {code: zart.process(*arguments) for code, arguments in commands.items()}
    assert {code: answer.code for code, answer in answers.items()} == {code: code for code in commands}
    assert answers[0].out == "order-1\n"
    assert not any("Traceback" in answer.err for answer in answers.values())


def test_unknown_database(zart: Command) -> None:
    """A database that the server does not have is told like one that cannot be reached."""
    answer = zart("list", "--url", zart.url.replace("zart_test_", "no_such_"))
    assert answer.code == 1
    assert "cannot connect to the database" in answer.err
    assert "does not exist" in answer.err


@pytest.mark.parametrize("arguments", [["list"], ["start", "add", "1"], ["worker", "shop_jobs:registry"]], ids=" ".join)
def test_missing_tables(zart_on_empty: Command, arguments: list[str]) -> None:
    """Without tables a command ends with 1 and names the one that makes them."""
    answer = zart_on_empty.process(*arguments)
    assert answer.code == 1
    assert "zart migrate" in answer.err
    assert "Traceback" not in answer.err
