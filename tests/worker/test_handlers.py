"""What a worker can run: functions of both colours and objects, and what they are told of themselves."""

import threading
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from tests.support.waiting import PATIENCE
from tests.support.working import let_time_pass, until, working
from zart_sqla import (
    Context,
    ExecutionFailed,
    ExecutionStatus,
    Retry,
    StepFailed,
    context,
    durable,
    gather,
    sleep,
    step,
    sync,
    trx,
)


@dataclass
class Greeting:
    """Something typed."""

    name: str
    times: int = 1


@step
def greet(greeting: Greeting) -> str:
    """Greet, in a thread."""
    assert threading.current_thread() is not threading.main_thread()
    return f"hello {greeting.name}" * greeting.times


@step
async def greet_back(greeting: Greeting) -> str:
    """Greet, on the loop."""
    assert threading.current_thread() is threading.main_thread()
    return f"good day {greeting.name}"


class Onboarding:
    """A class with a method `run`."""

    def __init__(self, suffix: str) -> None:
        self.suffix = suffix

    @step
    async def welcome(self, greeting: Greeting) -> str:
        """Greet in one's own way."""
        return f"welcome {greeting.name}{self.suffix}"

    async def run(self, data: Greeting) -> list[str]:
        """Call a step of one's own and another one."""
        return [await self.welcome(data), await greet.call(data), context().task_name]


class PlainOnboarding:
    """The same, with a plain method."""

    def run(self, data: Greeting) -> list[str]:
        """Call a step."""
        return [greet(data), sync.context().task_name]


async def test_objects(migrated_url: str) -> None:
    """Any object with `run(data)` is a handler, under the name that it is registered with."""
    handlers = (("loud", Onboarding("!")), ("quiet", Onboarding(".")), ("plain", PlainOnboarding()))
    async with working(migrated_url, *handlers) as scheduler:
        results = {
            name: await (await scheduler.start(name, {"name": "Ada"})).result(timeout=PATIENCE)
            for name in ("loud", "quiet", "plain")
        }
    assert results == {
        "loud": ["welcome Ada!", "hello Ada", "loud"],
        "quiet": ["welcome Ada.", "hello Ada", "quiet"],
        "plain": ["hello Ada", "plain"],
    }


async def test_plain_function_under_a_name(migrated_url: str) -> None:
    """A function without the decorator is a handler too, and a durable one can have another name."""

    async def count(data: list[int]) -> int:
        return len(data)

    @durable
    async def total(data: list[int]) -> int:
        return sum(data)

    async with working(migrated_url, ("count", count), ("sum", total)) as scheduler:
        assert await (await scheduler.start("count", [5, 6])).result(timeout=PATIENCE) == 2
        assert await (await scheduler.start("sum", [5, 6])).result(timeout=PATIENCE) == 11


async def test_plain_workflow(migrated_url: str) -> None:
    """A `def` workflow has all calls without await, replays as others do, and blocks nothing."""
    turns: list[list[Any]] = []

    @durable
    def visit(greeting: Greeting) -> list[str]:
        seen: list[Any] = [
            greet(greeting),
            *sync.gather(greet_back(greeting), greet.call(greeting)),
            sync.now("now"),
            sync.random("random"),
            sync.uuid("uuid"),
            sync.capture("captured", threading.get_ident),
        ]
        turns.append(seen)
        sync.sleep("pause", "1h")
        return [*seen[:3], greet(Greeting("again"))]

    async with working(migrated_url, visit, workers=2) as scheduler:
        handle = await scheduler.start(visit, Greeting("Ada"))
        await until(handle, ExecutionStatus.WAITING)
        await let_time_pass(scheduler)
        assert await handle.result(timeout=PATIENCE) == ["hello Ada", "good day Ada", "hello Ada", "hello again"]
        names = [one.name for one in await handle.steps()]
    assert names[0] == "greet"
    assert set(names[1:3]) == {"greet_back", "greet#2"}
    assert names[3:] == ["now", "random", "uuid", "captured", "pause", "greet#3"]
    assert len(turns) == 2
    assert turns[0] == turns[1]


async def test_errors_in_plain_workflows(migrated_url: str) -> None:
    """A `def` workflow catches a step's error as others do, its steps are retried, and its body too."""
    attempts: list[int] = []

    @step(retry=Retry.fixed(2, "1h"))
    def flaky() -> int:
        attempts.append(context().attempt)
        if context().attempt == 1:
            raise OSError
        return context().attempt

    @step(raises=KeyError)
    def decline() -> None:
        raise KeyError("gone")

    @step
    def explode() -> None:
        raise ValueError("boom")

    @durable(retry=Retry.fixed(1, 0))
    def order() -> list[Any]:
        result: list[Any] = [flaky()]
        for call in (decline, explode):
            try:
                call()
            except (KeyError, StepFailed) as error:
                result.append(type(error).__name__)
        if context().attempt == 1:
            raise RuntimeError("once more")
        return [*result, context().attempt]

    async with working(migrated_url, order, workers=2) as scheduler:
        handle = await scheduler.start(order)
        await until(handle, ExecutionStatus.WAITING)
        await let_time_pass(scheduler)
        assert await handle.result(timeout=PATIENCE) == [2, "KeyError", "StepFailed", 2]
    assert attempts == [1, 2]


async def test_more_plain_workflows_than_slots(migrated_url: str) -> None:
    """Plain bodies never take the threads that their steps need, nor the loop."""
    count = 12
    crowd = threading.Barrier(4)

    @step
    def meet(number: int) -> int:
        crowd.wait(PATIENCE)
        return number

    @durable
    def order(number: int) -> int:
        return meet(number)

    async with working(migrated_url, order, max_concurrent_tasks=4) as scheduler:
        handles = await scheduler.start_many(order, [(None, number) for number in range(count)])
        assert [await handle.result(timeout=PATIENCE) for handle in handles] == list(range(count))


async def test_context(migrated_url: str) -> None:
    """context() tells a body and a step where they are, in every turn and attempt."""
    seen: list[Context] = []

    @step(retry=Retry.fixed(1, 0))
    async def look() -> None:
        seen.append(context())
        if not context().is_retry:
            raise OSError

    @step
    def look_from_thread() -> None:
        seen.append(context())

    @durable("looks", timeout="1h", retry=Retry.fixed(2, 0))
    async def looks(greeting: Greeting) -> None:
        seen.append(context())
        await look()
        await look_from_thread.call()
        if not context().is_retry:
            raise RuntimeError(greeting.name)

    async with working(migrated_url, looks) as scheduler:
        handle = await scheduler.start(looks, Greeting("Ada"), execution_id="here")
        await handle.result(timeout=PATIENCE)
        info = await handle.info()
    assert info.started_at is not None
    for one in seen:
        assert (one.execution_id, one.run_id, one.task_name) == ("here", info.run_id, "looks")
        assert (one.data, one.deadline) == (Greeting("Ada"), info.started_at + timedelta(hours=1))
    assert [(one.step_name, one.attempt, one.max_attempts, one.is_retry) for one in seen] == [
        (None, 1, 3, False),
        ("look", 1, 2, False),
        ("look", 2, 2, True),
        ("look_from_thread", 1, 1, False),
        (None, 2, 3, True),
    ]


async def test_calls_in_the_wrong_place(migrated_url: str) -> None:
    """A call that cannot work where it is made says what to write instead, and fails the run."""

    @step
    async def inner() -> None:
        await sleep("nap", 0)

    @durable
    async def bare() -> None:
        greet(Greeting("x"))

    @durable
    async def sleeping_step() -> None:
        await inner()

    @durable
    async def outside() -> None:
        await trx()

    @durable
    async def not_a_call() -> None:
        await gather("a", "b")  # type: ignore[call-overload]

    @durable
    async def blocking() -> None:
        sync.sleep("nap", 0)

    expected = {
        bare: "await greet.call(...)",
        sleeping_step: "works only in the body of a workflow, not in a step such as 'inner'",
        outside: "works only in a step of a workflow that a worker runs",
        not_a_call: "takes calls of steps",
        blocking: "here write 'await sleep(...)'",
    }
    async with working(migrated_url, *expected) as scheduler:
        for workflow, advice in expected.items():
            with pytest.raises(ExecutionFailed) as caught:
                await (await scheduler.start(workflow)).result(timeout=PATIENCE)
            assert caught.value.error_type == "NotInWorkflowError"
            assert advice in caught.value.message
