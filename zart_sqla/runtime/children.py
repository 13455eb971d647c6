"""The children of a run, as the turn of its body knows them."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from zart_sqla.errors import InvalidDataError
from zart_sqla.runtime._signals import TurnSignal

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Sequence

    from zart_sqla.records import Child


class Children:
    """Writes new children, as many at once as the body schedules without a pause, while the body goes on.

    Args:
        known: the names of those that were there before the turn, and not done.
        executions: the ids of the executions that the run has started, and that had not ended.
        write: writes new ones.

    Attributes:
        open: the names of those that were not done when the turn began, or are new.
        executions: the same of executions, by their ids.
    """

    def __init__(
        self, known: Iterable[str], executions: Iterable[str], write: Callable[[Sequence[Child]], Awaitable[None]]
    ) -> None:
        self.open: set[str] = set(known)
        self.executions: set[str] = set(executions)
        self._write = write
        self._new: list[Child] = []
        self._writing: asyncio.Task[None] | None = None
        self._failure: BaseException | None = None

    @property
    def count(self) -> int:
        """How many of both were not done when the turn began, or are new."""
        return len(self.open) + len(self.executions)

    def add(self, child: Child) -> None:
        """Add a child, which will be written soon."""
        self.open.add(child.name)
        self._new.append(child)
        if self._writing is None or self._writing.done():
            self._writing = asyncio.ensure_future(self._write_new())

    async def written(self) -> None:
        """Return when all that were added are written.

        Raises:
            TurnSignal: the turn ends here.
            InvalidDataError: PostgreSQL has refused one; that is told once.
        """
        if self._writing is not None:
            await asyncio.wait({self._writing})
            self._writing.result()
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def close(self) -> None:
        """Write nothing more, and let go of what would write it."""
        self._write = _nowhere
        if self._writing is not None:
            self._writing.cancel()

    async def _write_new(self) -> None:
        while self._new:
            new, self._new = self._new, []
            try:
                await self._write(new)
            except (TurnSignal, InvalidDataError) as error:  # for whoever waits; perhaps nobody does
                self._failure = error


async def _nowhere(_: Sequence[Child]) -> None:
    """Write nothing: the turn is over."""
