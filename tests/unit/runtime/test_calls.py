"""When all durable calls of a body wait, and when one of them only seems to be over."""

import asyncio

from zart_sqla.runtime.calls import Calls
from zart_sqla.runtime.outcomes import Suspended

ROUNDS = 200
"""For how many rounds of the loop a call is watched: ten times as many as there are in a moment of quiet."""


async def test_a_call_that_follows_another_soon() -> None:
    """A task's next call counts, however long it takes, if it begins in a moment of quiet: what waits still waits."""
    calls = Calls(quiet_seconds=0)
    calls.has_tasks = True
    gates = [asyncio.Event() for _ in range(3)]

    async def wait() -> bool:
        with calls.under_way():
            return await calls.pause(Suspended(is_waiting=True), None)

    async def work() -> None:
        for gate in gates:
            with calls.under_way():
                await gate.wait()
            await asyncio.sleep(0)  # as from one task of the body's to another

    async with asyncio.TaskGroup() as group:
        waiting, working = group.create_task(wait()), group.create_task(work())
        for gate in gates:
            for _ in range(ROUNDS):  # enough for a moment of quiet
                await asyncio.sleep(0)
            assert not waiting.done()
            gate.set()
    assert working.done()
    assert waiting.result()
