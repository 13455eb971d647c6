"""Payloads and results: every value comes through as it is, or is refused clearly with nothing half-written."""

import math
from typing import Any

import pytest

from tests.support.waiting import PATIENCE
from tests.support.working import count_rows, let_time_pass, scheduler_on, until, working
from zart_sqla import (
    ExecutionFailed,
    ExecutionStatus,
    InvalidDataError,
    durable,
    gather,
    sleep,
    step,
)
from zart_sqla.codec import MAX_DATA_BYTES

NOTHING = {"executions": 0, "execution_runs": 0, "tasks": 0, "steps": 0, "step_attempts": 0, "stream_items": 0}
PLAIN: list[Any] = [
    7,
    -1.5,
    "",
    True,
    None,
    [],
    {},
    [1, [2, {"three": None}]],
    {"": 0, "a b": [None], "ключ": "🗝️"},
    2**63,
    -(2**200),
    1e300,
    "line\nbreak \\u0000 'quotes\" \u2028 \x7f \x1b",
]


def nested(depth: int) -> list[Any]:
    """Return lists within lists."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


UNSTORABLE: dict[str, Any] = {
    "NUL": "a\x00b",
    "NUL in a key": {"a\x00": 1},
    "lone surrogate": "\ud83d",
    "lone surrogate in a key": {"\ud83d": 1},
    "NaN": [math.nan],
    "infinity": {"deep": [-math.inf]},
    "too deep": nested(10_000),
    "too long": "x" * MAX_DATA_BYTES,
    "too long in UTF-8": "€" * (MAX_DATA_BYTES // 3 + 1),
    "not JSON": {"key": object()},
}


async def test_plain_values_come_through(migrated_url: str) -> None:
    """The body sees the same input in each turn, before and after a parallel section; steps and results keep it."""
    seen: dict[str, list[Any]] = {}

    @step
    async def echo(value: Any) -> Any:
        return value

    @durable
    async def mirror(data: Any) -> Any:
        seen.setdefault(repr(data), []).append(data)
        pair = await gather(echo(data), echo(data))
        await sleep("between", "1h")
        seen[repr(data)].append(data)
        return [data, *pair]

    async with working(migrated_url, mirror, workers=2) as scheduler:
        handles = await scheduler.start_many(mirror, [(None, value) for value in PLAIN])
        for handle in handles:
            await until(handle, ExecutionStatus.WAITING)
        await let_time_pass(scheduler)
        for handle, value in zip(handles, PLAIN, strict=True):
            assert await handle.result(timeout=PATIENCE) == [value] * 3
            info = await handle.info()
            assert (info.payload, info.result) == (value, [value] * 3)
            assert seen[repr(value)] == [value] * 3
            assert {type(one) for one in seen[repr(value)]} == {type(value)}


async def test_refused_where_it_enters(migrated_url: str) -> None:
    """A payload that cannot be stored is refused by `start`, and nothing is written."""
    async with scheduler_on(migrated_url) as scheduler:
        for kind, value in UNSTORABLE.items():
            with pytest.raises(InvalidDataError, match="the input of 'mirror' cannot be stored: ") as caught:
                await scheduler.start("mirror", value)
            assert len(str(caught.value)) < 1000, kind
        with pytest.raises(InvalidDataError):
            await scheduler.start_many("mirror", [(None, 1), (None, UNSTORABLE["NUL"]), (None, 2)])
        assert await count_rows(scheduler) == NOTHING


async def test_refused_as_results(migrated_url: str) -> None:
    """A step's result that cannot be stored fails the step, an output the run, each with a clear error."""

    @step
    async def make(kind: str) -> Any:
        return UNSTORABLE[kind]

    @durable
    async def by_step(kind: str) -> Any:
        return await make(kind)

    @durable
    async def by_body(kind: str) -> Any:
        return UNSTORABLE[kind]

    async with working(migrated_url, by_step, by_body) as scheduler:
        for workflow, subject in ((by_step, "the result of step 'make'"), (by_body, "the output of 'by_body'")):
            for handle in await scheduler.start_many(workflow, [(None, kind) for kind in UNSTORABLE]):
                with pytest.raises(ExecutionFailed, match=f"InvalidDataError: {subject} cannot be stored: ") as caught:
                    await handle.result(timeout=PATIENCE)
                assert caught.value.error_type == "InvalidDataError"
                assert [one.result for one in await handle.steps()] == ([None] if workflow is by_step else [])


async def test_large_payload(migrated_url: str) -> None:
    """A payload of 10 MB goes in, through a step and out again."""
    large = "0123456789abcde€" * (10 * 2**20 // 18)

    @step
    async def echo(value: str) -> str:
        return value

    @durable
    async def mirror(data: str) -> str:
        return await echo(data)

    async with working(migrated_url, mirror) as scheduler:
        handle = await scheduler.start(mirror, large)
        assert await handle.result(timeout=PATIENCE) == large


async def test_name_instead_of_function(migrated_url: str) -> None:
    """An input that does not fit the declared type, started by name, fails the run with the path to the field."""

    @durable("typed")
    async def typed(numbers: list[int]) -> int:
        return sum(numbers)

    async with working(migrated_url, typed) as scheduler:
        with pytest.raises(InvalidDataError, match=r"the input of 'typed' cannot be stored: 1: "):
            await scheduler.start(typed, [1, "two"])  # type: ignore[misc]
        assert await count_rows(scheduler) == NOTHING
        assert await (await scheduler.start("typed", [1, 2])).result(timeout=PATIENCE) == 3
        with pytest.raises(ExecutionFailed, match=r"InvalidDataError: the input .*1: "):
            await (await scheduler.start("typed", [1, "two"])).result(timeout=PATIENCE)
