"""A run in memory: its turns are made one after another, as workers make them, without a database."""

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from uuid import uuid4

from sqlalchemy.ext.asyncio import AsyncSession

from zart_sqla import Durable
from zart_sqla.errors import InvalidDataError
from zart_sqla.records import (
    Child,
    ClaimedTask,
    Ending,
    ErrorRecord,
    ExecutionStatus,
    FailedAttempt,
    NewExecution,
    RecordedStep,
    RunHistory,
)
from zart_sqla.runtime._signals import TurnSignal
from zart_sqla.runtime.bridges import Bridge
from zart_sqla.runtime.child_turn import ChildTurn
from zart_sqla.runtime.cleanup_turn import CleanupTurn
from zart_sqla.runtime.handlers import Handler
from zart_sqla.runtime.outcomes import Completed, Failed, LeaseLost, Outcome, Suspended
from zart_sqla.runtime.ports import StepTransaction
from zart_sqla.runtime.turn import StopReason, Turn
from zart_sqla.testing import recorder
from zart_sqla.testing.clock import VirtualClock
from zart_sqla.testing.storage import Storage
from zart_sqla.testing.transactions import Transactions
from zart_sqla.testing.writes import Writes
from zart_sqla.worker.threads import Threads

T = TypeVar("T")

START = datetime(2026, 1, 1, tzinfo=UTC)
LONG = "1h"
"""A wait for which the turn ends."""
SHORT = "1ms"
"""A wait for which the turn stays in the process."""


class MemoryTransaction:
    """The transaction of one attempt of a step, which knows what became of it."""

    def __init__(self, recorder: "MemoryRecorder") -> None:
        self._recorder = recorder
        self._session = AsyncSession()
        self.ending: str | None = None

    @property
    def session(self) -> AsyncSession:
        """A session that is connected to nothing."""
        return self._session

    def flush(self) -> None:
        """Write nothing: there is nowhere to."""

    async def commit(self, step: RecordedStep) -> RecordedStep:
        """Record the checkpoint."""
        recorded = await self._recorder.record(step)
        self.ending = "committed"
        return recorded

    async def rollback(self) -> None:
        """Record that it was rolled back."""
        self.ending = "rolled back"

    def signal_for(self, error: BaseException) -> TurnSignal | None:
        """Take a lost connection for the database's error."""
        if isinstance(error, ConnectionResetError):
            return TurnSignal(Suspended(due_at=self._recorder.time))
        return None


class MemoryRecorder(recorder.MemoryRecorder):
    """The `Recorder` of the testing kit, for all turns of a run, with a clock that a test moves, and with faults.

    Attributes:
        transactions: those that steps have asked for.
        writes_left: after how many more writes the task is not the worker's any more; None: it stays so.
        refused: names of steps whose checkpoints PostgreSQL refuses.
        may_begin: set while transactions can begin.
    """

    def __init__(self) -> None:
        self.clock = VirtualClock(START)
        super().__init__(
            Storage(self.clock), self.clock, writes=Writes(), transactions=Transactions(), threads=Threads(20)
        )
        self.transactions: list[MemoryTransaction] = []
        self.writes_left: int | None = None
        self.refused: set[str] = set()
        self.may_begin = asyncio.Event()
        self.may_begin.set()

    @property
    def time(self) -> datetime:
        """What its clock shows."""
        return self.clock.now()

    @time.setter
    def time(self, moment: datetime) -> None:
        self.clock.move_to(moment)

    @property
    def steps(self) -> dict[str, RecordedStep]:
        """The checkpoints."""
        return self.storage.steps

    @property
    def attempts(self) -> list[FailedAttempt]:
        """The failed attempts."""
        return self.storage.attempts

    @property
    def events(self) -> list[tuple[str, str]]:
        """The names and values, as JSON text, of the events that were offered and not taken."""
        return self.storage.events

    @property
    def children(self) -> dict[str, Child]:
        """The children that are not done, by their names."""
        return self.storage.children

    @property
    def emitted(self) -> list[tuple[str, str]]:
        """The streams and values, as JSON text, of the items that were emitted."""
        return self.storage.emitted

    @property
    def executions(self) -> dict[str, Ending]:
        """How the executions stand that the run has started, and others that a test puts there."""
        return self.storage.endings

    @property
    def started(self) -> list[NewExecution]:
        """Those that the run has started."""
        return list(self.storage.started.values())

    @property
    def short_wait(self) -> timedelta:
        """Half a second, as in a worker."""
        return timedelta(seconds=0.5)

    async def commit(self, what: str, keep: Callable[[], Awaitable[T]]) -> T:
        """Write something, unless the task is not the worker's any more."""
        self._spend()
        return await super().commit(what, keep)

    async def record(self, step: RecordedStep, *, gives_up: Sequence[str] = ()) -> RecordedStep:
        """Keep a checkpoint, unless PostgreSQL refuses it."""
        await self._refuse(step.name, f"the checkpoint of step {step.name!r}")
        return await super().record(step, gives_up=gives_up)

    async def add_children(self, children: Sequence[Child]) -> None:
        """Keep children, unless PostgreSQL refuses one."""
        for child in children:
            await self._refuse(child.name, f"the step {child.name!r}")
        await super().add_children(children)

    async def emit(self, step: RecordedStep, stream: str, value: str) -> None:
        """Add a value to a stream, unless PostgreSQL refuses it."""
        await self._refuse(step.name, f"the checkpoint of step {step.name!r}")
        await super().emit(step, stream, value)

    async def begin(self, bridge: Bridge | None) -> StepTransaction:  # noqa: ARG002 - its sessions go nowhere
        """Begin a transaction, when it may."""
        await self.may_begin.wait()
        self._spend()
        transaction = MemoryTransaction(self)
        self.transactions.append(transaction)
        return transaction

    async def _refuse(self, name: str, subject: str) -> None:
        if name in self.refused:
            await asyncio.sleep(0)
            raise InvalidDataError(subject, ["refused"])

    def _spend(self) -> None:
        if self.writes_left is None:
            return
        if self.writes_left == 0:
            raise TurnSignal(LeaseLost())
        self.writes_left -= 1


class MemoryRun:
    """One run of a workflow.

    Attributes:
        recorder: what it has recorded.
        task: its task.
    """

    def __init__(self, workflow: Durable[Any, Any] | Handler[Any, Any], data: object = None) -> None:
        self.handler = workflow.handler if isinstance(workflow, Durable) else workflow
        self.recorder = MemoryRecorder()
        payload, _ = self.handler.data_codec.pack(data, subject="the input")
        self.task = ClaimedTask(
            task_id=uuid4(),
            run_id=uuid4(),
            execution_id="order-1",
            task_name=self.handler.name,
            queue="default",
            attempt=0,
            retries=0,
            payload=payload,
            started_at=START,
            claimed_at=START,
        )

    @property
    def steps(self) -> list[str]:
        """The names of the checkpoints, in the order of recording."""
        return list(self.recorder.steps)

    @property
    def emitted(self) -> list[tuple[str, Any]]:
        """The streams and values of the items, in the order in which they were emitted."""
        return [(stream, json.loads(value)) for stream, value in self.recorder.emitted]

    @property
    def history(self) -> RunHistory:
        """What a worker would read before the next turn."""
        return self.recorder.storage.history

    @property
    def children(self) -> list[str]:
        """The names of the children that are not done, in the order in which they were scheduled."""
        return list(self.recorder.children)

    def end(self, execution_id: str, result: object = None, error: ErrorRecord | None = None) -> None:
        """Let an execution that the run has started end: completed, or failed."""
        status = ExecutionStatus.COMPLETED if error is None else ExecutionStatus.FAILED
        output = json.dumps(result) if error is None else None
        self.recorder.executions[execution_id] = Ending(uuid4(), status, output, error)

    def end_as(self, execution_id: str, status: ExecutionStatus) -> None:
        """Let an execution that the run has started stand so, without a result or an error."""
        self.recorder.executions[execution_id] = Ending(uuid4(), status, None, None)

    def offer(self, name: str, value: object = None) -> None:
        """Offer an event."""
        self.recorder.events.append((name, json.dumps(value)))
        self.task = replace(self.task, signals=self.task.signals + 1)

    def claim(self, workflow: Durable[Any, Any] | None = None) -> Turn:
        """Return the next turn, of the same workflow or of a later version of its code."""
        self.task = replace(self.task, attempt=self.task.attempt + 1, claimed_at=self.recorder.time)
        handler = self.handler if workflow is None else workflow.handler
        kind = CleanupTurn if self.task.is_cleanup else Turn
        return kind(self.task, handler, self.history, self.recorder)

    async def turn(self, workflow: Durable[Any, Any] | None = None) -> Outcome:
        """Make one turn, and write what it ends in."""
        outcome = await asyncio.create_task(self.claim(workflow).run())
        if isinstance(outcome, Suspended):
            self._put_down(outcome)
        return outcome

    async def run_child(self, name: str) -> Outcome:
        """Make one turn of a child, as another worker would."""
        child = self.recorder.children[name]
        history = self.recorder.storage.history_of(name)
        task = replace(self.task, task_id=uuid4(), parent_run_id=self.task.run_id, child=child, attempt=1)
        return await asyncio.create_task(ChildTurn(task, self.handler, history, self.recorder).run())

    async def _wait_for_children(self, still_open: int) -> None:
        assert still_open >= 0, "it would wait for ever"
        for name in self.children:
            if len(self.children) > still_open:
                outcome = await self.run_child(name)
                while isinstance(outcome, Suspended):
                    self.recorder.time = max(self.recorder.time, outcome.due_at or self.recorder.time)
                    outcome = await self.run_child(name)

    async def finish(self, workflow: Durable[Any, Any] | None = None) -> Outcome:
        """Make turns until the run ends, each of them when it is due."""
        for _ in range(50):
            outcome = await self.turn(workflow)
            if not isinstance(outcome, Suspended):
                return outcome
            if outcome.awaits_open is not None:
                await self._wait_for_children(outcome.awaits_open)
            else:
                self.recorder.time = max(self.recorder.time, outcome.due_at or self.recorder.time)
        message = "the run gets nowhere"
        raise AssertionError(message)

    def cancel(self) -> None:
        """Cancel the run: its steps that are tasks are gone, and what follows is a task of its own."""
        self.recorder.children.clear()
        self.task = replace(self.task, task_id=uuid4(), attempt=1, is_cleanup=True)

    async def replay(self) -> Outcome:
        """Make one more turn, in which nothing is left to be recorded."""
        known = (dict(self.recorder.steps), list(self.recorder.attempts))
        outcome = await self.turn()
        assert known == (self.recorder.steps, self.recorder.attempts)
        return outcome

    async def result(self) -> Any:
        """Return the output of the run, which its replay must give too."""
        outcome = await self.finish()
        assert isinstance(outcome, Completed), outcome
        assert await self.replay() == outcome
        return json.loads(outcome.result)

    async def failure(self) -> Failed:
        """Return how the run fails, as its replay must too."""
        outcome = await self.finish()
        assert isinstance(outcome, Failed), outcome
        assert await self.replay() == outcome
        return outcome

    async def stopped(self, reason: StopReason, started: asyncio.Event) -> Outcome:
        """Return how a turn ends that is stopped when the event is set."""
        turn = self.claim()
        running = asyncio.create_task(turn.run())
        await asyncio.wait({running, waiting := asyncio.ensure_future(started.wait())}, return_when="FIRST_COMPLETED")
        assert waiting.done(), "the turn ended before it could be stopped"
        turn.stop(reason)
        return await running

    def _put_down(self, outcome: Suspended) -> None:
        if outcome.step is not None:
            self.recorder.storage.keep(outcome.step)
        if outcome.failed is not None:
            self.recorder.attempts.append(outcome.failed)
            self.task = replace(self.task, retries=outcome.failed.attempt)
