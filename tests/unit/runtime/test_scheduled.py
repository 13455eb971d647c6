"""Scheduled steps: each is a task of its own, and the run waits for them as a row."""

import asyncio
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import pytest

from tests.unit.support.memory import LONG, SHORT, START, MemoryRun
from zart_sqla import (
    BusinessErr,
    ConfigError,
    Ok,
    Retry,
    StepFailed,
    ZartErr,
    context,
    durable,
    schedule,
    sleep,
    step,
    wait,
    wait_any,
    wait_first_n,
)
from zart_sqla.records import StepKind
from zart_sqla.runtime.answers import Answer
from zart_sqla.runtime.outcomes import Completed, Done, Suspended

calls: list[str] = []


@pytest.fixture(autouse=True)
def _forget_calls() -> None:
    """Start each test without calls."""
    calls.clear()


class Declined(Exception):
    """An answer of a step."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


@step("{name}")
async def work(name: str) -> str:
    """Do something."""
    calls.append(name)
    return name


@step("{name}")
def work_in_a_thread(name: str) -> str:
    """Do something that blocks."""
    calls.append(name)
    return name


@step
async def nothing() -> None:
    """Return None."""


@step(raises=Declined)
async def decline() -> str:
    """Give an answer that is an error."""
    raise Declined("no money")


@step
async def fail() -> str:
    """Fail."""
    raise ValueError("no")


@step(retry=Retry.fixed(3, SHORT))
async def fail_twice() -> str:
    """Fail on the first two attempts."""
    calls.append("fail_twice")
    if context().attempt < 3:
        raise OSError("down")
    return "up"


@step(retry=Retry.fixed(1, LONG))
async def exhaust() -> str:
    """Fail each time."""
    calls.append("exhaust")
    raise OSError("down")


@step(timeout=SHORT)
async def hang() -> str:
    """Take too long."""
    await asyncio.Event().wait()
    return "never"


def told(answers: Iterable[Answer[Any]]) -> list[Any]:
    """Return the answers as JSON can hold them."""
    found: list[Any] = []
    for answer in answers:
        match answer:
            case Ok(value):
                found.append(value)
            case BusinessErr(error):
                found.append(repr(error))
            case ZartErr(error):
                found.append([type(error).__name__, error.step, error.message, error.attempts])
    return found


async def suspended(run: MemoryRun) -> Suspended:
    """Return how a turn ends that goes on later."""
    outcome = await run.turn()
    assert isinstance(outcome, Suspended), outcome
    return outcome


@durable
async def look() -> list[str]:
    """Wait for three steps, in another order than that in which they are scheduled."""
    a, b, c = (schedule(call) for call in (work("a"), work_in_a_thread.call("b"), work("c")))
    return told(await wait([c, a, b]))


async def test_answers_in_the_order_of_the_handles() -> None:
    """The run costs a row while its steps run, in whatever order they are done."""
    run = MemoryRun(look)
    assert await run.turn() == Suspended(is_waiting=True, awaits_open=0)
    assert run.children == ["a", "b", "c"]
    assert (run.steps, calls) == ([], [])
    assert [await run.run_child(name) for name in "bca"] == [Done()] * 3
    assert await run.result() == ["c", "a", "b"]
    assert calls == ["b", "c", "a"]
    assert {one.name: (one.kind, one.position) for one in run.recorder.steps.values()} == {
        "a": (StepKind.CHILD, 0),
        "b": (StepKind.CHILD, 1),
        "c": (StepKind.CHILD, 2),
    }


async def test_some_are_done() -> None:
    """A turn that finds some of them done waits for the others, and schedules none again."""
    run = MemoryRun(look)
    await run.turn()
    await run.run_child("b")
    assert await run.turn() == Suspended(is_waiting=True, awaits_open=0)
    assert run.children == ["a", "c"]
    assert await run.result() == ["c", "a", "b"]
    assert sorted(calls) == ["a", "b", "c"]


async def test_no_steps_at_all() -> None:
    """There is nothing to wait for then."""

    @durable
    async def order() -> list[Any]:
        return [await wait([]), await wait_first_n([], 0)]

    assert await MemoryRun(order).turn() == Completed("[[],[]]")


async def test_each_kind_of_answer() -> None:
    """A value, None, a declared error, a failure, and none after several attempts or in time; the others go on."""

    @durable
    async def order() -> list[Any]:
        steps = (nothing(), decline(), fail(), exhaust(), hang(), fail_twice(), work("a"))
        return told(await wait([schedule(call) for call in steps]))

    assert await MemoryRun(order).result() == [
        None,
        "Declined('no money')",
        ["StepFailed", "fail", "no", 1],
        ["RetryExhausted", "exhaust", "down", 2],
        ["StepTimeout", "hang", "it had not ended after 0.001 s", 1],
        "up",
        "a",
    ]
    assert sorted(calls) == ["a", *["exhaust"] * 2, *["fail_twice"] * 3]


async def test_child_that_waits_for_its_retry() -> None:
    """It is put down until then, as a run would be, and goes on counting its attempts."""

    @durable
    async def order() -> list[Any]:
        return told(await wait([schedule(exhaust())]))

    run = MemoryRun(order)
    await run.turn()
    assert await run.run_child("exhaust") == Suspended(due_at=START + timedelta(hours=1), is_waiting=True)
    assert (run.children, [one.attempt for one in run.recorder.attempts]) == (["exhaust"], [1])
    assert await run.run_child("exhaust") == Done()
    assert await run.result() == [["RetryExhausted", "exhaust", "down", 2]]


async def test_child_that_is_recorded() -> None:
    """A child that was scheduled once more, by a write whose answer was lost, does not run again."""
    run = MemoryRun(look)
    await run.turn()
    child = run.recorder.children["a"]
    await run.run_child("a")
    run.recorder.children["a"] = child
    assert await run.run_child("a") == Done()
    assert (run.children, calls) == (["b", "c"], ["a"])


async def test_awaiting_one() -> None:
    """To await what `schedule` returned gives the value, or raises the error, also on replay."""

    @durable
    async def order() -> list[Any]:
        a, declined, failed = schedule(work("a")), schedule(decline()), schedule(fail())
        assert repr(a) == "<scheduled step 'a'>"
        with pytest.raises(Declined) as answer:
            await declined
        with pytest.raises(StepFailed, match="step 'fail' failed: ValueError: no"):
            await failed
        return [await a, answer.value.reason, await a]

    run = MemoryRun(order)
    assert (await suspended(run)).awaits_open == 2
    assert await run.result() == ["a", "no money", "a"]


async def test_error_that_nobody_catches() -> None:
    """It fails the run as a step's error does that was called."""

    @durable(retry=Retry.fixed(3, 0))
    async def order() -> str:
        return await schedule(fail())

    error = (await MemoryRun(order).failure()).error
    assert (error.category, error.error_type, error.step) == ("step_failed", "ValueError", "fail")


@durable
async def take_the_first() -> list[Any]:
    """Wait for one of three, and then for the others."""
    first, rest = await wait_any([schedule(work(name)) for name in "abc"])
    return [*told([first]), [one.name for one in rest], *told(await wait(rest))]


async def test_wait_any() -> None:
    """It goes on with the first that is done; the others go on too."""
    run = MemoryRun(take_the_first)
    assert (await suspended(run)).awaits_open == 2
    await run.run_child("b")
    assert (await suspended(run)).awaits_open == 0
    assert run.children == ["a", "c"]
    assert await run.result() == ["b", ["a", "c"], "a", "c"]
    assert (run.recorder.steps["wait_any"].kind, run.recorder.steps["wait_any"].result) == (StepKind.CHOICE, '["b"]')
    assert calls == ["b", "a", "c"]


async def test_wait_any_of_several_that_are_done() -> None:
    """It is the one that was done first."""
    run = MemoryRun(take_the_first)
    await run.turn()
    for name in "cba":
        await run.run_child(name)
    assert await run.result() == ["c", ["a", "b"], "a", "b"]


async def test_wait_any_gives_errors() -> None:
    """An error is an answer too."""

    @durable
    async def order() -> list[Any]:
        first, rest = await wait_any([schedule(fail())])
        return [*told([first]), rest]

    assert await MemoryRun(order).result() == [["StepFailed", "fail", "no", 1], []]


async def test_wait_first_n() -> None:
    """The first come first; the others are cancelled, which a later wait for them tells, also on replay."""

    @durable
    async def order() -> list[Any]:
        handles = [schedule(work(name)) for name in "abcd"]
        first = told(await wait_first_n(handles, 2))
        return [first, told(await wait(handles))]

    run = MemoryRun(order)
    assert (await suspended(run)).awaits_open == 2
    for name in "db":
        await run.run_child(name)
    cancelled = ["StepCancelled", "a", "it was cancelled, since others were enough", 1]
    assert await run.result() == [["d", "b"], [cancelled, "b", ["StepCancelled", "c", *cancelled[2:]], "d"]]
    assert (run.children, calls) == ([], ["d", "b"])
    assert run.recorder.steps["wait_first_n"].result == '["d", "b"]'


async def test_more_are_done_than_are_wanted() -> None:
    """Those that are done keep their answers."""

    @durable
    async def order() -> list[Any]:
        handles = [schedule(work(name)) for name in "abc"]
        return [told(await wait_first_n(handles, 1)), told(await wait(handles))]

    run = MemoryRun(order)
    await run.turn()
    for name in "cb":
        await run.run_child(name)
    first, (a, b, c) = await run.result()
    assert (first, a[0], b, c) == (["c"], "StepCancelled", "b", "c")


async def test_none_is_enough() -> None:
    """To wait for none of them cancels them all, even if they have only just been scheduled."""

    @durable
    async def order() -> list[Any]:
        handles = [schedule(work(name)) for name in "ab"]
        return [await wait_first_n(handles, 0), [answer[0] for answer in told(await wait(handles))]]

    run = MemoryRun(order)
    assert await run.result() == [[], ["StepCancelled"] * 2]
    assert calls == []


@pytest.mark.parametrize(("n", "expected"), [(3, "at least 3"), (-1, "at least 1")])
async def test_not_so_many(n: int, expected: str) -> None:
    """More than there are, or fewer than none, cannot be waited for."""

    @durable
    async def order() -> str:
        handles = [schedule(work(name)) for name in "ab"]
        with pytest.raises(ConfigError, match=f"wait_first_n: expected {expected} scheduled steps, got 2"):
            await wait_first_n([*handles, *handles], n)
        with pytest.raises(ConfigError, match="wait_any: expected at least 1 scheduled steps, got 0"):
            await wait_any([])
        return "refused"

    run = MemoryRun(order)
    assert await run.result() == "refused"
    assert run.steps == []


async def test_one_of_them_twice() -> None:
    """One that is waited for twice is one, and answers twice."""

    @durable
    async def order() -> list[Any]:
        a, b = schedule(work("a")), schedule(work("b"))
        first, rest = await wait_any([a, a, b])
        return [*told([first]), [one.name for one in rest], *told(await wait([a, b, a]))]

    assert await MemoryRun(order).result() == ["a", ["b"], "a", "b", "a"]
    assert calls == ["a", "b"]


async def test_one_name_twice() -> None:
    """They are two steps; so are those of several waits."""

    @durable
    async def order() -> list[Any]:
        handles = [schedule(work("a")) for _ in range(3)]
        named = schedule(work("b").named("a"))
        first, _ = await wait_any(handles)
        second, _ = await wait_any([named])
        return [[one.name for one in (*handles, named)], *told([first, *await wait(handles), second])]

    run = MemoryRun(order)
    assert await run.result() == [["a", "a#2", "a#3", "a#4"], "a", "a", "a", "a", "b"]
    assert (sorted(calls), len(run.steps)) == (["a", "a", "a", "b"], 6)
    assert {"wait_any", "wait_any#2"} < set(run.steps)


async def test_followed_by_more() -> None:
    """A step, a sleep and another wait follow; each runs once."""

    @durable
    async def order() -> list[Any]:
        first = await wait([schedule(work(name)) for name in "ab"])
        third = await work("c")
        await sleep("nap", LONG)
        return [*told(first), third, *told(await wait([schedule(work(name)) for name in "de"]))]

    run = MemoryRun(order)
    assert await run.result() == ["a", "b", "c", "d", "e"]
    assert sorted(calls) == ["a", "b", "c", "d", "e"]
    assert [run.recorder.steps[name].position for name in ("a", "b", "c", "nap", "d", "e")] == [0, 1, 2, 3, 4, 5]


async def test_scheduled_one_after_the_other() -> None:
    """What a turn schedules while something else goes on is a task at once, before anything waits for it."""

    @durable
    async def order() -> list[Any]:
        first = schedule(work("a"))
        seen = [await work("b"), list(run.children)]
        return [*seen, *told(await wait([first, schedule(work("c"))]))]

    run = MemoryRun(order)
    assert (await suspended(run)).awaits_open == 0
    assert (run.children, calls) == (["a", "c"], ["b"])
    outcome = await run.finish()
    assert isinstance(outcome, Completed)
    assert sorted(calls) == ["a", "b", "c"]


async def test_body_that_does_not_wait() -> None:
    """It completes, and nothing of what it has left behind is waited for."""

    @durable
    async def order() -> str:
        schedule(work("a"))
        await work("b")
        return await work("c")

    run = MemoryRun(order)
    assert await run.turn() == Completed('"c"')
    assert run.children == ["a"]
    assert await run.result() == "c"
    assert calls == ["b", "c"]
