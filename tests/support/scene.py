"""Steps that tests schedule as children, and where they meet the test: any worker of this process finds them here."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import func, select

from tests.support.waiting import eventually
from zart_sqla import (
    Answer,
    ExecutionHandle,
    ExecutionStatus,
    Ok,
    PostgresScheduler,
    Retry,
    StepKind,
    StepStatus,
    context,
    step,
)
from zart_sqla.models import tables_of


class Scene:
    """What the children of a test meet, and what they have done.

    Attributes:
        ran: how often each has begun.
        interrupted: those that were cancelled, in that order.
        gates: events that let the children of these names go on.
        together: a barrier at which children meet.
    """

    def __init__(self) -> None:
        self.ran: Counter[str] = Counter()
        self.interrupted: list[str] = []
        self.gates: dict[str, asyncio.Event] = {}
        self.together = asyncio.Barrier(4)

    def gate(self, name: str) -> asyncio.Event:
        """Return the gate of a child."""
        return self.gates.setdefault(name, asyncio.Event())


_scenes: list[Scene] = []


@contextmanager
def new_scene() -> Iterator[Scene]:
    """Yield the scene of a test."""
    _scenes.append(Scene())
    try:
        yield _scenes[-1]
    finally:
        _scenes.clear()


def scene() -> Scene:
    """Return the scene of the test that runs."""
    return _scenes[-1]


@step("{name}")
async def say(name: str, value: Any = None) -> Any:
    """Give the value."""
    scene().ran[name] += 1
    return value


@step("{name}")
def say_in_thread(name: str, value: Any = None) -> Any:
    """Give the value, in a thread."""
    scene().ran[name] += 1
    return value


@step("{name}")
async def pass_gate(name: str) -> str:
    """Give the name, when the gate is open."""
    scene().ran[name] += 1
    await scene().gate(name).wait()
    return name


@step("{name}", retry=Retry.fixed(1, "1h"))
async def try_later(name: str) -> int:
    """Fail once."""
    scene().ran[name] += 1
    if context().attempt == 1:
        raise OSError(name)
    return context().attempt


@step
async def fail(message: str) -> None:
    """Fail."""
    raise ValueError(message)


@step("{name}")
async def stand(name: str) -> None:
    """Stand until cancelled, and tell so."""
    scene().ran[name] += 1
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        scene().interrupted.append(name)
        raise


async def values(answers: Awaitable[Sequence[Answer[Any]]]) -> list[Any]:
    """Return the values of answers that are all of them values."""
    found = []
    for answer in await answers:
        assert isinstance(answer, Ok)
        found.append(answer.value)
    return found


async def until_recorded(handle: ExecutionHandle[Any], count: int) -> None:
    """Wait until so many steps are done."""

    async def is_recorded() -> bool:
        return len([one for one in await handle.steps() if one.status is StepStatus.COMPLETED]) >= count

    await eventually(is_recorded)


async def is_asleep(handle: ExecutionHandle[Any]) -> bool:
    """Tell whether the run sleeps."""
    steps = await handle.steps()
    sleeps = any(one.kind is StepKind.SLEEP and one.status is StepStatus.WAITING for one in steps)
    return sleeps and await handle.status() is ExecutionStatus.WAITING


async def all_wait(scheduler: PostgresScheduler) -> bool:
    """Tell whether all that is in the queue waits, runs and children, and no worker is at any of it."""
    tasks = tables_of(scheduler.names).tasks
    async with scheduler.engine.connect() as connection:
        query = select(func.bool_and(tasks.c.is_waiting & tasks.c.worker_id.is_(None)))
        return bool(await connection.scalar(query))
