"""A run in memory: its turns are made one after another, as workers make them, without a database."""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

from sqlalchemy.ext.asyncio import AsyncSession

from zart_sqla import Durable
from zart_sqla.errors import InvalidDataError
from zart_sqla.records import (
    GIVEN_UP,
    Child,
    ClaimedTask,
    Ending,
    ErrorRecord,
    ExecutionStatus,
    FailedAttempt,
    NewExecution,
    RecordedStep,
    RunHistory,
    StepKind,
)
from zart_sqla.runtime._signals import TurnSignal
from zart_sqla.runtime.bridges import Bridge
from zart_sqla.runtime.child_turn import ChildTurn
from zart_sqla.runtime.cleanup_turn import CleanupTurn
from zart_sqla.runtime.faults import taken_id_record
from zart_sqla.runtime.handlers import Handler
from zart_sqla.runtime.outcomes import Completed, Failed, LeaseLost, Outcome, Suspended
from zart_sqla.runtime.ports import StepTransaction
from zart_sqla.runtime.turn import StopReason, Turn

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


class MemoryRecorder:
    """A `Recorder` in memory, with a clock that stands still until a test moves it.

    Attributes:
        time: what its clock shows.
        steps: the checkpoints.
        attempts: the failed attempts.
        transactions: those that steps have asked for.
        writes_left: after how many more writes the task is not the worker's any more; None: it stays so.
        refused: names of steps whose checkpoints PostgreSQL refuses.
        events: the names and values, as JSON text, of the events that were offered and not taken.
        emitted: the streams and values, as JSON text, of the items that were emitted.
        children: the children that are not done, by their names.
        executions: how the executions stand that the run has started, and others that a test puts there.
        started: those that the run has started.
        may_begin: set while transactions can begin.
    """

    def __init__(self) -> None:
        self.time = START
        self.steps: dict[str, RecordedStep] = {}
        self.attempts: list[FailedAttempt] = []
        self.transactions: list[MemoryTransaction] = []
        self.writes_left: int | None = None
        self.refused: set[str] = set()
        self.events: list[tuple[str, str]] = []
        self.emitted: list[tuple[str, str]] = []
        self.children: dict[str, Child] = {}
        self.executions: dict[str, Ending] = {}
        self.started: list[NewExecution] = []
        self.may_begin = asyncio.Event()
        self.may_begin.set()

    @property
    def short_wait(self) -> timedelta:
        """Half a second, as in a worker."""
        return timedelta(seconds=0.5)

    def now(self) -> datetime:
        """Return what the clock shows."""
        return self.time

    async def record(self, step: RecordedStep, *, gives_up: Sequence[str] = ()) -> RecordedStep:
        """Keep a checkpoint, unless there is one of that name."""
        self._write()
        await asyncio.sleep(0)  # others go on meanwhile
        if step.name in self.refused:
            raise InvalidDataError(f"the checkpoint of step {step.name!r}", ["refused"])
        for name in gives_up:
            if name in self.children:
                self.keep(_given_up(self.children[name]))
        return self.keep(step)

    def keep(self, step: RecordedStep) -> RecordedStep:
        """Keep a checkpoint, unless there is one that is done. That of a child ends it."""
        known = self.steps.get(step.name)
        if known is None or (known.is_open and not step.is_open):
            done_at = START + timedelta(seconds=len(self.steps))  # one after the other, whatever the clock shows
            self.steps[step.name] = replace(step, completed_at=None if step.is_open else done_at)
            known = step
        self.children.pop(step.name, None)
        return known

    async def add_children(self, children: Sequence[Child]) -> None:
        """Keep those that are neither there nor done."""
        self._write()
        await asyncio.sleep(0)
        for child in children:
            if child.name in self.refused:
                raise InvalidDataError(f"the step {child.name!r}", ["refused"])
            if child.name not in self.steps:
                self.children.setdefault(child.name, child)

    async def start_execution(self, step: RecordedStep, new: NewExecution) -> RecordedStep:
        """Start an execution, which runs until a test ends it."""
        self._write()
        await asyncio.sleep(0)
        if step.name not in self.steps and new.execution_id in self.executions:
            status = self.executions[new.execution_id].status
            step = replace(step, result=None, error=taken_id_record(step.name, new.execution_id, status))
        elif step.name not in self.steps:
            self.executions[new.execution_id] = Ending(ExecutionStatus.SCHEDULED, None, None)
            self.started.append(new)
        return self.keep(step)

    async def ending_of(self, execution_id: str) -> Ending | None:
        """Return how an execution stands."""
        return self.executions.get(execution_id)

    async def take_event(self, wait: RecordedStep, name: str) -> RecordedStep:
        """Give the wait the first event of this name, if there is one."""
        self._write()
        await asyncio.sleep(0)
        for event in self.events:
            if event[0] == name:
                self.events.remove(event)
                return self.keep(replace(wait, result=event[1]))
        return self.steps.get(wait.name, wait)

    async def emit(self, step: RecordedStep, stream: str, value: str) -> None:
        """Keep a value and its checkpoint, unless there is one of that name."""
        if step.name not in self.steps:
            await self.record(step)
            self.emitted.append((stream, value))

    async def record_attempt(self, failed: FailedAttempt) -> None:
        """Keep a failed attempt."""
        self._write()
        await asyncio.sleep(0)
        self.attempts.append(failed)

    async def begin(self, bridge: Bridge | None) -> StepTransaction:  # noqa: ARG002 - its sessions go nowhere
        """Begin a transaction, when it may."""
        await self.may_begin.wait()
        self._write()
        transaction = MemoryTransaction(self)
        self.transactions.append(transaction)
        return transaction

    async def in_thread(self, function: Callable[[], Any], *, is_body: bool) -> Any:  # noqa: ARG002 - all are alike
        """Call a function in a thread."""
        return await asyncio.get_running_loop().run_in_executor(None, function)

    def _write(self) -> None:
        if self.writes_left is None:
            return
        if self.writes_left == 0:
            raise TurnSignal(LeaseLost())
        self.writes_left -= 1


def _given_up(child: Child) -> RecordedStep:
    error = ErrorRecord(error_type="CancelledError", message="others were enough", step=child.name, category=GIVEN_UP)
    return RecordedStep(name=child.name, kind=StepKind.CHILD, position=child.position, error=error)


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
        done = self.recorder.steps
        failed = [one for one in self.recorder.attempts if one.step and one.step not in done]
        attempts = {one.step: max(other.attempt for other in failed if other.step == one.step) for one in failed}
        children = {one.name: one.position for one in self.recorder.children.values()}
        executions = [
            one.execution_id
            for one in self.recorder.started
            if not self.recorder.executions[one.execution_id].status.is_terminal
        ]
        return RunHistory(steps=list(done.values()), attempts=attempts, children=children, executions=executions)

    @property
    def children(self) -> list[str]:
        """The names of the children that are not done, in the order in which they were scheduled."""
        return list(self.recorder.children)

    def end(self, execution_id: str, result: object = None, error: ErrorRecord | None = None) -> None:
        """Let an execution that the run has started end: completed, or failed."""
        status = ExecutionStatus.COMPLETED if error is None else ExecutionStatus.FAILED
        self.recorder.executions[execution_id] = Ending(status, json.dumps(result) if error is None else None, error)

    def end_as(self, execution_id: str, status: ExecutionStatus) -> None:
        """Let an execution that the run has started stand so, without a result or an error."""
        self.recorder.executions[execution_id] = Ending(status, None, None)

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
        known = self.history
        history = RunHistory(
            steps=[step for step in known.steps if step.name == name],
            attempts={step: count for step, count in known.attempts.items() if step == name},
        )
        task = replace(self.task, task_id=uuid4(), parent_run_id=self.task.run_id, child=child, attempt=1)
        return await asyncio.create_task(ChildTurn(task, self.handler, history, self.recorder).run())

    async def _wait_for_children(self, still_open: int) -> None:
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
            self.recorder.keep(outcome.step)
        if outcome.failed is not None:
            self.recorder.attempts.append(outcome.failed)
            self.task = replace(self.task, retries=outcome.failed.attempt)
