"""The plan of faults: it follows from the seed alone, and from what can be done to the server at all."""

import random
from collections.abc import Sequence
from dataclasses import dataclass

WARM_UP_SECONDS = 8.0
QUIET_BEFORE_SECONDS = 6.0
QUIET_AFTER_SECONDS = 12.0
"""Around faults that take everybody's connections nothing else is done, so that the rates there tell of them alone."""

MOMENTS = ("beat", "checkpoint", "claim", "commit", "end", "idle in transaction", "put down")
"""What a connection can be at when it is ended; see `tests.chaos.faults.MOMENTS`."""

QUIET = frozenset({"crash", "cut all", "restart"})
OF_THE_SERVER = frozenset({"backend killed", "crash", "restart", "slots"})
"""What is done only to a server of our own."""

LONGEST: dict[str, float] = {
    "backend killed": 0,
    "black hole": 7,
    "crash": 3,
    "cut": 0,
    "cut all": 0,
    "cut at": 3,
    "driver": 0,
    "held": 7,
    "interrupt": 2,
    "kill": 0,
    "late": 4,
    "reset": 0,
    "restart": 2,
    "slots": 3,
    "stop": 8,
    "term": 0,
    "timeout": 5,
}
"""For how many seconds a fault of each kind lasts at most."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault that is to be.

    Attributes:
        at: how many seconds after the beginning.
        kind: what it is: a name of `tests.chaos.faults.FAULTS`.
        seconds: how long it lasts.
        pick: which one of those that it can hit: a number from 0 to 1.
        moment: what is waited for, if it is to hit a connection that is at that.
    """

    at: float
    kind: str
    seconds: float
    pick: float
    moment: str


def plan(seed: int, seconds: float, *, owns_server: bool) -> Sequence[Fault]:
    """Return the faults of a run that lasts so long, in the order of time: each kind in turn, in a random order."""
    chance = random.Random(seed)
    kinds = [kind for kind in LONGEST if owns_server or kind not in OF_THE_SERVER]
    faults: list[Fault] = []
    bag: list[str] = []
    at = WARM_UP_SECONDS
    while True:
        bag = bag or chance.sample(kinds, len(kinds))
        kind = bag.pop()
        lasts = chance.uniform(LONGEST[kind] / 4, LONGEST[kind])
        at += chance.uniform(0.3, 4) + (QUIET_BEFORE_SECONDS if kind in QUIET else 0)
        if at + lasts > seconds:
            return faults
        fault = Fault(at=at, kind=kind, seconds=lasts, pick=chance.random(), moment=chance.choice(MOMENTS))
        faults.append(fault)
        at += lasts + QUIET_AFTER_SECONDS if kind in QUIET else 0
