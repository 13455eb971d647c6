"""Values that a replay sees again: what the clock, chance or the outside world answered the first time."""

from __future__ import annotations

import inspect
import random as random_module
import uuid as uuid_module
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar, overload

from zart_sqla.codec import annotations_of, codec_for, tagged_json
from zart_sqla.records import StepKind
from zart_sqla.runtime.context import body_turn
from zart_sqla.runtime.steps import Step

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from zart_sqla.codec import Codec

T = TypeVar("T")


@overload
async def capture(name: str, function: Callable[[], Coroutine[Any, Any, T]]) -> T: ...
@overload
async def capture(name: str, function: Callable[[], T]) -> T: ...
async def capture(name: str, function: Callable[[], Any]) -> Any:
    """Return what the function returns the first time, also on replay.

    Args:
        name: its name in the run.
        function: a function without arguments, sync (it runs in a thread) or async. Where its result is not annotated
            it may be plain JSON, a `datetime`, `date`, `time`, `timedelta`, `Decimal`, `UUID` or `bytes`.

    Raises:
        InvalidDataError: the value cannot be stored.
        StepFailed: the function raised.
    """
    return await _Capture(function, _codec_of(function)).call().named(name)


async def now(name: str) -> datetime:
    """Return the time of this call by the database's clock, in UTC, also on replay.

    Args:
        name: its name in the run.
    """
    turn = body_turn()

    async def read_clock() -> datetime:
        return datetime.now(UTC) if turn is None else turn.recorder.now().astimezone(UTC)

    return await capture(name, _resolved(read_clock, datetime))


async def random(name: str) -> float:
    """Return a number from 0 up to 1, the same on replay.

    Args:
        name: its name in the run.
    """

    async def draw() -> float:
        return random_module.random()  # noqa: S311 - what needs a secret says so with capture()

    return await capture(name, _resolved(draw, float))


async def uuid(name: str) -> uuid_module.UUID:
    """Return a random UUID (version 4), the same on replay.

    Args:
        name: its name in the run.
    """

    async def make() -> uuid_module.UUID:
        return uuid_module.uuid4()

    return await capture(name, _resolved(make, uuid_module.UUID))


class _Capture(Step[[], Any]):
    """The step behind `capture`, which may be made from any callable."""

    def __init__(self, function: Callable[[], Any], codec: Codec[Any]) -> None:
        is_async = inspect.iscoroutinefunction(function)

        async def call_async() -> Any:
            return await function()

        def call() -> Any:
            return function()

        super().__init__(call_async if is_async else call, name="capture", kind=StepKind.CAPTURE)
        self._codec = codec


def _codec_of(function: Callable[[], Any]) -> Codec[Any]:
    annotations = annotations_of(function) if inspect.isroutine(function) and not inspect.isbuiltin(function) else {}
    return codec_for(annotations["return"]) if "return" in annotations else tagged_json


def _resolved(
    function: Callable[[], Coroutine[Any, Any, T]], declared: type[T]
) -> Callable[[], Coroutine[Any, Any, T]]:
    function.__annotations__ = {"return": declared}
    return function
