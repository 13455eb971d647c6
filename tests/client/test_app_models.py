"""The models are the app's too: foreign keys, relationships and queries, next to its own tables."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import ForeignKey, MetaData, Text, func, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship, selectinload

from tests.support.waiting import PATIENCE
from tests.support.working import scheduler_on, until, worker_on
from zart_sqla import (
    ExecutionStatus,
    PostgresScheduler,
    Retry,
    TableNames,
    context,
    durable,
    sleep,
    step,
    zart_models,
)


class Base(DeclarativeBase):
    """The app's models."""

    metadata = MetaData()


zart = zart_models(TableNames.default(), metadata=Base.metadata)


class Order(Base):
    """An order, and the execution that fulfils it."""

    __tablename__ = "orders"

    order_id: Mapped[str] = mapped_column(Text, primary_key=True)
    execution_id: Mapped[str | None] = mapped_column(ForeignKey(zart.Execution.execution_id))
    execution: Mapped[zart.Execution | None] = relationship()  # type: ignore[name-defined]


class Hold:
    """What keeps executions running, one for each test, since it belongs to an event loop."""

    event: asyncio.Event


@step(retry=Retry.fixed(2, 0))
async def work(way: str) -> str:
    """Fail once, and always if it is to."""
    if way == "failed" or not context().is_retry:
        raise ValueError(way)
    return way


@durable
async def fulfil(way: str) -> str:
    """End up in a status, or stay there."""
    match way:
        case "waiting" | "cancelled":
            await sleep("night", "1h")
        case "running":
            await Hold.event.wait()
        case _:
            await work(way)
    return way


@pytest.fixture
async def app(migrated_url: str) -> AsyncIterator[PostgresScheduler]:
    """Yield the scheduler of an app that has orders in each status."""
    Hold.event = asyncio.Event()
    async with scheduler_on(migrated_url) as scheduler, worker_on(migrated_url, fulfil, queues=["default"]):
        async with scheduler.engine.begin() as connection:
            await connection.run_sync(Order.metadata.tables["orders"].create)
        for status in ExecutionStatus:
            queue = "none" if status is ExecutionStatus.SCHEDULED else "default"
            async with AsyncSession(scheduler.engine) as session, session.begin():
                handle = await scheduler.start(
                    fulfil, status.value, execution_id=f"e-{status}", session=session, queue=queue
                )
                session.add(Order(order_id=f"o-{status}", execution_id=handle.execution_id))
            if status is ExecutionStatus.CANCELLED:
                await handle.cancel()
            await until(handle, status)
        yield scheduler
        Hold.event.set()
        await scheduler.handle("e-running").result(timeout=PATIENCE)


async def test_orders_by_status(app: PostgresScheduler) -> None:
    """The app's rows can be asked for by the status of their executions, whichever it is."""
    async with AsyncSession(app.engine) as session:
        for status in ExecutionStatus:
            stuck = (
                await session.scalars(select(Order).join(Order.execution).where(zart.Execution.status == status.value))
            ).all()
            assert [order.order_id for order in stuck] == [f"o-{status}"]
        counted = await session.execute(
            select(zart.Execution.status, func.count()).group_by(zart.Execution.status).order_by(zart.Execution.status)
        )
        assert [tuple(row) for row in counted] == sorted((status.value, 1) for status in ExecutionStatus)


async def test_loading(app: PostgresScheduler) -> None:
    """Executions, runs, steps and failed attempts are loaded as objects that agree with the client."""
    async with AsyncSession(app.engine) as session:
        options = (
            selectinload(Order.execution)
            .selectinload(zart.Execution.runs)
            .selectinload(zart.ExecutionRun.steps)
            .selectinload(zart.Step.failed_attempts)
        )
        orders = (await session.scalars(select(Order).options(options))).all()
        assert len(orders) == len(ExecutionStatus)
        for order in orders:
            execution: Any = order.execution
            info = await app.handle(execution.execution_id).info()
            assert (execution.status, execution.run_id) == (info.status, info.run_id)
            (run,) = execution.runs
            assert (run.status, run.payload, run.result) == (info.status, info.payload, info.result)
            assert (run.run_index, run.trigger, run.completed_at) == (0, "initial", info.completed_at)
            steps = await app.handle(execution.execution_id).steps()
            assert [(one.name, one.kind, one.attempts) for one in run.steps] == [
                (one.name, one.kind, one.attempts) for one in steps
            ]
        failed: Any = next(order.execution for order in orders if order.order_id == "o-failed")
        assert failed.runs[0].error["message"] == "failed"
        assert [attempt.attempt for attempt in failed.runs[0].steps[0].failed_attempts] == [1, 2]


async def test_queue_and_workers(app: PostgresScheduler) -> None:
    """Tasks and workers can be looked at too: what is running is held by a worker that lives."""
    async with AsyncSession(app.engine) as session:
        query = select(zart.Task, zart.Worker).join(zart.Worker, zart.Worker.worker_id == zart.Task.worker_id)
        ((task, worker),) = (await session.execute(query)).all()
        running = await session.get_one(zart.Execution, "e-running")
        assert (task.run_id, task.attempt, task.queue) == (running.run_id, 1, "default")
        assert worker.lease_until > worker.heartbeat_at >= worker.started_at


async def test_foreign_key_holds(app: PostgresScheduler) -> None:
    """An order cannot name an execution that is not there, and an execution that is named cannot go away."""
    async with AsyncSession(app.engine) as session:
        session.add(Order(order_id="new", execution_id="nobody"))
        with pytest.raises(IntegrityError):
            await session.commit()
    async with app.engine.connect() as connection:
        with pytest.raises(IntegrityError):
            await connection.execute(text("DELETE FROM zart_executions WHERE execution_id = 'e-failed'"))


async def test_made_once_for_each_metadata() -> None:
    """The same names in the same metadata give the same classes; other names or metadata give others."""
    names = TableNames.default()
    assert zart_models(names, metadata=Base.metadata) is zart
    assert zart_models(names, metadata=MetaData()) is not zart
    other = zart_models(TableNames.with_prefix("other_"), metadata=Base.metadata)
    assert other.Execution is not zart.Execution
    assert {"zart_executions", "other_executions"} <= set(Base.metadata.tables)
