"""The threads in which plain functions run, so that they block neither the loop nor each other."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


class Threads:
    """Bodies and steps have threads apart: a body waits for its steps, so it must never take the place of one.

    Args:
        max_bodies: how many bodies run at once.
    """

    def __init__(self, max_bodies: int) -> None:
        self._bodies = ThreadPoolExecutor(max_bodies, thread_name_prefix="zart-body")
        self._steps = ThreadPoolExecutor(max_bodies, thread_name_prefix="zart-step")

    async def call(self, function: Callable[[], Any], *, is_body: bool) -> Any:
        """Return what the function returns, called in a thread."""
        pool = self._bodies if is_body else self._steps
        return await asyncio.get_running_loop().run_in_executor(pool, function)

    def close(self) -> None:
        """Take no more calls. Those that run cannot be interrupted; nobody waits for them."""
        for pool in (self._bodies, self._steps):
            pool.shutdown(wait=False, cancel_futures=True)
