"""Waiting in tests: for a condition, never for a time."""

import asyncio
import inspect
import time
from collections.abc import Callable
from typing import Any, Final

PATIENCE: Final = 30.0
"""After how many seconds a test gives up; nothing that works takes nearly as long, even on a loaded machine."""


async def eventually(condition: Callable[[], Any], expected: object = None) -> Any:
    """Return what the condition, sync or async, gives once that is true, or equal to `expected` where that is given.

    Raises:
        AssertionError: it never was.
    """
    deadline = time.monotonic() + PATIENCE
    while True:
        answer = condition()
        value = await answer if inspect.isawaitable(answer) else answer
        if value == expected if expected is not None else value:
            return value
        message = f"waited for {expected if expected is not None else 'a condition'}, got {value!r}"
        assert time.monotonic() < deadline, message
        await asyncio.sleep(0.01)
