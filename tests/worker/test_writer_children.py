"""The writer and children: two workers each record children of the other's run while they end their own."""

import asyncio
from contextlib import suppress

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine

from zart_sqla import PostgresScheduler, TableNames, WorkerConfig
from zart_sqla.ids import new_id
from zart_sqla.records import Child, ClaimedTask, NewExecution, RecordedStep, StepKind
from zart_sqla.runtime._signals import TurnSignal
from zart_sqla.store import children, executions, tasks, workers
from zart_sqla.store.children import ChildrenToAdd, ChildrenToGiveUp
from zart_sqla.worker.identity import Identity
from zart_sqla.worker.writer import Writer
from zart_sqla.worker.writes import AnyWrite, Finish, Write

NAMES = TableNames()
STEPS = [f"step-{number}" for number in range(30)]


class Half:
    """A worker with a run of its own, and children of the other one's."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.identity = Identity()
        self.engine = engine
        self.writer = Writer(engine, NAMES, self.identity, WorkerConfig(), on_done=lambda _: None, on_due=lambda: None)

    async def register(self) -> None:
        """Register the worker."""
        async with self.engine.begin() as connection:
            await connection.run_sync(
                workers.register, NAMES, self.identity.worker_id, hostname="x", pid=1, lock_key=None, lease_seconds=60
            )

    async def claim(self) -> list[ClaimedTask]:
        """Claim what there is."""
        async with self.engine.begin() as connection:
            claimed, _ = await connection.run_sync(
                tasks.claim, NAMES, self.identity.worker_id, task_names=["task"], queues=None, limit=100
            )
            return claimed

    async def start(self) -> ClaimedTask:
        """Start a run, and claim it."""
        new = NewExecution(execution_id=str(new_id()), run_id=new_id(), task_name="task", payload="1")
        async with self.engine.begin() as connection:
            await connection.run_sync(executions.insert, NAMES, [new])
        (run,) = await self.claim()
        return run

    async def add(self, run: ClaimedTask) -> None:
        """Add children to the run."""
        new = [Child(name=name, position=at, call="1") for at, name in enumerate(STEPS)]
        async with self.engine.begin() as connection:
            await connection.run_sync(children.add, NAMES, self.identity.worker_id, [ChildrenToAdd(run, new)])

    def write(self, run: ClaimedTask, others: list[ClaimedTask], *, is_finish: bool) -> list["asyncio.Task[None]"]:
        """Have it written that the others are done, and that the run ends, or gives its children up."""
        recorded = RecordedStep(name="first", kind=StepKind.CHOICE, position=len(STEPS), result="[]")
        writes: list[AnyWrite] = [Write(task=one, step=done(one)) for one in others]
        if is_finish:
            writes.append(Finish(run, "1", None))
        else:
            writes.append(Write(task=run, step=recorded, give_up=ChildrenToGiveUp(run, STEPS)))
        return [asyncio.create_task(self._write(write)) for write in writes]

    async def _write(self, write: AnyWrite) -> None:
        with suppress(TurnSignal):  # the other one was faster
            await self.writer.write(write)


def done(claimed: ClaimedTask) -> RecordedStep:
    """Return the checkpoint of a child."""
    assert claimed.child is not None
    return RecordedStep(name=claimed.child.name, kind=StepKind.CHILD, position=claimed.child.position, result="1")


@pytest.mark.parametrize("is_finish", [True, False])
async def test_two_workers_and_two_runs(
    migrated_url: str,
    caplog: pytest.LogCaptureFixture,
    is_finish: bool,  # noqa: FBT001
) -> None:
    """They never wait for each other in a ring: PostgreSQL would end that only after a second, with an error."""
    async with await PostgresScheduler.connect(migrated_url) as scheduler:
        one, other = halves = Half(scheduler.engine), Half(scheduler.engine)
        for half in halves:
            await half.register()
        for _ in range(20):
            runs = [await half.start() for half in halves]
            await one.add(runs[0])
            of_one = await other.claim()
            await other.add(runs[1])
            of_other = await one.claim()
            writes = one.write(runs[0], of_other, is_finish=is_finish)
            writes += other.write(runs[1], of_one, is_finish=is_finish)
            await asyncio.sleep(0)  # all of a worker's in one batch
            writers = [asyncio.create_task(half.writer.run()) for half in halves]
            await asyncio.gather(*writes)
            for writer in writers:
                writer.cancel()
            await asyncio.wait(writers)
            for half in halves:
                half.writer = Writer(
                    half.engine, NAMES, half.identity, WorkerConfig(), on_done=lambda _: None, on_due=lambda: None
                )
    assert caplog.messages == []
