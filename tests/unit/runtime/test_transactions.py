"""`trx()`: what becomes of a step's transaction, and where it is refused."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from tests.unit.support.memory import LONG, SHORT, MemoryRun
from zart_sqla import NotInWorkflowError, Ok, Retry, durable, gather, step, sync, trx
from zart_sqla.runtime.outcomes import LeaseLost, Suspended
from zart_sqla.runtime.steps import Step


@pytest.fixture(params=["async def", "def"])
def kind(request: pytest.FixtureRequest) -> str:
    """Return the kind of the step: the facts are the same."""
    return str(request.param)


def writing(kind: str, then: Callable[..., Any] = bool, **options: Any) -> Step[..., Any]:
    """Return a step that begins its transaction, and then does something."""

    @step("write", **options)
    async def write_on_the_loop(*arguments: Any) -> Any:
        assert isinstance(await trx(), AsyncSession)
        return then(*arguments)

    @step("write", **options)
    def write_in_a_thread(*arguments: Any) -> Any:
        assert isinstance(sync.trx(), Session)
        return then(*arguments)

    return write_on_the_loop if kind == "async def" else write_in_a_thread


def raise_no() -> None:
    """Fail."""
    raise ValueError("no")


def endings(run: MemoryRun) -> list[str | None]:
    """Return what became of the run's transactions."""
    return [one.ending for one in run.recorder.transactions]


async def test_commits_with_the_checkpoint(kind: str) -> None:
    """A step that returns commits, once."""
    write = writing(kind, lambda: "written")

    @durable
    async def look() -> Any:
        return await write.call()

    run = MemoryRun(look)
    assert await run.result() == "written"
    assert endings(run) == ["committed"]


async def test_rolls_back_on_an_error(kind: str) -> None:
    """Each attempt has a transaction of its own; those that fail are rolled back."""
    write = writing(kind, raise_no, retry=Retry.fixed(2, SHORT))

    @durable
    async def look() -> None:
        await write.call()

    run = MemoryRun(look)
    await run.failure()
    assert endings(run) == ["rolled back"] * 3


async def test_rolls_back_on_a_declared_error(kind: str) -> None:
    """A declared error is recorded, and what the step wrote is not."""
    write = writing(kind, raise_no, raises=ValueError)

    @durable
    async def look() -> str:
        try:
            await write.call()
        except ValueError:
            return "caught"
        return "never"

    run = MemoryRun(look)
    assert await run.result() == "caught"
    assert endings(run) == ["rolled back"]
    assert run.steps == ["write"]


async def test_rolls_back_on_a_timeout() -> None:
    """A step that times out is rolled back."""

    @step(timeout=SHORT)
    async def write() -> None:
        await trx()
        await asyncio.Event().wait()

    @durable
    async def look() -> None:
        await write()

    run = MemoryRun(look)
    await run.failure()
    assert endings(run) == ["rolled back"]


async def test_thread_that_goes_on() -> None:
    """A `def` step that timed out is rolled back while its thread still runs, which then gets nothing more."""
    may_go_on, has_ended = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    @step(timeout=SHORT)
    def write() -> None:
        may_go_on.wait()
        try:
            sync.trx()
        except BaseException as error:
            errors.append(error)
            raise
        finally:
            has_ended.set()

    @durable
    async def look() -> None:
        await write.call()

    run = MemoryRun(look)
    await run.failure()
    may_go_on.set()
    await asyncio.to_thread(has_ended.wait)
    assert endings(run) == []
    (error,) = errors
    assert isinstance(error, asyncio.CancelledError)
    assert str(error) == "this attempt of step 'write' is over: its session can do nothing more"


async def test_timeout_while_it_begins() -> None:
    """A `def` step that times out while its transaction begins has none, and its thread hears of it."""
    has_ended = threading.Event()

    @step(timeout=SHORT)
    def write() -> None:
        try:
            sync.trx()
        finally:
            has_ended.set()

    @durable
    async def look() -> None:
        await write.call()

    run = MemoryRun(look)
    run.recorder.may_begin.clear()
    await run.failure()
    await asyncio.to_thread(has_ended.wait)
    run.recorder.may_begin.set()
    assert endings(run) == []


async def test_rolls_back_a_result_that_does_not_fit(kind: str) -> None:
    """A value that cannot be recorded takes what was written with it."""
    write = writing(kind, object)

    @durable
    async def look() -> None:
        await write.call()

    run = MemoryRun(look)
    await run.failure()
    assert endings(run) == ["rolled back"]


async def test_lost_task(kind: str) -> None:
    """A step whose task is another worker's commits nothing, and the turn ends."""
    write = writing(kind)

    @durable
    async def look() -> None:
        with contextlib.suppress(BaseException):  # as badly written as can be
            await write.call()

    run = MemoryRun(look)
    run.recorder.writes_left = 1
    assert await run.turn() == LeaseLost()
    assert endings(run) == ["rolled back"]


async def test_lost_before_it_begins(kind: str) -> None:
    """So does one that cannot even begin."""
    write = writing(kind)

    @durable
    async def look() -> None:
        await write.call()

    run = MemoryRun(look)
    run.recorder.writes_left = 0
    assert await run.turn() == LeaseLost()


async def test_error_of_the_database(kind: str) -> None:
    """An error that is the database's ends the turn, and costs the step no attempt."""
    calls: list[int] = []

    def lose_connection_once() -> str:
        calls.append(1)
        if len(calls) == 1:
            raise ConnectionResetError("the server went away")
        return "written"

    write = writing(kind, lose_connection_once)

    @durable
    async def look() -> Any:
        return await write.call()

    run = MemoryRun(look)
    assert isinstance(await run.turn(), Suspended)
    assert run.recorder.attempts == []
    assert await run.result() == "written"
    assert endings(run) == ["rolled back", "committed"]
    assert run.recorder.steps["write"].attempts == 1


async def test_side_by_side(kind: str) -> None:
    """Each step has its own: one fails and rolls back, the others commit."""

    def fail_second(number: int) -> int:
        if number == 2:
            raise_no()
        return number

    write = writing(kind, fail_second)

    @durable
    async def look() -> str:
        try:
            await gather(*(write.call(number) for number in (1, 2, 3)))
        except Exception as error:  # noqa: BLE001 - whatever came
            return type(error).__name__
        return "nothing"

    run = MemoryRun(look)
    assert await run.result() == "StepFailed"
    assert sorted(map(str, endings(run))) == ["committed", "committed", "rolled back"]


async def refused(call: Callable[[], Any], match: str) -> None:
    """Expect the call of `trx` to be refused."""
    with pytest.raises(NotInWorkflowError, match=match):
        await call()  # that of `sync` gives nothing to await: it has to raise before


async def test_outside_a_workflow() -> None:
    """There is no run whose checkpoint could commit with it."""
    await refused(trx, r"^trx\(\) works only in a step of a workflow that a worker runs")
    await refused(sync.trx, r"^sync\.trx\(\) works only in a step of a workflow that a worker runs")


async def test_in_the_body() -> None:
    """A body has no checkpoint of its own."""

    @durable
    async def look() -> None:
        await refused(trx, "works only in a step")
        await refused(sync.trx, "works only in a step")

    @durable
    def look_in_a_thread() -> None:
        asyncio.run(refused(sync.trx, "works only in a step"))

    await MemoryRun(look).result()
    await MemoryRun(look_in_a_thread).result()


async def test_twice(kind: str) -> None:
    """A step has one."""

    @step
    async def write() -> None:
        await trx()
        await refused(trx, "was called before in step 'write': keep the session that it gave")

    @step
    def write_in_a_thread() -> None:
        sync.trx()
        with pytest.raises(NotInWorkflowError, match=r"^sync\.trx\(\) was called before in step 'write_in_a_thread'"):
            sync.trx()

    @durable
    async def look() -> None:
        await (write() if kind == "async def" else write_in_a_thread.call())

    run = MemoryRun(look)
    await run.result()
    assert endings(run) == ["committed"]


async def test_in_a_def_step() -> None:
    """A thread cannot use an AsyncSession of the loop; it hears what to write, though it does not await."""

    @step
    def write() -> None:
        with pytest.raises(NotInWorkflowError, match=r"^trx\(\) is for 'async def' steps: here write 'sync\.trx\(\)'"):
            trx()  # type: ignore[unused-coroutine]

    @durable
    async def look() -> None:
        await write.call()

    await MemoryRun(look).result()


async def test_in_an_async_step() -> None:
    """The loop cannot wait for a session; the step hears what to write."""

    @step
    async def write() -> None:
        await refused(sync.trx, r"^sync\.trx\(\) is for 'def' steps: in 'write' write 'await trx\(\)'")

    @durable
    async def look() -> None:
        await write()

    run = MemoryRun(look)
    await run.result()
    assert endings(run) == []


async def test_in_a_def_workflow() -> None:
    """A `def` step of a `def` workflow has its session like any other."""
    write = writing("def", lambda: "written")

    @durable
    def look() -> Any:
        return sync.gather(write.call(), write.call().named("again"))

    run = MemoryRun(look)
    assert await run.result() == ["written"] * 2
    assert endings(run) == ["committed"] * 2


@step
def write_alone() -> str:
    """Begin a transaction."""
    sync.trx()
    return "written"


async def test_in_a_child() -> None:
    """So has one that is a task of its own."""

    @durable
    def look() -> Any:
        return [answer.value for answer in sync.wait([sync.schedule(write_alone.call())]) if isinstance(answer, Ok)]

    run = MemoryRun(look)
    assert await run.result() == ["written"]
    assert endings(run) == ["committed"]


async def test_in_a_step_that_a_step_calls() -> None:
    """An inner step is part of the outer one, and so is its transaction."""

    @step
    async def inner() -> AsyncSession:
        return await trx()

    @step
    async def outer() -> bool:
        return isinstance(await inner(), AsyncSession)

    @durable
    async def look() -> bool:
        return await outer()

    run = MemoryRun(look)
    assert await run.result() is True
    assert endings(run) == ["committed"]
    assert run.steps == ["outer"]


async def test_wait_for_a_retry(kind: str) -> None:
    """A step that waits for its next attempt has rolled back before the turn ends."""
    write = writing(kind, raise_no, retry=Retry.fixed(1, LONG))

    @durable
    async def look() -> None:
        await write.call()

    run = MemoryRun(look)
    assert isinstance(await run.turn(), Suspended)
    assert endings(run) == ["rolled back"]
