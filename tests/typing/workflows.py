"""What type checkers make of workflows, and of the calls in them."""

from collections.abc import Coroutine
from dataclasses import dataclass
from datetime import datetime
from typing import Any, assert_type
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from zart_sqla import (
    ChildExecution,
    Context,
    Durable,
    Failure,
    Retry,
    TaskRegistry,
    capture,
    context,
    continue_as_new,
    durable,
    emit,
    now,
    random,
    start_child,
    sync,
    trx,
    uuid,
    wait_for_event,
)
from zart_sqla.runtime.handlers import AsyncDurable, SyncDurable


@dataclass
class Order:
    """An input."""

    id: str


@dataclass
class Receipt:
    """An output."""

    id: str


async def refund(order: Order, failure: Failure) -> Receipt:
    """Answer a failure."""
    return Receipt(f"{order.id} {failure.message}")


@durable
async def bare(order: Order) -> Receipt:
    """Be an `async def` workflow without options."""
    return Receipt(order.id)


@durable("order-fulfilment", timeout="30m", retry=Retry.fixed(1, 5), on_failure=refund)
async def named(order: Order) -> Receipt:
    """Be an `async def` workflow with options."""
    return Receipt(order.id)


@durable
def plain(order: Order) -> Receipt:
    """Be a `def` workflow."""
    return Receipt(order.id)


@durable("nightly")
async def without_input() -> int:
    """Take no input."""
    return 3


class OnboardingTask:
    """A task as an object."""

    async def run(self, data: Order) -> Receipt:
        """Run."""
        return Receipt(data.id)


async def declarations() -> None:
    """A workflow knows its input and output, and can be called as the plain function."""
    assert_type(bare, AsyncDurable[Order, Receipt])
    assert_type(named, AsyncDurable[Order, Receipt])
    assert_type(plain, SyncDurable[Order, Receipt])
    assert_type(without_input, AsyncDurable[None, int])
    one: Durable[Order, Receipt] = named
    assert_type(one.name, str)
    coroutine: Coroutine[Any, Any, Receipt] = bare(Order("x"))
    assert_type(await coroutine, Receipt)
    assert_type(await bare(Order("x")), Receipt)
    assert_type(plain(Order("x")), Receipt)
    assert_type(await without_input(), int)


def registry() -> TaskRegistry:
    """Return a registry of all kinds of workflows."""
    tasks = TaskRegistry()
    tasks.register(bare)
    tasks.register(plain)
    tasks.register("other", named)
    tasks.register("onboarding", OnboardingTask())
    tasks.register("function", refund)
    assert_type(tasks.names, list[str])
    return tasks


async def captured() -> None:
    """Captured values have the type of what the function returns."""

    async def read() -> Order:
        return Order("x")

    assert_type(await capture("a", datetime.now), datetime)
    assert_type(await capture("b", read), Order)
    assert_type(await now("t"), datetime)
    assert_type(await random("r"), float)
    assert_type(await uuid("u"), UUID)
    assert_type(context(), Context)
    assert_type(context().deadline, datetime | None)
    assert_type(await trx(), AsyncSession)


def captured_in_a_def_workflow() -> None:
    """So have those without `await`; the session is one that needs none either."""
    assert_type(sync.trx(), Session)
    assert_type(sync.capture("a", datetime.now), datetime)
    assert_type(sync.now("t"), datetime)
    assert_type(sync.random("r"), float)
    assert_type(sync.uuid("u"), UUID)
    assert_type(sync.context(), Context)


async def events() -> None:
    """An event has the type that its wait names; without one it is plain JSON."""
    assert_type(await wait_for_event("paid", Order), Order)
    assert_type(await wait_for_event("paid", Order, timeout="1h"), Order)
    assert_type(await wait_for_event("paid", int, timeout=5), int)
    assert_type(await wait_for_event("paid"), Any)
    assert_type(await wait_for_event("paid", timeout=5), Any)
    assert_type(await wait_for_event("paid", int | None), Any)


def events_of_a_def_workflow() -> None:
    """So it has without `await`."""
    assert_type(sync.wait_for_event("paid", Order, timeout="1h"), Order)
    assert_type(sync.wait_for_event("paid"), Any)


async def refused_events() -> None:
    """Arguments that do not fit are told before anything runs."""
    await wait_for_event(3)  # type: ignore[call-overload]
    await wait_for_event("paid", Order, "1h")  # type: ignore[call-overload]
    await wait_for_event("paid", timeout=b"5s")  # type: ignore[call-overload]


async def emitting() -> None:
    """Any value can be emitted, into a stream that is named."""
    await emit("progress", Order("x"))
    await emit("progress", None)
    await emit("progress")  # type: ignore[call-arg]
    await emit(3, 1)  # type: ignore[arg-type]


def emitting_in_a_def_workflow() -> None:
    """So it can without `await`."""
    sync.emit("progress", {"done": 3})
    sync.emit("progress")  # type: ignore[call-arg]


async def children() -> None:
    """A child that a workflow starts gives what the child's function returns; by its name alone, plain JSON."""
    child = await start_child(named, Order("x"), execution_id="x", queue="slow", on_parent_cancel="leave")
    assert_type(child, ChildExecution[Receipt])
    assert_type(child.execution_id, str)
    assert_type(await child.result(), Receipt)
    assert_type(await start_child(plain, Order("x")), ChildExecution[Receipt])
    assert_type(await start_child(without_input), ChildExecution[int])
    assert_type(await start_child("elsewhere", {"x": 1}), ChildExecution[Any])
    assert_type(await start_child("elsewhere"), ChildExecution[Any])
    await start_child(named, "x")  # type: ignore[misc]
    await start_child(named)  # type: ignore[arg-type]
    await start_child(named, Order("x"), on_parent_cancel="kill")  # type: ignore[call-overload]


def children_of_a_def_workflow() -> None:
    """So it does without `await`."""
    child = sync.start_child(named, Order("x"))
    assert_type(child, sync.SyncChildExecution[Receipt])
    assert_type(child.execution_id, str)
    assert_type(child.result(), Receipt)
    assert_type(sync.start_child(without_input).result(), int)
    assert_type(sync.start_child("elsewhere", 1).result(), Any)
    sync.start_child(named, "x")  # type: ignore[misc]


@durable
async def endless(state: Order) -> Receipt:
    """Nothing follows a `continue_as_new`, so no value has to be returned."""
    await continue_as_new(state)


@durable
def endless_plain(state: Order) -> Receipt:
    """The same without `await`."""
    sync.continue_as_new(state)


async def give_back(order: Order) -> None:
    """Do something after a cancellation."""


@durable("cancellable", on_cancel=give_back)
async def cancellable(order: Order) -> Receipt:
    """Be cancelled."""
    return Receipt(order.id)


def cancellables() -> None:
    """`on_cancel` is a function of the input; the workflow's type is as ever."""
    assert_type(cancellable, AsyncDurable[Order, Receipt])
    durable(on_cancel=3)  # type: ignore[call-overload]


def refused(tasks: TaskRegistry) -> None:
    """What is no workflow is told before anything runs."""
    tasks.register(OnboardingTask())  # type: ignore[call-overload]
    tasks.register("x", 3)  # type: ignore[call-overload]
    durable(timeout=b"5s")  # type: ignore[call-overload]
    plain("x")  # type: ignore[arg-type]
