"""Failed runs that go on: what had failed runs again, but for the failures behind which the body had gone on."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import text

from tests.support.waiting import PATIENCE, eventually
from tests.support.working import let_time_pass, until, working
from zart_sqla import (
    Durable,
    EventTimeout,
    ExecutionFailed,
    ExecutionStatus,
    Failure,
    Ok,
    StepError,
    StepFailed,
    durable,
    gather,
    outcome,
    schedule,
    start_child,
    step,
    step_or,
    wait,
    wait_for_event,
)

ran: list[str] = []
broken: set[str] = set()


@pytest.fixture(autouse=True)
def nothing_ran() -> None:
    """Forget what earlier tests did."""
    ran.clear()
    broken.clear()


@step("{name}")
async def do(name: str) -> str:
    """Do something, unless it is broken."""
    ran.append(name)
    if name in broken:
        raise ConnectionError(name)
    return name


@durable
async def by_outcome() -> str:
    """Look at a failure as a value."""
    answer = await outcome(do("first"))
    paid = answer.value if isinstance(answer, Ok) else await do("second")
    await do("ship")
    return paid


@durable
async def by_except() -> str:
    """Catch a failure."""
    try:
        paid = await do("first")
    except StepFailed:
        paid = await do("second")
    await do("ship")
    return paid


@durable
async def by_default() -> str:
    """Go on with something else than what failed."""
    paid = await step_or(do("first"), "none")
    await do("second" if paid == "none" else "third")
    await do("ship")
    return "second"


@durable
async def by_group() -> str:
    """Go on with something else than a child that failed."""
    [answer, _] = await wait([schedule(do("first")), schedule(do("beside"))])
    paid = answer.value if isinstance(answer, Ok) else await do("second")
    await do("ship")
    return paid


@durable
async def in_a_task() -> str:
    """Catch the failure of a task of the body's own."""
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(_call("first"))
        paid = "first"
    except* StepFailed:
        paid = await do("second")
    await do("ship")
    return paid


async def _call(name: str) -> None:
    await do(name)


@durable
async def pay() -> str:
    """Pay, as an execution of its own."""
    return await do("first")


@durable
async def by_child() -> str:
    """Catch the failure of a child execution."""
    child = await start_child(pay, execution_id="pay")
    try:
        paid = await child.result()
    except ExecutionFailed:
        paid = await do("second")
    await do("ship")
    return paid


@pytest.mark.parametrize(
    "workflow", [by_outcome, by_except, by_default, by_group, in_a_task, by_child], ids=lambda one: one.name
)
async def test_a_failure_that_was_handled_stays(workflow: Durable[None, str], migrated_url: str) -> None:
    """The resumed run takes the branch that the failed one had taken, though what had failed would work by now."""
    broken.update(("first", "ship"))
    async with working(migrated_url, workflow, pay, workers=2) as scheduler:
        handle = await scheduler.start(workflow)
        with pytest.raises(ExecutionFailed, match="ship"):
            await handle.result(timeout=PATIENCE)
        broken.clear()
        if workflow is by_child:
            await scheduler.handle("pay").resume()
            await until(scheduler.handle("pay"), ExecutionStatus.COMPLETED)
        await handle.resume()
        assert await handle.result(timeout=PATIENCE) == "second"
    more = {by_child.name: ["first"], by_group.name: ["beside"]}
    assert sorted(ran) == sorted(["first", "second", "ship", "ship", *more.get(workflow.name, [])])


async def test_a_timeout_that_was_handled_stays(migrated_url: str) -> None:
    """A wait that had timed out, and was caught, does not wait again."""

    @durable
    async def order() -> Any:
        try:
            return await wait_for_event("paid", timeout="1h")
        except EventTimeout:
            await do("remind")
        paid = await wait_for_event("paid", timeout="1h")
        await do("ship")
        return paid

    broken.add("ship")
    async with working(migrated_url, order, workers=2) as scheduler:
        handle = await scheduler.start(order)
        await until(handle, ExecutionStatus.WAITING)
        await let_time_pass(scheduler)
        await eventually(lambda: ran, ["remind"])
        await handle.offer_event("paid", 7)
        with pytest.raises(ExecutionFailed, match="ship"):
            await handle.result(timeout=PATIENCE)
        broken.clear()
        await handle.resume()
        assert await handle.result(timeout=PATIENCE) == 7
    assert ran == ["remind", "ship", "ship"]


@durable
async def side_by_side() -> list[str]:
    """Do several things side by side in this worker."""
    return list(await gather(do("a"), do("b"), do("c")))


@durable
async def as_children() -> list[str]:
    """Do several things as tasks of their own, and give up if one fails."""
    answers = await wait([schedule(do(name)) for name in "abc"])
    if not all(isinstance(answer, Ok) for answer in answers):
        message = "some failed"
        raise RuntimeError(message)
    return [answer.value for answer in answers if isinstance(answer, Ok)]


@durable
async def in_tasks() -> list[str]:
    """Do several things in tasks of the body's own, one of which does more."""

    async def branch(name: str) -> str:
        await do(name)
        return await do(f"{name}-again") if name == "b" else name

    tasks = [asyncio.create_task(branch(name)) for name in "abc"]
    await asyncio.gather(*tasks, return_exceptions=True)
    return [task.result()[0] for task in tasks]


@pytest.mark.parametrize("workflow", [side_by_side, as_children, in_tasks], ids=lambda one: one.name)
async def test_all_that_failed_runs_again(workflow: Durable[None, list[str]], migrated_url: str) -> None:
    """Nothing was done behind these failures, so each of them is made good."""
    broken.update("ac")
    async with working(migrated_url, workflow, workers=2) as scheduler:
        handle = await scheduler.start(workflow)
        with pytest.raises(ExecutionFailed):
            await handle.result(timeout=PATIENCE)
        broken.clear()
        await handle.resume()
        assert await handle.result(timeout=PATIENCE) == ["a", "b", "c"]
    assert sorted(ran) == sorted(["a", "a", "b", "c", "c", *(["b-again"] if workflow is in_tasks else [])])


async def test_a_compensation_goes_on(migrated_url: str) -> None:
    """A body that was undoing goes on with that: what had failed at first does not run again."""

    @durable
    async def trip() -> None:
        await do("flight")
        try:
            await do("hotel")
        except StepError:
            await do("tell")
            await do("give-back")
            raise

    broken.update(("hotel", "give-back"))
    async with working(migrated_url, trip, workers=2) as scheduler:
        handle = await scheduler.start(trip)
        with pytest.raises(ExecutionFailed, match="give-back"):
            await handle.result(timeout=PATIENCE)
        broken.clear()
        for _ in range(2):  # once more, when nothing is left to be done
            await handle.resume()
            with pytest.raises(ExecutionFailed, match="hotel"):
                await handle.result(timeout=PATIENCE)
    assert ran == ["flight", "hotel", "tell", "give-back", "give-back"]


@pytest.mark.parametrize("has_begun", [True, False])
async def test_an_on_failure_that_failed(has_begun: bool, migrated_url: str) -> None:  # noqa: FBT001
    """It goes on, if it had done something; if not, the body does."""

    async def undo(_: None, failure: Failure) -> str:
        if has_begun:
            await do("undo-first")
        await do("undo-second")
        return "undone"

    @durable(on_failure=undo)
    async def order() -> str:
        await step_or(do("optional"), "")
        await do("first")
        await do("second")
        return "done"

    broken.update(("optional", "second", "undo-second"))
    async with working(migrated_url, order, workers=2) as scheduler:
        handle = await scheduler.start(order)
        with pytest.raises(ExecutionFailed, match="undo-second"):
            await handle.result(timeout=PATIENCE)
        broken.clear()
        await handle.resume()
        assert await handle.result(timeout=PATIENCE) == "undone"
    before = ["optional", "first", "second", *(["undo-first"] if has_begun else [])]
    assert ran == [*before, "undo-second", "undo-second"]


async def test_an_on_failure_that_did_nothing(migrated_url: str) -> None:
    """The body goes on where it had failed, and keeps the failure that it had handled before."""

    async def undo(_: None, failure: Failure) -> str:
        raise RuntimeError("not now")

    @durable(on_failure=undo)
    async def order() -> str:
        optional = await step_or(do("optional"), "nothing")
        await do("first")
        await do("second")
        return optional

    broken.update(("optional", "second"))
    async with working(migrated_url, order, workers=2) as scheduler:
        handle = await scheduler.start(order)
        with pytest.raises(ExecutionFailed, match="not now"):
            await handle.result(timeout=PATIENCE)
        broken.clear()
        await handle.resume()
        assert await handle.result(timeout=PATIENCE) == "nothing"
    assert ran == ["optional", "first", "second", "second"]


async def test_a_run_that_was_out_of_time(migrated_url: str) -> None:
    """It keeps all failures, for it had gone on behind them."""

    @durable(timeout="1h")
    async def order() -> Any:
        optional = await step_or(do("optional"), "nothing")
        await do("first")
        paid = await wait_for_event("paid")
        return [optional, paid]

    broken.add("optional")
    async with working(migrated_url, order, workers=2) as scheduler:
        handle = await scheduler.start(order)
        await until(handle, ExecutionStatus.WAITING)
        async with scheduler.engine.begin() as connection:
            await connection.execute(text("UPDATE zart_tasks SET started_at = started_at - interval '2 hours'"))
        await let_time_pass(scheduler)
        with pytest.raises(ExecutionFailed, match="had not ended"):
            await handle.result(timeout=PATIENCE)
        broken.clear()
        await handle.resume()
        await handle.offer_event("paid", 7)
        assert await handle.result(timeout=PATIENCE) == ["nothing", 7]
    assert ran == ["optional", "first"]
