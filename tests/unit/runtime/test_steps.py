"""Steps: plain functions outside a workflow, calls with names inside."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from tests.unit.support.memory import MemoryRun
from zart_sqla import ConfigError, NotInWorkflowError, Retry, Step, StepCall, durable, step


@step
async def greet(name: str, *, greeting: str = "hello") -> str:
    """Greet."""
    return f"{greeting} {name}"


@step("report-{index}", retry=Retry.fixed(2, "1s"), timeout="5m", raises=(KeyError, OSError))
def report(index: int, title: str = "x") -> str:
    """Report."""
    return f"{index} {title}"


def test_declaration() -> None:
    """A bare decorator takes the function's name; one with options keeps them."""
    assert isinstance(greet, Step)
    assert greet.call("x").name == "greet"
    assert (greet.is_async, greet.timeout, greet.raises, greet.retry) == (True, None, (), Retry.none())
    assert (report.is_async, report.timeout, report.raises) == (False, timedelta(minutes=5), (KeyError, OSError))
    assert report.retry.retries == 2
    assert (greet.__name__, greet.__doc__) == ("greet", "Greet.")
    assert repr(report) == "<step 'report-{index}': tests.unit.runtime.test_steps.report>"


async def test_plain_outside_a_workflow() -> None:
    """There a step is the plain function, and needs no database."""
    assert await greet("world") == "hello world"
    assert await greet.call("world", greeting="bye") == "bye world"
    assert report(1) == "1 x"
    assert await report.call(2, title="y") == "2 y"


async def test_plain_outside_a_workflow_raises_as_it_is() -> None:
    """Neither retry nor timeout nor error types are in the way of a unit test."""

    @step(retry=Retry.fixed(5, "1h"))
    async def fail() -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        await fail()


async def test_plain_in_another_step() -> None:
    """A step that a step calls is part of it, of either kind."""

    @step
    async def outer() -> list[str]:
        return [await greet("in"), report(1), await report.call(2)]

    @durable
    async def look() -> list[str]:
        return await outer()

    run = MemoryRun(look)
    assert await run.result() == ["hello in", "1 x", "2 x"]
    assert run.steps == ["outer"]


def test_async_call() -> None:
    """Calling an `async def` step gives a call, which has not run yet and leaves no warning behind."""
    call = greet("x")
    assert isinstance(call, StepCall)
    assert (call.step, call.args, call.kwargs, call.name) == (greet, ("x",), {}, "greet")


@pytest.mark.parametrize(
    ("call", "expected"),
    [
        (report.call(1), "report-1"),
        (report.call(index=2), "report-2"),
        (report.call(3, "title"), "report-3"),
        (report.call("a/b:%_\N{GRINNING FACE}'\""), "report-a/b:%_\N{GRINNING FACE}'\""),  # type: ignore[arg-type]
        (report.call(1).named("notify-3"), "notify-3"),
        (report.call(1).named("{index}"), "{index}"),
        (greet("x").named("a").named("b"), "b"),
    ],
    ids=["positional", "keyword", "more", "nasty", "named", "braces", "named twice"],
)
def test_names(call: StepCall[str], expected: str) -> None:
    """A name is filled from the arguments, or given at the call."""
    assert call.name == expected


def test_named_is_another_call() -> None:
    """`named` leaves the call that it was made from as it is."""
    call = greet("x")
    assert (call.named("a").name, call.name) == ("a", "greet")


def test_template_with_defaults_formats_and_attributes() -> None:
    """A template can use defaults, formats, attributes, items and literal braces."""

    @step("{number:03d}-{when.days}-{data[key]}-{suffix!r}-{{}}")
    async def work(number: int, when: timedelta, data: dict[str, int], suffix: str = "s") -> None: ...

    assert work(7, timedelta(days=2), {"key": 5}).name == "007-2-5-'s'-{}"


@pytest.mark.parametrize("template", ["{other}", "{}", "{0}", "{index", "index}", "{index.x}{other}"])
def test_bad_templates(template: str) -> None:
    """A template that asks for what is no parameter, or is no template, is refused at once."""

    async def work(index: int) -> None: ...

    with pytest.raises(ConfigError, match=r"^step name: expected "):
        step(template)(work)


def test_arguments_that_do_not_fit() -> None:
    """A templated call checks its arguments at once."""
    with pytest.raises(TypeError, match="missing a required argument: 'index'"):
        report.call()  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("options", "setting"),
    [
        ({"timeout": 0}, "timeout"),
        ({"timeout": "soon"}, "timeout"),
        ({"raises": "OSError"}, "raises"),
        ({"raises": (OSError, 3)}, "raises"),
        ({"retry": 3}, "retry"),
    ],
    ids=str,
)
def test_bad_options(options: dict[str, Any], setting: str) -> None:
    """An option that is out of range is refused by its name."""
    with pytest.raises(ConfigError, match=rf"^{setting}: expected "):
        step(**options)(greet.function)


@pytest.mark.parametrize("other", [3, "text", None])
def test_no_function(other: Any) -> None:
    """Only functions can be decorated."""
    with pytest.raises(ConfigError, match=r"^step: expected a function, got "):
        step("name")(other)


class Shop:
    """Has steps for methods."""

    def __init__(self, name: str) -> None:
        self.name = name

    @step("charge-{order}")
    async def charge(self, order: str) -> str:
        """Charge."""
        return f"{self.name} charged {order}"

    @step
    def ship(self, order: str) -> str:
        """Ship."""
        return f"{self.name} shipped {order}"

    @staticmethod
    @step
    async def close(order: str) -> str:
        """Close."""
        return f"closed {order}"

    @step("{self.name}-{order}")
    async def rate(self, order: str) -> str:
        """Rate."""
        return order


async def test_methods() -> None:
    """Methods are steps of their object, in a workflow and outside of one."""
    shop = Shop("ours")

    @durable
    async def fulfil(order: str) -> list[str]:
        return [
            await shop.charge(order),
            await shop.ship.call(order),
            await shop.close(order),  # type: ignore[call-arg] # checkers bind it, Python does not
            await shop.rate(order).named("rated"),
            await Shop.charge(Shop("theirs"), order),
        ]

    run = MemoryRun(fulfil, "o-1")
    expected = ["ours charged o-1", "ours shipped o-1", "closed o-1", "o-1", "theirs charged o-1"]
    assert await run.result() == expected
    assert run.steps == ["charge-o-1", "ship", "close", "rated", "charge-o-1#2"]
    assert shop.ship("o-2") == "ours shipped o-2"
    assert await shop.charge("o-2") == "ours charged o-2"
    assert shop.rate("o-2").name == "ours-o-2"


async def test_def_step_in_an_async_workflow() -> None:
    """It is awaited by `.call`; bare, it is refused with those words, and nothing runs."""

    @durable
    async def look() -> str:
        with pytest.raises(NotInWorkflowError, match=r"write 'await report\.call\(\.\.\.\)'"):
            report(1)
        return await report.call(2)

    run = MemoryRun(look)
    assert await run.result() == "2 x"
    assert run.steps == ["report-2"]


async def test_def_step_in_an_on_failure_on_the_loop() -> None:
    """The same goes for an `async def` `on_failure` of a `def` workflow: there is no thread to wait in."""

    async def refund(data: None, failure: object) -> str:
        with pytest.raises(NotInWorkflowError, match=r"write 'await report\.call\(\.\.\.\)'"):
            report(1)
        return "refused"

    @durable(on_failure=refund)
    def look() -> str:
        raise ValueError("no")

    assert await MemoryRun(look).result() == "refused"


async def test_def_step_does_not_block_the_loop() -> None:
    """It runs in a thread: the loop goes on meanwhile."""
    loop = asyncio.get_running_loop()
    passed = asyncio.Event()

    @step
    def wait_for_the_loop() -> str:
        return asyncio.run_coroutine_threadsafe(pass_by(), loop).result(5)

    async def pass_by() -> str:
        passed.set()
        return "passed"

    @durable
    async def look() -> str:
        return await wait_for_the_loop.call()

    assert await MemoryRun(look).result() == "passed"
    assert passed.is_set()


async def test_same_call_twice() -> None:
    """A call that is awaited twice is two steps."""

    @durable
    async def look() -> list[str]:
        call = greet("x")
        return [await call, await call]

    run = MemoryRun(look)
    assert await run.result() == ["hello x", "hello x"]
    assert run.steps == ["greet", "greet#2"]


def test_result_annotation_that_is_no_json() -> None:
    """A result's type that JSON cannot be made from is refused when it is first needed."""

    @step
    async def connect() -> Shop:
        return Shop("x")

    with pytest.raises(ConfigError, match=r"annotation: expected a type that JSON can be made from, got .*Shop"):
        _ = connect.codec
