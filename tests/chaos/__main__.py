"""Run workers and drivers while all goes wrong that can, and check that nothing is lost and nothing is there twice.

`python -m tests.chaos --minutes N --seed S [--seed ...] [--json FILE]`. The exit code is 1 if anything was found.
"""

import argparse
import asyncio
import json
import shutil
import signal
import sys
import tempfile
import warnings
from dataclasses import asdict
from pathlib import Path

from tests.chaos.run import run, say
from tests.chaos.server import server
from tests.chaos.summary import Summary

SEEDS = (1,)


def one_run(seed: int, options: argparse.Namespace) -> Summary:
    """Make one run, print what it came to, and keep its logs if something was found."""
    folder = Path(tempfile.mkdtemp(prefix=f"zart-chaos-{seed}-"))
    say(f"seed {seed}: {options.minutes:g} minutes; ledger, diary and logs in {folder}")
    with server(options.postgres, folder) as made:
        if not made.is_own:
            say("the server is not our own: it is not restarted, and its connections are not used up")
        summary = asyncio.run(run(made, folder, seed, options.minutes * 60))
    say(f"\nseed {seed}\n{summary}\n")
    if not (summary.violations or options.keep):
        shutil.rmtree(folder)
    return summary


def _leave(*_: object) -> None:
    """End in order, so that the server does not stay behind."""
    raise SystemExit(128 + signal.SIGTERM)


def main() -> None:
    """Make a run for each seed."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=2, help="for how long there are faults, for each seed")
    parser.add_argument("--seed", type=int, action="append", help=f"what the plan follows from; default: {SEEDS}")
    parser.add_argument("--postgres", type=int, default=18, help="the major version of the server")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    parser.add_argument("--keep", action="store_true", help="keep ledger, diary and logs, whatever is found")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="XDG_RUNTIME_DIR")  # the embedded server's package does without
    signal.signal(signal.SIGTERM, _leave)
    summaries = [one_run(seed, options) for seed in options.seed or SEEDS]
    if options.json:
        options.json.write_text(json.dumps([asdict(summary) for summary in summaries], indent=2))
    sys.exit(any(summary.violations for summary in summaries))


if __name__ == "__main__":
    main()
