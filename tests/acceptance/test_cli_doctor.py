"""`zart doctor`: what it finds, and what it says to do."""

from pathlib import Path

import pytest

from tests.acceptance.command import Answer, Command
from zart_sqla.cli.doctor import examine_version

ALEMBIC = """[alembic]
script_location = migrations
version_locations = %(here)s/migrations/versions zart_sqla:migrations/versions
path_separator = {separator}
"""


def findings(answer: Answer, subject: str) -> list[tuple[str, str, str | None]]:
    """Return the findings about a subject, as (level, message, advice)."""
    return [
        (found["level"], found["message"], found["advice"])
        for found in answer.data["findings"]
        if found["subject"] == subject
    ]


def finding(answer: Answer, subject: str) -> tuple[str, str, str | None]:
    """Return the one finding about a subject."""
    (found,) = findings(answer, subject)
    return found


def test_all_is_well(zart: Command) -> None:
    """With tables and a worker all is well, and it ends with 0."""
    with zart.worker():
        answer, shown = zart("doctor", "--json"), zart("doctor")
    assert (answer.code, answer.data["ok"]) == (0, True)
    assert {found["level"] for found in answer.data["findings"]} == {"ok"}
    subjects = [found["subject"] for found in answer.data["findings"]]
    assert subjects == ["connection", "server", "session lock", "LISTEN", "tables", "worker", "runs"]
    assert shown.code == 0
    assert "PostgreSQL" in shown.out


def test_no_worker(zart: Command) -> None:
    """That no worker runs is a warning, not a problem."""
    answer = zart("doctor", "--json")
    assert (answer.code, finding(answer, "workers")[0]) == (0, "warning")


def test_unreachable(zart: Command) -> None:
    """A database that is not there is a finding like another, and ends with 1."""
    answer = zart.on("postgresql://localhost:1/nothing")("doctor", "--json")
    level, message, advice = finding(answer, "connection")
    assert (answer.code, level) == (1, "problem")
    assert "cannot connect" in message
    assert advice


def test_missing_tables(zart_on_empty: Command) -> None:
    """Missing tables are a problem, and the advice names the command."""
    answer = zart_on_empty("doctor")
    assert answer.code == 1
    assert "problem" in answer.out
    assert "-> run 'alembic upgrade heads' in the app that owns them, or 'zart migrate'" in answer.out


def test_overdue_tasks(zart: Command) -> None:
    """Tasks that are due and that nobody takes are a problem."""
    zart("start", "unknown", "--queue", "slow")
    assert findings(zart("doctor", "--json"), "queue") == []
    zart.sql("UPDATE zart_tasks SET due_at = now() - interval '1 hour'")
    answer = zart("doctor", "--json")
    level, message, _ = finding(answer, "queue")
    assert (answer.code, level) == (1, "problem")
    assert message.startswith("1 of 'unknown' in queue 'slow' are due and not taken, for up to 60 min")


def test_run_without_a_task(zart: Command) -> None:
    """A run that has not ended must have a task; that it has none is a problem, and its execution is named."""
    zart("start", "add", "1", "--id", "order-1")
    zart("start", "add", "1", "--id", "order-2")
    zart("cancel", "order-2")
    zart.sql("DELETE FROM zart_tasks")
    answer = zart("doctor", "--json")
    level, message, _ = finding(answer, "runs")
    assert (answer.code, level) == (1, "problem")
    assert message == "1 have not ended and have no task, so nobody goes on with them: order-1"


@pytest.mark.parametrize(
    ("change", "level", "words"),
    [
        ("lease_until = now() - interval '1 second'", "problem", "is dead"),
        ("heartbeat_at = now() - interval '20 seconds'", "warning", "is late"),
        ("lock_key = NULL", "warning", "without a session lock"),
    ],
)
def test_ailing_worker(zart: Command, change: str, level: str, words: str) -> None:
    """A worker that is dead, late or without its lock is told."""
    zart.sql(
        "INSERT INTO zart_workers (worker_id, hostname, pid, lock_key, lease_until) "
        "VALUES (gen_random_uuid(), 'elsewhere', 7, 1, now() + interval '1 hour')"
    )
    zart.sql(f"UPDATE zart_workers SET {change}")  # noqa: S608 - the test's own text
    found = finding(zart("doctor", "--json"), "worker")
    assert found[0] == level
    assert found[1].startswith("process 7 on elsewhere")
    assert words in found[1]


def test_alembic_trap(zart: Command, tmp_path: Path) -> None:
    """A `version_locations` of which Alembic skips our part without a word is a problem; repaired it is none."""
    (tmp_path / "alembic.ini").write_text(ALEMBIC.format(separator="os"))
    answer = zart("doctor", "--json")
    level, message, advice = finding(answer, "alembic")
    assert (answer.code, level) == (1, "problem")
    assert "zart_sqla:migrations/versions" in message
    assert advice is not None
    assert "path_separator = space" in advice
    (tmp_path / "alembic.ini").write_text(ALEMBIC.format(separator="space"))
    assert findings(zart("doctor", "--json"), "alembic") == []


def test_unreadable_alembic_configuration(zart: Command, tmp_path: Path) -> None:
    """A configuration that cannot be read is a warning, not a traceback."""
    (tmp_path / "alembic.ini").write_text("zart is not in a section\n")
    answer = zart("doctor", "--json")
    assert (answer.code, finding(answer, "alembic")[0]) == (0, "warning")


@pytest.mark.parametrize(
    ("version", "level"), [((13, 22), "problem"), ((14, 1), "ok"), ((18, 4), "ok"), ((19, 0), "warning")]
)
def test_server_version(version: tuple[int, int], level: str) -> None:
    """PostgreSQL 14 to 18 will do; an older one will not, and a newer one is unknown."""
    assert examine_version(version).level == level
