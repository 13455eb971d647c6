"""Following a stream of an execution, from an offset on."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import TYPE_CHECKING, Any, Final, Generic, Self, TypeVar

from zart_sqla.codec import MAX_INNER_NAME_BYTES, checked_name, codec_for
from zart_sqla.errors import ConfigError, ExecutionNotFound
from zart_sqla.records import StreamPosition
from zart_sqla.store import streams

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from zart_sqla.client.scheduler import PostgresScheduler
    from zart_sqla.client.sync import SyncScheduler
    from zart_sqla.store.streams import Followed, StreamPage
    from zart_sqla.table_names import TableNames

T = TypeVar("T")

POLL_SECONDS: Final = 5.0
"""How often one who follows looks by itself, in case a notification was missed."""

SECOND_LOOK_SECONDS: Final = 0.1
"""After how long it looks again at what was being emitted when it began to follow, and so was not notified."""

_MAX_OFFSET: Final = 2**63 - 1  # a bigint of PostgreSQL


def read(connection: Connection, names: TableNames, position: StreamPosition) -> StreamPage:
    """Return the items that are there from a position on, as many as are read at once.

    Raises:
        ExecutionNotFound: there is no such execution.
    """
    page = streams.read(connection, names, position)
    if page is None:
        raise ExecutionNotFound(position.execution_id)
    return page


def patience(followed: Followed) -> float:
    """Return for how many seconds one who follows waits for news before it looks by itself."""
    return POLL_SECONDS if followed.was_followed else SECOND_LOOK_SECONDS


async def next_page(scheduler: PostgresScheduler, position: StreamPosition, *, is_caught_up: bool) -> StreamPage:
    """Return the next items, when there are some, or the execution has ended. The wait holds no connection of the pool.

    Args:
        scheduler: the app's scheduler.
        position: where the items begin.
        is_caught_up: whether there was nothing more when the caller last looked.

    Raises:
        ExecutionNotFound: there is no such execution.
    """
    page = None if is_caught_up else await scheduler.ask(read, position)
    while page is None or not page.is_news:
        # The run is marked before the next look: what is emitted later will be notified.
        followed = await scheduler.ask(streams.follow, position.execution_id)
        if followed is not None:
            page = await _heard(scheduler, position, followed)
        else:
            page = await scheduler.ask(read, position)
    return page


async def _heard(scheduler: PostgresScheduler, position: StreamPosition, followed: Followed) -> StreamPage:
    """Return what there is now; if that is nothing, what there is after some news."""
    await scheduler.ends.listen()
    # Nothing is awaited in between: a worker that listens for us and stops wakes only those who wait by then.
    with scheduler.ends.waiting_for(str(followed.run_id)) as news:
        page = await scheduler.ask(read, position)
        if page.is_news or page.run_id != followed.run_id:  # of another run that has begun nobody tells us yet
            return page
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(news.wait(), patience(followed))
    return await scheduler.ask(read, position)


class _Reading(Generic[T]):
    """Where one who reads a stream is, and what it has read ahead.

    Attributes:
        offset: the number of the next item, from 0: where to go on, now or in another process.
    """

    def __init__(self, execution_id: str, name: str, kind: Any, *, offset: int, follow: bool) -> None:
        if not _is_offset(offset):
            raise ConfigError("offset", expected="a whole number from 0, such as that of a reader", actual=offset)
        self.offset: int = offset
        self._execution_id = execution_id
        self._stream = checked_name("stream name", name, longest=MAX_INNER_NAME_BYTES)
        self._codec = codec_for(kind)
        self._follows = follow
        self._ahead: deque[str] = deque()
        self._is_caught_up = False
        self._is_over = False

    def __repr__(self) -> str:
        return f"<stream {self._stream!r} of execution {self._execution_id!r} from {self.offset}>"

    @property
    def _position(self) -> StreamPosition:
        return StreamPosition(execution_id=self._execution_id, stream=self._stream, offset=self.offset)

    def _take_in(self, page: StreamPage) -> None:
        self._ahead.extend(page.values)
        self._is_caught_up = page.is_last
        self._is_over = page.is_last and (page.has_ended or not self._follows)

    def _take(self) -> T:
        subject = f"item {self.offset} of the stream {self._stream!r}"
        value: T = self._codec.unpack(self._ahead[0], subject=subject)
        self._ahead.popleft()
        self.offset += 1
        return value


class StreamReader(_Reading[T]):
    """Reads a stream of an execution: an async iterator over its values, made by `ExecutionHandle.stream`.

    It reads a page at a time, so it can be slow, and whoever emits never waits for it. It may be given up at any time,
    also while it waits, and be used again. It is for one task.

    Attributes:
        offset: the number of the next item, from 0: where to go on, now or in another process.
    """

    def __init__(
        self, scheduler: PostgresScheduler, execution_id: str, name: str, kind: Any, *, offset: int, follow: bool
    ) -> None:
        super().__init__(execution_id, name, kind, offset=offset, follow=follow)
        self._scheduler = scheduler

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> T:
        """Return the next value, when there is one.

        Raises:
            StopAsyncIteration: there is none, and there will be none.
            ExecutionNotFound: there is no such execution.
            InvalidDataError: it does not fit the type. `offset` is still its number.
        """
        while not self._ahead:
            if self._is_over:
                raise StopAsyncIteration
            self._take_in(await self._next_page())
        return self._take()

    async def _next_page(self) -> StreamPage:
        if self._follows:
            return await next_page(self._scheduler, self._position, is_caught_up=self._is_caught_up)
        return await self._scheduler.ask(read, self._position)


class SyncStreamReader(_Reading[T]):
    """Reads a stream of an execution: an iterator over its values, made by `SyncExecutionHandle.stream`.

    See `StreamReader`. It is for one thread.

    Attributes:
        offset: the number of the next item, from 0: where to go on, now or in another process.
    """

    def __init__(
        self, scheduler: SyncScheduler, execution_id: str, name: str, kind: Any, *, offset: int, follow: bool
    ) -> None:
        super().__init__(execution_id, name, kind, offset=offset, follow=follow)
        self._scheduler = scheduler

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        """Return the next value, when there is one; see `StreamReader`."""
        while not self._ahead:
            if self._is_over:
                raise StopIteration
            self._take_in(self._next_page())
        return self._take()

    def _next_page(self) -> StreamPage:
        if self._follows:
            return self._scheduler.next_page(self._position, is_caught_up=self._is_caught_up)
        return self._scheduler.run(read, self._position)


def _is_offset(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_OFFSET
