"""Does what the plan says, and keeps a journal of it."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from tests.chaos.arena import OUTAGES, Arena, now
from tests.chaos.faults import FAULTS
from tests.chaos.plan import Fault


@dataclass(frozen=True, kw_only=True)
class Done:
    """A fault that was.

    Attributes:
        kind: what it was.
        began: when, in seconds since 1970.
        ended: when it was over.
        hit: whom or what, None if nothing could be done.
        problem: why nothing could be done.
    """

    kind: str
    began: float
    ended: float
    hit: str | None
    problem: str | None = None

    def __str__(self) -> str:
        return f"{self.kind}: {self.hit or f'not done, {self.problem}'}"


@dataclass
class Injector:
    """Does what the plan says.

    Attributes:
        arena: to whom.
        journal: what was done, in the order of its ends.
    """

    arena: Arena
    journal: list[Done]

    async def run(self, plan: Sequence[Fault]) -> None:
        """Do all of it at its times."""
        began = now()
        async with asyncio.TaskGroup() as tasks:
            for fault in plan:
                await asyncio.sleep(began + fault.at - now())  # as the plan says
                tasks.create_task(self._do(fault, began))

    async def _do(self, fault: Fault, zero: float) -> None:
        began = now()
        hit, problem = None, None
        try:
            hit = await FAULTS[fault.kind](self.arena, fault)
        except (LookupError, *OUTAGES) as error:
            problem = f"{type(error).__name__}: {error}"  # another fault is in the way, or there is nobody to hit
        done = Done(kind=fault.kind, began=began, ended=now(), hit=hit, problem=problem)
        self.journal.append(done)
        print(f"{began - zero:6.1f} s  {done}", flush=True)  # noqa: T201  it is watched
