"""Workflows and the registry: what can be registered, and how each bad registration is refused."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from tests.unit.support.memory import MemoryRun
from zart_sqla import ConfigError, Durable, InvalidNameError, Retry, TaskRegistry, durable, step
from zart_sqla.runtime.handlers import Handler


@dataclass
class Order:
    """An input."""

    id: str


@durable
async def bare(order: Order) -> str:
    """Do it."""
    return order.id


@durable("order-fulfilment", timeout="30m", retry=Retry.fixed(2, "1s"))
def named(order: Order) -> str:
    """Do it in a thread."""
    return order.id


class OnboardingTask:
    """A task as an object."""

    def __init__(self, greeting: str) -> None:
        self.greeting = greeting

    async def run(self, data: Order) -> str:
        """Greet."""
        return f"{self.greeting} {data.id}"


class SyncTask:
    """A task as an object, for a thread."""

    def run(self, data: int) -> int:
        """Double it."""
        return data * 2


def test_durable() -> None:
    """A bare decorator takes the function's name; one with options keeps them."""
    assert isinstance(bare, Durable)
    assert (bare.name, bare.handler.is_async, bare.handler.timeout) == ("bare", True, None)
    assert bare.handler.retry == Retry.none()
    assert (named.name, named.handler.is_async) == ("order-fulfilment", False)
    assert (named.handler.timeout, named.handler.retry.retries) == (timedelta(minutes=30), 2)
    assert repr(bare) == "<durable 'bare': tests.unit.runtime.test_handlers.bare>"
    assert (bare.__doc__, bare.__name__) == ("Do it.", "bare")


async def test_durable_is_the_plain_function_too() -> None:
    """Called directly it is the function itself: a unit test needs no database."""
    assert await bare(Order("o-1")) == "o-1"
    assert named(Order("o-1")) == "o-1"


def test_codecs() -> None:
    """Input and output are typed by the annotations; what has none is plain JSON."""

    @durable
    async def untyped(data):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
        return data

    @durable
    async def without_input() -> None: ...

    text, packed = bare.handler.data_codec.pack(Order("o-1"), subject="it")
    assert (text, packed) == ('{"id":"o-1"}', Order("o-1"))
    assert bare.handler.result_codec.pack("x", subject="it") == ('"x"', "x")
    assert untyped.handler.data_codec.pack([1, None], subject="it")[1] == [1, None]
    assert without_input.handler.data_codec.pack(None, subject="it") == ("null", None)


async def test_optional_input() -> None:
    """A function whose input has a default gets what was given."""

    @durable
    async def look(order: Order | None = None, *, verbose: bool = False) -> str:
        return order.id if order else "none"

    assert await MemoryRun(look).result() == "none"
    assert await MemoryRun(look, Order("o-1")).result() == "o-1"


def test_annotation_that_is_not_there() -> None:
    """An annotation that names nothing is refused by name, when it is first needed."""

    @durable
    async def look(data: "Nothing") -> None: ...  # type: ignore[name-defined] # noqa: F821

    with pytest.raises(ConfigError, match=r"annotations of .*look: .*'Nothing' is not defined"):
        _ = look.handler.data_codec


def test_annotation_that_is_no_json() -> None:
    """A type that JSON cannot be made from is refused."""

    @durable
    async def look(data: OnboardingTask) -> None: ...

    with pytest.raises(ConfigError, match=r"annotation: expected a type that JSON can be made from, got .*Onboarding"):
        _ = look.handler.data_codec


def two(a: int, b: int) -> None:
    """Take too much."""


def keyword(*, a: int) -> None:
    """Take it by keyword only."""


@pytest.mark.parametrize("function", [two, keyword, lambda _a, _b: None])
def test_too_many_arguments(function: Callable[..., Any]) -> None:
    """A workflow takes its input, or nothing."""
    with pytest.raises(ConfigError, match=r"^workflow: expected a function of one argument, its input, or of none"):
        durable(function)
    with pytest.raises(ConfigError, match=r"^workflow: expected a function of one argument, its input, or of none"):
        TaskRegistry().register("two", function)


@pytest.mark.parametrize(
    ("options", "setting"),
    [
        ({"timeout": "soon"}, "timeout"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": -1}, "timeout"),
        ({"retry": 3}, "retry"),
        ({"on_failure": "refund"}, "on_failure"),
    ],
    ids=str,
)
def test_bad_options(options: dict[str, Any], setting: str) -> None:
    """An option that is out of range is refused by its name."""
    with pytest.raises(ConfigError, match=rf"^{setting}: expected "):
        durable(**options)(bare.handler.function)


@pytest.mark.parametrize("other", [3, OnboardingTask("hi"), functools.partial(two, 1)], ids=["3", "object", "partial"])
def test_no_function(other: Any) -> None:
    """Only functions can be decorated."""
    with pytest.raises(ConfigError, match=r"^durable: expected a function, got "):
        durable("name")(other)


@pytest.mark.parametrize("name", ["", "\x00", "x" * 2001])
def test_bad_name(name: str) -> None:
    """A task name must be storable."""
    with pytest.raises(InvalidNameError, match=r"^task name "):
        durable(name)(bare.handler.function)
    with pytest.raises(InvalidNameError, match=r"^task name "):
        TaskRegistry().register(name, OnboardingTask("hi"))


async def test_registry() -> None:
    """It takes durable functions, objects with a `run`, and functions, and finds them by name."""
    registry = TaskRegistry()
    registry.register(bare)
    registry.register("onboarding", OnboardingTask("hello"))
    registry.register("sync", SyncTask())
    registry.register("plain", bare.handler.function)
    registry.register("lambda", lambda data: data)
    assert registry.names == list(registry) == ["bare", "lambda", "onboarding", "plain", "sync"]
    assert len(registry) == 5
    assert registry.get("bare") is bare.handler
    assert registry.get("other") is None


@pytest.mark.parametrize(("task", "data", "expected"), [(OnboardingTask("hi"), Order("o"), "hi o"), (SyncTask(), 2, 4)])
async def test_objects_run(task: Any, data: Any, expected: Any) -> None:
    """An object's `run` is a workflow, typed by its annotations."""
    registry = TaskRegistry()
    registry.register("task", task)
    handler = registry.get("task")
    assert handler is not None
    assert await MemoryRun(handler, data).result() == expected


def test_under_another_name() -> None:
    """A durable function can be registered under another name, with all that it declares."""
    registry = TaskRegistry()
    registry.register("other", named)
    registry.register("order-fulfilment", named)
    handler = registry.get("other")
    assert handler is not None
    assert (handler.name, handler.function) == ("other", named.handler.function)
    assert (handler.retry, handler.timeout) == (named.handler.retry, named.handler.timeout)
    assert registry.get("order-fulfilment") is named.handler


def test_taken_name() -> None:
    """A name has one workflow; to register the same again changes nothing."""
    registry = TaskRegistry()
    registry.register(bare)
    registry.register(bare)
    registry.register("bare", bare)
    with pytest.raises(ConfigError, match=r"^task name: expected a name that is not registered yet, got 'bare'"):
        registry.register("bare", OnboardingTask("hi"))
    with pytest.raises(ConfigError, match="not registered yet"):
        registry.register("bare", named)
    assert registry.get("bare") is bare.handler


@step
async def a_step() -> None:
    """Do nothing."""


class RunIsData:
    """Has a `run` that is none."""

    run = 3


class NoRun:
    """Has no `run`."""


class TwoArguments:
    """Has a `run` that takes too much."""

    async def run(self, data: int, more: int) -> None:
        """Do nothing."""


BAD: dict[str, tuple[Any, ...]] = {
    "nothing": (),
    "a name alone": ("name",),
    "a function without a name": (bare.handler.function,),
    "an object without a name": (OnboardingTask("hi"),),
    "a class": ("name", OnboardingTask),
    "a step": ("name", a_step),
    "a step alone": (a_step,),
    "no run": ("name", NoRun()),
    "a run that is data": ("name", RunIsData()),
    "a run of two arguments": ("name", TwoArguments()),
    "a coroutine's result": ("name", None),
    "no name": (3, bare),
    "the wrong order": (bare, "name"),
    "too many": ("name", bare, bare),
    "without a signature": ("name", max),
}


@pytest.mark.parametrize("arguments", list(BAD.values()), ids=list(BAD))
def test_bad_registrations(arguments: tuple[Any, ...]) -> None:
    """Each is refused at once, in words, and changes nothing."""
    registry = TaskRegistry()
    with pytest.raises(ConfigError, match=r"^workflow: expected a "):
        registry.register(*arguments)
    assert len(registry) == 0


def test_handler_of_a_method() -> None:
    """A handler can be made from a bound method."""
    handler: Handler[Any, Any] = Handler("task", OnboardingTask("hi").run)
    assert handler.is_async
    assert handler.arguments(Order("o")) == (Order("o"),)
