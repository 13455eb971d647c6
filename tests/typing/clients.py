"""What type checkers make of the clients."""

from typing import Any, assert_type

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from tests.typing.workflows import Order, Receipt, bare, plain, without_input
from zart_sqla import (
    ExecutionHandle,
    ExecutionInfo,
    ExecutionStatus,
    Page,
    PostgresScheduler,
    StepInfo,
    StreamReader,
    SyncExecutionHandle,
    SyncScheduler,
    SyncStreamReader,
    TableNames,
    TaskRegistry,
    Worker,
    WorkerConfig,
)


async def schedulers(engine: AsyncEngine) -> None:
    """A scheduler is made in several ways."""
    assert_type(await PostgresScheduler.connect("postgresql://"), PostgresScheduler)
    assert_type(PostgresScheduler.with_table_names(engine, TableNames.default()), PostgresScheduler)
    async with PostgresScheduler(engine) as scheduler:
        assert_type(scheduler, PostgresScheduler)
        assert_type(scheduler.sync, SyncScheduler)


async def starting(scheduler: PostgresScheduler, session: AsyncSession, sync_session: Session) -> None:
    """A handle knows the output of the workflow that was started."""
    assert_type(await scheduler.start(bare, Order("x")), ExecutionHandle[Receipt])
    assert_type(await scheduler.start(plain, Order("x"), execution_id="x", session=session), ExecutionHandle[Receipt])
    assert_type(await scheduler.start(without_input, on_conflict="return"), ExecutionHandle[int])
    assert_type(await scheduler.start("by-name", {"a": 1}, session=sync_session), ExecutionHandle[Any])
    assert_type(
        await scheduler.start_many(bare, [("x", Order("x")), (None, Order("y"))]), list[ExecutionHandle[Receipt]]
    )
    assert_type(await scheduler.start_many("by-name", [("x", 3)]), list[ExecutionHandle[Any]])
    assert_type(scheduler.handle("x", bare), ExecutionHandle[Receipt])
    assert_type(scheduler.handle("x"), ExecutionHandle[Any])
    assert_type(await scheduler.list_executions(status="failed"), Page[ExecutionInfo])


async def handles(handle: ExecutionHandle[Receipt]) -> None:
    """A handle answers for its execution."""
    assert_type(await handle.result(timeout="60s"), Receipt)
    assert_type(await handle.status(), ExecutionStatus)
    assert_type(await handle.info(), ExecutionInfo)
    assert_type(await handle.steps(), list[StepInfo])
    assert_type([one.name for one in await handle.steps()], list[str])


async def offers(
    handle: ExecutionHandle[Receipt], sync_handle: SyncExecutionHandle[Receipt], session: AsyncSession, own: Session
) -> None:
    """An offer tells whether the event counts."""
    assert_type(await handle.offer_event("paid", Order("x")), bool)
    assert_type(await handle.offer_event("paid", event_id="e", session=session), bool)
    assert_type(await handle.offer_event("paid", session=own), bool)
    assert_type(sync_handle.offer_event("paid", {"a": 1}, event_id="e", session=own), bool)
    await handle.offer_event(3)  # type: ignore[arg-type]
    await handle.offer_event("paid", 1, "e")  # type: ignore[call-arg]
    sync_handle.offer_event("paid", session="x")  # type: ignore[arg-type]


async def streams(handle: ExecutionHandle[Receipt], sync_handle: SyncExecutionHandle[Receipt]) -> None:
    """A reader gives values of the type that it names; without one they are plain JSON."""
    reader = handle.stream("progress", Order, offset=3)
    assert_type(reader, StreamReader[Order])
    assert_type(reader.offset, int)
    assert_type([one async for one in reader], list[Order])
    assert_type(await anext(reader), Order)
    async for value in handle.stream("progress"):
        assert_type(value, Any)
    plain = sync_handle.stream("progress", Order, follow=False)
    assert_type(plain, SyncStreamReader[Order])
    assert_type(list(plain), list[Order])
    assert_type(next(sync_handle.stream("progress", int | None)), Any)
    handle.stream(3)  # type: ignore[call-overload]
    handle.stream("progress", Order, 3)  # type: ignore[call-overload]
    handle.stream("progress", offset="3")  # type: ignore[call-overload]
    sync_handle.stream("progress", follow=3)  # type: ignore[call-overload]


def sync_client(engine: Engine, session: Session) -> None:
    """So does the client without `await`."""
    scheduler = SyncScheduler(engine)
    handle = scheduler.start(bare, Order("x"), session=session)
    assert_type(handle, SyncExecutionHandle[Receipt])
    assert_type(handle.result(timeout=60), Receipt)
    assert_type(handle.status(), ExecutionStatus)
    assert_type(handle.info(), ExecutionInfo)
    assert_type(handle.steps(), list[StepInfo])
    assert_type(scheduler.start("by-name", 3).result(), Any)
    assert_type(scheduler.start(without_input).result(), int)
    assert_type(scheduler.start_many(bare, [("x", Order("x"))]), list[SyncExecutionHandle[Receipt]])
    assert_type(scheduler.handle("x", bare).result(), Receipt)
    assert_type([one.status for one in scheduler.list_executions()], list[ExecutionStatus])
    with SyncScheduler.connect("postgresql://") as own:
        assert_type(own, SyncScheduler)


async def workers(scheduler: PostgresScheduler, tasks: TaskRegistry) -> None:
    """A worker is a context manager too."""
    async with Worker(scheduler, tasks, WorkerConfig(poll_interval="5s", max_concurrent_tasks=4)) as worker:
        assert_type(worker, Worker)


async def refused(scheduler: PostgresScheduler, engine: Engine) -> None:
    """Inputs that do not fit are told before anything runs."""
    await scheduler.start(bare, "text")  # type: ignore[misc]
    await scheduler.start(bare)  # type: ignore[arg-type]
    await scheduler.start(without_input, 3)  # type: ignore[misc]
    await scheduler.start(bare, Order("x"), on_conflict="ignore")  # type: ignore[call-overload]
    await scheduler.start_many(bare, [("x", 3)])  # type: ignore[misc]
    PostgresScheduler(engine)  # type: ignore[arg-type]
