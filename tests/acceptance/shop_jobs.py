"""The workflows of the app of the acceptance tests. A test holds a step back until it makes a file."""

# ruff: noqa: ASYNC110, ASYNC240, ASYNC251 - files are how a test and these processes meet

import asyncio
import logging
import os
import time
from pathlib import Path
from typing import Any

from zart_sqla import TaskRegistry, durable, emit, step, wait_for_event

logger = logging.getLogger("shop")


@step
async def increase(number: int) -> int:
    """Add one."""
    logger.info("increasing %d", number)
    return number + 1


@durable("add")
async def add(number: int) -> int:
    """Add one, durably."""
    return await increase(number)


@step
async def check(path: str) -> None:
    """Fail as long as there is no such file."""
    if not Path(path).exists():
        raise ValueError("no such file")


@durable("fragile")
async def fragile(path: str) -> str:
    """Fail after a checkpoint, as long as there is no such file."""
    await increase(1)
    await check(path)
    return "mended"


@step
async def wait_for_file(path: str) -> int:
    """Tell that this process is here, and wait for the file."""
    Path(f"{path}.{os.getpid()}").touch()
    while not Path(path).exists():
        await asyncio.sleep(0.01)
    return os.getpid()


@durable("hold")
async def hold(path: str) -> int:
    """Hold a worker until there is a file, and give its process."""
    return await wait_for_file(path)


@durable("listen")
async def listen(count: int) -> list[Any]:
    """Wait for so many events."""
    return [await wait_for_event("shipment_ready") for _ in range(count)]


@durable("tell")
async def tell(values: list[Any]) -> None:
    """Emit the values, and then those of events, until one is null."""
    for value in values:
        await emit("progress", value)
    while (value := await wait_for_event("more")) is not None:
        await emit("progress", value)


@step
def block_for_file(path: str) -> None:
    """Wait for the file in a thread, which nothing can interrupt."""
    Path(f"{path}.{os.getpid()}").touch()
    while not Path(path).exists():
        time.sleep(0.01)


@durable("block")
async def block(path: str) -> None:
    """Hold a thread of a worker until there is a file."""
    await block_for_file.call(path)


@durable("freeze")
async def freeze(path: str) -> None:
    """Hold the worker's event loop itself until there is a file."""
    Path(f"{path}.{os.getpid()}").touch()
    while not Path(path).exists():
        time.sleep(0.01)  # the mistake that this is about


registry = TaskRegistry()
for _workflow in (add, fragile, hold, listen, tell, block, freeze):
    registry.register(_workflow)

nothing = TaskRegistry()
number = 42
