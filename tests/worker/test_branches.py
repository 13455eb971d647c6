"""Tasks of a body's own, whose calls share their names: each keeps what it has recorded, whatever comes first."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from tests.support.scene import Scene, pass_gate
from tests.support.waiting import PATIENCE, eventually
from tests.support.working import working
from zart_sqla import (
    ExecutionFailed,
    Ok,
    durable,
    emit,
    gather,
    schedule,
    sleep,
    start_child,
    step,
    wait_any,
    wait_first_n,
    wait_for_event,
)

packed: Counter[str] = Counter()


@step
async def count(item: str) -> str:
    """Count an item."""
    packed[item] += 1
    return item


@step("{item}-{number}")
async def try_way(item: str, number: int) -> str:
    """Try one of several ways to pack an item."""
    return item


@durable
async def pack(item: str) -> str:
    """Pack an item."""
    return f"packed {item}"


async def start(item: str) -> str:
    """Have a child execution pack it."""
    return await (await start_child(pack, item)).result()


async def start_by_id(item: str) -> str:
    """Have a child execution with an id of its own pack it."""
    return await (await start_child(pack, item, execution_id=f"pack-{item}")).result()


async def tell(item: str) -> str:
    """Tell those outside."""
    await emit("log", item)
    return item


async def race(item: str) -> Any:
    """Take the first of two."""
    answer, _ = await wait_any([schedule(try_way(item, number)) for number in (0, 1)])
    assert isinstance(answer, Ok)
    return answer.value


async def race_to_the_end(item: str) -> Any:
    """Take the first of two, and cancel the other."""
    [answer] = await wait_first_n([schedule(try_way(item, number)) for number in (0, 1)], 1)
    assert isinstance(answer, Ok)
    return answer.value


async def count_side_by_side(item: str) -> Any:
    """Count it twice."""
    return list(await gather(count(item), count(item)))


async def count_elsewhere(item: str) -> str:
    """Have it counted by a task of its own."""
    return await schedule(count(item))


async def wait_for_payment(item: str) -> Any:
    """Wait for the next payment."""
    return await wait_for_event("paid")


CALLS: dict[Callable[[str], Awaitable[Any]], tuple[Any, Any]] = {
    start: ("packed a", "packed b"),
    start_by_id: ("packed a", "packed b"),
    tell: ("a", "b"),
    race: ("a", "b"),
    race_to_the_end: ("a", "b"),
    count: ("a", "b"),
    count_side_by_side: (["a", "a"], ["b", "b"]),
    count_elsewhere: ("a", "b"),
    wait_for_payment: (2, 1),
}


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.__name__)
async def test_the_second_task_comes_first(
    call: Callable[[str], Awaitable[Any]], migrated_url: str, scene: Scene
) -> None:
    """What it has recorded is its own, though the first task comes to its call sooner in the replay."""
    packed.clear()

    async def branch(item: str) -> Any:
        await schedule(pass_gate(f"before-{item}"))
        answer = await call(item)
        await schedule(pass_gate(f"behind-{item}"))
        return answer

    @durable
    async def order() -> list[Any]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(branch(item)) for item in "ab"]
        return [task.result() for task in tasks]

    async with working(migrated_url, order, pack, workers=2) as scheduler:
        handle = await scheduler.start(order)
        for number, item in enumerate("ba", 1):
            await handle.offer_event("paid", number)
            scene.gate(f"before-{item}").set()
            await eventually(lambda: scene.ran[f"behind-{item}"])  # noqa: B023 - awaited at once
        for item in "ab":
            scene.gate(f"behind-{item}").set()
        assert await handle.result(timeout=PATIENCE) == list(CALLS[call])
        assert [item async for item in handle.stream("log")] == (["b", "a"] if call is tell else [])
        packs = await scheduler.list_executions(task_name="pack")
        assert sorted(one.payload for one in packs) == (["a", "b"] if call in (start, start_by_id) else [])
    assert set(packed.values()) == {count: {1}, count_elsewhere: {1}, count_side_by_side: {2}}.get(call, set())


async def test_two_tasks_and_one_name(migrated_url: str) -> None:
    """A name that is given to the calls of two tasks is refused, with what to do, and the body cannot go on with it."""

    async def branch(item: str) -> None:
        try:
            await sleep("nap", "1h")
        except Exception:  # noqa: BLE001 - as a body might
            await count(item)

    @durable
    async def order() -> None:
        async with asyncio.TaskGroup() as group:
            for item in "ab":
                group.create_task(branch(item))

    async with working(migrated_url, order, workers=2) as scheduler:
        handle = await scheduler.start(order)
        with pytest.raises(ExecutionFailed, match=r"'nap' is called by two tasks of the body.* names of their own"):
            await handle.result(timeout=PATIENCE)
