"""What executions are started with, and what each must come to: both follow from the seed and the execution's id."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

COMPLETED = frozenset({"completed"})
FAILED = frozenset({"failed"})
CANCELLED = frozenset({"cancelled"})


@dataclass(frozen=True, kw_only=True)
class Case:
    """One execution.

    Attributes:
        workflow: the name of what it runs.
        data: its input.
        outcomes: how it may end.
        result: its output, if it completes.
        deposits: the steps that write in the app's table if it completes; `<child> <step>` for those of a child.
        emitted: what it emits into its stream `progress`.
        events: the events that it needs.
        offer_after: how many seconds after its start they are offered.
        cancel_after: how many seconds after its start it is cancelled, None for not at all.
        has_order: whether it is started in the transaction of a row of the app's.
    """

    workflow: str
    data: Any
    outcomes: frozenset[str] = COMPLETED
    result: Any = None
    deposits: Sequence[str] = ()
    emitted: Sequence[str] = ()
    events: Sequence[str] = ()
    offer_after: float = 0
    cancel_after: float | None = None
    has_order: bool = False


def _script(*lines: str, workflow: str = "script", **more: Any) -> Case:
    deposits = [line.split()[1] for line in lines if line.startswith("deposit")]
    return Case(workflow=workflow, data=list(lines), result=len(lines), **{"deposits": deposits, **more})


def _steps(chance: random.Random) -> Case:
    notes = [f"note a-{number}" for number in range(chance.randint(2, 8))]
    return _script(*notes, "gather g note:3", "block_thread b 0.01", "tell t", has_order=True)


def _thread(chance: random.Random) -> Case:
    nap = f"nap n {chance.randint(100, 900)}ms"
    groups = chance.sample(["fan f note:2,tell:1", "any y note:2", "race r tell:2", "first w 1,note:2"], 2)
    return _script(
        "block_thread a 0.01", "deposit_thread deposit-b", nap, *groups, "block_thread z 0", workflow="script_thread"
    )


def _money(chance: random.Random) -> Case:
    kinds = chance.choices(["deposit", "deposit_thread"], k=chance.randint(2, 5))
    return _script(*(f"{kind} deposit-{number}" for number, kind in enumerate(kinds)), has_order=True)


def _sleep(chance: random.Random) -> Case:
    naps = [f"nap n-{number} {chance.randint(50, 2500)}ms" for number in range(chance.randint(1, 3))]
    return _script("note a", *naps, "deposit deposit-z")


def _event(chance: random.Random) -> Case:
    limit = chance.choice(["", "400ms", "1500ms", "1h"])
    lines = ["note a", f"expect paid {limit}".strip(), "deposit deposit-b", "expect shipped", "note z"]
    return _script(*lines, events=["paid", "shipped"], offer_after=chance.uniform(0, 2.5))


def _fan(chance: random.Random) -> Case:
    first, second = chance.randint(2, 6), chance.randint(1, 3)
    lines = ["note a", f"fan f note:{first},deposit:{second},flaky:1:2", "nap n 200ms", "fan g tell:2,fail:1", "note z"]
    return _script(*lines, deposits=[f"deposit-f-{number}" for number in range(second)])


def _race(chance: random.Random) -> Case:
    lines = ["any y note:3,hold:1:gate", "race r note:2,tell:2", "first w 2,tell:4", "scatter s note:3", "note z"]
    return _script(*chance.sample(lines[:-1], 3), lines[-1])


def _family(chance: random.Random) -> Case:
    scripts = [
        [f"note a-{number}", f"nap n {chance.randint(50, 900)}ms", "deposit deposit-c"][: chance.randint(1, 3)]
        for number in range(chance.randint(2, 4))
    ]
    deposits = [f"{number} deposit-c" for number, script in enumerate(scripts) if len(script) == 3]
    return Case(workflow="parent", data=scripts, result=sum(map(len, scripts)), deposits=deposits)


def _relay(chance: random.Random) -> Case:
    last = chance.randint(1, 6)
    emitted = [f"{number}-{part}" for number in range(last + 1) for part in range(3)]
    return Case(workflow="relay", data=[0, last], result=last, emitted=emitted)


def _savings(chance: random.Random) -> Case:
    last = chance.randint(1, 6)
    deposits = [f"deposit-{number}" for number in range(last + 1)]
    return Case(workflow="savings", data=[0, last], result=last, deposits=deposits)


def _flaky(chance: random.Random) -> Case:
    return _script("note a", f"flaky b {chance.randint(2, 4)}", f"flaky c {chance.randint(1, 3)}", "deposit deposit-d")


def _stubborn(chance: random.Random) -> Case:
    attempts = chance.randint(2, 4)
    lines = ["note a", "deposit deposit-b", "nap n 100ms", str(attempts)]
    return Case(workflow="stubborn", data=lines, result=attempts, deposits=["deposit-b"])


def _failing(chance: random.Random) -> Case:
    return _script("note a", "deposit deposit-b", chance.choice(["fail f", "raise f"]), "note z", outcomes=FAILED)


def _mended(chance: random.Random) -> Case:
    failing, name = chance.choice([("fail f", "StepFailure: f"), ("raise f", "BodyError: f")])
    scripts = [["note a", failing], ["note m", "deposit deposit-n"]]
    return Case(workflow="mended", data=scripts, result=name, deposits=["deposit-n"])


def _nested(_: random.Random) -> Case:
    own = ["deposit-x-1-0", "deposit-y-0-0"]
    lines = ["block_thread a 0", "nap n 100ms", "fan f note:2"]
    return Case(workflow="nested", data=lines, result=[3, 3, 3, 3, 1], deposits=own)


def _cancel(chance: random.Random) -> Case:
    """Something that would go on for ever, whatever it is at when it is cancelled."""
    last = chance.choice(["nap n 8h", "expect never", "stand s", "fan f stand:3,note:2", "wait w never"])
    return _script("note a", last, outcomes=CANCELLED, cancel_after=chance.uniform(0, 2))


def _undone(chance: random.Random) -> Case:
    lines = ["note a", "deposit deposit-b", f"nap n {chance.randint(10, 1500)}ms"]
    return Case(workflow="undone", data=lines, outcomes=CANCELLED, cancel_after=chance.uniform(0, 3))


def _disowned(chance: random.Random) -> Case:
    """A parent that is cancelled together with its children."""
    scripts = [["note a", "nap n 8h"], ["fan f stand:2"], ["note a"]]
    return Case(workflow="parent", data=scripts, outcomes=CANCELLED, cancel_after=chance.uniform(0, 3))


def _crossed(chance: random.Random) -> Case:
    """A cancel that meets the end."""
    nap = chance.randint(50, 1500)
    lines = ("note a", f"nap n {nap}ms", "deposit deposit-b", "note z")
    return _script(*lines, outcomes=COMPLETED | CANCELLED, cancel_after=nap / 1000 + chance.uniform(-0.2, 0.4))


KINDS: dict[str, Callable[[random.Random], Case]] = {
    "cancel": _cancel,
    "crossed": _crossed,
    "disowned": _disowned,
    "event": _event,
    "failing": _failing,
    "family": _family,
    "fan": _fan,
    "flaky": _flaky,
    "mended": _mended,
    "money": _money,
    "nested": _nested,
    "race": _race,
    "relay": _relay,
    "savings": _savings,
    "sleep": _sleep,
    "steps": _steps,
    "stubborn": _stubborn,
    "thread": _thread,
    "undone": _undone,
}


def kind_of(execution_id: str) -> str:
    """Return of which kind an execution is, or the one that has started it."""
    return execution_id.partition("-")[0]


def is_started_by_driver(execution_id: str) -> bool:
    """Tell whether a driver starts it: children have the ids of those that start them, and something behind it."""
    return execution_id.count("-") == 1


def case_of(seed: int, execution_id: str) -> Case:
    """Return what an execution is, that is started by a driver under an id of `<kind>-<what tells it from others>`."""
    return KINDS[kind_of(execution_id)](random.Random(f"{seed} {execution_id}"))
