"""Runs the turns of claimed tasks, and has the writer settle what they end in."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final, assert_never

from zart_sqla.errors import InvalidDataError
from zart_sqla.ids import new_id
from zart_sqla.records import ErrorRecord
from zart_sqla.runtime._signals import TurnSignal
from zart_sqla.runtime.child_turn import ChildTurn
from zart_sqla.runtime.cleanup_turn import CleanupTurn
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
from zart_sqla.runtime.turn import StopReason, Turn
from zart_sqla.store.tasks import RunToRenew, TaskToPutDown
from zart_sqla.worker.writes import Finish, Write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from datetime import datetime
    from uuid import UUID

    from zart_sqla.records import ClaimedTask, RunHistory
    from zart_sqla.runtime.handlers import TaskRegistry
    from zart_sqla.runtime.outcomes import Outcome
    from zart_sqla.runtime.ports import Recorder
    from zart_sqla.worker.writer import Writer

logger: Final = logging.getLogger("zart_sqla.worker")

_SUSPICION_SECONDS: Final = 30.0
_TURNS_PER_WRITER: Final = 64  # a few turns rather share their commits than write side by side


class Dispatcher:
    """Runs turns side by side.

    Args:
        registry: where the handlers are.
        writers: what writes for the turns: for each turn one of them.
        make_recorder: makes the recorder of a turn that writes so.
        slots: how many turns run at once.
        on_suspended: told when there may be something to claim again, None for now.
        on_unsettled: told when a turn has ended and nothing is written of that: the task may still be ours.

    Attributes:
        held: the tasks whose turns run, with their fencing tokens. Other threads may copy it.
        handed_back: whether a task was put down to be done by others at once.
    """

    def __init__(
        self,
        registry: TaskRegistry,
        writers: Sequence[Writer],
        make_recorder: Callable[[ClaimedTask, Writer], Recorder],
        *,
        slots: int,
        on_suspended: Callable[[datetime | None], None],
        on_unsettled: Callable[[], None],
    ) -> None:
        self._registry = registry
        self._writers = writers
        self._make_recorder = make_recorder
        self._slots = slots
        self._on_suspended = on_suspended
        self._on_unsettled = on_unsettled
        self._loop = asyncio.get_running_loop()
        self._turns: dict[UUID, Turn] = {}
        self._running: set[asyncio.Task[bool]] = set()
        self._busy = 0
        self._suspect: UUID | None = None
        self._trusted_at = 0.0
        self._has_slot = asyncio.Event()
        self._has_slot.set()
        self.held: dict[UUID, int] = {}
        self.handed_back: bool = False

    @property
    def free_slots(self) -> int:
        """How many more turns can run.

        One that waits for its outcome to be written runs no more. There can be as many of those besides.
        """
        return max(0, min(self._slots - self._busy, 2 * self._slots - len(self._running)))

    @property
    def has_suspect(self) -> bool:
        """Whether a turn runs that may kill this worker. It is trusted once it has got somewhere, or after a while."""
        return self._suspect in self._turns and self._loop.time() < self._trusted_at

    def trust(self, task: ClaimedTask) -> None:
        """Take note that a task has got somewhere in this worker: others that are suspected may come now."""
        if task.task_id == self._suspect:
            self._suspect = None
            self._on_suspended(None)

    async def slot(self) -> int:
        """Return how many more turns can run, when that is at least one."""
        await self._has_slot.wait()
        return self.free_slots

    def dispatch(self, task: ClaimedTask, history: RunHistory) -> None:
        """Start the turn of a claimed task."""
        handler = self._registry.get(task.task_name)
        assert handler is not None  # noqa: S101 - only tasks with handlers are claimed
        writer = self._writers[len(self._running) // _TURNS_PER_WRITER % len(self._writers)]
        turn = _kind_of(task)(task, handler, history, self._make_recorder(task, writer))
        self._turns[task.task_id] = turn
        self.held[task.task_id] = task.attempt
        if task.is_suspect:
            self._suspect = task.task_id
            self._trusted_at = self._loop.time() + _SUSPICION_SECONDS
        self._busy += 1
        running = self._loop.create_task(self._run(turn, writer), name=f"zart_sqla: {task.execution_id}")
        self._running.add(running)
        running.add_done_callback(lambda ended: self._forget(turn, ended))
        self._tell_slots()

    def stop(self, task_ids: Iterable[UUID], reason: StopReason) -> None:
        """Interrupt the turns of these tasks, where they still run."""
        for task_id in task_ids:
            turn = self._turns.get(task_id)
            if turn is not None and turn.stop(reason):
                logger.info(
                    "execution %r is interrupted: %s",
                    turn.task.execution_id,
                    reason.value,
                    extra={"execution_id": turn.task.execution_id},
                )

    def give_up(self, lost: Mapping[UUID, int]) -> None:
        """Interrupt the turns of tasks that were taken over, unless the task has been claimed anew since."""
        self.stop([task for task, attempt in lost.items() if self.held.get(task) == attempt], StopReason.LEASE_LOST)

    def stop_run(self, run_id: str, reason: StopReason) -> None:
        """Interrupt the turns of a run, but not those of what is done after its cancellation."""
        turns = [turn.task for turn in self._turns.values() if str(turn.task.run_id) == run_id]
        self.stop([task.task_id for task in turns if not task.is_cleanup], reason)

    def stop_all(self, reason: StopReason) -> None:
        """Interrupt all turns."""
        self.stop(list(self._turns), reason)

    async def wait(self, seconds: float | None = None) -> bool:
        """Wait for the turns that run to end.

        Args:
            seconds: for how long, None for as long as it takes.

        Returns:
            Whether they all have.
        """
        running = set(self._running)
        if running:
            await asyncio.wait(running, timeout=seconds)
        return not self._running

    def abandon(self) -> None:
        """Leave the turns that do not end to themselves; what they do is not recorded any more."""
        for turn in self._turns.values():
            logger.error(
                "execution %r does not end and is left to itself; its task goes back to the queue",
                turn.task.execution_id,
                extra={"execution_id": turn.task.execution_id},
            )

    def _forget(self, turn: Turn, ended: asyncio.Task[bool]) -> None:
        self._running.discard(ended)
        task = turn.task
        if self._turns.get(task.task_id) is turn:
            del self._turns[task.task_id]
            del self.held[task.task_id]
        self._tell_slots()
        if task.task_id == self._suspect:
            self._on_suspended(None)  # the next one may come
        error = None if ended.cancelled() else ended.exception()
        if error is not None:
            logger.error("the turn of execution %r broke off", task.execution_id, exc_info=error)
        if ended.cancelled() or error is not None or not ended.result():
            self._on_unsettled()

    def _tell_slots(self) -> None:
        if self.free_slots:
            self._has_slot.set()
        else:
            self._has_slot.clear()

    async def _run(self, turn: Turn, writer: Writer) -> bool:
        """Run the turn, and return whether it is settled in the database."""
        try:
            outcome = await turn.run()
        finally:
            self._busy -= 1
            self._tell_slots()
        return await self._settle(turn.task, outcome, writer)

    async def _settle(self, task: ClaimedTask, outcome: Outcome, writer: Writer) -> bool:
        try:
            write = _write_for(task, outcome)
            if write is not None:
                await writer.write(write)
        except InvalidDataError as error:
            if task.is_cleanup:
                logger.warning("what follows the cancellation of %r ends here: %s", task.execution_id, error)
                return await self._settle(task, CleanedUp(), writer)
            refused = ErrorRecord(error_type="InvalidDataError", message=str(error))
            return await self._settle(task, Failed(refused), writer)
        except TurnSignal:
            logger.info(
                "execution %r: what its turn came to is not written, the task was taken over or ended",
                task.execution_id,
            )
            return False
        if isinstance(outcome, Suspended):
            self.handed_back |= outcome == Suspended()
            if outcome.due_at is not None:
                self._on_suspended(outcome.due_at)
        elif isinstance(outcome, Continued):
            self._on_suspended(None)
        return not isinstance(outcome, LeaseLost)


def _kind_of(task: ClaimedTask) -> type[Turn]:
    if task.is_cleanup:
        return CleanupTurn
    return Turn if task.child is None else ChildTurn


def _write_for(task: ClaimedTask, outcome: Outcome) -> Finish | Write | None:
    """Return what is to be written when a turn ends so, None for nothing."""
    match outcome:
        case Completed(result):
            return Finish(task, result, None)
        case Failed(error, handled):
            return Finish(task, None, error, handled)
        case Continued(payload):
            return Write(task=task, renew=RunToRenew(task, new_id(), payload))
        case CleanedUp():
            return Write(task=task, removes=True)
        case Suspended():
            retries = task.retries if outcome.failed is None else outcome.failed.attempt
            put_down = TaskToPutDown(
                task, outcome.due_at, outcome.is_waiting, retries, outcome.awaits, outcome.awaits_open
            )
            return Write(task=task, step=outcome.step, failed=outcome.failed, put_down=put_down)
        case Done() | Cancelled() | LeaseLost():
            return None
        case _:
            assert_never(outcome)
