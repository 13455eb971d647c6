"""`capture`, `now`, `random`, `uuid`: a replay sees what the first time saw."""

import itertools
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from functools import partial
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.support.memory import LONG, START, MemoryRun
from zart_sqla import (
    InvalidDataError,
    NotInWorkflowError,
    StepFailed,
    capture,
    durable,
    now,
    random,
    sleep,
    step,
    sync,
    uuid,
)
from zart_sqla.codec import tagged_json
from zart_sqla.records import StepKind

VALUES = [
    datetime(2026, 1, 1, tzinfo=UTC),
    date(2026, 1, 1),
    time(12, 30),
    timedelta(days=1, microseconds=1),
    Decimal("1.50"),
    UUID(int=3),
    b"\xff\x00",
    None,
    True,
    7,
    1.5,
    "text",
    [1, {"a": None}],
    {"$type": "Decimal", "value": "1.50"},
    {"$type": "unknown"},
    {"$type": None},
]


@pytest.mark.parametrize("value", VALUES, ids=repr)
async def test_capture(value: Any) -> None:
    """What the function gives the first time is seen again, with its type, and the function is called once."""
    seen: list[Any] = []
    calls = itertools.count()

    def read() -> Any:
        next(calls)
        return value

    # Without an annotation: that is how most of what is captured comes.
    del read.__annotations__["return"]

    @durable
    async def look() -> None:
        seen.append(await capture("value", read))
        await sleep("nap", LONG)

    await MemoryRun(look).result()
    assert seen == [value] * 3
    assert [type(one) for one in seen] == [type(value)] * 3
    assert next(calls) == 1


async def test_annotated_function() -> None:
    """An annotation says what the value is; what does not fit it is refused."""

    def numbers() -> list[Decimal]:
        return [Decimal("1.50")]

    def wrong() -> int:
        return "text"  # type: ignore[return-value]

    @durable
    async def look() -> list[Decimal]:
        found = await capture("numbers", numbers)
        assert found == [Decimal("1.50")]
        with pytest.raises(StepFailed, match="the result of step 'wrong' cannot be stored"):
            await capture("wrong", wrong)
        return found

    assert await MemoryRun(look).result() == ["1.50"]


async def test_kinds_of_callables() -> None:
    """Async functions, builtins, lambdas, partials and classes can be captured."""

    async def read() -> int:
        return 1

    @durable
    async def look() -> list[Any]:
        return [
            await capture("async", read),
            isinstance(await capture("builtin", datetime.now), datetime),
            await capture("lambda", lambda: 2),
            await capture("partial", partial(int, "3")),
            await capture("class", int),
            isinstance(await capture("uuid", uuid4), UUID),
        ]

    assert await MemoryRun(look).result() == [1, True, 2, 3, 0, True]


async def test_kind_and_name() -> None:
    """Its checkpoint is a capture, with the name that it was given."""

    @durable
    async def look() -> None:
        await capture("a", lambda: 1)
        await capture("a", lambda: 2)

    run = MemoryRun(look)
    await run.result()
    assert [(one.name, one.kind) for one in run.recorder.steps.values()] == [
        ("a", StepKind.CAPTURE),
        ("a#2", StepKind.CAPTURE),
    ]


async def test_function_that_raises() -> None:
    """Its error is that of a step."""

    @durable
    async def look() -> None:
        await capture("a", lambda: 1 // 0)

    outcome = await MemoryRun(look).failure()
    assert (outcome.error.step, outcome.error.error_type) == ("a", "ZeroDivisionError")


async def test_now() -> None:
    """It is the time by the database's clock, in UTC, also on replay."""
    seen: list[datetime] = []

    @durable
    async def look() -> None:
        seen.append(await now("t"))
        await sleep("nap", LONG)
        seen.append(await now("t"))

    await MemoryRun(look).result()
    assert seen == [START, START, START + timedelta(hours=1), START, START + timedelta(hours=1)]
    assert {one.tzinfo is not None and one.utcoffset() for one in seen} == {timedelta(0)}


async def test_random_and_uuid() -> None:
    """They are the same on replay, and others in another run."""
    seen: list[tuple[float, UUID]] = []

    @durable
    async def look() -> None:
        seen.append((await random("r"), await uuid("u")))

    await MemoryRun(look).result()
    await MemoryRun(look).result()
    first, first_again, second, second_again = seen
    assert (first, second) == (first_again, second_again)
    assert first != second
    assert 0 <= first[0] < 1
    assert first[1].version == 4


async def test_outside_a_workflow() -> None:
    """There they are the plain values, for unit tests."""
    assert await capture("a", lambda: 3) == 3
    assert (await now("t")).tzinfo is UTC
    assert 0 <= await random("r") < 1
    assert (await uuid("u")).version == 4


async def test_in_a_step() -> None:
    """There they are the plain values too: the step's own result is what is recorded."""

    @step
    async def work() -> float:
        return await random("r")

    @durable
    async def look() -> float:
        return await work()

    run = MemoryRun(look)
    assert 0 <= await run.result() < 1
    assert run.steps == ["work"]


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("a$\U0001f600"),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["$type", "value", "a"]), inner),
    max_leaves=8,
)
known_values = st.datetimes() | st.dates() | st.times() | st.timedeltas() | st.uuids() | st.binary()


@given(json_values | known_values)
def test_tagged_json(value: Any) -> None:
    """Each value comes back as itself, whatever it looks like."""
    text, packed = tagged_json.pack(value, subject="it")
    again = tagged_json.unpack(text, subject="it")
    assert again == packed == value
    assert type(again) is type(value)


def test_tagged_json_refuses() -> None:
    """What is neither well-known nor JSON is refused."""
    with pytest.raises(InvalidDataError, match="it cannot be stored"):
        tagged_json.pack(object(), subject="it")


async def test_sync_now_on_the_loop() -> None:
    """`zart_sqla.sync` is refused in an `async def` workflow."""

    @durable
    async def look() -> str:
        with pytest.raises(NotInWorkflowError, match=r"sync\.now\(\.\.\.\) is for 'def' workflows"):
            sync.now("t")
        return "refused"

    assert await MemoryRun(look).result() == "refused"
