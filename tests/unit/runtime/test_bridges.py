"""The bridge from a step's thread to the loop, and its end."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import pytest

from zart_sqla.runtime.bridges import Bridge

OVER = "this attempt of step 'work' is over"


def in_thread(call: Callable[[], Any]) -> "asyncio.Future[Any]":
    """Return what the call will return in a thread, or the error that it will raise."""

    def run() -> Any:
        try:
            return call()
        except BaseException as error:  # noqa: BLE001 - it is the answer, also where no future could hold it
            return error

    return asyncio.get_running_loop().run_in_executor(None, run)


async def test_crosses() -> None:
    """A coroutine runs on the loop, with what the thread's context says."""
    bridge = Bridge("work")
    who: ContextVar[str] = ContextVar("who")

    async def look() -> tuple[int, str]:
        await asyncio.sleep(0)
        return threading.get_ident(), who.get()

    def ask() -> tuple[int, str]:
        who.set("the thread")
        assert not bridge.is_home
        return bridge.wait_for(look())

    assert await in_thread(ask) == (threading.get_ident(), "the thread")
    assert bridge.is_home
    await bridge.close()


@pytest.mark.parametrize("error", [LookupError("x"), TimeoutError(), GeneratorExit()], ids=repr)
async def test_errors_cross(error: BaseException) -> None:
    """What a coroutine raises is raised in the thread."""
    bridge = Bridge("work")

    async def fail() -> None:
        raise error

    assert await in_thread(lambda: bridge.wait_for(fail())) is error


async def test_stop_iteration() -> None:
    """So is what Python makes of an error that no coroutine can raise."""
    bridge = Bridge("work")

    async def stop() -> None:
        raise StopIteration

    assert isinstance(await in_thread(lambda: bridge.wait_for(stop())), RuntimeError)


async def test_close_waits() -> None:
    """What is under way is cancelled, and over, when the bridge is closed; the thread hears why."""
    bridge = Bridge("work")
    has_begun = asyncio.Event()
    steps: list[str] = []

    async def hang() -> None:
        has_begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            steps.append("cleaned up")

    asking = in_thread(lambda: bridge.wait_for(hang()))
    await has_begun.wait()
    await bridge.close()
    steps.append("closed")
    error = await asking
    assert isinstance(error, asyncio.CancelledError)
    assert OVER in str(error)
    assert steps == ["cleaned up", "closed"]


async def test_close_waits_though_cancelled() -> None:
    """Not even a cancellation has it return before."""
    bridge = Bridge("work")
    has_begun, may_end = asyncio.Event(), asyncio.Event()
    is_over = False

    async def hang() -> None:
        nonlocal is_over
        has_begun.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await may_end.wait()
        is_over = True

    asking = in_thread(lambda: bridge.wait_for(hang()))
    await has_begun.wait()
    closing = asyncio.ensure_future(bridge.close())
    for _ in range(3):
        await asyncio.sleep(0)
        closing.cancel()
    assert not closing.done()
    may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert is_over
    assert await asking is None


async def test_refuses_afterwards() -> None:
    """What the thread asks for after the end is refused, and never begins."""
    bridge = Bridge("work")
    await bridge.close()
    begun: list[int] = []

    async def begin() -> None:
        begun.append(1)

    for _ in range(2):
        error = await in_thread(lambda: bridge.wait_for(begin()))
        assert isinstance(error, asyncio.CancelledError)
        assert OVER in str(error)
    with pytest.raises(asyncio.CancelledError, match=OVER):
        bridge.check_open()
    assert begun == []


@pytest.mark.parametrize("rounds", range(4))
async def test_closed_at_any_instant(rounds: int) -> None:
    """Wherever on its way a question is when the bridge is closed, the thread gets an answer."""
    bridge = Bridge("work")

    async def answer() -> str:
        await asyncio.sleep(0)
        return "answered"

    has_asked = threading.Event()

    def ask() -> str:
        call = bridge.wait_for
        has_asked.set()
        return call(answer())

    asking = in_thread(ask)
    has_asked.wait()  # the loop stands still meanwhile
    for _ in range(rounds):
        await asyncio.sleep(0)
    await bridge.close()
    result = await asking
    assert result == "answered" or (isinstance(result, asyncio.CancelledError) and OVER in str(result))


async def test_many_threads_at_random_instants() -> None:
    """Of a thousand questions that race with the end, none stays open, and none is answered that had not begun."""
    begun: list[int] = []
    for _ in range(50):
        bridge = Bridge("work")

        async def answer() -> str:
            begun.append(1)
            return "answered"

        def ask(bridge: Bridge = bridge, answer: Callable[[], Any] = answer) -> int:
            count = 0
            with contextlib.suppress(asyncio.CancelledError):
                while True:
                    bridge.wait_for(answer())
                    count += 1
            return count

        asking = [in_thread(ask) for _ in range(2)]
        await asyncio.sleep(0.001)
        await bridge.close()
        at_the_end = len(begun)
        await asyncio.gather(*asking)
        assert len(begun) == at_the_end
