"""Workflows that do one thing between steps at which they wait for the test."""

from tests.support.scene import pass_gate
from zart_sqla import Retry, context, durable, emit, schedule, sleep, step, trx, wait, wait_for_event


@step
async def work(number: int) -> int:
    """Give a small value."""
    return number


@step(retry=Retry.fixed(2, 0))
async def fail_once() -> None:
    """Fail at first."""
    if context().attempt == 1:
        raise OSError


@step
async def write() -> None:
    """Have a transaction of the step's own."""
    await trx()


@durable
async def order(_: int) -> None:
    """Do a step."""
    await pass_gate("open")
    await pass_gate("shut")


@durable
async def sleeper(_: int) -> None:
    """Sleep, for as long as nobody makes the time pass."""
    await pass_gate("open")
    await sleep("night", "1d")
    await pass_gate("shut")


@durable
async def listener(_: int) -> None:
    """Wait for an event."""
    await pass_gate("open")
    await wait_for_event("paid")
    await pass_gate("shut")


@durable
async def parent(children: int) -> None:
    """Run children."""
    await pass_gate("open")
    await wait([schedule(work(number)) for number in range(children)])
    await pass_gate("shut")


@durable
async def retrier(_: int) -> None:
    """Do a step that fails once."""
    await pass_gate("open")
    await fail_once()
    await pass_gate("shut")


@durable
async def writer(_: int) -> None:
    """Do a step with a transaction."""
    await pass_gate("open")
    await write()
    await pass_gate("shut")


@durable
async def emitter(_: int) -> None:
    """Emit a value."""
    await pass_gate("open")
    await emit("progress", 1)
    await pass_gate("shut")


WORKFLOWS = (order, sleeper, listener, parent, retrier, writer, emitter)
