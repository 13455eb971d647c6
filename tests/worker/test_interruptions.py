"""Steps that are stuck, and steps that end in order although they are interrupted, with real workers."""

import asyncio
import threading

from tests.support.waiting import PATIENCE, eventually
from tests.support.working import until, working
from zart_sqla import ExecutionStatus, Retry, StepStatus, durable, progress, shield, step


async def test_stuck_step(migrated_url: str) -> None:
    """An attempt that makes no progress is given up, recorded as such, and made again; one that does goes on."""
    attempts: list[int] = []

    @step(heartbeat="300ms", retry=Retry.fixed(1, 0))
    async def copy() -> int:
        attempts.append(len(attempts))
        for _ in range(6):
            progress()
            await asyncio.sleep(0.1)  # what the step does: longer in all than its heartbeat
        if len(attempts) == 1:
            await asyncio.Event().wait()
        return len(attempts)

    @durable
    async def backup() -> int:
        return await copy()

    async with working(migrated_url, backup) as scheduler:
        handle = await scheduler.start(backup)
        assert await handle.result(timeout=PATIENCE) == 2
        (copied,) = await handle.steps()
    assert (copied.status, copied.attempts) == (StepStatus.COMPLETED, 2)


async def test_stuck_plain_step(migrated_url: str) -> None:
    """The thread of a `def` step is left to itself; the next attempt has another one."""
    release = threading.Event()
    threads: list[int] = []

    @step(heartbeat="200ms", retry=Retry.fixed(1, 0))
    def copy() -> str:
        threads.append(threading.get_ident())
        if len(threads) == 1:
            release.wait()
        return "done"

    @durable
    async def backup() -> str:
        return await copy.call()

    try:
        async with working(migrated_url, backup) as scheduler:
            handle = await scheduler.start(backup)
            assert await handle.result(timeout=PATIENCE) == "done"
            release.set()
    finally:
        release.set()
    assert len(set(threads)) == 2


async def test_cancelled_step_ends_in_order(migrated_url: str) -> None:
    """What is shielded comes to its end although the execution is cancelled; nothing follows."""
    started, is_free = asyncio.Event(), asyncio.Event()
    seen: list[str] = []

    async def give_back() -> None:
        seen.append("giving back")
        await is_free.wait()
        seen.append("given back")

    @step
    async def use() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            await shield(give_back())
        seen.append("next line")

    @durable
    async def work() -> None:
        await use()
        seen.append("next step")

    async with working(migrated_url, work) as scheduler:
        handle = await scheduler.start(work)
        await eventually(started.is_set)
        await handle.cancel()
        await until(handle, ExecutionStatus.CANCELLED)
        await eventually(lambda: seen == ["giving back"])
        is_free.set()
        await eventually(lambda: seen == ["giving back", "given back"])
        assert await handle.steps() == []
    assert seen == ["giving back", "given back"]
