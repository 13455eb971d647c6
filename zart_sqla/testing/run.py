"""A run in memory: its turns are made as a worker makes them, one after the other, each when it is due."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, assert_never
from uuid import NAMESPACE_OID, uuid5

from zart_sqla.codec import MAX_INNER_NAME_BYTES, checked_name
from zart_sqla.records import DEFAULT_QUEUE, ClaimedTask, Ending, ExecutionStatus
from zart_sqla.runtime._signals import TurnSignal
from zart_sqla.runtime.outcomes import (
    Cancelled,
    CleanedUp,
    Completed,
    Continued,
    Done,
    Failed,
    LeaseLost,
    Suspended,
)
from zart_sqla.runtime.turn import StopReason
from zart_sqla.testing.errors import WorkflowStuck
from zart_sqla.testing.recorder import MemoryRecorder, checkpoint_of
from zart_sqla.testing.storage import Storage
from zart_sqla.testing.turns import SimulatedChildTurn, SimulatedTurn
from zart_sqla.worker.threads import Threads

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from zart_sqla.records import NewExecution
    from zart_sqla.runtime.handlers import Handler
    from zart_sqla.runtime.outcomes import Outcome
    from zart_sqla.testing.clock import VirtualClock
    from zart_sqla.testing.transactions import Transactions
    from zart_sqla.testing.writes import Writes

MAX_TURNS: Final = 10_000
"""After how many turns a run counts as one that never ends."""

_MAX_THREADS = 64
_AT_ONCE: Final = Suspended()


class SimulatedRun:
    """One run, and the worker that makes its turns.

    Args:
        handler: what it runs.
        payload: its input as JSON text.
        execution_id: the execution's id.
        storage: where it is recorded.
        clock: its time.
        writes: counts what is written, and has the worker die.
        transactions: opens the transactions of its steps.
        others: the workflows that it can start, by their names.

    Attributes:
        task: its task.
        storage: where it is recorded.
        clock: its time.
        ending: how it has ended; None while it has not.
        fault: the error that it ended in, if it did; None where the record of it is all that is left.
        turns: how many turns were made.
        waits: what its task was put down to wait for.
    """

    def __init__(  # noqa: PLR0913 - what it works with
        self,
        handler: Handler[Any, Any],
        payload: str,
        *,
        execution_id: str,
        storage: Storage,
        clock: VirtualClock,
        writes: Writes,
        transactions: Transactions,
        others: Mapping[str, Handler[Any, Any]] | None = None,
    ) -> None:
        run_id = uuid5(NAMESPACE_OID, execution_id)
        self.storage: Storage = storage
        self.clock: VirtualClock = clock
        self.ending: Completed | Failed | None = None
        self.fault: BaseException | None = None
        self.turns: int = 0
        self.waits: Suspended = _AT_ONCE
        self.task: ClaimedTask = ClaimedTask(
            task_id=run_id,
            run_id=run_id,
            execution_id=checked_name("execution id", execution_id),
            task_name=handler.name,
            queue=DEFAULT_QUEUE,
            attempt=0,
            retries=0,
            payload=payload,
            started_at=clock.now(),
            claimed_at=clock.now(),
        )
        self._handler = handler
        self._writes = writes
        self._transactions = transactions
        self._threads = Threads(_MAX_THREADS)
        self._others: Mapping[str, Handler[Any, Any]] = others or {}
        self._children: dict[str, Suspended] = {}
        self._executions: dict[str, SimulatedRun] = {}
        self._later: list[tuple[datetime, str, str]] = []

    def offer(self, name: str, payload: str) -> None:
        """Offer it an event, now."""
        self.storage.events.append((checked_name("event name", name, longest=MAX_INNER_NAME_BYTES), payload))
        self.task = replace(self.task, signals=self.task.signals + 1)

    def offer_at(self, moment: datetime, name: str, payload: str) -> None:
        """Offer it an event, then."""
        self._later.append((moment, checked_name("event name", name, longest=MAX_INNER_NAME_BYTES), payload))
        self._offer_due()

    def skip_to(self, moment: datetime) -> None:
        """Let time pass until then."""
        self.clock.move_to(moment)
        self._offer_due()

    def _offer_due(self) -> None:
        due = sorted((event for event in self._later if event[0] <= self.clock.now()), key=lambda event: event[0])
        for event in due:
            self._later.remove(event)
            self.offer(*event[1:])

    @property
    def is_due(self) -> bool:
        """Whether a turn can be made now."""
        is_due = self._is_due(self.waits) or any(self._due_children())
        return self.ending is None and (is_due or any(run.is_due for run in self._open_executions()))

    @property
    def next_moment(self) -> datetime | None:
        """When there is a turn to be made, or an event to be offered, if nothing happens before; None: never."""
        if self.ending is not None:
            return None
        waits = (self.waits, *(self._children.get(name, _AT_ONCE) for name in self.storage.children))
        of_executions = (run.next_moment for run in self._open_executions())
        known = (*(wait.due_at for wait in waits), *(event[0] for event in self._later), *of_executions)
        return min((moment for moment in known if moment is not None), default=None)

    def _is_due(self, wait: Suspended) -> bool:
        if wait.due_at is not None and wait.due_at <= self.clock.now():
            return True
        if wait.awaits_open is not None and self.storage.open_count <= wait.awaits_open:
            return True
        is_for_nothing = wait.due_at is None and wait.awaits_open is None and not wait.awaits
        return is_for_nothing or self.storage.has_event(wait.awaits)

    def _due_children(self) -> Iterable[str]:
        return (name for name in self.storage.children if self._is_due(self._children.get(name, _AT_ONCE)))

    async def finish(self) -> Completed | Failed:
        """Make its turns, each when it is due, until it ends; return how.

        Raises:
            WorkflowStuck: it never does.
        """
        while self.ending is None:
            if not await self.make_turn():
                moment = self.next_moment
                if moment is None:
                    raise WorkflowStuck(self.task.task_name, self._what_is_missing())
                self.skip_to(moment)
        return self.ending

    def _open_executions(self) -> list[SimulatedRun]:
        """Return the runs of those executions that it has started, and that have not ended."""
        for execution_id in self.storage.open_executions:
            new = self.storage.started[execution_id]
            if execution_id not in self._executions and new.task_name in self._others:
                self._executions[execution_id] = self._simulated(new)
        return [run for run in self._executions.values() if run.ending is None]

    def _simulated(self, new: NewExecution) -> SimulatedRun:
        run = SimulatedRun(
            self._others[new.task_name],
            new.payload,
            execution_id=new.execution_id,
            storage=Storage(self.clock),
            clock=self.clock,
            writes=self._writes,
            transactions=self._transactions,
            others=self._others,
        )
        run.storage.calls, run.storage.repeated = self.storage.calls, self.storage.repeated
        return run

    def _what_is_missing(self) -> str:
        unknown = [one for one in self.storage.open_executions if one not in self._executions]
        if self.waits.awaits_open is not None and unknown:
            name = self.storage.started[unknown[0]].task_name
            return f"it waits for an execution of {name!r}, which it cannot run; pass workflows=[...] with that in it"
        names = " or ".join(map(repr, sorted(self.waits.awaits)))
        return f"it waits for the event {names}, which nobody offers; pass events=[(name, value), ...] or offer it"

    async def make_turn(self) -> bool:
        """Make one turn that is due: of the run, or else of a child. Return whether there was one.

        Raises:
            WorkflowStuck: there have been too many.
        """
        if not self.is_due:
            return False
        self.turns += 1
        if self.turns > MAX_TURNS:
            raise WorkflowStuck(self.task.task_name, f"it has not ended after {MAX_TURNS} turns")
        child = next(iter(self._due_children()), None)
        if self._is_due(self.waits):
            await self._run()
        elif child is not None:
            await self._run_child(child)
        else:
            await self._run_execution(next(run for run in self._open_executions() if run.is_due))
        return True

    async def _run_execution(self, run: SimulatedRun) -> None:
        """Make one turn of an execution that this run has started, and note how it ends."""
        await run.make_turn()
        if run.ending is not None:
            is_completed = isinstance(run.ending, Completed)
            status = ExecutionStatus.COMPLETED if is_completed else ExecutionStatus.FAILED
            result = run.ending.result if isinstance(run.ending, Completed) else None
            error = run.ending.error if isinstance(run.ending, Failed) else None
            self.storage.endings[run.task.execution_id] = Ending(run.task.run_id, status, result, error)

    async def _run(self) -> None:
        self.task = replace(self.task, attempt=self.task.attempt + 1, claimed_at=self.clock.now())
        recorder = self._recorder()
        turn = SimulatedTurn(self.task, self._handler, self.storage.history, recorder)
        try:
            await self._settle(turn, await self._outcome_of(turn), recorder)
        except TurnSignal:  # the worker dies, and its tasks are free
            self.waits = _AT_ONCE
        finally:
            recorder.close()

    async def _run_child(self, name: str) -> None:
        task = replace(
            self.task,
            task_id=uuid5(self.task.run_id, name),
            parent_run_id=self.task.run_id,
            child=self.storage.children[name],
            claimed_at=self.clock.now(),
        )
        recorder = self._recorder()
        turn = SimulatedChildTurn(task, self._handler, self.storage.history_of(name), recorder)
        try:
            outcome = await self._outcome_of(turn)
        finally:
            recorder.close()
        if isinstance(outcome, Suspended):
            self._children[name] = outcome

    def _recorder(self) -> MemoryRecorder:
        return MemoryRecorder(
            self.storage, self.clock, writes=self._writes, transactions=self._transactions, threads=self._threads
        )

    async def _outcome_of(self, turn: SimulatedTurn) -> Outcome:
        running = asyncio.create_task(turn.run(), name=f"zart_sqla: {self.task.execution_id}")
        turn.memory.on_death = lambda: turn.stop(StopReason.LEASE_LOST)
        try:
            return await running
        finally:
            await self._transactions.ended()

    async def _settle(self, turn: SimulatedTurn, outcome: Outcome, recorder: MemoryRecorder) -> None:
        """Write what the turn came to.

        Raises:
            TurnSignal: the worker dies.
        """
        match outcome:
            case Completed() | Failed():
                await recorder.write("the end of the run", lambda: self._end(outcome, turn.fault))
            case Suspended():
                what = "the wait of the run" if outcome.step is None else checkpoint_of(outcome.step)
                await recorder.write(what, lambda: self._put_down(outcome))
            case Continued(payload):
                await recorder.write("the next run", lambda: self._begin_anew(payload))
            case Done() | CleanedUp() | Cancelled() | LeaseLost():
                self.waits = _AT_ONCE
            case _:
                assert_never(outcome)

    def _end(self, outcome: Completed | Failed, fault: BaseException | None) -> None:
        self.ending, self.fault = outcome, fault
        self.storage.children.clear()
        self._threads.close()

    def _begin_anew(self, payload: str) -> None:
        self.waits = _AT_ONCE
        self.storage.begin_anew()
        self._children.clear()
        now = self.clock.now()
        self.task = replace(self.task, payload=payload, attempt=0, retries=0, started_at=now, claimed_at=now)

    def _put_down(self, outcome: Suspended) -> None:
        self.waits = outcome
        if outcome.step is not None:
            self.storage.keep(outcome.step)
        if outcome.failed is not None:
            self.storage.attempts.append(outcome.failed)
            self.task = replace(self.task, retries=outcome.failed.attempt)
