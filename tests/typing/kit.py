"""What type checkers see of the testing kit."""

from typing import Any, assert_type

from zart_sqla import ExecutionHandle, ExecutionHistory, SyncExecutionHandle, durable, step
from zart_sqla.testing import (
    CrashReport,
    Simulation,
    crash_at_every_step,
    override,
    replay,
    run_workflow,
    run_workflow_sync,
)


@step
async def charge(order_id: str) -> int:
    """Be a step."""
    return len(order_id)


@durable
async def fulfil(order_id: str) -> int:
    """Be a workflow with an input."""
    return await charge(order_id)


@durable
def tidy() -> str:
    """Be a plain workflow without an input."""
    return "tidy"


class Onboarding:
    """A workflow as an object."""

    async def run(self, data: str) -> int:
        """Run it."""
        return len(data)


async def outputs() -> None:
    """The output has the type of the workflow's."""
    assert_type(await run_workflow(fulfil, "42"), int)
    assert_type(await run_workflow(fulfil, "42", events=[("paid", 1), ("paid", None, "2d")]), int)
    assert_type(await run_workflow(tidy), str)
    assert_type(await run_workflow(Onboarding(), "x"), Any)
    assert_type(run_workflow_sync(fulfil, "42"), int)
    assert_type(run_workflow_sync(tidy), str)
    assert_type(Simulation(fulfil, "42"), Simulation[int])
    assert_type(await Simulation(tidy).result(), str)
    assert_type(await crash_at_every_step(fulfil, "42"), CrashReport)


async def inputs() -> None:
    """An input of another type is refused, and so is none."""
    await run_workflow(fulfil, 42)  # type: ignore[misc]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await run_workflow(fulfil)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]


@override(charge, with_=len)
async def decorated(number: int) -> str:
    """Be a test that it decorates."""
    return str(number)


async def overridden() -> None:
    """A function that it decorates keeps its type; what is no step is refused."""
    assert_type(await decorated(1), str)
    with override(charge, with_=len) as faked:
        assert_type(faked, override)
    override(len, with_=len)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


async def histories(handle: ExecutionHandle[int], sync: SyncExecutionHandle[int]) -> None:
    """A history comes from a handle, from a simulation and from a file."""
    assert_type(await handle.history(), ExecutionHistory)
    assert_type(sync.history(), ExecutionHistory)
    await replay(fulfil, Simulation(fulfil, "42").history)
    await replay(tidy, ExecutionHistory.from_json("{}"))
