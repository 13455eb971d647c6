"""Ids and names: whatever text PostgreSQL can hold is an id, and means itself."""

import random
from typing import Any

import pytest

from tests.support.waiting import PATIENCE
from tests.support.working import count_rows, scheduler_on, working
from zart_sqla import (
    ExecutionFailed,
    InvalidNameError,
    context,
    durable,
    emit,
    gather,
    sleep,
    step,
    wait_for_event,
)

NAMES = [
    "%",
    "100%s",
    "%(id)s",
    "_",
    "order_1",
    "order-1",
    "a/b/../c",
    ":param",
    "$1",
    "it's",
    '"quoted"',
    "{braces}",
    "back\\slash",
    "semi;colon--",
    " leading and trailing ",
    "new\nline",
    "ÄÖÜ ß",
    "👩‍👩‍👧‍👦",
    "x" * 500,
    "🙂" * 500,
]
BAD: dict[str, Any] = {
    "empty": "",
    "too long": "x" * 2001,
    "NUL": "a\x00b",
    "lone surrogate": "a\udc00",
    "a number": 7,
}


async def test_any_text_is_an_id(migrated_url: str) -> None:
    """Each text is the id of an execution and the name of a step and a queue of its own."""

    @step
    async def echo(value: str) -> str:
        assert context().step_name == value
        return value

    @durable
    async def mirror(name: str) -> list[str]:
        return [context().execution_id, *await gather(echo(name).named(name))]

    async with working(migrated_url, mirror, workers=2) as scheduler:
        for name in NAMES:
            handle = await scheduler.start(mirror, name, execution_id=name, queue=name)
            assert handle.execution_id == name
        for name in NAMES:
            handle = scheduler.handle(name, mirror)
            assert await handle.result(timeout=PATIENCE) == [name, name]
            assert [one.name for one in await handle.steps()] == [name]
            info = await handle.info()
            assert (info.execution_id, info.payload, info.queue) == (name, name, name)
            found = await scheduler.list_executions(search=name)
            assert name in [one.execution_id for one in found]
            assert all(one.execution_id.startswith(name) for one in found)
        assert (await count_rows(scheduler))["executions"] == len(NAMES)


async def test_bad_ids_are_refused(migrated_url: str) -> None:
    """An id, task name or queue that cannot be stored is refused, and nothing is written."""
    async with scheduler_on(migrated_url) as scheduler:
        for bad in BAD.values():
            with pytest.raises(InvalidNameError, match="execution id "):
                await scheduler.start("task", execution_id=bad)
            with pytest.raises(InvalidNameError, match="queue "):
                await scheduler.start("task", queue=bad)
            with pytest.raises(InvalidNameError, match="execution id "):
                await scheduler.start_many("task", [("good", 1), (bad, 2)])
        with pytest.raises(InvalidNameError, match="task name "):
            await scheduler.start("")
        assert set((await count_rows(scheduler)).values()) == {0}


async def test_bad_step_names_fail_the_run(migrated_url: str) -> None:
    """A step name that cannot be stored fails the run with a clear error, and the step does not run."""
    ran: list[str] = []

    @step
    async def work() -> None:
        ran.append("work")

    @durable
    async def order(kind: str) -> None:
        await work().named(BAD[kind])

    @durable
    async def sleeper(kind: str) -> None:
        await sleep(BAD[kind], "1h")

    async with working(migrated_url, order, sleeper) as scheduler:
        for workflow in (order, sleeper):
            for kind in BAD:
                handle = await scheduler.start(workflow, kind)
                with pytest.raises(ExecutionFailed, match="InvalidNameError: step name ") as caught:
                    await handle.result(timeout=PATIENCE)
                assert (caught.value.error_type, caught.value.step) == ("InvalidNameError", None)
                assert await handle.steps() == []
    assert ran == []


def random_name(size: int) -> str:
    """Return a name of so many bytes that no compression makes shorter."""
    return "".join(chr(random.randrange(0x10000, 0x10FFFF)) for _ in range(size // 4))


async def test_longest_names_inside_an_execution(migrated_url: str) -> None:
    """Events, their ids and streams have names up to their own limit, also in an execution with the longest id."""
    name, event_id, stream = (random_name(600) for _ in range(3))

    @durable
    async def order() -> Any:
        await emit(stream, 1)
        return await wait_for_event(name)

    @durable
    async def refuse() -> list[str]:
        refusals = []
        for call in (emit("x" * 601, 1), wait_for_event("x" * 601)):
            with pytest.raises(InvalidNameError, match="is 601 bytes long, at most 600 can be stored") as caught:
                await call
            refusals.append(caught.value.noun)
        return refusals

    async with working(migrated_url, order, refuse, workers=2) as scheduler:
        handle = await scheduler.start(order, execution_id=random_name(2000))
        assert await handle.offer_event(name, 7, event_id=event_id)
        assert not await handle.offer_event(name, 8, event_id=event_id)
        assert await handle.result(timeout=PATIENCE) == 7
        assert [item async for item in handle.stream(stream)] == [1]
        for event, its_id in (("x" * 601, "id"), ("paid", "x" * 601)):
            with pytest.raises(InvalidNameError, match="is 601 bytes long"):
                await handle.offer_event(event, event_id=its_id)
        with pytest.raises(InvalidNameError, match=r"stream name .* is 601 bytes long"):
            handle.stream("x" * 601)
        assert await (await scheduler.start(refuse)).result(timeout=PATIENCE) == ["stream name", "event name"]
