"""The bridge from the thread of a step to the worker's loop."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")


class Bridge:
    """Has what the thread of a step asks for awaited on the loop, until the attempt is over.

    A thread cannot be interrupted, but whatever it does through its bridge can: after `close` nothing of it goes on.

    Args:
        step: the step's name in the run.
    """

    def __init__(self, step: str) -> None:
        self._step = step
        self._loop = asyncio.get_running_loop()
        self._home = threading.get_ident()
        self._lock = threading.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._is_over = False

    @property
    def is_home(self) -> bool:
        """Whether the caller is in the loop's own thread, where there is nothing to cross."""
        return threading.get_ident() == self._home

    def check_open(self) -> None:
        """Check that the attempt still goes on.

        Raises:
            CancelledError: it is over.
        """
        if self._is_over:
            raise self._refusal()

    def wait_for(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Return, in the thread, what the coroutine returns on the loop.

        Raises:
            CancelledError: the attempt is over, or was before the coroutine was.
        """
        answer: Future[T] = Future()
        try:
            with self._lock:  # `close` comes before this or after it, so the loop is there to answer
                self.check_open()
                self._loop.call_soon_threadsafe(self._start, coroutine, answer)
        except BaseException:
            coroutine.close()
            raise
        return answer.result()

    async def close(self) -> None:
        """Cancel what is under way for the thread, and refuse what it asks for later; return when all of that is over.

        It does not return before, even if it is cancelled itself: what comes next is the end of the transaction.
        """
        with self._lock:
            self._is_over = True
        for task in self._tasks:
            task.cancel()
        cancelled: asyncio.CancelledError | None = None
        while self._tasks:
            try:
                await asyncio.wait(self._tasks)
            except asyncio.CancelledError as error:
                cancelled = error
        if cancelled is not None:
            raise cancelled

    # On the loop --------------------------------------------------------------------------------------------------

    def _start(self, coroutine: Coroutine[Any, Any, T], answer: Future[T]) -> None:
        if self._is_over:
            coroutine.close()
            answer.set_exception(self._refusal())
            return
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._settle(done, answer))

    def _settle(self, task: asyncio.Task[T], answer: Future[T]) -> None:
        self._tasks.discard(task)
        error = self._refusal() if task.cancelled() else task.exception()
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(task.result())

    def _refusal(self) -> asyncio.CancelledError:
        # No Exception: a thread that goes on after errors would go on for ever.
        return asyncio.CancelledError(f"this attempt of step {self._step!r} is over: its session can do nothing more")
