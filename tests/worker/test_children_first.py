"""The first of several children, with real workers: which it was is recorded, and what the others come to."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from tests.support.scene import Scene, fail, is_asleep, pass_gate, stand, try_later, until_recorded, values
from tests.support.waiting import PATIENCE, eventually
from tests.support.working import count_rows, let_time_pass, working
from zart_sqla import (
    Answer,
    Ok,
    Scheduled,
    ZartErr,
    durable,
    schedule,
    sleep,
    wait,
    wait_any,
    wait_first_n,
)


def names_of(handles: Sequence[Scheduled[Any]]) -> list[str]:
    """Return the names of scheduled steps."""
    return [handle.name for handle in handles]


async def test_any(migrated_url: str, scene: Scene) -> None:
    """`wait_any` answers with the first to be done; the others go on, and a replay sees the same first."""
    seen: list[Any] = []

    @durable
    async def race() -> list[Any]:
        rest = [schedule(pass_gate(name)) for name in "abc"]
        order: list[Any] = []
        while rest:
            answer, rest = await wait_any(rest)
            order.append([answer.value if isinstance(answer, Ok) else None, names_of(rest)])
            await sleep(f"after-{len(order)}", "8h")
        seen.append(order)
        return order

    async with working(migrated_url, race, workers=2) as scheduler:
        handle = await scheduler.start(race)
        await eventually(lambda: scene.ran, Counter("abc"))
        for done, name in enumerate("bca"):
            scene.gate(name).set()
            await until_recorded(handle, done * 3 + 2)  # the child, and which was the first
            await eventually(lambda: is_asleep(handle))
            await let_time_pass(scheduler)
        expected = [["b", ["a", "c"]], ["c", ["a"]], ["a", []]]
        assert await handle.result(timeout=PATIENCE) == expected
    assert scene.ran == Counter("abc")


async def test_first_n(migrated_url: str, scene: Scene) -> None:
    """`wait_first_n` answers with the first so many, in the order of their ends; the others are cancelled soon."""

    @durable
    async def race() -> list[Any]:
        handles = [
            schedule(stand("running")),
            schedule(pass_gate("a")),
            schedule(try_later("later")),
            schedule(pass_gate("b")),
        ]
        won = await values(wait_first_n(handles, 2))
        await sleep("night", "8h")
        losers: list[Answer[Any]] = await wait([handles[0], handles[2]])
        return [*won, *(error_type(answer) for answer in losers)]

    async with working(migrated_url, race, workers=2, heartbeat_interval="100ms") as scheduler:
        handle = await scheduler.start(race)
        await eventually(lambda: scene.ran, Counter(["running", "a", "later", "b"]))
        scene.gate("b").set()
        await until_recorded(handle, 1)
        assert scene.interrupted == []
        scene.gate("a").set()
        await eventually(lambda: is_asleep(handle))
        await eventually(lambda: scene.interrupted, ["running"])
        assert (await count_rows(scheduler))["tasks"] == 1  # the run's own
        await let_time_pass(scheduler)
        assert await handle.result(timeout=PATIENCE) == ["b", "a", "CancelledError", "CancelledError"]
    assert set(scene.ran.values()) == {1}


async def test_losers_are_waited_for_at_once(migrated_url: str, scene: Scene) -> None:
    """The losers of `wait_first_n` can be waited for in the same turn, beside others, one of which is not done yet."""

    @durable
    async def race() -> list[Any]:
        handles = [schedule(pass_gate(name)) for name in ("winner", "loser")]
        other = schedule(pass_gate("other"))
        won = await values(wait_first_n(handles, 1))
        answers: list[Answer[Any]] = await wait([*handles, other])
        return [*won, *(answer.value if isinstance(answer, Ok) else error_type(answer) for answer in answers)]

    async with working(migrated_url, race, workers=2) as scheduler:
        handle = await scheduler.start(race)
        await eventually(lambda: scene.ran, Counter(["winner", "loser", "other"]))
        scene.gate("winner").set()
        await until_recorded(handle, 2)  # the winner, and that it was
        scene.gate("other").set()
        assert await handle.result(timeout=PATIENCE) == ["winner", "winner", "CancelledError", "other"]


def error_type(answer: Any) -> str:
    """Return the type of the error that a cancelled child answers with."""
    assert isinstance(answer, ZartErr)
    return answer.error.error_type


async def test_first_of_those_that_failed(migrated_url: str, scene: Scene) -> None:
    """A child that failed is done too."""

    @durable
    async def race() -> list[str]:
        answer, rest = await wait_any([schedule(fail("why")), schedule(pass_gate("never"))])
        return [error_type(answer), *names_of(rest)]

    async with working(migrated_url, race) as scheduler:
        assert await (await scheduler.start(race)).result(timeout=PATIENCE) == ["ValueError", "never"]
        assert (await count_rows(scheduler))["tasks"] == 0
