"""Waiting for events: what is offered is taken once, in order, or the wait times out once and for all."""

import asyncio
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest

from tests.unit.support.memory import LONG, START, MemoryRun
from zart_sqla import (
    ConfigError,
    DeadlineExceeded,
    Durable,
    EventTimeout,
    Failure,
    InvalidDataError,
    InvalidNameError,
    NotInWorkflowError,
    Retry,
    StepFailure,
    durable,
    sleep,
    step,
    sync,
    wait_for_event,
)
from zart_sqla.records import RecordedStep, StepKind
from zart_sqla.runtime.outcomes import Completed, Failed, LeaseLost, Suspended

HOUR = timedelta(hours=1)


@dataclass
class Payment:
    """The value of an event."""

    amount: Decimal
    note: str | None = None


@step("{name}")
async def work(name: str) -> str:
    """Do something."""
    return name


@durable
async def look() -> Any:
    """Wait for one event."""
    return await wait_for_event("paid")


@durable
async def look_twice() -> list[Any]:
    """Wait for two events of one name."""
    return [await wait_for_event("paid"), await wait_for_event("paid")]


@durable
async def look_for_a_while() -> list[Any]:
    """Wait for an hour, do something, and wait for another event of the name."""
    try:
        first = await wait_for_event("paid", timeout=LONG)
    except EventTimeout as error:
        first = await work(f"after {error.step}")
    return [first, await wait_for_event("paid")]


async def suspended(run: MemoryRun) -> Suspended:
    """Return how a turn ends that goes on later."""
    outcome = await run.turn()
    assert isinstance(outcome, Suspended), outcome
    return outcome


async def test_offered_before() -> None:
    """An event that is there is taken in the turn that asks for it."""
    run = MemoryRun(look)
    run.offer("paid", 7)
    assert await run.turn() == Completed("7")
    assert await run.replay() == Completed("7")
    wait = RecordedStep(name="paid", kind=StepKind.EVENT, position=0, result="7", started_at=START)
    assert run.recorder.steps == {"paid": wait}
    assert run.recorder.events == []


async def test_offered_during_the_wait() -> None:
    """The wait is recorded with the end of the turn, and costs a row until the event comes."""
    run = MemoryRun(look)
    outcome = await suspended(run)
    wait = RecordedStep(name="paid", kind=StepKind.EVENT, position=0, started_at=START)
    assert outcome == Suspended(due_at=None, is_waiting=True, step=wait, awaits=frozenset({"paid"}))
    assert wait.is_open
    run.offer("paid", [1, None])
    assert await run.result() == [1, None]
    assert not run.recorder.steps["paid"].is_open


async def test_offered_during_the_turn() -> None:
    """An event that comes while the turn runs is found by the next turn, which the count of signals brings about."""

    @step
    async def be_paid() -> None:
        run.offer("paid", 3)

    @durable
    async def order() -> int:
        await be_paid()
        return await wait_for_event("paid", int)

    run = MemoryRun(order)
    claimed = run.claim()
    assert claimed.task.signals == 0
    outcome = await asyncio.create_task(claimed.run())
    assert isinstance(outcome, Suspended)
    assert outcome.awaits == {"paid"}
    assert run.task.signals == 1
    assert await run.result() == 3


async def test_offered_after() -> None:
    """An event that nobody waits for is left alone, as is one of another name."""
    run = MemoryRun(look)
    for name, value in (("refunded", 0), ("paid", 1), ("paid", 2)):
        run.offer(name, value)
    assert await run.result() == 1
    assert run.recorder.events == [("refunded", "0"), ("paid", "2")]


async def test_event_of_another_name() -> None:
    """An event that is not waited for changes nothing of a wait: not its record, and not its time."""
    run = MemoryRun(look_for_a_while)
    first = await suspended(run)
    run.offer("refunded")
    run.recorder.time += HOUR / 2
    second = await suspended(run)
    assert (second.due_at, second.step, second.awaits) == (first.due_at, None, first.awaits)
    assert run.steps == ["paid"]


@pytest.mark.parametrize(
    ("kind", "value", "expected"),
    [
        (Payment, {"amount": "19.99"}, Payment(Decimal("19.99"))),
        (Decimal, "0.1", Decimal("0.1")),
        (list[Payment], [{"amount": "1", "note": "x"}], [Payment(Decimal(1), "x")]),
        (int | None, None, None),
        (type(None), None, None),
        (Any, {"a": [1]}, {"a": [1]}),
    ],
)
async def test_typed_value(kind: Any, value: object, expected: object) -> None:
    """The value has the type that the wait names, the first time and on replay."""
    seen: list[object] = []

    @durable
    async def order() -> None:
        seen.append(await wait_for_event("paid", kind))

    run = MemoryRun(order)
    run.offer("paid", value)
    await run.result()
    assert seen == [expected, expected]


async def test_order_of_arrival() -> None:
    """Several waits for one name get the events in the order in which they came, each of them one."""
    run = MemoryRun(look_twice)
    run.offer("paid", "first")
    assert (await suspended(run)).awaits == {"paid"}
    run.offer("paid", "second")
    run.offer("paid", "third")
    assert await run.result() == ["first", "second"]
    assert run.steps == ["paid", "paid#2"]
    assert run.recorder.events == [("paid", '"third"')]


async def test_timeout() -> None:
    """It fails the wait when it is over, and the run, if nothing catches it."""

    @durable
    async def order() -> None:
        await wait_for_event("paid", timeout=LONG)

    run = MemoryRun(order)
    outcome = await suspended(run)
    assert outcome.due_at == START + HOUR
    assert outcome.step is not None
    assert (outcome.step.wake_at, set(outcome.awaits)) == (START + HOUR, {"paid"})
    error = (await run.failure()).error
    assert (error.category, error.error_type, error.step) == ("event_timeout", "EventTimeout", "paid")
    assert error.message == "none in 3600 s"


async def test_caught_timeout() -> None:
    """A body that catches it goes on, and a replay takes the same branch; a late event is for the next wait."""
    run = MemoryRun(look_for_a_while)
    await suspended(run)
    run.recorder.time += HOUR
    assert (await suspended(run)).awaits == {"paid"}
    assert run.steps == ["paid", "after paid", "paid#2"]
    run.offer("paid", "late")
    assert await run.result() == ["after paid", "late"]
    assert run.recorder.steps["paid"].result is None


async def test_event_at_the_last_moment() -> None:
    """A wait whose time is over still takes an event that is there."""
    run = MemoryRun(look_for_a_while)
    await suspended(run)
    run.recorder.time += 2 * HOUR
    run.offer("paid", "just in time")
    run.offer("paid", "next")
    assert await run.result() == ["just in time", "next"]


@pytest.mark.parametrize("has_event", [True, False])
async def test_no_time_at_all(has_event: bool) -> None:  # noqa: FBT001
    """A timeout of zero asks whether an event is there, within the turn."""

    @durable
    async def order() -> str:
        try:
            return await wait_for_event("paid", str, timeout=0)
        except EventTimeout as error:
            return str(error)

    run = MemoryRun(order)
    if has_event:
        run.offer("paid", "there")
    expected = '"there"' if has_event else "\"no event came for 'paid': none in 0 s\""
    assert await run.turn() == Completed(expected)
    assert await run.replay() == Completed(expected)


async def test_changed_timeout() -> None:
    """The recorded moment counts, whatever the code says later."""

    @durable("look_for_a_while")
    async def look_longer() -> None:
        await wait_for_event("paid", timeout="1d")

    run = MemoryRun(look_for_a_while)
    await suspended(run)
    outcome = await run.finish(look_longer)
    assert isinstance(outcome, Failed)
    assert outcome.error.message == "none in 3600 s"
    assert run.recorder.time == START + HOUR


async def test_value_that_does_not_fit() -> None:
    """It is refused with the path to the field, and taken: the next wait gets the next event, on replay too."""

    @durable
    async def order() -> list[Any]:
        with pytest.raises(InvalidDataError, match=r"the event 'paid'.*amount"):
            await wait_for_event("paid", Payment)
        return [await wait_for_event("paid", Payment)]

    run = MemoryRun(order)
    run.offer("paid", {"amount": "much"})
    assert (await suspended(run)).awaits == {"paid"}
    run.offer("paid", {"amount": "1", "note": "fits"})
    assert await run.result() == [{"amount": "1", "note": "fits"}]


async def test_value_that_does_not_fit_fails_the_run() -> None:
    """A body that does not catch it fails with it, as with an error of its own."""

    @durable
    async def order() -> None:
        await wait_for_event("paid", int)

    run = MemoryRun(order)
    run.offer("paid", "seven")
    error = (await run.failure()).error
    assert (error.error_type, error.step) == ("InvalidDataError", None)
    assert "the event 'paid'" in error.message


async def test_waits_side_by_side() -> None:
    """Waits in tasks of the body's own wait at the same time, beside a sleep; the run is due at the first moment."""

    @durable
    async def order() -> list[Any]:
        paid = wait_for_event("paid", timeout="3h")
        return list(await asyncio.gather(sleep("nap", "2h"), paid, wait_for_event("packed")))

    run = MemoryRun(order)
    first = await suspended(run)
    assert (first.due_at, set(first.awaits)) == (START + 2 * HOUR, {"paid", "packed"})
    assert {name: one.is_open for name, one in run.recorder.steps.items()} == {
        "nap": False,
        "paid@2": True,
        "packed@3": True,
    }
    run.offer("packed", "box")
    assert (await suspended(run)).awaits == {"paid"}
    run.recorder.time += 2 * HOUR
    second = await suspended(run)
    assert (second.due_at, set(second.awaits)) == (START + 3 * HOUR, {"paid"})
    run.offer("paid", 7)
    assert await run.result() == [None, 7, "box"]


async def test_body_that_waits_beside_its_own_tasks() -> None:
    """The wait of the body itself is recorded, even if something in a task of the body's own is due sooner."""

    @durable
    async def order() -> Any:
        nap = asyncio.create_task(sleep("nap", LONG))
        await asyncio.sleep(0)
        try:
            return await wait_for_event("paid", timeout="2h")
        finally:
            await nap

    run = MemoryRun(order)
    assert (await suspended(run)).due_at == START + HOUR
    assert run.steps == ["nap", "paid"]
    assert (await run.failure()).error.error_type == "EventTimeout"
    assert run.recorder.time == START + 2 * HOUR


async def pay_and_pack() -> list[Any]:
    """Wait for an event, and go on with steps, side by side and one after the other."""
    paid = await wait_for_event("paid")
    names = await asyncio.gather(work("a"), work("b"))
    await asyncio.to_thread(str)
    return [paid, *names, await work("c")]


async def nap_in_a_group() -> list[Any]:
    """Sleep, and do that beside it, in a task group."""
    async with asyncio.TaskGroup() as group:
        group.create_task(sleep("nap", LONG))
        paid = group.create_task(pay_and_pack())
    return paid.result()


async def nap_in_a_gather() -> list[Any]:
    """Sleep, and do that beside it, by `asyncio.gather`."""
    _, paid = await asyncio.gather(sleep("nap", LONG), pay_and_pack())
    return list(paid)


async def nap_at_last() -> list[Any]:
    """Begin that in a task, and sleep in the body itself."""
    paid = asyncio.create_task(pay_and_pack())
    await asyncio.sleep(0)
    await sleep("nap", LONG)
    return await paid


@pytest.mark.parametrize("body", [nap_in_a_group, nap_in_a_gather, nap_at_last])
@pytest.mark.parametrize("is_late", [True, False])
async def test_steps_after_a_wait_beside_a_sleep(body: Any, is_late: bool) -> None:  # noqa: FBT001
    """What follows the event runs at once, not when the sleep is over; the turn ends when nothing else goes on."""

    @durable
    async def order() -> Any:
        return await body()

    run = MemoryRun(order)
    if is_late:
        assert (await suspended(run)).awaits == {"paid"}
        assert functions_of(run) == ["nap", "paid"]
    run.offer("paid", 7)
    outcome = await suspended(run)
    assert (outcome.due_at, set(outcome.awaits)) == (START + HOUR, set())
    assert functions_of(run) == ["a", "b", "c", "nap", "paid"]
    assert await run.result() == [7, "a", "b", "c"]


def functions_of(run: MemoryRun) -> list[str]:
    """Return the names of the recorded steps, without those of the tasks that called them."""
    return sorted(name.partition("@")[0] for name in run.steps)


async def test_sleep_that_is_over_before_a_step_beside_it() -> None:
    """It goes on in the same turn: the step is not interrupted, and the sleep does not last longer for it."""
    awake, ran = asyncio.Event(), []

    @step
    async def long() -> str:
        ran.append(1)
        run.recorder.time += HOUR
        await awake.wait()
        return "done"

    async def nap() -> None:
        await sleep("nap", "600ms")
        awake.set()

    @durable
    async def order() -> list[Any]:
        return list(await asyncio.gather(nap(), long(), wait_for_event("paid")))

    run = MemoryRun(order)
    assert (await suspended(run)).awaits == {"paid"}
    assert sorted(run.steps) == ["long@2", "nap", "paid@3"]
    run.offer("paid", 7)
    assert await run.result() == [None, "done", 7]
    assert ran == [1]


async def test_wait_that_times_out_before_a_step_beside_it() -> None:
    """It takes an event that has come in the meantime, or times out, in the same turn."""
    over = asyncio.Event()

    @step
    async def long() -> None:
        run.recorder.time += HOUR
        run.offer("packed", "box")
        await over.wait()

    async def wait() -> Any:
        with pytest.raises(EventTimeout):
            await wait_for_event("paid", timeout="600ms")
        over.set()

    @durable
    async def order() -> list[Any]:
        return list(await asyncio.gather(wait_for_event("packed", timeout="600ms"), wait(), long()))

    run = MemoryRun(order)
    assert await run.turn() == Completed('["box",null,null]')


async def test_execution_timeout() -> None:
    """The timeout of the execution ends a wait that would pass it, or has none, and `on_failure` is told so."""
    told: list[Failure] = []

    async def refund(_data: None, failure: Failure) -> str:
        told.append(failure)
        return "refunded"

    @durable(timeout=LONG, on_failure=refund)
    async def order() -> str:
        return await wait_for_event("paid", str)

    run = MemoryRun(order)
    assert (await suspended(run)).due_at == START + HOUR
    assert await run.result() == "refunded"
    assert told == [DeadlineExceeded("'order' had not ended 3600 s after its first turn began")] * 2


async def test_on_failure_is_told_of_a_timeout() -> None:
    """It is a step's failure; a retry of the body is not for it. What is called then can wait for events itself."""
    told: list[Failure] = []

    async def refund(_data: None, failure: Failure) -> str:
        told.append(failure)
        return await wait_for_event("refunded", str)

    @durable(retry=Retry.fixed(3, 0), on_failure=refund)
    async def order() -> str:
        return await wait_for_event("paid", str, timeout=LONG)

    run = MemoryRun(order)
    await suspended(run)
    run.recorder.time += HOUR
    assert (await suspended(run)).awaits == {"refunded"}
    run.offer("refunded", "all of it")
    assert await run.result() == "all of it"
    assert told == [StepFailure("paid", "EventTimeout", "none in 3600 s", 1)] * 3
    assert run.steps == ["paid", "on_failure", "refunded"]


@durable("look")
async def look_by_a_step() -> str:
    """Have a step where there was a wait, under the same name."""
    return await work("paid")


@durable("look")
async def look_for_something_else() -> Any:
    """Wait for another event."""
    return await wait_for_event("packed")


@pytest.mark.parametrize("is_open", [True, False])
@pytest.mark.parametrize(
    ("new", "called"), [(look_by_a_step, r"paid \(step\)"), (look_for_something_else, "packed")], ids=["step", "name"]
)
async def test_changed_code(new: Durable[Any, Any], called: str, is_open: bool) -> None:  # noqa: FBT001
    """A wait that was replaced stops the run, which goes on with the old code."""
    run = MemoryRun(look)
    if not is_open:
        run.offer("paid", 1)
    await run.turn()
    run.offer("packed", 2)
    outcome = await run.turn(new)
    assert isinstance(outcome, Failed)
    assert outcome.error.error_type == "NonDeterminismError"
    assert "'paid' is recorded" in outcome.error.message
    assert called.replace("\\", "") in outcome.error.message
    run.offer("paid", 1)
    assert await run.finish(look) == Completed("1")


@pytest.mark.parametrize("taken", range(3))
async def test_lost_lease(taken: int) -> None:
    """A turn that has lost its task takes nothing more; the next one takes what is left, each event once."""
    run = MemoryRun(look_twice)
    run.offer("paid", 1)
    run.offer("paid", 2)
    run.recorder.writes_left = taken
    outcome = await run.turn()
    assert outcome == (Completed("[1,2]") if taken == 2 else LeaseLost())
    assert len(run.recorder.events) == 2 - taken
    run.recorder.writes_left = None
    assert await run.result() == [1, 2]


async def test_body_that_catches_everything() -> None:
    """It cannot keep its turn from ending: nothing more is called in it."""
    caught: list[str] = []

    @durable
    async def order() -> str:
        try:
            await wait_for_event("paid")
        except BaseException as error:  # noqa: BLE001 - the point of this test
            caught.append(type(error).__name__)
        return await work("after")

    run = MemoryRun(order)
    assert (await suspended(run)).awaits == {"paid"}
    assert (run.steps, len(caught)) == (["paid"], 1)
    run.offer("paid")
    assert await run.result() == "after"
    assert len(caught) == 1


async def test_def_workflow() -> None:
    """A `def` workflow waits with `sync.wait_for_event`, without holding a thread."""

    @durable
    def order() -> list[Any]:
        with pytest.raises(EventTimeout):
            sync.wait_for_event("paid", Payment, timeout=LONG)
        paid = sync.wait_for_event("paid", Payment)
        return [paid.amount, sync.wait_for_event("packed")]

    run = MemoryRun(order)
    outcome = await suspended(run)
    assert (outcome.due_at, set(outcome.awaits)) == (START + HOUR, {"paid"})
    run.recorder.time += HOUR
    await suspended(run)
    run.offer("paid", {"amount": "2.50"})
    assert (await suspended(run)).awaits == {"packed"}
    run.offer("packed", "box")
    assert await run.result() == ["2.50", "box"]


@pytest.mark.parametrize("duration", ["soon", -1, float("nan")])
async def test_bad_timeout(duration: Any) -> None:
    """What is no duration is refused in the body, and nothing is recorded."""

    @durable
    async def order() -> str:
        with pytest.raises(ConfigError, match="duration"):
            await wait_for_event("paid", timeout=duration)
        return "refused"

    run = MemoryRun(order)
    assert await run.result() == "refused"
    assert run.steps == []


async def test_bad_name() -> None:
    """A name that cannot be stored is refused in the body."""

    @durable
    async def order() -> str:
        with pytest.raises(InvalidNameError, match="is empty"):
            await wait_for_event("")
        return "refused"

    assert await MemoryRun(order).result() == "refused"


async def test_outside_a_workflow() -> None:
    """There is nothing there that could go on later."""
    with pytest.raises(NotInWorkflowError, match=r"wait_for_event\(\.\.\.\) works only in a workflow"):
        await wait_for_event("paid")
    with pytest.raises(NotInWorkflowError, match="works only in a workflow"):
        await asyncio.to_thread(sync.wait_for_event, "paid")


async def test_in_a_step() -> None:
    """A step has no place to go on from."""

    @step
    async def ask() -> str:
        with pytest.raises(NotInWorkflowError, match="not in a step such as 'ask'"):
            await wait_for_event("paid")
        return "refused"

    @durable
    async def order() -> str:
        return await ask()

    assert await MemoryRun(order).result() == "refused"
