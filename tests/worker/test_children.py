"""Steps that are tasks of their own, with real workers: what a run gets of them, and how often they run."""

import asyncio
from collections import Counter
from typing import Any

import pytest
from sqlalchemy import text

from tests.support.scene import (
    Scene,
    all_wait,
    fail,
    is_asleep,
    pass_gate,
    say,
    say_in_thread,
    try_later,
    until_recorded,
    values,
)
from tests.support.scene import scene as here
from tests.support.waiting import PATIENCE, eventually
from tests.support.working import count_rows, let_time_pass, until, worker_on, working
from zart_sqla import (
    BusinessErr,
    ConfigError,
    ExecutionStatus,
    Ok,
    Retry,
    RetryExhausted,
    StepFailed,
    StepKind,
    StepStatus,
    StepTimeout,
    ZartErr,
    context,
    durable,
    gather,
    schedule,
    sleep,
    step,
    sync,
    trx,
    wait,
    wait_any,
    wait_first_n,
    wait_for_event,
)

pytestmark = pytest.mark.usefixtures("scene")


class DeclinedError(Exception):
    """An error that a step declares."""


@step("{name}")
async def meet(name: str) -> str:
    """Give the name, when four are here at once."""
    here().ran[name] += 1
    await here().together.wait()
    return name


@step("{name}", raises=DeclinedError)
async def decline(name: str) -> None:
    """Insert a row, and raise a declared error."""
    await insert(name)
    raise DeclinedError(name)


@step("{name}")
async def deposit(name: str) -> None:
    """Insert a row."""
    await insert(name)


@step("{name}", retry=Retry.fixed(3, "10ms"))
async def insist(name: str, failures: int = 2) -> int:
    """Insert a row and fail, so many times; then give the number of the attempt."""
    await insert(name)
    if context().attempt <= failures:
        raise OSError(name)
    return context().attempt


@step(timeout="50ms")
async def dawdle() -> None:
    """Take too long."""
    await asyncio.Event().wait()


async def insert(name: str) -> None:
    """Insert a row in the step's own transaction."""
    await (await trx()).execute(text("INSERT INTO made (name) VALUES (:name)"), {"name": name})


async def test_results_are_in_order(migrated_url: str, scene: Scene) -> None:
    """Children run on all workers at once; their answers come in the order in which they were given to `wait`."""
    names = ["a", "b", "c", "d"]

    @durable
    async def group() -> list[Any]:
        handles = [schedule(meet(name)) for name in names]
        return [answer.value for answer in await wait(reversed(handles)) if isinstance(answer, Ok)]

    # Neither of the workers can run all four, and they end together or not at all.
    async with working(migrated_url, group, workers=2, max_concurrent_tasks=2) as scheduler:
        handle = await scheduler.start(group)
        assert await handle.result(timeout=PATIENCE) == names[::-1]
        steps = await handle.steps()
        assert {(one.kind, one.status) for one in steps} == {(StepKind.CHILD, StepStatus.COMPLETED)}
        assert sorted(one.name for one in steps) == names
        assert (await count_rows(scheduler))["tasks"] == 0
    assert scene.ran == Counter(names)


async def test_each_keeps_its_own(migrated_url: str) -> None:
    """One gives None, one raises what it declares, one is retried, one times out; each has its own transaction."""
    answers: list[Any] = []

    @durable
    async def group() -> None:
        calls: list[Any] = [
            deposit("none"),
            decline("declined"),
            insist("thrice"),
            dawdle(),
            fail("why"),
            insist("no", 9),
        ]
        answers[:] = await wait([schedule(call) for call in calls])

    async with working(migrated_url, group, workers=2) as scheduler:
        async with scheduler.engine.begin() as connection:
            await connection.execute(text("CREATE TABLE made (name text)"))
        await (await scheduler.start(group)).result(timeout=PATIENCE)
        async with scheduler.engine.begin() as connection:
            made = sorted(await connection.scalars(text("SELECT name FROM made")))
    assert made == ["none", "thrice"]
    none, declined, thrice, late, failed, exhausted = answers
    assert none == Ok(None)
    assert isinstance(declined, BusinessErr)
    assert repr(declined.error) == "DeclinedError('declined')"
    assert thrice == Ok(3)
    assert isinstance(late, ZartErr)
    assert isinstance(late.error, StepTimeout)
    assert isinstance(failed, ZartErr)
    assert isinstance(failed.error, StepFailed)
    assert (failed.error.step, failed.error.message) == ("fail", "why")
    assert isinstance(exhausted, ZartErr)
    assert isinstance(exhausted.error, RetryExhausted)
    assert exhausted.error.attempts == 4


async def test_awaiting_one(migrated_url: str) -> None:
    """Awaited, a scheduled step gives its value or raises its error, also in a later turn."""
    seen: list[str] = []

    @durable
    async def group() -> int:
        handles = [schedule(decline("declined")), schedule(fail("why"))]
        value = schedule(insist("thrice"))
        seen.clear()
        for handle in handles:
            try:
                await handle
            except (DeclinedError, StepFailed) as error:
                seen.append(type(error).__name__)
        await sleep("night", "8h")
        return await value

    async with working(migrated_url, group, workers=2) as scheduler:
        async with scheduler.engine.begin() as connection:
            await connection.execute(text("CREATE TABLE made (name text)"))
        handle = await scheduler.start(group)
        await eventually(lambda: is_asleep(handle))
        await let_time_pass(scheduler)
        assert await handle.result(timeout=PATIENCE) == 3
    assert seen == ["DeclinedError", "StepFailed"]


async def test_waiting_for_a_retry(migrated_url: str, scene: Scene) -> None:
    """A child that waits before its next attempt costs a row, shows its error, and holds up none of its siblings."""

    @durable
    async def group() -> list[Any]:
        return await values(wait([schedule(try_later("later")), schedule(say("now", 1)), schedule(try_later("too"))]))

    async with working(migrated_url, group, workers=2) as scheduler:
        handle = await scheduler.start(group)
        await eventually(lambda: scene.ran, Counter({"later": 1, "now": 1, "too": 1}))
        await until_recorded(handle, 1)
        await eventually(lambda: all_wait(scheduler))
        waiting = [one for one in await handle.steps() if one.status is StepStatus.WAITING]
        assert sorted(one.name for one in waiting) == ["later", "too"]
        assert {(one.kind, one.attempts) for one in waiting} == {(StepKind.CHILD, 1)}
        assert all(one.error and one.error["error_type"] == "OSError" for one in waiting)
        await let_time_pass(scheduler)  # the run itself is woken too, sees that it is not yet time, and waits on
        assert await handle.result(timeout=PATIENCE) == [2, 1, 2]
    assert scene.ran == Counter({"later": 2, "now": 1, "too": 2})


async def test_open_children_are_listed(migrated_url: str, scene: Scene) -> None:
    """While a group runs, the execution waits, and its steps tell which children are not done."""

    @durable
    async def group() -> None:
        await wait([schedule(pass_gate("held")), schedule(say("done", 1))])

    async with working(migrated_url, group) as scheduler:
        handle = await scheduler.start(group)
        await eventually(lambda: scene.ran["held"])
        await until_recorded(handle, 1)
        await until(handle, ExecutionStatus.WAITING)
        done, held = await handle.steps()
        assert (done.name, done.kind, done.status, done.result) == ("done", StepKind.CHILD, StepStatus.COMPLETED, 1)
        assert (held.name, held.kind, held.status) == ("held", StepKind.CHILD, StepStatus.WAITING)
        assert (held.result, held.completed_at) == (None, None)
        scene.gate("held").set()
        await handle.result(timeout=PATIENCE)


async def test_the_body_goes_on(migrated_url: str, scene: Scene) -> None:
    """A child runs while the body goes on: a step of the body's meets it."""

    @durable
    async def group() -> list[str]:
        child = schedule(pass_gate("child"))
        here().gate("child").set()
        await say("own")
        await asyncio.wait_for(asyncio.shield(eventually(lambda: here().ran["child"])), PATIENCE)
        return [await child]

    async with working(migrated_url, group) as scheduler:
        assert await (await scheduler.start(group)).result(timeout=PATIENCE) == ["child"]
    assert scene.ran == {"own": 1, "child": 1}


async def test_what_follows_runs_once(migrated_url: str, scene: Scene) -> None:
    """After a group come a step, a sleep, an event, steps side by side and another group: each runs once."""

    @durable
    async def long() -> list[Any]:
        first = await values(wait([schedule(say("a", 1)), schedule(say("b", 2))]))
        step_ = await say("c", 3)
        await sleep("night", "8h")
        event = await wait_for_event("paid", int)
        pair = await gather(say("d", 5), say("e", 6))
        second = await values(wait([schedule(say_in_thread.call("f", 7)), schedule(say("g", 8))]))
        await sleep("noon", "8h")
        return [*first, step_, event, *pair, *second, await say("h", 9)]

    async with working(migrated_url, long, workers=2) as scheduler:
        handle = await scheduler.start(long)
        await eventually(lambda: is_asleep(handle))
        await let_time_pass(scheduler)
        await handle.offer_event("paid", 4)
        await eventually(lambda: scene.ran["g"])
        await eventually(lambda: is_asleep(handle))
        await let_time_pass(scheduler)
        assert await handle.result(timeout=PATIENCE) == list(range(1, 10))
    assert scene.ran == Counter("abcdefgh")


async def test_empty_groups(migrated_url: str) -> None:
    """There may be nothing to wait for; but of nothing there is no first."""

    @durable
    async def nothing() -> list[Any]:
        found: list[Any] = [await wait([]), await wait_first_n([], 0)]
        with pytest.raises(ConfigError):
            await wait_any([])
        for number, handles in ((1, []), (-1, []), (2, [schedule(say("a"))])):
            with pytest.raises(ConfigError):
                await wait_first_n(handles, number)
        return [*found, await say("after", 1)]

    async with working(migrated_url, nothing) as scheduler:
        assert await (await scheduler.start(nothing)).result(timeout=PATIENCE) == [[], [], 1]


async def test_groups_side_by_side(migrated_url: str, scene: Scene) -> None:
    """Tasks of the body wait for a group each: what follows one of them does not wait for the other."""

    async def branch(name: str) -> list[Any]:
        got = await values(wait([schedule(pass_gate(f"{name}-{number}")) for number in range(2)]))
        return [*got, await say(f"{name}-after", name)]

    @durable
    async def forked() -> list[Any]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(branch(name)) for name in ("left", "right")]
        return [task.result() for task in tasks]

    async with working(migrated_url, forked, workers=2) as scheduler:
        handle = await scheduler.start(forked)
        await eventually(scene.ran.total, 4)
        for name in ("right", "left"):
            assert scene.ran[f"{name}-after"] == 0
            for number in range(2):
                scene.gate(f"{name}-{number}").set()
            await eventually(lambda: scene.ran[f"{name}-after"])  # noqa: B023 - awaited at once
        assert await handle.result(timeout=PATIENCE) == [[f"{n}-0", f"{n}-1", n] for n in ("left", "right")]
    assert set(scene.ran.values()) == {1}


@pytest.mark.parametrize("limit", [None, "1h"])
async def test_an_event_comes_before_the_wait(limit: str | None, migrated_url: str, scene: Scene) -> None:
    """An event that is offered in a turn does not put to sleep the run that then waits for children."""

    @durable(timeout=limit)
    async def order() -> int:
        await pass_gate("before")
        return len(await wait([schedule(pass_gate("child"))]))

    async with working(migrated_url, order, workers=2) as scheduler:
        scene.gate("child").set()
        handle = await scheduler.start(order)
        await eventually(lambda: scene.ran, Counter(["before"]))
        await handle.offer_event("unrelated", 1)
        scene.gate("before").set()
        assert await handle.result(timeout=PATIENCE) == 1


async def test_waiting_again(migrated_url: str, scene: Scene) -> None:
    """The same children can be waited for again, a part of them before the others, and after a sleep."""

    @durable
    async def group() -> list[Any]:
        handles = [schedule(say(name, name)) for name in "abc"]
        some = await values(wait(handles[1:]))
        every = await values(wait([*handles, handles[0]]))
        await sleep("night", "8h")
        return [some, every, await values(wait(handles)), await handles[0]]

    async with working(migrated_url, group, workers=2) as scheduler:
        handle = await scheduler.start(group)
        await eventually(lambda: is_asleep(handle))
        await let_time_pass(scheduler)
        assert await handle.result(timeout=PATIENCE) == [["b", "c"], ["a", "b", "c", "a"], ["a", "b", "c"], "a"]
    assert scene.ran == Counter("abc")


@pytest.mark.parametrize("payload", [7, [1, "two", None], None, {}, [], "", False, {"a": {"b": [1.5]}}])
async def test_the_payload_stays(payload: Any, migrated_url: str) -> None:
    """The run's input, and an argument like it, are the same before, in and after a parallel section."""
    seen: list[Any] = []

    @durable
    async def group(data: Any) -> Any:
        seen.append(data)
        [inside] = await values(wait([schedule(say("child", data))]))
        seen.extend([inside, data])
        return data

    async with working(migrated_url, group, workers=2) as scheduler:
        handle = await scheduler.start(group, payload)
        assert await handle.result(timeout=PATIENCE) == payload
        assert (await handle.info()).payload == payload
    assert seen == [payload] * 4
    assert {type(one) for one in seen} == {type(payload)}


async def test_the_same_name_twice(migrated_url: str, scene: Scene) -> None:
    """Children of one name are told apart by the order in which they are scheduled."""

    @durable
    async def group() -> list[Any]:
        first = await values(wait([schedule(say("same", number)) for number in range(3)]))
        return [*first, *await values(wait([schedule(say("same", 3)), schedule(say("same", 4))]))]

    async with working(migrated_url, group, workers=2) as scheduler:
        handle = await scheduler.start(group)
        assert await handle.result(timeout=PATIENCE) == [0, 1, 2, 3, 4]
        names = sorted(one.name for one in await handle.steps())
    assert names == ["same", "same#2", "same#3", "same#4", "same#5"]
    assert scene.ran == {"same": 5}


async def test_plain_workflow(migrated_url: str, scene: Scene) -> None:
    """A `def` workflow has the same, without `await`, and holds no thread while it waits."""

    @durable
    def plain(number: int) -> list[Any]:
        handles = [sync.schedule(say_in_thread.call(f"{number}-a", 1)), sync.schedule(try_later(f"{number}-b"))]
        first, rest = sync.wait_any(handles)
        answers = [first, *sync.wait(rest), *sync.wait_first_n(handles, 1), *sync.wait([])]
        return [answer.value for answer in answers if isinstance(answer, Ok)]

    async with working(migrated_url, plain, workers=2, max_concurrent_tasks=2) as scheduler:
        handles = await scheduler.start_many(plain, [(None, number) for number in range(10)])
        await eventually(scene.ran.total, 20)
        for handle in handles:
            await until_recorded(handle, 2)
        await eventually(lambda: all_wait(scheduler))
        await let_time_pass(scheduler)
        for handle in handles:
            assert await handle.result(timeout=PATIENCE) == [1, 2, 1]


async def test_many(migrated_url: str, scene: Scene) -> None:
    """A thousand children, on workers that run few at a time, beside other runs: each runs once, all are answered."""

    @durable
    async def group(count: int) -> int:
        answers = await values(wait([schedule(say(f"{count}-{number}", number)) for number in range(count)]))
        assert answers == list(range(count))
        return sum(answers)

    async with working(migrated_url, group, workers=2, max_concurrent_tasks=20) as scheduler:
        handles = await scheduler.start_many(group, [(None, count) for count in (1000, 1, 7, 300)])
        assert [await one.result(timeout=PATIENCE) for one in handles] == [499500, 0, 21, 44850]
        assert (await count_rows(scheduler))["tasks"] == 0
    assert set(scene.ran.values()) == {1}
    assert len(scene.ran) == 1308


async def test_worker_without_the_handler(migrated_url: str, scene: Scene) -> None:
    """A worker that does not know the workflow leaves its children to one that does."""

    @durable
    async def group() -> list[Any]:
        return await values(wait([schedule(try_later(name)) for name in "ab"]))

    @durable
    async def other() -> int:
        return 1

    async with working(migrated_url, other) as scheduler:
        handle = await scheduler.start(group)
        async with worker_on(migrated_url, group):
            await eventually(lambda: scene.ran, Counter("ab"))
            await until(handle, ExecutionStatus.WAITING)
        await let_time_pass(scheduler)
        assert await (await scheduler.start(other)).result(timeout=PATIENCE) == 1
        assert scene.ran == Counter("ab")
        async with worker_on(migrated_url, group):
            assert await handle.result(timeout=PATIENCE) == [2, 2]
