"""Executions that a workflow starts, and runs that another one follows."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import timedelta
from decimal import Decimal
from typing import Any, cast

import pytest

from tests.unit.support.memory import LONG, START, MemoryRun
from zart_sqla import (
    BodyError,
    ChildExecution,
    ConfigError,
    Durable,
    ExecutionAlreadyExists,
    ExecutionCancelled,
    ExecutionFailed,
    ExecutionStatus,
    InvalidDataError,
    InvalidNameError,
    NotInWorkflowError,
    Retry,
    StepFailure,
    continue_as_new,
    durable,
    schedule,
    sleep,
    start_child,
    step,
    sync,
    wait,
    wait_any,
    wait_first_n,
    wait_for_event,
)
from zart_sqla.records import ErrorRecord, RecordedStep, StepKind
from zart_sqla.runtime.executions import LOOK_AGAIN
from zart_sqla.runtime.outcomes import Completed, Continued, Failed, LeaseLost, Suspended

HOUR = timedelta(hours=1)
ERROR = ErrorRecord(error_type="CardDeclined", message="no money", step="charge", attempts=2, category="step_failed")


@dataclass
class Order:
    """An input."""

    id: str
    amount: Decimal


@durable("ship")
async def ship(order: Order) -> Decimal:
    """Be a child."""
    return order.amount


@step
async def work(number: int) -> int:
    """Do something."""
    return number


@durable
async def parent() -> Decimal:
    """Have a child, and wait for it."""
    child = await start_child(ship, Order("a", Decimal("1.50")), execution_id="child")
    return await child.result() + await work(1)


@durable
async def counter(number: int) -> int:
    """Count up to three, a run for each."""
    await work(number)
    if number < 3:
        await continue_as_new(number + 1)
    return number


async def suspended(run: MemoryRun) -> Suspended:
    """Return how a turn ends that goes on later."""
    outcome = await run.turn()
    assert isinstance(outcome, Suspended), outcome
    return outcome


async def test_started_once() -> None:
    """The start is a checkpoint with the child's id; the run waits as a row, and a replay starts nothing."""
    run = MemoryRun(parent)
    assert await suspended(run) == Suspended(due_at=None, is_waiting=True, awaits_open=0)
    (new,) = run.recorder.started
    assert (new.execution_id, new.task_name, new.queue) == ("child", "ship", "default")
    assert json.loads(new.payload) == {"id": "a", "amount": "1.50"}
    assert (new.parent_id, new.parent_run_id, new.is_bound) == ("order-1", run.task.run_id, True)
    started = RecordedStep(name="ship", kind=StepKind.EXECUTION, position=0, result='"child"', started_at=START)
    assert run.recorder.steps == {"ship": started}
    await suspended(run)
    run.end("child", "1.50")
    assert await run.result() == "2.50"
    assert len(run.recorder.started) == 1
    assert [(one.name, one.kind.value, one.position) for one in run.recorder.steps.values()] == [
        ("ship", "execution", 0),
        ("ship.result", "result", 1),
        ("work", "step", 2),
    ]


async def test_ended_during_the_turn() -> None:
    """A child that ends before the turn does is still waited for: the turn cannot know, and the worker looks then."""

    @durable
    async def starter() -> Any:
        child = await start_child("other", execution_id="a")
        run.end("a", 2)
        return await child.result()

    run = MemoryRun(starter)
    assert await suspended(run) == Suspended(due_at=None, is_waiting=True, awaits_open=0)
    assert await run.result() == 2


async def test_fire_and_forget() -> None:
    """Who does not ask for the result ends without it."""

    @durable
    async def starter() -> str:
        return (await start_child(ship, Order("a", Decimal(1)))).execution_id

    run = MemoryRun(starter)
    execution_id = await run.result()
    assert [one.execution_id for one in run.recorder.started] == [execution_id]


async def test_options() -> None:
    """A child may be of a name alone, in another queue, and stay when its parent is cancelled."""

    @durable
    async def starter() -> Any:
        child = await start_child("elsewhere", {"x": 1}, queue="slow", on_parent_cancel="leave", execution_id="e")
        assert repr(child) == "<child execution 'e'>"
        return await child.result()

    run = MemoryRun(starter)
    await suspended(run)
    (new,) = run.recorder.started
    assert (new.task_name, new.payload, new.queue, new.is_bound) == ("elsewhere", '{"x":1}', "slow", False)
    run.end("e", [1, None])
    assert await run.result() == [1, None]


async def test_several_of_one_name() -> None:
    """They are numbered as steps are, and so are their results."""

    @durable
    async def starter() -> list[Decimal]:
        children = [await start_child(ship, Order(one, Decimal(1)), execution_id=one) for one in "abc"]
        return [await child.result() for child in children]

    run = MemoryRun(starter)
    assert (await suspended(run)).awaits_open == 2
    run.end("c", "3")
    assert (await suspended(run)).awaits_open == 1
    run.end("a", "1")
    assert (await suspended(run)).awaits_open == 0
    run.end("b", "2")
    assert await run.result() == ["1", "2", "3"]
    names = ["ship", "ship#2", "ship#3", "ship.result", "ship#2.result", "ship#3.result"]
    assert run.steps == names


async def test_result_twice() -> None:
    """The result can be asked for again, and is recorded each time."""

    @durable
    async def starter() -> list[Decimal]:
        child = await start_child(ship, Order("a", Decimal(1)), execution_id="a")
        return [await child.result(), await child.result()]

    run = MemoryRun(starter)
    await suspended(run)
    run.end("a", "4")
    assert await run.result() == ["4", "4"]
    assert run.steps == ["ship", "ship.result", "ship.result#2"]


async def test_failed_child() -> None:
    """Its error is that of the execution, can be caught, and is the same on replay."""
    seen: list[ExecutionFailed] = []

    @durable
    async def starter() -> int:
        child = await start_child(ship, Order("a", Decimal(1)), execution_id="a")
        try:
            await child.result()
        except ExecutionFailed as error:
            seen.append(error)
        return await work(2)

    run = MemoryRun(starter)
    await suspended(run)
    run.end("a", error=ERROR)
    assert await run.result() == 2
    for error in seen:
        assert (error.execution_id, error.step) == ("a", "charge")
        assert (error.error_type, error.message) == ("CardDeclined", "no money")
    assert len(seen) == 2


async def test_cancelled_child() -> None:
    """It raises `ExecutionCancelled`, the same on replay."""

    @durable
    async def starter() -> str:
        child = await start_child(ship, Order("a", Decimal(1)), execution_id="a")
        try:
            await child.result()
        except ExecutionCancelled as error:
            return error.execution_id
        return "no"

    run = MemoryRun(starter)
    await suspended(run)
    run.end_as("a", ExecutionStatus.CANCELLED)
    assert await run.result() == "a"


async def test_failure_fails_the_parent() -> None:
    """A failure that is not caught is the run's, as a step's would be: the body is not retried for it."""
    seen: list[object] = []

    def take_note(_data: object, failure: object) -> None:
        seen.append(failure)
        raise ValueError("so be it")

    @durable(retry=Retry.fixed(3, 0), on_failure=take_note)
    async def starter() -> None:
        child = await start_child(ship, Order("a", Decimal(1)), execution_id="a")
        await child.result()

    run = MemoryRun(starter)
    await suspended(run)
    run.end("a", error=ERROR)
    failed = await run.failure()
    assert failed.error.message == "so be it"
    assert seen[0] == StepFailure("ship.result", "CardDeclined", "no money", 1)


async def test_taken_id() -> None:
    """An id that is taken is told, once and for all, whatever becomes of the other execution."""

    @durable
    async def starter() -> list[str]:
        try:
            await start_child(ship, Order("a", Decimal(1)), execution_id="taken")
        except ExecutionAlreadyExists as error:
            return [error.execution_id, error.status]
        return []

    run = MemoryRun(starter)
    run.end_as("taken", ExecutionStatus.WAITING)
    assert await run.turn() == Completed('["taken","waiting"]')
    run.end("taken", 1)
    assert await run.replay() == Completed('["taken","waiting"]')
    assert run.recorder.started == []


@pytest.mark.parametrize(
    ("start", "error"),
    [
        (lambda: start_child(cast("Any", ship), "no order"), InvalidDataError),
        (lambda: start_child(ship, Order("a", Decimal("NaN"))), InvalidDataError),
        (lambda: start_child("other", object()), InvalidDataError),
        (lambda: start_child("other", execution_id=""), InvalidNameError),
        (lambda: start_child("other", queue="\x00"), InvalidNameError),
        (lambda: start_child(""), InvalidNameError),
        (lambda: start_child(cast("Any", work)), ConfigError),
        (lambda: start_child("other", on_parent_cancel=cast("Any", "kill")), ConfigError),
    ],
    ids=["type", "nan", "not JSON", "no id", "NUL", "no name", "a step", "policy"],
)
async def test_refused(start: Callable[[], Awaitable[Any]], error: type[Exception]) -> None:
    """What does not fit is refused before anything is written, and the run goes on."""

    @durable
    async def starter() -> int:
        with pytest.raises(error):
            await start()
        return await work(1)

    run = MemoryRun(starter)
    assert await run.result() == 1
    assert run.steps == ["work"]
    assert run.recorder.started == []


async def test_outside() -> None:
    """Outside the body of a workflow nothing can be started, waited for or continued."""
    for call in (start_child(ship, Order("a", Decimal(1))), continue_as_new(1)):
        with pytest.raises(NotInWorkflowError):
            await call
    kept: list[ChildExecution[Any]] = []

    @step
    async def start_in_a_step() -> list[str]:
        seen = []
        for call in (start_child("other"), continue_as_new(), kept[0].result()):
            try:
                await call
            except NotInWorkflowError as error:
                seen.append(str(error).partition("(")[0])
        return seen

    @durable
    async def starter() -> list[str]:
        kept.append(await start_child("other"))
        return await start_in_a_step()

    assert await MemoryRun(starter).result() == ["start_child", "continue_as_new", "result"]
    with pytest.raises(NotInWorkflowError):
        await kept[0].result()


async def test_result_of_another_type() -> None:
    """A result that does not fit the declared type is refused where it is asked for."""
    run = MemoryRun(parent)
    await suspended(run)
    run.end("child", {"not": "a number"})
    failed = await run.failure()
    assert failed.error.error_type == "InvalidDataError"
    assert "the output of execution 'child'" in failed.error.message


async def test_changed_code() -> None:
    """A start that was recorded where the code now calls something else is told."""

    @durable("parent")
    async def later() -> int:
        return await work(1)

    run = MemoryRun(parent)
    await suspended(run)
    outcome = await run.turn(later)
    assert isinstance(outcome, Failed)
    assert outcome.error.error_type == "NonDeterminismError"
    assert "'ship'" in outcome.error.message


async def test_child_that_nobody_tells_of() -> None:
    """One that ended, and then went on, is looked at now and then: nobody would tell of its end."""

    @durable
    async def starter() -> int:
        child = await start_child("other", execution_id="a")
        await sleep("night", LONG)
        answer: int = await child.result()
        return answer

    run = MemoryRun(starter)
    await suspended(run)
    run.end("a", error=ERROR)
    run.recorder.time += HOUR
    turn = run.claim()  # the child is none of the run's open ones then
    run.end_as("a", ExecutionStatus.RUNNING)
    outcome = await asyncio.create_task(turn.run())
    assert outcome == Suspended(due_at=run.recorder.time + LOOK_AGAIN, is_waiting=True)
    run.recorder.storage.started.clear()
    assert (await suspended(run)).due_at == run.recorder.time + LOOK_AGAIN
    run.end("a", 5)
    assert await run.result() == 5


async def test_deadline() -> None:
    """The time of the parent ends its wait, and so the parent; the child goes on."""

    @durable(timeout=LONG)
    async def starter() -> None:
        await (await start_child("other", execution_id="a")).result()

    run = MemoryRun(starter)
    assert (await suspended(run)).due_at == START + HOUR
    run.recorder.time += HOUR
    outcome = await run.turn()
    assert isinstance(outcome, Failed)
    assert outcome.error.error_type == "ExecutionTimeout"
    assert not run.recorder.executions["a"].status.is_terminal


async def test_beside_scheduled_steps() -> None:
    """Steps and executions count together, each only as long as it is open."""

    @durable
    async def starter() -> Any:
        handles = [schedule(work(number).named(f"work-{number}")) for number in range(3)]
        child = await start_child("other", execution_id="a")
        value = await child.result()
        return [value, *(answer.value for answer in await wait(handles))]  # type: ignore[union-attr]

    run = MemoryRun(starter)
    assert (await suspended(run)).awaits_open == 3
    await run.run_child("work-1")
    assert (await suspended(run)).awaits_open == 2
    run.end("a", "done")
    assert (await suspended(run)).awaits_open == 0
    for name in run.children:
        await run.run_child(name)
    assert await run.result() == ["done", 0, 1, 2]


async def test_after_the_first_of_several() -> None:
    """What was given up does not count any more."""

    @durable
    async def starter() -> Any:
        await wait_first_n([schedule(work(number).named(f"work-{number}")) for number in range(3)], 1)
        return await (await start_child("other", execution_id="a")).result()

    run = MemoryRun(starter)
    await suspended(run)
    await run.run_child("work-2")
    assert await suspended(run) == Suspended(due_at=None, is_waiting=True, awaits_open=0)


async def _wait_for_child(child: ChildExecution[Any]) -> Any:
    return await child.result()


async def _wait_for_step(_child: object) -> Any:
    return await schedule(work(0).named("first"))


@pytest.mark.parametrize("first", [_wait_for_child, _wait_for_step])
@pytest.mark.parametrize("more", ["execution", "step"])
async def test_more_children_while_one_is_awaited(first: Callable[[Any], Coroutine[Any, Any, Any]], more: str) -> None:
    """A child that another task of the body adds, while one waits for one of its own, does not hide that one's end."""

    @durable
    async def starter() -> None:
        child = await start_child("other", execution_id="a")
        async with asyncio.TaskGroup() as group:
            group.create_task(first(child))
            await asyncio.sleep(0)
            await asyncio.sleep(0)  # it waits now
            if more == "step":
                schedule(work(1).named("second"))
            else:
                await start_child("other", execution_id="b")
            await sleep("night", LONG)

    run = MemoryRun(starter)
    outcome = await suspended(run)
    assert outcome.due_at == START + HOUR
    still_open = len(run.children) + len(run.recorder.started)
    assert outcome.awaits_open == still_open - 1


async def test_waits_side_by_side() -> None:
    """Of two waits the one that is over first wakes the run; an event does too."""

    @durable
    async def starter() -> Any:
        a, b = await start_child("other", execution_id="a"), await start_child("other", execution_id="b")
        async with asyncio.TaskGroup() as group:
            results = [group.create_task(child.result()) for child in (a, b)]
            event = group.create_task(wait_for_event("go"))
        return [*(one.result() for one in results), event.result()]

    run = MemoryRun(starter)
    outcome = await suspended(run)
    assert (outcome.awaits_open, outcome.awaits) == (1, frozenset({"go"}))
    run.end("b", 2)
    outcome = await suspended(run)
    assert (outcome.awaits_open, outcome.awaits) == (0, frozenset({"go"}))
    run.offer("go", 3)
    run.end("a", 1)
    assert await run.result() == [1, 2, 3]


async def test_wait_any_beside_a_child() -> None:
    """The open child is left out of what `wait_any` waits for."""

    @durable
    async def starter() -> Any:
        await start_child("other", execution_id="a")
        answer, _ = await wait_any([schedule(work(number).named(f"work-{number}")) for number in range(2)])
        return answer.value  # type: ignore[union-attr]

    run = MemoryRun(starter)
    assert (await suspended(run)).awaits_open == 2
    await run.run_child("work-1")
    assert await run.result() == 1


async def test_lost_lease() -> None:
    """A run that was taken over starts nothing more."""
    run = MemoryRun(parent)
    run.recorder.writes_left = 0
    assert await run.turn() == LeaseLost()
    assert run.recorder.started == []


async def test_def_workflow() -> None:
    """A `def` workflow does the same without `await`."""

    @durable
    def starter() -> Decimal:
        child = sync.start_child(ship, Order("a", Decimal(1)), execution_id="a")
        assert repr(child) == "<child execution 'a'>"
        assert child.execution_id == "a"
        return child.result()

    run = MemoryRun(starter)
    assert (await suspended(run)).awaits_open == 0
    run.end("a", "7.25")
    assert await run.result() == "7.25"


# Continuing as new ------------------------------------------------------------------------------------------------


async def continued(workflow: Durable[Any, Any], data: object) -> Any:
    """Return the input of the next run."""
    outcome = await MemoryRun(workflow, data).turn()
    assert isinstance(outcome, Continued), outcome
    return json.loads(outcome.payload)


async def test_continue_as_new() -> None:
    """The turn ends with the input of the next run; the last run completes."""
    assert [await continued(counter, number) for number in range(3)] == [1, 2, 3]
    assert await MemoryRun(counter, 3).result() == 3


async def test_continue_is_replayed() -> None:
    """A crash before it was written comes to the same."""
    run = MemoryRun(counter, 1)
    assert await run.turn() == await run.replay() == Continued("2")


async def test_continue_in_a_def_workflow() -> None:
    """A `def` workflow does the same without `await`."""

    @durable
    def count(number: int) -> int:
        sync.continue_as_new(number + 1)

    assert await continued(count, 4) == 5


async def test_continue_is_final() -> None:
    """A body that catches everything cannot go on, nor change what comes of the run."""
    called: list[str] = []

    @durable
    async def stubborn(number: int) -> int:
        for call in (continue_as_new(number + 1), work(1), sleep("night", LONG), continue_as_new(99)):
            try:
                await call
            except BaseException as error:  # noqa: BLE001 - the point of this test
                called.append(type(error).__name__)
        raise ValueError("no")

    assert await continued(stubborn, 1) == 2
    assert called == ["TurnSignal"] * 4


async def test_continue_beside_waits() -> None:
    """It counts more than the waits of other tasks of the body."""

    @durable
    async def body() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(sleep("night", LONG))
            group.create_task(wait_for_event("never"))
            await asyncio.sleep(0)
            await continue_as_new()

    assert await continued(body, None) is None


async def test_continue_with_other_data() -> None:
    """Data that does not fit is refused, and the run goes on."""

    @durable
    async def body(number: int) -> int:
        with pytest.raises(InvalidDataError):
            await continue_as_new("text")
        return await work(number)

    assert await MemoryRun(body, 3).result() == 3


async def test_continue_before_all_was_called() -> None:
    """Code that continues before what it had recorded does not fit the run any more."""

    @durable("body")
    async def before() -> None:
        await work(1)
        await sleep("night", LONG)

    @durable("body")
    async def after() -> None:
        await work(1)
        await continue_as_new()

    run = MemoryRun(before)
    await suspended(run)
    outcome = await run.turn(after)
    assert isinstance(outcome, Failed)
    assert outcome.error.error_type == "NonDeterminismError"
    assert "'night'" in outcome.error.message


async def test_continue_from_on_failure() -> None:
    """What follows a failure can be another run."""

    async def start_over(number: int, failure: object) -> None:
        assert isinstance(failure, BodyError)
        await continue_as_new(number + 1)

    @durable(on_failure=start_over)
    async def body(number: int) -> None:
        raise ValueError(number)

    assert await continued(body, 1) == 2
