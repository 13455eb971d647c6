"""Where steps can be scheduled and waited for: in both kinds of workflows, in steps, and in unit tests."""

from collections.abc import Iterable
from typing import Any

import pytest

from tests.unit.support.memory import MemoryRun
from zart_sqla import (
    BusinessErr,
    InvalidDataError,
    NotInWorkflowError,
    Ok,
    durable,
    schedule,
    step,
    sync,
    wait,
    wait_any,
    wait_first_n,
)
from zart_sqla.runtime.answers import Answer
from zart_sqla.runtime.outcomes import Suspended
from zart_sqla.runtime.scheduled import Scheduled

calls: list[str] = []


@pytest.fixture(autouse=True)
def _forget_calls() -> None:
    """Start each test without calls."""
    calls.clear()


class Declined(Exception):
    """An answer of a step."""


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


@step(raises=Declined)
async def decline() -> str:
    """Give an answer that is an error."""
    raise Declined("no money")


def told(answers: Iterable[Answer[Any]]) -> list[Any]:
    """Return the answers as JSON can hold them."""
    found: list[Any] = []
    for answer in answers:
        match answer:
            case Ok(value):
                found.append(value)
            case BusinessErr(error):
                found.append(repr(error))
            case _:
                found.append(str(answer.error))
    return found


async def test_def_workflow() -> None:
    """A `def` workflow does the same with the calls of `zart_sqla.sync`."""

    @durable
    def order() -> list[Any]:
        a, b = sync.schedule(work("a")), sync.schedule(work_in_a_thread.call("b"))
        first, rest = sync.wait_any([a, b])
        nothing = sync.wait_first_n(rest, 0)
        return [*told([first]), nothing, told(sync.wait([a, b]))]

    run = MemoryRun(order)
    assert await run.turn() == Suspended(is_waiting=True, awaits_open=1)
    await run.run_child("b")
    assert await run.result() == ["b", [], ["step 'a' was cancelled: it was cancelled, since others were enough", "b"]]
    assert calls == ["b"]


async def test_the_other_kind_of_workflow() -> None:
    """A call that is for the other kind of workflow says which to take, and nothing is scheduled."""

    @durable
    def in_a_thread() -> str:
        with pytest.raises(NotInWorkflowError, match=r"here use 'zart_sqla.sync.schedule'"):
            schedule(work("a"))
        return "refused"

    @durable
    async def on_the_loop() -> str:
        with pytest.raises(NotInWorkflowError, match=r"sync.schedule\(...\) is for 'def' workflows"):
            sync.schedule(work("a"))
        return "refused"

    for order in (in_a_thread, on_the_loop):
        run = MemoryRun(order)
        assert await run.result() == "refused"
        assert run.children == []


@pytest.mark.parametrize("other", [3, None, "text", work])
async def test_only_calls_and_handles(other: Any) -> None:
    """What is no call is not scheduled, and what was not scheduled is not waited for."""

    @durable
    async def order() -> str:
        with pytest.raises(NotInWorkflowError, match=r"schedule\(\w+\) takes calls of steps"):
            schedule(other)
        waits = [wait([other]), wait_any([other]), wait_first_n([other], 1)]
        for waiting in waits:
            with pytest.raises(NotInWorkflowError, match=r"wait\w*\(\w+\) takes a list of what 'schedule\(...\)' has"):
                await waiting
        return "refused"

    run = MemoryRun(order)
    assert await run.result() == "refused"
    assert (run.steps, run.children) == ([], [])


async def test_argument_that_does_not_fit() -> None:
    """It is refused where the step is scheduled, and takes no place in the run."""

    @durable
    async def order() -> list[Any]:
        number: Any = 3
        with pytest.raises(InvalidDataError, match="'name' of '3'"):
            schedule(work(number))
        return told(await wait([schedule(work("a"))]))

    run = MemoryRun(order)
    assert await run.result() == ["a"]
    assert run.recorder.steps["a"].position == 0


async def check_outside(handles: list[Scheduled[Any]]) -> list[Any]:
    """Wait in each way for what was scheduled."""
    first, rest = await wait_any(handles)
    some = await wait_first_n(handles, 2)
    return told([first, *await wait(rest), *some])


async def test_outside_a_workflow() -> None:
    """There the step is the plain function, called when it is waited for: a unit test needs no database."""
    handles = [schedule(call) for call in (work("a"), work_in_a_thread.call("b"), decline())]
    assert calls == []
    assert await check_outside(handles) == ["a", "b", "Declined('no money')", "a", "b"]
    assert (await handles[0], handles[0].name) == ("a", "a")
    with pytest.raises(Declined):
        await handles[2]


async def test_outside_a_workflow_one_name_twice() -> None:
    """There too they are several."""
    handles = [schedule(work("a")) for _ in range(3)]
    first, rest = await wait_any([handles[1], *handles])
    assert (told([first]), rest) == (["a"], [handles[0], handles[2]])
    assert told(await wait_first_n(handles, 3)) == ["a"] * 3


def test_outside_a_workflow_without_a_loop() -> None:
    """The calls for `def` workflows work there too."""
    handles = [sync.schedule(work_in_a_thread.call(name)) for name in "ab"]
    first, rest = sync.wait_any(handles)
    assert told([first, *sync.wait(rest), *sync.wait_first_n(handles, 2)]) == ["a", "b", "a", "b"]


@step
async def schedule_in_a_step() -> list[Any]:
    """Schedule steps within a step."""
    return told(await wait([schedule(work("a")), schedule(work("b"))]))


@step
def schedule_in_a_def_step() -> list[Any]:
    """Schedule steps within a step that runs in a thread."""
    return told(sync.wait([sync.schedule(work_in_a_thread.call("c"))]))


async def test_in_a_step() -> None:
    """In a step, as ever, steps are plain functions."""

    @durable
    async def order() -> list[Any]:
        own = [*await schedule_in_a_step(), *await schedule_in_a_def_step.call()]
        return [*own, *told(await wait([schedule(schedule_in_a_step())]))]

    run = MemoryRun(order)
    assert await run.result() == ["a", "b", "c", ["a", "b"]]
    assert run.steps == ["schedule_in_a_step", "schedule_in_a_def_step", "schedule_in_a_step#2"]
