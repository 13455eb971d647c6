"""Listing executions: filters, pages, and what each record tells."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tests.support.waiting import PATIENCE
from tests.support.working import scheduler_on, until, worker_on
from zart_sqla import (
    ConfigError,
    ExecutionInfo,
    ExecutionStatus,
    Page,
    PostgresScheduler,
    TableNames,
    durable,
    sleep,
)


@pytest.fixture
async def scheduler(migrated_url: str) -> AsyncIterator[PostgresScheduler]:
    """Yield a scheduler without workers."""
    async with scheduler_on(migrated_url) as made:
        yield made


def ids(page: Page[ExecutionInfo]) -> list[str]:
    """Return the ids of a page, in its order."""
    return [info.execution_id for info in page]


async def all_pages(scheduler: PostgresScheduler, **filters: Any) -> list[list[str]]:
    """Return the ids of all pages."""
    pages: list[list[str]] = []
    cursor = None
    while True:
        page = await scheduler.list_executions(cursor=cursor, **filters)
        pages.append(ids(page))
        cursor = page.next_cursor
        if cursor is None:
            return pages


async def test_each_status(migrated_url: str) -> None:
    """Each status finds exactly the executions that stand there, and all of them have their facts."""
    hold = asyncio.Event()

    @durable
    async def order(way: str) -> str:
        if way == "failed":
            raise ValueError("no")
        if way in ("waiting", "cancelled"):
            await sleep("night", "1h")
        if way == "running":
            await hold.wait()
        return way

    async with scheduler_on(migrated_url) as scheduler, worker_on(migrated_url, order):
        for status in ExecutionStatus:
            task: Any = "unknown" if status is ExecutionStatus.SCHEDULED else order
            handle = await scheduler.start(task, status, execution_id=f"is {status}")
            if status is ExecutionStatus.CANCELLED:
                await handle.cancel()
            await until(handle, status)
        for status in ExecutionStatus:
            page = await scheduler.list_executions(status=status)
            assert ids(page) == ids(await scheduler.list_executions(status=status.value)) == [f"is {status}"]
            (info,) = page.items
            assert info == await scheduler.handle(f"is {status}").info()
            assert info.status is status
            assert (info.completed_at is not None) == status.is_terminal
            assert (info.error is not None) == (status is ExecutionStatus.FAILED)
            assert info.result == ("completed" if status is ExecutionStatus.COMPLETED else None)
            assert info.payload == status.value
        assert len(await scheduler.list_executions()) == len(ExecutionStatus)
        hold.set()
        await scheduler.handle("is running").result(timeout=PATIENCE)


async def test_newest_first_in_pages(scheduler: PostgresScheduler) -> None:
    """Executions come newest first; pages neither miss nor repeat one, also of those made in one transaction."""
    for batch in range(3):
        await scheduler.start_many("task", [(f"{batch}-{number}", None) for number in range(5)])
    expected = [f"{batch}-{number}" for batch in (2, 1, 0) for number in (4, 3, 2, 1, 0)]
    assert [one for page in await all_pages(scheduler, limit=4) for one in page] == expected
    assert [len(page) for page in await all_pages(scheduler, limit=4)] == [4, 4, 4, 3]
    assert [len(page) for page in await all_pages(scheduler, limit=5)] == [5, 5, 5]
    assert await all_pages(scheduler) == [expected]
    first = await scheduler.list_executions(limit=4)
    await scheduler.start("task", execution_id="meanwhile")
    assert ids(await scheduler.list_executions(limit=4, cursor=first.next_cursor)) == expected[4:8]
    assert len(first) == 4
    assert list(first) == list(first.items)


async def test_filters(scheduler: PostgresScheduler) -> None:
    """Filters are by task, by the beginning of the id, by time, and all at once, also over pages."""
    await scheduler.start_many("mail", [(f"a-{number}", None) for number in range(3)])
    await scheduler.start_many("order", [(f"a-order-{number}", None) for number in range(3)])
    last = await scheduler.start("order", execution_id="b")
    created_at = (await last.info()).created_at
    assert ids(await scheduler.list_executions(task_name="mail")) == ["a-2", "a-1", "a-0"]
    assert ids(await scheduler.list_executions(search="a-order")) == ["a-order-2", "a-order-1", "a-order-0"]
    assert ids(await scheduler.list_executions(since=created_at)) == ["b"]
    assert ids(await scheduler.list_executions(since=created_at + timedelta(microseconds=1))) == []
    both = {"task_name": "order", "search": "a", "status": "scheduled", "since": created_at - timedelta(days=1)}
    assert await all_pages(scheduler, limit=2, **both) == [["a-order-2", "a-order-1"], ["a-order-0"]]
    assert ids(await scheduler.list_executions(task_name="nothing")) == []


async def test_search_is_no_pattern(scheduler: PostgresScheduler) -> None:
    """What is searched for stands for itself, and only at the beginning of the id."""
    names = ["%", "_", "a%b", "a_b", "axb", "a/b", "a\\b", "/", "\\", "b%"]
    await scheduler.start_many("task", [(name, None) for name in names])
    for wanted in ("%", "_", "a%", "a_", "a/", "a\\", "/", "\\", "a", "", "x"):
        expected = sorted(name for name in names if name.startswith(wanted))
        assert sorted(ids(await scheduler.list_executions(search=wanted))) == expected, wanted


REFUSED: list[tuple[str, Any]] = [
    ("status", "done"),
    ("limit", 0),
    ("limit", 1001),
    ("since", datetime(2026, 1, 1)),  # noqa: DTZ001 - the point
    ("cursor", "no cursor"),
    ("cursor", ""),
    ("cursor", "WzFd"),
    ("cursor", "é"),
]


async def test_refused(scheduler: PostgresScheduler) -> None:
    """Arguments that are out of range are refused, by name."""
    for setting, value in REFUSED:
        with pytest.raises(ConfigError) as caught:
            await scheduler.list_executions(**{setting: value})
        assert caught.value.setting == setting


async def test_tables_of_their_own(migrated_url: str) -> None:
    """Only executions in the scheduler's own tables are listed."""
    async with (
        scheduler_on(migrated_url) as scheduler,
        scheduler_on(migrated_url, names=TableNames.with_prefix("other_")) as other,
    ):
        await other.migrate()
        await scheduler.start("task", execution_id="mine")
        await other.start("task", execution_id="theirs")
        assert ids(await scheduler.list_executions(since=datetime(2020, 1, 1, tzinfo=UTC))) == ["mine"]
        assert ids(await other.list_executions()) == ["theirs"]
