"""`python -m examples.flights`: run the months, verify every table, and exit with 0 if nothing is missing or twice."""

import argparse
import asyncio
import os
import signal
import sys
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType

from examples.flights.driver import Plan, Report, drive, migrate
from zart_sqla.durations import to_timedelta
from zart_sqla.embedded import embedded_server


def main() -> int:
    """Run the command and return its exit status."""
    options = _parser().parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell has ignored by what it starts with "&"
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with ExitStack() as stack:
            return _run(options, stack)
    except KeyboardInterrupt:
        print("interrupted; on a database of your own the same command goes on from here", file=sys.stderr)
        return 128 + signal.SIGINT


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """Have SIGTERM do what Ctrl-C does, so that everything is cleaned up."""
    signal.raise_signal(signal.SIGINT)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m examples.flights", description=__doc__)
    parser.add_argument(
        "--months", type=int, choices=range(1, 13), default=12, metavar="N", help="how many of the year (12)"
    )
    parser.add_argument("--workers", type=int, default=3, metavar="N", help="how many worker processes (3)")
    parser.add_argument(
        "--kill-every", type=_duration, default=1.0, metavar="TIME", help="kill one of them (1s); 0s: never"
    )
    parser.add_argument("--within", type=_duration, default=900.0, metavar="TIME", help="fail if it takes longer (15m)")
    parser.add_argument(
        "--url",
        default=os.environ.get("DATABASE_URL"),
        help="the empty database to use (DATABASE_URL), instead of a server that comes and goes with this command",
    )
    parser.add_argument(
        "--log", type=Path, help="write what the workers log to this file, instead of one that is deleted"
    )
    return parser


def _duration(text: str) -> float:
    return to_timedelta(text).total_seconds()


def _run(options: argparse.Namespace, stack: ExitStack) -> int:
    folder = Path(stack.enter_context(TemporaryDirectory(prefix="flights-")))
    plan = Plan(
        url=options.url or stack.enter_context(embedded_server()),
        months=options.months,
        workers=options.workers,
        kill_every=options.kill_every,
        patience=options.within,
        log=options.log or folder / "workers.log",
    )
    print(f"{plan.months} months, {plan.workers} workers, one of them killed every {plan.kill_every:g} s", flush=True)
    migrate(plan.url)
    return _show(asyncio.run(drive(plan)))


def _show(report: Report) -> int:
    audit = report.audit
    tables = {"flights": audit.rows, **audit.summaries}
    for table, rows in tables.items():
        print(f"  {table:<16}{rows:>8,} rows")
    print(f"  {audit.sums:,} sums compared with the file")
    print(f"  {report.kills} workers killed, {report.takeovers} executions taken over, {report.seconds:.1f} s")
    problems = [*map(str, report.failures), *audit.problems]
    for problem in problems[:20]:
        print(f"  WRONG: {problem}")
    print("FAILED" if problems else "OK: nothing missing, nothing twice")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
