"""`override`: fakes in place of the functions of steps."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from tests.testing import shop
from zart_sqla import ConfigError, Retry, StepFailed, durable, step
from zart_sqla.testing import override, run_workflow


@durable
async def pay(order_id: str) -> str:
    """Pay and pack."""
    return f"{await shop.charge(order_id, 1)}, {await shop.pack.call(order_id)}"


async def afake(*args: Any) -> str:
    """Be an `async def` fake."""
    await asyncio.sleep(0)
    return f"fake{args}"


def fake(*args: Any) -> str:
    """Be a `def` fake."""
    return f"fake{args}"


@pytest.mark.parametrize("one", [fake, afake])
async def test_in_a_workflow(one: Callable[..., Any]) -> None:
    """In a workflow the fake is called with the step's arguments, whichever of both is an `async def`."""
    with override(shop.charge, with_=one), override(shop.pack, with_=one):
        assert await run_workflow(pay, "42") == "fake('42', 1), fake('42',)"
    assert await run_workflow(pay, "42") == "42 paid 1, parcel of 42"


@pytest.mark.parametrize("one", [fake, afake])
async def test_outside_a_workflow(one: Callable[..., Any]) -> None:
    """Without a workflow the step calls the fake too."""
    with override(shop.charge, with_=one), override(shop.pack, with_=one):
        assert await shop.charge("42", 1) == "fake('42', 1)"
        assert await shop.pack.call("42") == "fake('42',)"
    assert shop.pack("42") == "parcel of 42"


def test_plain_call() -> None:
    """The bare call of a `def` step calls the fake, also an `async def` one."""
    with override(shop.pack, with_=fake):
        assert shop.pack("42") == "fake('42',)"
    with override(shop.pack, with_=afake):
        assert shop.pack("42") == "fake('42',)"


async def test_nested() -> None:
    """The last one counts, and what was before is back after it."""
    with override(shop.pack, with_=lambda _: "one"):
        with override(shop.pack, with_=lambda _: "two"):
            assert await shop.pack.call("42") == "two"
        assert await shop.pack.call("42") == "one"


async def test_crossed() -> None:
    """Contexts that end in another order than the reverse take only their own fake with them."""
    first, second = override(shop.pack, with_=lambda _: "one"), override(shop.pack, with_=lambda _: "two")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert await shop.pack.call("42") == "two"
    second.__exit__(None, None, None)
    assert await shop.pack.call("42") == "parcel of 42"


async def test_ends_with_an_error() -> None:
    """An error in the context ends it as well."""
    with pytest.raises(LookupError), override(shop.pack, with_=fake):
        raise LookupError
    assert await shop.pack.call("42") == "parcel of 42"


@override(shop.pack, with_=fake)
async def test_decorates_async() -> None:
    """It decorates an `async def` test."""
    assert await shop.pack.call("42") == "fake('42',)"


@override(shop.pack, with_=fake)
@pytest.mark.parametrize("order_id", ["42"])
def test_decorates_plain(order_id: str) -> None:
    """It decorates a `def` test, which keeps its parameters."""
    assert shop.pack(order_id) == "fake('42',)"


async def test_keeps_the_step() -> None:
    """The step keeps its retries and its type: a fake that fails is retried, and its result is checked."""
    attempts: list[int] = []

    @step(retry=Retry.fixed(2, "1d"))
    async def count() -> int:
        return 1

    @durable
    async def counting() -> int:
        return await count()

    def flaky() -> int:
        attempts.append(1)
        if len(attempts) < 3:
            raise ConnectionError
        return 3

    with override(count, with_=flaky):
        assert await run_workflow(counting) == 3
    with override(count, with_=lambda: "text"), pytest.raises(StepFailed, match="InvalidDataError"):
        await run_workflow(counting)


async def test_methods() -> None:
    """A method is replaced for all objects through its class, and for one object through that."""

    class Service:
        @step
        async def send(self, text: str) -> str:
            return f"sent {text}"

    one, other = Service(), Service()
    with override(one.send, with_=lambda text: f"faked {text}"):
        assert await one.send("a") == "faked a"
        assert await other.send("a") == "sent a"
        with override(Service.send, with_=lambda self, text: f"{self is other} {text}"):
            assert await other.send("a") == "True a"
        assert await other.send("a") == "sent a"


def test_refuses() -> None:
    """What is no step, or no function, is refused with a word of what is expected."""
    with pytest.raises(ConfigError, match="that @step has made a step, got <function fake"):
        override(fake, with_=fake)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="with_: expected a function"):
        override(shop.pack, with_="text")  # type: ignore[arg-type]
