"""What a turn has to write.

Nearly all that is written is the checkpoint of a step or the end of a run. These two have classes of their own, which
are quick to make and to look at; all the rest is a `Write`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from zart_sqla.store.tasks import RunToFinish, StepToRecord

if TYPE_CHECKING:
    from uuid import UUID

    from zart_sqla.records import ClaimedTask, FailedAttempt, NewExecution, RecordedStep
    from zart_sqla.store.children import ChildrenToAdd, ChildrenToGiveUp
    from zart_sqla.store.events import EventToTake
    from zart_sqla.store.streams import ItemToEmit
    from zart_sqla.store.tasks import RunToRenew, TaskToPutDown

_SIZE = 200  # about how many characters there are besides values


class Checkpoint(StepToRecord):
    """The checkpoint of a run's step, and nothing else."""

    __slots__ = ()

    failed = None
    is_done = False
    ends_others = False
    needs_task = False
    waits_for = None

    @property
    def size(self) -> int:
        """About how many characters it brings."""
        return _SIZE + len(self.step.result or "")

    @property
    def checkpoint(self) -> RecordedStep:
        """The checkpoint."""
        return self.step


class Finish(RunToFinish):
    """The end of a run, and nothing else."""

    __slots__ = ()

    failed = None
    checkpoint = None
    is_done = False
    ends_others = True
    needs_task = True

    @property
    def size(self) -> int:
        """About how many characters it brings."""
        return _SIZE + len(self.result or "")

    @property
    def waits_for(self) -> UUID | None:
        """The run that may wait for this end."""
        return self.task.parent_run_id


@dataclass(slots=True, kw_only=True)
class Write:
    """What else the holder of a task has to write, all of it in one transaction.

    Attributes:
        task: the task.
        step: a checkpoint; if the task is a child, it ends with it.
        take: a wait for an event, to be given one that is there.
        emit: a value for a stream, with its checkpoint.
        failed: a failed attempt.
        add: children of its run.
        give_up: children that its run has no more need of.
        start: an execution; that it was started, or why not, is the checkpoint.
        put_down: that the task is freed.
        renew: that its run ends, and another follows.
        removes: that the task ends, of what followed a cancellation.
    """

    task: ClaimedTask
    step: RecordedStep | None = None
    take: EventToTake | None = None
    emit: ItemToEmit | None = None
    failed: FailedAttempt | None = None
    add: ChildrenToAdd | None = None
    give_up: ChildrenToGiveUp | None = None
    start: NewExecution | None = None
    put_down: TaskToPutDown | None = None
    renew: RunToRenew | None = None
    removes: bool = False

    @property
    def size(self) -> int:
        """About how many characters it brings."""
        texts = (
            self.step and self.step.result,
            self.emit and self.emit.value,
            self.start and self.start.payload,
            self.renew and self.renew.payload,
        )
        return _SIZE + sum(len(text) for text in texts if text) + (self.add.size if self.add else 0)

    @property
    def checkpoint(self) -> RecordedStep | None:
        """The checkpoint that is among it."""
        part = self.take or self.emit
        return self.step if part is None else part.step

    @property
    def is_done(self) -> bool:
        """Whether its task ends, and not because its run does."""
        return self.removes or (self.step is not None and self.task.child is not None)

    @property
    def ends_others(self) -> bool:
        """Whether it deletes children that others may be at."""
        return self.removes or any(part is not None for part in (self.give_up, self.renew))

    @property
    def needs_task(self) -> bool:
        """Whether it is written only while nobody else has locked the task."""
        parts = (self.add, self.give_up, self.start, self.put_down, self.renew)
        return self.is_done or any(part is not None for part in parts)

    @property
    def waits_for(self) -> UUID | None:
        """The run that may wait for what this writes, or that it puts down to wait."""
        if self.is_done:
            return self.task.parent_run_id
        is_to_wait = self.put_down is not None and self.put_down.awaits_open is not None
        return self.task.run_id if is_to_wait else None


AnyWrite: TypeAlias = Checkpoint | Finish | Write
