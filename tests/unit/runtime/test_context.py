"""What a workflow knows of itself."""

from typing import Any

import pytest

from tests.unit.support.memory import LONG, SHORT, MemoryRun
from zart_sqla import Context, NotInWorkflowError, Retry, context, durable, gather, step, sync


async def test_in_the_body() -> None:
    """The body is told which run it is, and which attempt."""
    seen: list[Context] = []

    @durable(retry=Retry.fixed(2, SHORT))
    async def look(data: dict[str, int]) -> None:
        seen.append(context())
        if context().attempt == 1:
            raise ValueError("no")

    run = MemoryRun(look, {"a": 1})
    await run.finish()
    first, second = seen
    assert first == Context(
        execution_id="order-1",
        run_id=run.task.run_id,
        task_name="look",
        data={"a": 1},
        step_name=None,
        attempt=1,
        max_attempts=3,
        deadline=None,
    )
    assert (first.is_retry, second.is_retry) == (False, True)
    assert second.attempt == 2


@pytest.mark.parametrize("delay", [SHORT, LONG])
async def test_in_a_step(delay: str) -> None:
    """A step is told its own name in the run, and its own attempts, in this turn and in later ones."""
    seen: list[tuple[Any, ...]] = []

    @step("work-{name}", retry=Retry.fixed(2, delay))
    async def work(name: str) -> None:
        here = context()
        seen.append((here.step_name, here.attempt, here.max_attempts, here.is_retry, here.task_name, here.data))
        if here.attempt < 3:
            raise ValueError("no")

    @durable
    async def look(data: int) -> None:
        await work("a")

    await MemoryRun(look, 7).result()
    assert seen == [
        ("work-a", 1, 3, False, "look", 7),
        ("work-a", 2, 3, True, "look", 7),
        ("work-a", 3, 3, True, "look", 7),
    ]


async def test_in_steps_side_by_side() -> None:
    """Each of them is told of itself."""

    @step("{name}")
    async def work(name: str) -> str | None:
        return context().step_name

    @step("{name}")
    def thread(name: str) -> str | None:
        return sync.context().step_name

    @durable
    async def look() -> list[Any]:
        return [*await gather(work("a"), thread.call("b"), work("a")), context().step_name]

    assert await MemoryRun(look).result() == ["a", "b", "a#2", None]


async def test_outside() -> None:
    """Where no workflow runs there is nothing to tell."""
    with pytest.raises(NotInWorkflowError, match=r"context\(\) works only in a workflow that a worker runs"):
        context()


async def test_turns_do_not_leak() -> None:
    """A turn leaves nothing behind in the task that started it."""

    @durable
    async def look() -> None: ...

    await MemoryRun(look).result()
    with pytest.raises(NotInWorkflowError):
        context()
