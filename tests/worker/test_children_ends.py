"""Groups that do not come to their end: cancelled, failed, timed out, left behind; nothing of them goes on."""

import asyncio
import contextlib
import random
from collections import Counter
from typing import Any

import pytest

from tests.support.scene import Scene, all_wait, fail, is_asleep, pass_gate, say, stand, try_later, values
from tests.support.scene import scene as here
from tests.support.waiting import PATIENCE, eventually
from tests.support.working import count_rows, let_time_pass, until, worker_on, working
from zart_sqla import (
    ExecutionCancelled,
    ExecutionFailed,
    ExecutionFinished,
    ExecutionStatus,
    PostgresScheduler,
    StepFailed,
    StepStatus,
    durable,
    schedule,
    sleep,
    step,
    wait,
    wait_first_n,
)

pytestmark = pytest.mark.usefixtures("scene")

BEATS: dict[str, Any] = {"heartbeat_interval": "100ms"}
"""A child that its run has no more need of is interrupted at the next heartbeat of its worker."""


async def nothing_is_left(scheduler: PostgresScheduler) -> bool:
    """Tell whether the queue is empty."""
    return (await count_rows(scheduler))["tasks"] == 0


async def check_quiet(scheduler: PostgresScheduler, scene: Scene) -> None:
    """Check that nothing is left to do, and that nothing more is done."""
    assert await nothing_is_left(scheduler)
    ran = scene.ran.copy()
    await let_time_pass(scheduler)

    @durable
    async def probe() -> int:
        return 1

    async with worker_on(scheduler.engine.url.render_as_string(hide_password=False), probe):
        await (await scheduler.start(probe)).result(timeout=PATIENCE)
    assert scene.ran == ran


async def test_cancel_while_a_group_runs(migrated_url: str, scene: Scene) -> None:
    """Running children see CancelledError at once, on each worker; those that have not begun never do."""

    @durable
    async def group() -> None:
        await wait([schedule(stand(f"stand-{number}")) for number in range(10)])
        await say("after")

    async with working(migrated_url, group, workers=2, max_concurrent_tasks=2, heartbeat_interval="10s") as scheduler:
        handle = await scheduler.start(group)
        await eventually(lambda: len(scene.ran), 4)
        loop = asyncio.get_running_loop()
        began = loop.time()
        await handle.cancel()
        assert await nothing_is_left(scheduler)
        await eventually(lambda: len(scene.interrupted), 4)
        assert loop.time() - began < 2  # it does not take a heartbeat
        with pytest.raises(ExecutionCancelled):
            await handle.result(timeout=PATIENCE)
        await check_quiet(scheduler, scene)
        assert await handle.status() is ExecutionStatus.CANCELLED
        assert await handle.steps() == []
    assert len(scene.ran) == 4
    assert set(scene.ran.values()) == {1}


async def test_cancel_while_children_wait(migrated_url: str, scene: Scene) -> None:
    """Children that wait before their next attempt go with their run; those of another run, of a like id, do not."""

    @durable
    async def group(name: str) -> list[Any]:
        return await values(wait([schedule(try_later(f"{name}-{number}")) for number in range(3)]))

    async with working(migrated_url, group, workers=2) as scheduler:
        doomed, other = await scheduler.start_many(group, [("order_1", "doomed"), ("order-1", "other")])
        await eventually(scene.ran.total, 6)
        await eventually(lambda: all_wait(scheduler))
        await doomed.cancel()
        assert (await count_rows(scheduler))["tasks"] == 4
        await let_time_pass(scheduler)
        assert await other.result(timeout=PATIENCE) == [2, 2, 2]
        await check_quiet(scheduler, scene)
        assert await doomed.status() is ExecutionStatus.CANCELLED
    assert scene.ran == {
        f"{name}-{number}": times for name, times in (("doomed", 1), ("other", 2)) for number in range(3)
    }


async def until_ran(scene: Scene, name: str) -> None:
    """Wait until a step has run."""
    await eventually(lambda: scene.ran[name])


@pytest.mark.parametrize("is_committed", [True, False])
async def test_cancel_while_children_are_added(
    migrated_url: str,
    scene: Scene,
    is_committed: bool,  # noqa: FBT001
) -> None:
    """The body schedules children while a cancel is not committed yet: either it counts, and none is left, or not."""

    @durable
    async def group() -> list[Any]:
        await pass_gate("before")
        return await values(wait([schedule(say(name, name)) for name in "abc"]))

    @durable
    async def other() -> list[Any]:
        return await values(wait([schedule(say("other", 1))]))

    async with working(migrated_url, group, other, **BEATS) as scheduler:
        handle = await scheduler.start(group)
        await until_ran(scene, "before")
        async with scheduler.engine.connect() as connection:
            await handle.cancel(session=connection)
            scene.gate("before").set()
            assert await (await scheduler.start(other)).result(timeout=PATIENCE) == [1]  # it does not wait for this
            await (connection.commit() if is_committed else connection.rollback())
        if is_committed:
            await until(handle, ExecutionStatus.CANCELLED)
            await check_quiet(scheduler, scene)
        else:
            assert await handle.result(timeout=PATIENCE) == ["a", "b", "c"]
            assert await nothing_is_left(scheduler)
    assert scene.ran == Counter(["before", "other"] + ([] if is_committed else ["a", "b", "c"]))


@pytest.mark.slow
async def test_cancel_and_schedule_race(migrated_url: str, scene: Scene) -> None:
    """Runs are cancelled at random instants while they schedule children: none of these is left behind."""
    chance = random.Random(1)

    @durable
    async def group(count: int) -> None:
        for number in range(100):
            for child in range(count):
                schedule(try_later(f"later-{number}-{child}"))
            await say(f"step-{number}")
        await stand("stand")

    async with working(migrated_url, group, workers=2, **BEATS) as scheduler:
        handles = await scheduler.start_many(group, [(None, number % 5 + 1) for number in range(60)])
        for handle in chance.sample(handles, len(handles)):
            await asyncio.sleep(chance.uniform(0, 0.03))  # the instant is what is random here
            with contextlib.suppress(ExecutionFinished):
                await handle.cancel()
        await check_quiet(scheduler, scene)


@pytest.mark.parametrize("end", ["completed", "failed"])
async def test_body_that_ends_with_children_open(end: str, migrated_url: str, scene: Scene) -> None:
    """What the body has not waited for is cancelled when it ends, running or not begun."""

    @durable
    async def hasty() -> int:
        await schedule(say("done", 1))
        for number in range(10):
            schedule(stand(f"stand-{number}"))
        await pass_gate("enough")
        if end == "failed":
            raise ValueError(end)
        return 1

    async with working(migrated_url, hasty, workers=2, max_concurrent_tasks=4, **BEATS) as scheduler:
        handle = await scheduler.start(hasty)
        await eventually(scene.ran.total, 9)  # two of them in one slot each, and all slots are taken
        scene.gate("enough").set()
        await until(handle, ExecutionStatus(end))
        await eventually(lambda: len(scene.interrupted) == scene.ran.total() - 2)  # all but `done` and `enough`
        await check_quiet(scheduler, scene)
        recorded = {one.name for one in await handle.steps() if one.status is StepStatus.COMPLETED}
        assert recorded == {"enough", "done"}


async def test_children_that_are_never_waited_for(migrated_url: str, scene: Scene) -> None:
    """A body that schedules and returns at once leaves nothing behind."""

    @durable
    async def careless(count: int) -> int:
        for number in range(count):
            schedule(stand(f"stand-{number}"))
        return count

    async with working(migrated_url, careless, workers=2, **BEATS) as scheduler:
        handles = await scheduler.start_many(careless, [(None, count) for count in (1, 10, 300)])
        assert [await one.result(timeout=PATIENCE) for one in handles] == [1, 10, 300]
        await eventually(lambda: scene.ran.total() == len(scene.interrupted))
        await check_quiet(scheduler, scene)
    assert len(scene.interrupted) == scene.ran.total()


async def test_timeout_with_children_open(migrated_url: str, scene: Scene) -> None:
    """When the workflow's time is over, its children end; `on_failure` may schedule others."""
    told: list[Any] = []

    @step("{name}")
    async def unfindable(name: str) -> None:
        """Is no function of a module."""

    async def clean_up(_: None, failure: Any) -> list[Any]:
        told.append(type(failure).__name__)
        return await values(wait([schedule(say(name, name)) for name in ("x", "y")]))

    @durable(timeout="2s", on_failure=clean_up)
    async def group() -> list[Any]:
        with pytest.raises(ValueError, match="its module has"):
            schedule(unfindable("a"))
        await wait([schedule(stand("stand")), schedule(try_later("later")), schedule(say("done"))])
        return [await say("after")]

    async with working(migrated_url, group, workers=2, **BEATS) as scheduler:
        handle = await scheduler.start(group)
        assert await handle.result(timeout=PATIENCE) == ["x", "y"]
        await eventually(lambda: scene.interrupted, ["stand"])
        await check_quiet(scheduler, scene)
    assert set(told) == {"DeadlineExceeded"}
    assert scene.ran == Counter(["stand", "later", "done", "x", "y"])


async def test_resume(migrated_url: str, scene: Scene) -> None:
    """A failed run that is resumed keeps the children that succeeded, and runs those that failed again."""
    broken.update(["b", "d"])

    @durable
    async def group() -> list[Any]:
        first = schedule(break_down("a"))
        won = await values(wait_first_n([first, schedule(stand("loser"))], 1))
        handles = [schedule(break_down(name)) for name in "bcd"]
        await sleep("night", "8h")
        await wait(handles)
        return [*won, *[await handle for handle in handles]]

    async with working(migrated_url, group, workers=2, **BEATS) as scheduler:
        handle = await scheduler.start(group)
        await eventually(lambda: is_asleep(handle))
        await let_time_pass(scheduler)
        with pytest.raises(ExecutionFailed) as caught:
            await handle.result(timeout=PATIENCE)
        assert caught.value.step == "b"
        broken.clear()
        await handle.resume()
        assert await handle.result(timeout=PATIENCE) == ["a", "b", "c", "d"]
        await check_quiet(scheduler, scene)
    assert scene.ran.pop("loser", 1) == 1
    assert scene.ran == {"a": 1, "b": 2, "c": 1, "d": 2}


broken: set[str] = set()


@step("{name}")
async def break_down(name: str) -> str:
    """Fail if it is broken."""
    here().ran[name] += 1
    if name in broken:
        raise ValueError(name)
    return name


async def test_resume_with_children_open(migrated_url: str, scene: Scene) -> None:
    """Children that were open when the run failed begin anew when it is resumed."""
    broken.add("a")

    @durable
    async def group() -> list[str]:
        handles = [schedule(break_down("a")), schedule(pass_gate("b"))]
        return [await handle for handle in handles]

    async with working(migrated_url, group, workers=2, **BEATS) as scheduler:
        handle = await scheduler.start(group)
        with pytest.raises(ExecutionFailed):
            await handle.result(timeout=PATIENCE)
        await nothing_is_left(scheduler)
        broken.clear()
        scene.gate("b").set()
        await handle.resume()
        assert await handle.result(timeout=PATIENCE) == ["a", "b"]
    assert scene.ran["a"] == 2


async def test_failure_among_siblings(migrated_url: str, scene: Scene) -> None:
    """A child that fails stops nobody: the body learns of it, and may await the others."""

    @durable
    async def group() -> list[Any]:
        bad, good = schedule(fail("why")), schedule(pass_gate("good"))
        with pytest.raises(StepFailed, match="why"):
            await bad
        await say("caught")
        return [await good]

    async with working(migrated_url, group, workers=2) as scheduler:
        handle = await scheduler.start(group)
        await until_ran(scene, "caught")
        scene.gate("good").set()
        assert await handle.result(timeout=PATIENCE) == ["good"]
    assert set(scene.ran.values()) == {1}
