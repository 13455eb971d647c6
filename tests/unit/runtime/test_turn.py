"""The turn: steps run once, their results are recorded, and a replay sees what the first time saw."""

import asyncio
import contextlib
import gc
import weakref
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

import pytest

from tests.unit.support.memory import LONG, SHORT, START, MemoryRun
from zart_sqla import (
    Retry,
    RetryExhausted,
    StepError,
    StepFailed,
    StepTimeout,
    durable,
    sleep,
    step,
    trx,
    wait_for_event,
)
from zart_sqla.records import RecordedStep, StepKind
from zart_sqla.runtime.outcomes import Completed, Failed, LeaseLost, Suspended


class CardDeclined(Exception):
    """An answer, not a fault."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


async def test_steps_run_once() -> None:
    """Two steps in a row complete, and a replay runs neither of them again."""
    calls: list[str] = []

    @step
    async def reserve(order: str) -> str:
        calls.append("reserve")
        return f"reserved {order}"

    @step
    async def ship(order: str) -> datetime:
        calls.append("ship")
        return START

    @durable
    async def fulfil(order: str) -> list[Any]:
        return [await reserve(order), (await ship(order)).year]

    run = MemoryRun(fulfil, "o-1")
    assert await run.result() == ["reserved o-1", 2026]
    assert calls == ["reserve", "ship"]
    assert [(s.name, s.kind, s.position) for s in run.recorder.steps.values()] == [
        ("reserve", StepKind.STEP, 0),
        ("ship", StepKind.STEP, 1),
    ]


@pytest.mark.parametrize("written", range(4))
async def test_crash_repeats_only_what_was_not_recorded(written: int) -> None:
    """Wherever the turn is lost, the next one goes on behind the last checkpoint."""
    calls: list[int] = []

    @step("double-{number}")
    async def double(number: int) -> int:
        calls.append(number)
        return number * 2

    @durable
    async def add_up() -> int:
        return sum([await double(number) for number in (1, 2, 3)])

    run = MemoryRun(add_up)
    run.recorder.writes_left = written
    first = await run.turn()
    assert first == (Completed("12") if written == 3 else LeaseLost())
    run.recorder.writes_left = None
    assert await run.result() == 12
    assert sorted(calls) == sorted([1, 2, 3] + ([] if written == 3 else [written + 1]))


async def test_first_time_and_replay_see_the_same_value() -> None:
    """A value that its text changes is seen as changed the first time too."""
    seen: list[Any] = []

    @step
    async def pair():  # type: ignore[no-untyped-def] # noqa: ANN202 - plain JSON is the point
        return (1, 2)

    @durable
    async def look() -> None:
        seen.append(await pair())

    run = MemoryRun(look)
    await run.result()
    assert seen == [[1, 2], [1, 2]]


async def test_typed_input_and_output() -> None:
    """Input, results and output come as the types that they are annotated with."""

    @dataclass
    class Order:
        cents: Decimal
        at: datetime

    @step
    async def double(order: Order) -> Order:
        return Order(order.cents * 2, order.at)

    @durable
    async def fulfil(order: Order) -> dict[str, Order]:
        assert isinstance(order.cents, Decimal)
        doubled = await double(order)
        assert isinstance(doubled, Order)
        return {"order": doubled}

    doubled = {"cents": "3.0", "at": "2026-01-01T00:00:00Z"}
    assert await MemoryRun(fulfil, Order(Decimal("1.5"), START)).result() == {"order": doubled}


async def test_input_that_does_not_fit() -> None:
    """A payload that the code's type no longer takes fails the run, and says where."""

    @durable("task")
    async def old(data: str) -> None: ...

    @durable("task")
    async def new(data: int) -> None: ...

    outcome = await MemoryRun(old, "x").turn(new)
    assert isinstance(outcome, Failed)
    assert outcome.error.error_type == "InvalidDataError"
    assert "the input" in outcome.error.message


async def test_result_that_does_not_fit() -> None:
    """A step whose value does not fit its annotation has failed, and is not retried."""

    @step(retry=Retry.fixed(3, SHORT))
    async def count() -> int:
        return "three"  # type: ignore[return-value]

    @durable
    async def look() -> None:
        await count()

    run = MemoryRun(look)
    outcome = await run.failure()
    assert (outcome.error.step, outcome.error.error_type) == ("count", "InvalidDataError")
    assert "the result of step 'count'" in outcome.error.message
    assert run.recorder.attempts == []


async def test_result_that_postgresql_refuses() -> None:
    """A checkpoint that the database refuses fails its step."""

    @step
    async def count() -> int:
        return 3

    @durable
    async def look() -> str:
        try:
            await count()
        except StepFailed as error:
            return error.error_type
        return "nothing"

    run = MemoryRun(look)
    run.recorder.refused.add("count")
    outcome = await run.turn()
    assert isinstance(outcome, Failed)  # its failure cannot be recorded either
    assert outcome.error.error_type == "InvalidDataError"


async def test_output_that_does_not_fit() -> None:
    """An output that does not fit its annotation fails the run."""

    @durable
    async def look() -> int:
        return "three"  # type: ignore[return-value]

    outcome = await MemoryRun(look).failure()
    assert outcome.error.error_type == "InvalidDataError"
    assert "the output of 'look'" in outcome.error.message


async def test_step_failed() -> None:
    """An error of a step without retry comes out as StepFailed, with its cause where it happened."""
    seen: list[StepError] = []

    @step
    async def fetch() -> None:
        raise ValueError("no such order")

    @durable
    async def look() -> None:
        try:
            await fetch()
        except StepFailed as error:
            seen.append(error)
            raise

    outcome = await MemoryRun(look).failure()
    first, replayed = seen
    assert isinstance(first.cause, ValueError)
    assert replayed.cause is None
    for error in seen:
        known = (error.step, error.error_type, error.message, error.attempts)
        assert known == ("fetch", "ValueError", "no such order", 1)
    assert str(first) == str(replayed)
    assert (outcome.error.step, outcome.error.message) == ("fetch", "no such order")


@pytest.mark.parametrize("delay", [SHORT, LONG])
async def test_retry(delay: str) -> None:
    """With two failures and `fixed(3)` it runs three times and completes, in this turn or in later ones."""
    attempts: list[int] = []

    @step(retry=Retry.fixed(3, delay))
    async def fetch() -> str:
        attempts.append(1)
        if len(attempts) < 3:
            raise ConnectionError("try again")
        return "here"

    @durable
    async def look() -> str:
        return await fetch()

    run = MemoryRun(look)
    assert await run.result() == "here"
    assert len(attempts) == 3
    assert [(one.step, one.attempt, one.error.message) for one in run.recorder.attempts] == [
        ("fetch", 1, "try again"),
        ("fetch", 2, "try again"),
    ]
    assert run.recorder.steps["fetch"].attempts == 3
    assert (run.recorder.time - START).total_seconds() == (7200 if delay == LONG else 0)


@pytest.mark.parametrize("delay", [SHORT, LONG])
async def test_retry_exhausted(delay: str) -> None:
    """When all attempts fail it is RetryExhausted, with their number and the last error."""
    seen: list[StepError] = []

    @step(retry=Retry.fixed(2, delay))
    async def fetch() -> None:
        raise ValueError("no such order")

    @durable
    async def look() -> None:
        try:
            await fetch()
        except RetryExhausted as error:
            seen.append(error)
            raise

    run = MemoryRun(look)
    outcome = await run.failure()
    assert [(e.attempts, e.error_type, e.message) for e in seen] == [(3, "ValueError", "no such order")] * 2
    assert (outcome.error.category, outcome.error.attempts) == ("retry_exhausted", 3)
    assert [one.attempt for one in run.recorder.attempts] == [1, 2]


async def test_error_that_the_retry_does_not_cover() -> None:
    """What `on` leaves out or `give_up_on` names fails at once, as StepFailed."""

    @step(retry=Retry.fixed(5, SHORT, on=OSError, give_up_on=FileNotFoundError))
    async def fetch(kind: str) -> None:
        raise {"in": ConnectionError, "out": ValueError, "given up": FileNotFoundError}[kind]

    @durable
    async def look() -> list[Any]:
        found: list[Any] = []
        for kind in ("in", "out", "given up"):
            try:
                await fetch(kind)
            except StepError as error:
                found.append([type(error).__name__, error.attempts])
        return found

    assert await MemoryRun(look).result() == [["RetryExhausted", 6], ["StepFailed", 1], ["StepFailed", 1]]


async def test_raises() -> None:
    """A declared error comes out as itself, the first time and on replay, and is not retried."""
    calls: list[int] = []
    seen: list[str] = []

    @step(raises=CardDeclined, retry=Retry.fixed(3, SHORT))
    async def charge() -> None:
        calls.append(1)
        raise CardDeclined("no funds")

    @durable
    async def pay() -> str:
        try:
            await charge()
        except CardDeclined as error:
            seen.append(error.reason)
        return "declined"

    assert await MemoryRun(pay).result() == "declined"
    assert seen == ["no funds", "no funds"]
    assert calls == [1]


async def test_raises_that_is_retried() -> None:
    """A declared error that the retry names is retried first, and then comes out as itself."""
    calls: list[int] = []

    @step(raises=CardDeclined, retry=Retry.fixed(2, SHORT, on=CardDeclined))
    async def charge() -> None:
        calls.append(1)
        raise CardDeclined("no funds")

    @durable
    async def pay() -> str:
        try:
            await charge()
        except CardDeclined as error:
            return error.reason
        return "paid"

    run = MemoryRun(pay)
    assert await run.result() == "no funds"
    assert len(calls) == 3
    assert run.recorder.steps["charge"].attempts == 3


async def test_raises_that_nobody_handles() -> None:
    """A declared error that leaves the body fails the run under its own name."""

    @step(raises=CardDeclined)
    async def charge() -> None:
        raise CardDeclined("no funds")

    @durable(retry=Retry.fixed(3, SHORT))
    async def pay() -> None:
        await charge()

    run = MemoryRun(pay)
    outcome = await run.failure()
    assert (outcome.error.error_type, outcome.error.message) == ("CardDeclined", "no funds")
    assert run.task.retries == 0


async def test_handled_error_is_followed_by_steps() -> None:
    """After a handled error further steps run, and the replay takes the same branch."""
    calls: list[str] = []

    @step
    async def primary() -> str:
        calls.append("primary")
        raise OSError("down")

    @step
    async def secondary() -> str:
        calls.append("secondary")
        return "from the second"

    @durable
    async def look() -> str:
        try:
            return await primary()
        except StepFailed:
            await sleep("breathe", LONG)
            return await secondary()

    assert await MemoryRun(look).result() == "from the second"
    assert calls == ["primary", "secondary"]


async def test_step_timeout() -> None:
    """A step that runs for too long is StepTimeout, is not retried, and sees its cancellation."""
    seen: list[str] = []

    @step(timeout="10ms", retry=Retry.fixed(3, SHORT))
    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    @durable
    async def look() -> None:
        try:
            await hang()
        except StepTimeout as error:
            seen.append(error.message)
            raise

    outcome = await MemoryRun(look).failure()
    assert seen == ["cancelled", "it had not ended after 0.01 s", "it had not ended after 0.01 s"]
    assert (outcome.error.category, outcome.error.step) == ("step_timeout", "hang")


async def test_timeout_error_of_the_step_itself() -> None:
    """A TimeoutError that the step raises is an error like others, and is retried."""
    calls: list[int] = []

    @step(timeout="1m", retry=Retry.fixed(1, SHORT))
    async def fetch() -> str:
        calls.append(1)
        if len(calls) == 1:
            raise TimeoutError("their server")
        return "here"

    @durable
    async def look() -> str:
        return await fetch()

    assert await MemoryRun(look).result() == "here"


async def test_cancellation_that_nobody_asked_for() -> None:
    """A CancelledError that a step makes for itself is an error like others."""

    @step
    async def fetch() -> None:
        raise asyncio.CancelledError("mine")

    @durable
    async def look() -> None:
        await fetch()

    outcome = await MemoryRun(look).failure()
    assert (outcome.error.step, outcome.error.error_type) == ("fetch", "CancelledError")


async def test_cancellation_of_the_body_itself() -> None:
    """A CancelledError that the body makes for itself fails the run; the worker is not left with a dead turn."""

    @durable
    async def look() -> None:
        raise asyncio.CancelledError("mine")

    outcome = await MemoryRun(look).failure()
    assert outcome.error.error_type == "CancelledError"


@pytest.mark.parametrize("error", [SystemExit(3), MemoryError(), RecursionError("too deep"), StopAsyncIteration()])
async def test_any_error_of_a_step_is_recorded(error: BaseException) -> None:
    """Whatever a step raises fails the step, not the worker."""

    @step
    async def fetch() -> None:
        raise error

    @durable
    async def look() -> None:
        await fetch()

    outcome = await MemoryRun(look).failure()
    assert (outcome.error.step, outcome.error.error_type) == ("fetch", type(error).__name__)


@pytest.mark.parametrize(
    "error", [SystemExit(3), MemoryError(), KeyError("x"), BaseExceptionGroup("g", [SystemExit()])]
)
async def test_any_error_of_the_body_fails_the_run(error: BaseException) -> None:
    """Whatever the body raises fails the run, not the worker."""

    @durable
    async def look() -> None:
        raise error

    outcome = await MemoryRun(look).failure()
    assert outcome.error.step is None
    assert outcome.error.error_type == type(error).__name__


async def test_endless_recursion() -> None:
    """A body that recurses for ever fails with the error that Python raises."""

    def deeper(level: int) -> int:
        return deeper(level + 1)

    @durable
    async def look() -> int:
        return deeper(0)

    assert (await MemoryRun(look).failure()).error.error_type == "RecursionError"


@pytest.mark.parametrize("delay", [SHORT, LONG])
async def test_body_retry(delay: str) -> None:
    """An error of the body's own runs the body again, in a later turn, from the checkpoints."""
    calls: list[str] = []

    @step
    async def fetch() -> int:
        calls.append("fetch")
        return 1

    @durable(retry=Retry.fixed(2, delay))
    async def look() -> int:
        calls.append("body")
        value = await fetch()
        if calls.count("body") < 3:
            raise ValueError("not yet")
        return value

    run = MemoryRun(look)
    outcome = await run.turn()
    assert isinstance(outcome, Suspended)
    assert outcome.is_waiting
    assert outcome.failed is not None
    assert (outcome.failed.step, outcome.failed.attempt, outcome.failed.error.message) == ("", 1, "not yet")
    assert await run.result() == 1
    assert calls.count("fetch") == 1
    assert [one.attempt for one in run.recorder.attempts] == [1, 2]


async def test_body_retry_exhausted() -> None:
    """When the body's retries are used up the run fails with its last error."""

    @durable(retry=Retry.fixed(2, SHORT))
    async def look() -> None:
        raise ValueError("never")

    run = MemoryRun(look)
    outcome = await run.failure()
    assert (outcome.error.error_type, outcome.error.attempts, outcome.error.step) == ("ValueError", 3, None)
    assert run.task.retries == 2


async def test_body_retry_is_not_for_steps() -> None:
    """The error of a step does not run the body again."""

    @step
    async def fetch() -> None:
        raise ValueError("no")

    @durable(retry=Retry.fixed(2, SHORT))
    async def look() -> None:
        await fetch()

    run = MemoryRun(look)
    await run.failure()
    assert run.recorder.attempts == []


async def test_lost_task_ends_the_turn() -> None:
    """When a write finds that the task is another's, no further step starts, and nothing is guessed."""
    calls: list[str] = []

    @step("step-{name}")
    async def work(name: str) -> None:
        calls.append(name)

    @durable
    async def look() -> None:
        for name in ("a", "b", "c"):
            with contextlib.suppress(BaseException):  # as badly written as can be
                await work(name)

    run = MemoryRun(look)
    run.recorder.writes_left = 1
    assert await run.turn() == LeaseLost()
    assert calls == ["a", "b"]


async def test_lost_between_attempts() -> None:
    """When the failed attempt cannot be written any more the turn ends."""

    @step(retry=Retry.fixed(3, SHORT))
    async def work() -> None:
        raise ValueError("no")

    @durable
    async def look() -> None:
        await work()

    run = MemoryRun(look)
    run.recorder.writes_left = 1
    assert await run.turn() == LeaseLost()
    assert len(run.recorder.attempts) == 1


async def test_somebody_was_first() -> None:
    """What is recorded already counts, not what this turn came to."""

    @step
    async def work() -> int:
        return 1

    @durable
    async def look() -> int:
        return await work()

    run = MemoryRun(look)
    turn = run.claim()
    run.recorder.steps["work"] = RecordedStep(name="work", kind=StepKind.STEP, position=0, result="2")
    assert await turn.run() == Completed("2")


async def test_signal_in_a_task_group_of_a_step() -> None:
    """A signal that comes out of a step in a group is no error of the step."""

    @step(retry=Retry.fixed(3, SHORT))
    async def work() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(trx())

    @durable
    async def look() -> None:
        await work()

    run = MemoryRun(look)
    run.recorder.writes_left = 0
    assert await run.turn() == LeaseLost()
    assert run.recorder.attempts == []


@pytest.mark.parametrize("place", ["body", "step"])
async def test_interrupt_of_the_process(place: str) -> None:
    """A KeyboardInterrupt is nobody's error: it goes on to where the process ends."""

    @step
    async def work() -> None:
        raise KeyboardInterrupt

    @durable
    async def look() -> None:
        if place == "step":
            await work()
        raise KeyboardInterrupt

    run = MemoryRun(look)
    with pytest.raises(KeyboardInterrupt):
        await run.claim().run()
    assert run.steps == []


async def test_suspension_survives_a_body_that_catches_everything() -> None:
    """A signal that the body catches still ends the turn, and no further step starts."""
    calls: list[str] = []

    @step
    async def late() -> None:
        calls.append("late")

    @durable
    async def look() -> str:
        with contextlib.suppress(BaseException):  # as badly written as can be
            await sleep("nap", LONG)
        with contextlib.suppress(BaseException):
            await late()
        return "done"

    run = MemoryRun(look)
    outcome = await run.turn()
    assert isinstance(outcome, Suspended)
    assert calls == []
    assert await run.result() == "done"
    assert calls == ["late"]


async def test_suspension_inside_a_task_group() -> None:
    """Steps and sleeps in a task group of the body's own suspend and go on, without a fixed order."""
    calls: list[str] = []

    @step("work-{name}")
    async def work(name: str) -> str:
        calls.append(name)
        return name

    async def nap_and_work(name: str) -> str:
        await sleep(f"nap-{name}", LONG)
        return await work(name)

    @durable
    async def look() -> list[str]:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(nap_and_work(name)) for name in ("a", "b")]
        return [task.result() for task in tasks]

    run = MemoryRun(look)
    assert await run.result() == ["a", "b"]
    assert sorted(calls) == ["a", "b"]
    assert all(one.position is None for one in run.recorder.steps.values())


async def test_step_error_inside_a_task_group() -> None:
    """The error of a step in a task group comes out as the group makes it, and fails the run."""

    @step
    async def fetch() -> None:
        raise ValueError("no")

    @durable
    async def look() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.wait_for(fetch(), 60))

    outcome = await MemoryRun(look).failure()
    assert outcome.error.error_type == "ExceptionGroup"


async def test_steps_after_the_turn_is_over() -> None:
    """A task that the body leaves behind starts no further step."""
    calls: list[str] = []
    left: list[asyncio.Task[None]] = []
    go_on = asyncio.Event()

    @step
    async def work() -> None:
        calls.append("work")

    async def straggler() -> None:
        await go_on.wait()
        await work()

    @durable
    async def look() -> None:
        left.append(asyncio.create_task(straggler()))

    assert isinstance(await MemoryRun(look).turn(), Completed)
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await left[0]
    assert calls == []


@step
async def one() -> int:
    """Return 1."""
    return 1


@durable
async def completing() -> int:
    """Run a step."""
    return await one()


@durable
async def sleeping() -> None:
    """Run a step, and sleep."""
    await one()
    await sleep("nap", "1h")


@durable
async def listening() -> None:
    """Wait for an event."""
    await wait_for_event("paid")


@pytest.mark.parametrize("workflow", [completing, sleeping, listening], ids=lambda workflow: workflow.name)
async def test_a_turn_that_is_over_is_gone(workflow: Any) -> None:
    """Nothing of a turn stays for the garbage collector: a run that waits costs no memory."""
    turn = MemoryRun(workflow).claim()
    gone = weakref.ref(turn)
    gc.disable()
    try:
        await asyncio.create_task(turn.run())
        del turn
        assert gone() is None
    finally:
        gc.enable()
