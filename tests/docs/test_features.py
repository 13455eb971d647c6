"""What the pages tell of each feature is what two workers, and an application, do with the code on them."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import text

from tests.docs.pages import block_with, carry_out, code_of, module_of, workflows_of
from tests.support.waiting import PATIENCE, eventually
from tests.support.working import let_time_pass, working
from zart_sqla import (
    ExecutionCancelled,
    ExecutionFailed,
    ExecutionHandle,
    ExecutionStatus,
    PostgresScheduler,
    StepStatus,
    durable,
)


async def steps_of(handle: ExecutionHandle[Any]) -> list[str]:
    """Return the names of the steps of an execution that are recorded."""
    return [step.name for step in await handle.steps()]


async def write(scheduler: PostgresScheduler, statement: str) -> None:
    """Write in the application's own tables."""
    async with scheduler.engine.begin() as connection:
        await connection.execute(text(statement))


async def read(scheduler: PostgresScheduler, query: str) -> list[tuple[Any, ...]]:
    """Return what stands in the application's own tables."""
    async with scheduler.engine.connect() as connection:
        return [tuple(row) for row in await connection.execute(text(query))]


async def test_greetings_are_started(migrated_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The calls of the client's page start executions, with and without asyncio, and print what one returned."""
    with code_of("docs/client.md", "greet") as page:
        async with working(migrated_url, *workflows_of(page), workers=2) as scheduler:
            await carry_out(block_with("docs/client.md", "greeting-1"), migrated_url)
            assert capsys.readouterr().out == "Hello Ada\n"
            await carry_out(block_with("docs/client.md", "greeting-2"), migrated_url)
            assert await scheduler.handle("greeting-2").result(timeout=PATIENCE) == "Hello Ada"


async def test_a_start_commits_with_the_row(migrated_url: str) -> None:
    """The order and the execution are both there."""
    async with working(migrated_url, workers=0) as scheduler:
        await write(scheduler, "CREATE TABLE orders (id text)")
        await carry_out(block_with("docs/client.md", "INSERT INTO orders"), migrated_url)
        assert await read(scheduler, "SELECT id FROM orders") == [("42",)]
        assert (await scheduler.handle("order-42").info()).payload == {"id": "42"}


async def test_a_worker_works_until_it_is_cancelled(migrated_url: str) -> None:
    """The application of the workers' page runs what was started."""
    async with working(migrated_url, workers=0) as scheduler:
        application = asyncio.create_task(carry_out(block_with("docs/workers.md", "await worker.run()"), migrated_url))
        try:
            handle = await scheduler.start("greeting", "Ada")
            assert await handle.result(timeout=PATIENCE) == "Hello Ada"
        finally:
            application.cancel()
            await asyncio.wait([application])


async def test_a_cancelled_reservation_is_given_back(migrated_url: str) -> None:
    """The call of the page cancels it while it sleeps, and its `on_cancel` is recorded behind its steps."""
    with code_of("docs/cancellation.md", "reservation") as page:
        async with working(migrated_url, *workflows_of(page), workers=2) as scheduler:
            handle = await scheduler.start(page.reservation, "42", execution_id="reservation-42")
            await eventually(lambda: steps_of(handle), ["reserve", "until-paid"])
            await carry_out(block_with("docs/cancellation.md", ".cancel()"), migrated_url)
            with pytest.raises(ExecutionCancelled):
                await handle.result(timeout=PATIENCE)
            await eventually(lambda: steps_of(handle), ["reserve", "until-paid", "on_cancel", "release"])


@pytest.mark.parametrize("offer", ["event_id=", "session=session"])
async def test_a_payment_is_taken(offer: str, migrated_url: str) -> None:
    """Either offer of the page ends the wait, by itself or together with the application's row."""
    with code_of("docs/events.md", "payment") as page:
        async with working(migrated_url, *workflows_of(page), workers=2) as scheduler:
            await write(scheduler, "CREATE TABLE orders AS SELECT '42' AS id, false AS is_paid")
            handle = await scheduler.start(page.payment, "42", execution_id="payment-42")
            await eventually(lambda: steps_of(handle), ["paid"])
            await carry_out(block_with("docs/events.md", offer), migrated_url)
            assert await handle.result(timeout=PATIENCE) == "R-7"
            assert await read(scheduler, "SELECT is_paid FROM orders") == [(offer == "session=session",)]


async def test_an_account_goes_on_in_another_run(migrated_url: str) -> None:
    """A hundred bookings are a run; those that were offered meanwhile belong to the next, which has the balance."""
    with code_of("docs/executions.md", "account") as page:
        async with working(migrated_url, *workflows_of(page), workers=2) as scheduler:
            handle = await scheduler.start(page.account, 7)
            for amount in [*range(1, 102), 0]:
                await handle.offer_event("booking", amount)
            assert await handle.result(timeout=PATIENCE) == 7 + sum(range(102))
            assert (await handle.info()).run_index == 1
            assert await steps_of(handle) == ["booking", "book-101", "booking#2"]


async def test_a_trip_without_a_hotel_is_given_back(migrated_url: str) -> None:
    """By the body itself, and by its `on_failure`."""
    with code_of("docs/sagas.md", "book_in_time") as page:
        trip = page.Trip("42", "LX 1", "full", 100)
        async with working(migrated_url, *workflows_of(page), workers=2) as scheduler:
            handle = await scheduler.start(page.book, trip)
            with pytest.raises(ExecutionFailed, match="full"):
                await handle.result(timeout=PATIENCE)
            assert await steps_of(handle) == ["book_flight", "book_hotel", "give-back-flight LX 1 of 42"]
            handle = await scheduler.start(page.book_in_time, trip)
            assert await handle.result(timeout=PATIENCE) == "not booked: full"
            assert (await steps_of(handle))[-1] == "give-back-all-42"


async def test_a_book_is_followed(migrated_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The readers of the page print what it emits, the second with its offset, and a typed one goes on from there."""
    with code_of("docs/streams.md", "book") as page:
        async with working(migrated_url, *workflows_of(page), workers=2) as scheduler:
            handle = await scheduler.start(page.book, 3, execution_id="book-42")
            await carry_out(block_with("docs/streams.md", 'progress["of"]'), migrated_url)
            assert capsys.readouterr().out == "1 of 3\n2 of 3\n3 of 3\n"
            assert (await carry_out(block_with("docs/streams.md", "offset = 0"), migrated_url))["offset"] == 3
            assert [item async for item in handle.stream("progress", page.Progress, offset=2)] == [page.Progress(3, 3)]


@pytest.mark.parametrize("fails", [0, 2])
async def test_a_copy_gets_on_or_is_cleaned_up(fails: int, migrated_url: str) -> None:
    """The long step says that it gets on, block by block; an attempt that fails is tidied up before the next."""
    calls: list[str] = []

    async def blocks(name: str) -> list[bytes]:
        return [b"1", b"2"]

    async def upload(block: bytes) -> None:
        calls.append(block.decode())
        if calls.count("abort") < fails:
            raise ConnectionError

    async def abort_upload(name: str) -> None:
        calls.append("abort")

    with code_of("docs/workflows.md", "copy") as page:
        vars(page).update(blocks=blocks, upload=upload, abort_upload=abort_upload)

        @durable
        async def copying(name: str) -> None:
            await page.copy(name)

        async with working(migrated_url, copying, workers=2) as scheduler:
            handle = await scheduler.start(copying, "disk")

            async def status_later() -> ExecutionStatus:
                await let_time_pass(scheduler)  # the minute until the next attempt
                return await handle.status()

            await eventually(status_later, ExecutionStatus.COMPLETED)
    assert calls == ["1", "abort"] * fails + ["1", "2"]


@pytest.mark.parametrize("call", ["await trx()", "sync.trx()"])
async def test_a_booking_commits_with_its_step(call: str, migrated_url: str) -> None:
    """Either step of the page writes its row once; of one that fails behind its write nothing is there."""
    with module_of(block_with("docs/workflows.md", call)) as page:

        @durable
        async def booking(order_id: str) -> None:
            await page.book.call(order_id, 1999)
            await page.book.call(order_id, -1)

        async with working(migrated_url, booking, workers=2) as scheduler:
            await write(scheduler, "CREATE TABLE bookings (id text, cents int CHECK (cents > 0))")
            handle = await scheduler.start(booking, "42")
            with pytest.raises(ExecutionFailed, match="bookings_cents_check"):
                await handle.result(timeout=PATIENCE)
            assert await read(scheduler, "SELECT * FROM bookings") == [("42", 1999)]
            assert [(step.name, step.status) for step in await handle.steps()] == [
                ("book", StepStatus.COMPLETED),
                ("book#2", StepStatus.FAILED),
            ]
