"""The call of a step as text: from it another process makes the same call again."""

import importlib
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import Any, NotRequired, TypedDict
from uuid import UUID

import pytest
from pydantic import BaseModel

from tests.unit.support.memory import MemoryRun
from zart_sqla import ConfigError, InvalidDataError, Ok, ZartErr, durable, schedule, step, wait
from zart_sqla.runtime import arguments
from zart_sqla.runtime.outcomes import Done
from zart_sqla.runtime.steps import Step, StepCall

HERE = __name__
NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


@dataclass
class Item:
    """A dataclass."""

    sku: str
    price: Decimal


class Address(BaseModel):
    """A Pydantic model."""

    street: str
    since: datetime | None = None


class Options(TypedDict):
    """A typed dictionary."""

    fast: bool
    note: NotRequired[str]


class Color(Enum):
    """An enumeration."""

    RED = "red"


@step
async def ship(  # noqa: PLR0913, PLR0917 - one of each kind
    item: Item, address: Address, options: Options, color: Color, at: datetime, raw: bytes, key: UUID
) -> None:
    """Take one argument of each kind."""


@step("count-{number}")
def count(number: int, /, step_by: int = 1, *more: Decimal, loud: bool = False, **rest: datetime) -> None:
    """Take arguments in each way in which a function can."""


@step
async def take(value, *values, **named) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN002, ANN003
    """Take what is not annotated."""


@step
async def take_nothing() -> None:
    """Take nothing."""


class Shop:
    """What has steps of its own."""

    @staticmethod
    @step
    async def open(door: str) -> str:
        """Be found in a class."""
        return door

    @step
    async def close(self) -> None:
        """Belong to an instance."""


by_lambda: Any = step(lambda: 2)


def again(call: StepCall[Any]) -> StepCall[Any]:
    """Return the call that another process would make."""
    return arguments.unpack(arguments.pack(call, HERE), call.name, HERE)


def bound(call: StepCall[Any]) -> dict[str, Any]:
    """Return the arguments of a call by name."""
    return dict(call.step.signature.bind(*call.args, **call.kwargs).arguments)


ITEM = Item("x-1", Decimal("19.99"))
KINDS = (ITEM, Address(street="Hill", since=NOW), Options(fast=True), Color.RED, NOW, b"\x00\xff", UUID(int=7))
BY_NAME: Any = dict(zip(("options", "color", "at", "raw", "key"), KINDS[2:], strict=True))
CALLS: dict[str, StepCall[Any]] = {
    "kinds": ship(*KINDS),
    "kinds by name": ship.call(*KINDS[:2], **BY_NAME),
    "positional": count.call(3),
    "defaults": count.call(3, 5),
    "more": count.call(3, 5, Decimal("0.1"), Decimal(2), loud=True, one=NOW, other=NOW),
    "not annotated": take(NOW),
    "not annotated, many": take(None, 1, [2], {"a": None}, b="c", number=3),
    "well-known types": take(Decimal("0.1")),
    "like a tagged one": take({"$type": "datetime", "value": "x"}),
    "nothing": take_nothing(),
    "named": take_nothing().named("%_/:\"'{}\N{GRINNING FACE}"),
    "in a class": Shop.open("front"),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_round_trip(call: StepCall[Any]) -> None:
    """The same step is called with the same arguments, of the same types, under the same name."""
    found = again(call)
    assert found.step is call.step
    assert found.name == call.name
    assert bound(found) == bound(call)
    types = [type(value) for value in bound(call).values()]
    assert [type(value) for value in bound(found).values()] == types


def test_text() -> None:
    """It names the step and the arguments that were given: defaults are those of the code that runs the step."""
    text = arguments.pack(count.call(3), HERE)
    assert json.loads(text) == {"step": ":count", "arguments": {"number": 3}}
    assert arguments.pack(take_nothing(), HERE) == '{"step": ":take_nothing", "arguments": {}}'


@pytest.mark.parametrize(
    ("call", "subject"),
    [
        (count.call("three"), "'number' of 'count-three'"),  # type: ignore[arg-type]
        (count.call(3, 5, Decimal("NaN")), "'more' of 'count-3'"),
        (count.call(3, day=1), "'rest' of 'count-3'"),  # type: ignore[arg-type]
        (take(object()), "'value' of 'take'"),
        (take("\x00"), "'value' of 'take'"),
        (Shop.close(Shop()), "'self' of 'close'"),
    ],
)
def test_argument_that_does_not_fit(call: StepCall[Any], subject: str) -> None:
    """It is refused before anything is written, and named."""
    with pytest.raises(InvalidDataError, match=f"^{subject} cannot be stored"):
        arguments.pack(call, HERE)


def make_a_step() -> Step[..., Any]:
    """Return a step that no module has."""

    @step
    async def local() -> None: ...

    return local


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (make_a_step().call(), "make_a_step.<locals>.local"),
        (by_lambda.call(), "<lambda>"),
        (Shop().close(), "Shop.close"),
    ],
    ids=["local", "lambda", "method"],
)
def test_step_that_is_not_found(call: StepCall[Any], name: str) -> None:
    """A step that its module does not have under its name is refused, and named."""
    with pytest.raises(ConfigError, match=f"schedule: expected the call of a step that its module has.*{name}>$"):
        arguments.pack(call, HERE)


def test_name_that_stands_for_another() -> None:
    """A step is refused that has the name of another one."""
    other: Any = step(make_a_step().function)
    other.__qualname__ = "take_nothing"
    with pytest.raises(ConfigError, match="take_nothing"):
        arguments.pack(other.call(), HERE)


# Code of other modules, and code that changes --------------------------------------------------------------------


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ModuleType]:
    """Yield a module of steps that tests can change."""
    path = tmp_path / "zart_steps_elsewhere.py"
    source = "from zart_sqla import step\n@step\nasync def add(a: int, b: int = 0) -> int:\n    return a + b\n"
    path.write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module(path.stem)
    sys.modules.pop(path.stem, None)


def define(module: ModuleType, source: str) -> None:
    """Put another version of the code in the place of the module's."""
    del module.add
    code = compile(f"from zart_sqla import step\n{source}", "<new>", "exec")
    exec(code, vars(module))  # noqa: S102 - a later version of the code


def test_another_module(module: ModuleType) -> None:
    """A step of another module is found there, imported if it has not been yet."""
    text = arguments.pack(module.add(1, b=2), HERE)
    assert json.loads(text)["step"] == "zart_steps_elsewhere:add"
    assert arguments.unpack(text, "add", HERE).step is module.add
    del sys.modules[module.__name__]
    found = arguments.unpack(text, "add", HERE)
    assert (found.step.__module__, found.args, found.kwargs) == (module.__name__, (1, 2), {})


def test_home(module: ModuleType) -> None:
    """A script that is run is `__main__` to itself, and is imported by others under its own name."""
    step_of_script: Any = step(make_a_step().function)
    step_of_script.__qualname__, step_of_script.__module__ = "add", "__main__"
    main: Any = sys.modules["__main__"]
    main.add = step_of_script
    try:
        text = arguments.pack(step_of_script.call(), "__main__")
        assert json.loads(text)["step"] == ":add"
        assert arguments.unpack(text, "add", "__main__").step is step_of_script
    finally:
        del main.add
    define(module, "@step\nasync def add() -> int: ...")
    assert arguments.unpack(text, "add", module.__name__).step is module.add


NEW_CODE = {
    "is gone": ("add = None", "step: expected one that this code has, got 'zart_steps_elsewhere:add'"),
    "is a function": ("async def add(a, b): ...", "step: expected one that this code has"),
    "takes fewer": ("@step\nasync def add(a: int): ...", "step: expected one that takes a, b, got <step 'add'"),
    "takes more": ("@step\nasync def add(a: int, b: int, c: int): ...", "step: expected one that takes a, b, got"),
    "takes others": ("@step\nasync def add(x: int, y: int): ...", "step: expected one that takes a, b, got"),
    "takes another type": ("@step\nasync def add(a: str, b: int): ...", "'a' of 'sum' cannot be stored: value"),
    "cannot be imported": (None, "step: expected one that this code has"),
    "fails to be imported": ("raise RuntimeError('no')", "step: expected one that this code has"),
}


@pytest.mark.parametrize(("source", "problem"), NEW_CODE.values(), ids=NEW_CODE)
def test_changed_code(module: ModuleType, tmp_path: Path, source: str | None, problem: str) -> None:
    """A call that the code of today cannot make is refused with a message that says so."""
    text = arguments.pack(module.add(1, 2), HERE)
    path = tmp_path / f"{module.__name__}.py"
    path.unlink()
    if source is not None:
        path.write_text(f"from zart_sqla import step\n{source}\n", encoding="utf-8")
    del sys.modules[module.__name__]
    importlib.invalidate_caches()
    with pytest.raises((ConfigError, InvalidDataError), match=f"^{problem}"):
        arguments.unpack(text, "sum", HERE)


def test_compatible_code(module: ModuleType) -> None:
    """What takes the same arguments, and perhaps more that have defaults, is called."""
    text = arguments.pack(module.add(1, 2), HERE)
    define(module, "@step\ndef add(c: int = 3, *, b: int, a: int | None, **rest: int) -> int: ...")
    found = arguments.unpack(text, "add", HERE)
    assert (found.args, found.kwargs) == ((), {"a": 1, "b": 2})


async def test_child_of_changed_code(module: ModuleType) -> None:
    """A child whose step this code does not have fails, and its run is told which it is."""

    @durable
    async def look() -> list[str]:
        first, second = told = await wait([schedule(module.add(1).named("sum")), schedule(Shop.open("front"))])
        assert (isinstance(first, ZartErr), second) == (True, Ok("front"))
        return [str(getattr(one, "error", one)) for one in told]

    run = MemoryRun(look)
    await run.turn()
    add = module.add
    define(module, "add = None")
    assert await run.run_child("sum") == Done()
    vars(module)["add"] = add
    problem = "ConfigError: step: expected one that this code has, got 'zart_steps_elsewhere:add'"
    assert await run.result() == [f"step 'sum' failed: {problem}", "Ok(value='front')"]


async def test_workflow_refuses_a_local_step() -> None:
    """It is told where it schedules; nothing is written, and the place in the run is free."""

    @durable
    async def look() -> str:
        with pytest.raises(ConfigError, match=r"any worker runs it, got <step 'local': .*make_a_step"):
            schedule(make_a_step().call())
        return "refused"

    run = MemoryRun(look)
    assert await run.result() == "refused"
    assert run.children == []
