"""What type checkers make of steps."""

from collections.abc import Awaitable
from datetime import timedelta
from typing import assert_type

from zart_sqla import Retry, StepCall, gather, step, sync
from zart_sqla.runtime.steps import AsyncStep, SyncStep


class CardDeclined(Exception):
    """An answer, not a fault."""


@step
async def bare(order_id: str, cents: int = 0) -> str:
    """Be an `async def` step without options."""
    return f"{order_id} {cents}"


@step("charge-{order_id}", retry=Retry.exponential(3, "2s", "1m"), timeout=timedelta(minutes=5), raises=CardDeclined)
async def named(order_id: str) -> int:
    """Be an `async def` step with options."""
    return len(order_id)


@step
def plain(number: int) -> list[int]:
    """Be a `def` step without options."""
    return [number]


@step(timeout=5, raises=(CardDeclined, KeyError))
def plain_with_options(number: int) -> bytes:
    """Be a `def` step with options."""
    return bytes(number)


class Shop:
    """Has steps for methods."""

    @step
    async def charge(self, order_id: str) -> int:
        """Charge."""
        return len(order_id)

    @step("ship-{order_id}")
    def ship(self, order_id: str) -> bytes:
        """Ship."""
        return order_id.encode()


async def async_steps() -> None:
    """An `async def` step gives a call, which is awaited for its value, and can be named."""
    step_of_a_name: AsyncStep[..., str] = bare
    assert_type(step_of_a_name("x"), StepCall[str])
    assert_type(bare("x"), StepCall[str])
    assert_type(bare("x", cents=3), StepCall[str])
    assert_type(await bare("x"), str)
    assert_type(bare("x").named("y"), StepCall[str])
    assert_type(await bare("x").named("y"), str)
    assert_type(await bare.call("x"), str)
    assert_type(await named("x"), int)
    awaitable: Awaitable[int] = named("x")
    assert_type(await awaitable, int)


async def sync_steps() -> None:
    """A `def` step gives its value, and by `call` what an `async def` one does."""
    step_of_a_number: SyncStep[..., list[int]] = plain
    assert_type(step_of_a_number(1), list[int])
    assert_type(plain(1), list[int])
    assert_type(plain.call(1), StepCall[list[int]])
    assert_type(await plain.call(1), list[int])
    assert_type(plain_with_options(1), bytes)
    assert_type(await plain_with_options.call(1).named("x"), bytes)


async def methods(shop: Shop) -> None:
    """Steps of an object are typed like others, without `self`."""
    assert_type(shop.charge("x"), StepCall[int])
    assert_type(await shop.charge("x"), int)
    assert_type(shop.ship("x"), bytes)
    assert_type(await shop.ship.call("x"), bytes)
    assert_type(await Shop.charge(shop, "x"), int)
    assert_type(await gather(shop.charge("x"), shop.ship.call("y")), tuple[int, bytes])
    shop.charge(3)  # type: ignore[arg-type]
    shop.ship()  # type: ignore[call-arg]


async def groups() -> None:
    """`gather` gives a tuple with the type of each call; of many alike, the one type."""
    assert_type(await gather(bare("x")), tuple[str])
    assert_type(await gather(bare("x"), named("y")), tuple[str, int])
    assert_type(await gather(bare("x"), named("y"), plain.call(1)), tuple[str, int, list[int]])
    assert_type(
        await gather(bare("x"), named("y"), plain.call(1), plain_with_options.call(1)),
        tuple[str, int, list[int], bytes],
    )
    assert_type(await gather(*[bare(name) for name in "xyz"]), tuple[str, ...])
    a, b = await gather(bare("x"), named("y"))
    assert_type(a, str)
    assert_type(b, int)


def groups_of_a_def_workflow() -> None:
    """So does the one without `await`."""
    assert_type(sync.gather(bare("x"), named("y")), tuple[str, int])
    assert_type(sync.gather(*[bare(name) for name in "xyz"]), tuple[str, ...])


async def refused() -> None:
    """Arguments that do not fit are told before anything runs."""
    bare(3)  # type: ignore[arg-type]
    bare("x", price=3)  # type: ignore[call-arg]
    bare.call()  # type: ignore[call-arg]
    plain("x")  # type: ignore[arg-type]
    await gather("x")  # type: ignore[call-overload]
    Retry.fixed("three", "1s")  # type: ignore[arg-type]
    step(timeout=b"5s")  # type: ignore[call-overload]
    step(raises="CardDeclined")  # type: ignore[call-overload]
