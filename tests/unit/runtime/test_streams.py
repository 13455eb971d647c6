"""Emitting into streams: each value once, in the order of the calls, whatever happens to the turns."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.unit.support.memory import LONG, START, MemoryRun
from zart_sqla import (
    BodyError,
    Failure,
    InvalidDataError,
    InvalidNameError,
    NonDeterminismError,
    NotInWorkflowError,
    Retry,
    StepFailed,
    durable,
    emit,
    sleep,
    step,
    sync,
)
from zart_sqla.records import RecordedStep, StepKind
from zart_sqla.runtime.outcomes import Completed, Failed, LeaseLost, Suspended


@dataclass
class Progress:
    """The value of an item."""

    done: int
    note: str | None = None


@step("{name}")
async def work(name: str) -> str:
    """Do something."""
    return name


@durable
async def count_to(number: int) -> int:
    """Emit so many values, with a step after each."""
    for done in range(number):
        await emit("progress", {"done": done})
        await work(f"work-{done}")
    return number


def counted(number: int) -> list[tuple[str, Any]]:
    """Return what that emits."""
    return [("progress", {"done": done}) for done in range(number)]


async def test_emit() -> None:
    """A value is emitted with a checkpoint, which has the stream's name, and does not hold the value a second time."""
    run = MemoryRun(count_to, 1)
    assert await run.turn() == Completed("1")
    checkpoint = RecordedStep(name="progress", kind=StepKind.EMIT, position=0, started_at=START)
    assert run.recorder.steps["progress"] == checkpoint
    assert not checkpoint.is_open
    assert run.emitted == [("progress", {"done": 0})]


async def test_replay_emits_nothing() -> None:
    """What was emitted once is not emitted again, and calls of one name are numbered as others are."""
    run = MemoryRun(count_to, 3)
    assert await run.result() == 3
    assert run.emitted == counted(3)
    assert run.steps == ["progress", "work-0", "progress#2", "work-1", "progress#3", "work-2"]


@pytest.mark.parametrize("written", range(6))
async def test_crash(written: int) -> None:
    """Wherever the turn is lost, the next one goes on behind the last value."""
    run = MemoryRun(count_to, 3)
    run.recorder.writes_left = written
    assert await run.turn() == LeaseLost()
    assert run.emitted == counted((written + 1) // 2)
    run.recorder.writes_left = None
    assert await run.result() == 3
    assert run.emitted == counted(3)


async def test_streams_are_apart() -> None:
    """A run emits into as many streams as it likes; a step of the same name gets the next number."""

    @durable
    async def order() -> None:
        await emit("a", 1)
        await emit("b", 2)
        await emit("a", 3)
        await work("a")

    run = MemoryRun(order)
    assert await run.result() is None
    assert run.emitted == [("a", 1), ("b", 2), ("a", 3)]
    assert run.steps == ["a", "b", "a#2", "a#3"]


async def test_values() -> None:
    """Whatever JSON can tell is emitted: dataclasses as others."""
    values: list[Any] = [None, 7, "text", [1, {"a": None}], {}, Progress(3, "Zoë"), 2**63]

    @durable
    async def order() -> None:
        for value in values:
            await emit("values", value)

    run = MemoryRun(order)
    await run.result()
    assert [value for _, value in run.emitted] == [*values[:5], {"done": 3, "note": "Zoë"}, 2**63]


@pytest.mark.parametrize("value", [float("nan"), "\x00", "\ud800", object(), {1, 2}.__contains__])
async def test_value_that_is_refused(value: object) -> None:
    """A value that cannot be stored is refused, and nothing is written; the body may catch that and go on."""

    @durable
    async def order() -> str:
        try:
            await emit("progress", value)
        except InvalidDataError as error:
            return str(error)[:36]
        return "it was taken"

    run = MemoryRun(order)
    assert await run.result() == "the value for the stream 'progress' "
    assert (run.steps, run.emitted) == ([], [])


@pytest.mark.parametrize("name", ["", "\x00", "x" * 3000, 7])
async def test_name_that_is_refused(name: Any) -> None:
    """A name that cannot be stored is refused, and nothing is written."""

    @durable
    async def order() -> None:
        with pytest.raises(InvalidNameError):
            await emit(name, 1)

    run = MemoryRun(order)
    assert await run.result() is None
    assert (run.steps, run.emitted) == ([], [])


async def test_refused_by_the_database() -> None:
    """What PostgreSQL refuses comes out of the call."""

    @durable
    async def order() -> None:
        await emit("progress", 1)

    run = MemoryRun(order)
    run.recorder.refused.add("progress")
    failed = await run.failure()
    assert failed.error.error_type == "InvalidDataError"
    assert (run.steps, run.emitted) == ([], [])


async def test_in_tasks_of_the_bodys_own() -> None:
    """Side by side, in a task group, each value is emitted once, by its name and whatever the order of a replay."""

    async def emit_all(stream: str) -> None:
        for number in range(3):
            await emit(stream, number)

    @durable
    async def order() -> None:
        async with asyncio.TaskGroup() as group:
            for stream in ("a", "b"):
                group.create_task(emit_all(stream))
        await sleep("nap", LONG)
        await asyncio.gather(emit("c", 1), emit("d", 2))

    run = MemoryRun(order)
    run.recorder.writes_left = 3
    assert await run.turn() == LeaseLost()
    run.recorder.writes_left = None
    assert await run.result() is None
    assert sorted(run.emitted) == [(stream, number) for stream in ("a", "b") for number in range(3)] + [
        ("c", 1),
        ("d", 2),
    ]
    assert {one.position for one in run.recorder.steps.values() if one.kind is StepKind.EMIT} == {None}


async def test_a_sleep_beside_it() -> None:
    """The turn does not end by a sleep while a value is on its way."""

    @durable
    async def order() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(sleep("nap", LONG))
            group.create_task(emit("progress", 1))

    run = MemoryRun(order)
    assert isinstance(await run.turn(), Suspended)
    assert run.emitted == [("progress", 1)]


async def test_retry_of_the_body() -> None:
    """A body that is run again after an error emits only what is new."""
    turns: list[int] = []

    @durable(retry=Retry.fixed(1, LONG))
    async def order() -> None:
        turns.append(1)
        await emit("progress", "begun")
        if len(turns) == 1:
            raise ValueError("once")
        await emit("progress", "mended")

    run = MemoryRun(order)
    assert await run.result() is None
    assert run.emitted == [("progress", "begun"), ("progress", "mended")]


async def test_on_failure_emits() -> None:
    """The function that takes over from a failed body goes on with its streams."""

    async def tell(_: None, failure: Failure) -> str:
        await emit("progress", type(failure).__name__)
        return "told"

    @durable(on_failure=tell)
    async def order() -> str:
        await emit("progress", "begun")
        raise ValueError("no")

    run = MemoryRun(order)
    assert await run.result() == "told"
    assert run.emitted == [("progress", "begun"), ("progress", BodyError.__name__)]
    assert run.steps == ["progress", "on_failure", "progress#2"]


async def test_plain_workflow() -> None:
    """A `def` workflow emits by `sync.emit`."""

    @durable
    def order(count: int) -> int:
        for done in range(count):
            sync.emit("progress", {"done": done})
        return count

    run = MemoryRun(order, 3)
    assert await run.result() == 3
    assert run.emitted == counted(3)
    assert [one.position for one in run.recorder.steps.values()] == [0, 1, 2]


async def test_code_that_changed() -> None:
    """Where a step is recorded nothing else can be emitted, and the run stops."""

    @durable("order")
    async def old() -> None:
        await work("progress")
        await sleep("nap", LONG)

    @durable("order")
    async def changed() -> None:
        await emit("progress", 1)

    run = MemoryRun(old)
    assert isinstance(await run.turn(), Suspended)
    outcome = await run.turn(changed)
    assert isinstance(outcome, Failed)
    assert outcome.error.error_type == NonDeterminismError.__name__
    assert run.emitted == []


async def test_outside_a_workflow() -> None:
    """There is no execution whose stream it could be."""
    with pytest.raises(NotInWorkflowError, match=r"emit\(\.\.\.\) works only in a workflow that a worker runs"):
        await emit("progress", 1)


async def try_async() -> None:
    """Emit in a step."""
    await emit("progress", 1)


def try_plain() -> None:
    """Emit in a step, without await."""
    sync.emit("progress", 1)


@pytest.mark.parametrize("function", [try_async, try_plain])
async def test_in_a_step(function: Callable[[], Any]) -> None:
    """A step cannot emit: it may run twice. The error says so and names the step."""
    tell: Any = step("tell")(function)

    @durable
    async def order() -> str:
        try:
            await tell.call()
        except StepFailed as error:
            return error.message
        return "it could"

    run = MemoryRun(order)
    message = "emit(...) works only in the body of a workflow, not in a step such as 'tell'"
    assert message in await run.result()
    assert run.emitted == []
