"""A batch of writes, as few statements over lists: the same number for one write of a kind and for a thousand."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from zart_sqla.runtime import faults
from zart_sqla.store import children, events, executions, streams, tasks
from zart_sqla.store.events import EventToTake
from zart_sqla.store.tasks import (
    AttemptToRecord,
    ExecutionToStart,
    RunToFinish,
    RunToRenew,
    StepToRecord,
    TaskToPutDown,
)
from zart_sqla.worker.writes import Checkpoint, Finish, Write

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from uuid import UUID

    from sqlalchemy import Connection

    from zart_sqla.records import ClaimedTask, ExecutionInfo, RecordedStep
    from zart_sqla.store.children import ChildrenToAdd, ChildrenToGiveUp
    from zart_sqla.store.streams import ItemToEmit
    from zart_sqla.table_names import TableNames
    from zart_sqla.worker.writes import AnyWrite

Item = TypeVar("Item", StepToRecord, EventToTake)


@dataclass(slots=True)
class Batch:
    """Writes that go into one transaction, by what they write.

    Attributes:
        steps: checkpoints.
        take: waits for events.
        emit: values for streams.
        failed: failed attempts.
        add: new children.
        give_up: children that are given up.
        start: executions to be started.
        done: tasks that end, and not because their runs do.
        put_down: tasks that are freed.
        finish: runs that end.
        renew: runs that end, and that others follow.
        bound: the tasks of all writes that need the task itself, locked.
        size: about how many characters it brings.
    """

    steps: list[StepToRecord]
    take: list[EventToTake]
    emit: list[ItemToEmit]
    failed: list[AttemptToRecord]
    add: list[ChildrenToAdd]
    give_up: list[ChildrenToGiveUp]
    start: list[ExecutionToStart]
    done: list[ClaimedTask]
    put_down: list[TaskToPutDown]
    finish: list[RunToFinish]
    renew: list[RunToRenew]
    bound: list[ClaimedTask]
    size: int

    @classmethod
    def of(cls, all_writes: Sequence[AnyWrite]) -> Batch:
        """Return these writes as a batch."""
        steps: list[StepToRecord] = [write for write in all_writes if isinstance(write, Checkpoint)]
        finish: list[RunToFinish] = [write for write in all_writes if isinstance(write, Finish)]
        writes = [write for write in all_writes if isinstance(write, Write)]
        return cls(
            steps=[
                *steps,
                *(
                    StepToRecord(write.task, write.step)
                    for write in writes
                    if write.step is not None and write.start is None
                ),
            ],
            take=[write.take for write in writes if write.take is not None],
            emit=[write.emit for write in writes if write.emit is not None],
            failed=[AttemptToRecord(write.task, write.failed) for write in writes if write.failed is not None],
            add=[write.add for write in writes if write.add is not None],
            give_up=[write.give_up for write in writes if write.give_up is not None],
            start=[
                ExecutionToStart(write.task, write.start, write.step)
                for write in writes
                if write.start is not None and write.step is not None
            ],
            done=[write.task for write in writes if write.is_done],
            put_down=[write.put_down for write in writes if write.put_down is not None],
            finish=finish,
            renew=[write.renew for write in writes if write.renew is not None],
            bound=[write.task for write in all_writes if write.needs_task],
            size=sum(write.size for write in all_writes),
        )

    @property
    def is_one_statement(self) -> bool:
        """Whether it needs no transaction around it."""
        single = (
            *(self.steps, self.take, self.emit, self.failed, self.give_up, self.done),
            *(self.put_down, self.finish, self.renew),
        )
        return sum(map(bool, single)) == 1 and not self.add and not self.start

    def left(self, written: Written) -> list[ClaimedTask]:
        """Return the tasks that were not the worker's, or that somebody else has locked."""
        # An emit locks the task less than others need it, so that it is done says nothing of them.
        not_emitted = [item.task for item in self.emit if item.key not in written.steps]
        return not_emitted + [task for task in self.bound if task.task_id not in written.tasks]


@dataclass(slots=True)
class Written:
    """What a batch came to.

    Attributes:
        steps: the checkpoints that are recorded now, new or from before; and waits for which there was no event.
        failed: the failed attempts that are recorded now.
        tasks: the tasks that were locked, and with which so all was done that needs that.
        locked: those that were not, or whose values were not emitted, because somebody else has locked them.
        has_due: whether a task that was put down is due again already.
    """

    steps: dict[tuple[UUID, str], RecordedStep] = field(default_factory=dict[Any, Any])
    failed: set[tuple[UUID, str]] = field(default_factory=set[Any])
    tasks: set[UUID] = field(default_factory=set[Any])
    locked: set[UUID] = field(default_factory=set[Any])
    has_due: bool = False


class Application:
    """Applies batches over a connection, in its transaction.

    Args:
        connection: where to write.
        names: the tables.
        worker_id: the worker whose turns write.
    """

    def __init__(self, connection: Connection, names: TableNames, worker_id: UUID) -> None:
        self._connection = connection
        self._names = names
        self._worker_id = worker_id

    def apply(self, batch: Batch) -> Written:
        """Write the batch, and return what it came to."""
        connection, names, me = self._connection, self._names, self._worker_id
        written = Written()
        if batch.steps:
            written.steps |= self._record_steps(batch.steps)
        if batch.take:
            written.steps |= self._take_events(batch.take)
        if batch.emit:
            emitted = streams.emit(connection, names, me, batch.emit)
            written.steps |= {item.key: item.step for item in batch.emit if item.key in emitted}
        if batch.failed:
            written.failed = tasks.record_attempts(connection, names, me, batch.failed)
        if batch.start:
            self._start_executions(batch.start, written)
        self._write_bound(batch, written)
        if batch.start or batch.add:
            executions.notify_work(connection, names)
        left = batch.left(written)
        if left:
            written.locked = tasks.held(connection, names, me, left)
        return written

    def _record_steps(self, steps: Sequence[StepToRecord]) -> dict[tuple[UUID, str], RecordedStep]:
        written = tasks.record_steps(self._connection, self._names, self._worker_id, steps)
        if written < len(steps):  # some are lost, or were written before by a commit whose answer did not arrive
            return self._find_steps(steps)
        return {(item.task.run_id, item.step.name): item.step for item in steps}

    def _start_executions(self, wanted: Sequence[ExecutionToStart], written: Written) -> None:
        """Start executions, and record that they were started; where the id is taken, that instead."""
        connection, names = self._connection, self._names
        mine = tasks.touch(connection, names, self._worker_id, [item.task for item in wanted])
        starts = [item for item in wanted if item.task.task_id in mine]
        inserted = executions.insert(connection, names, [item.new for item in starts])
        taken = [item.new.execution_id for item in starts if item.new.run_id not in inserted]
        known = executions.find(connection, names, taken) if taken else {}
        steps = [
            StepToRecord(item.task, item.step if item.new.run_id in inserted else _refused(item, known))
            for item in starts
        ]
        written.tasks |= mine
        written.steps |= self._record_steps(steps)

    def _write_bound(self, batch: Batch, written: Written) -> None:
        connection, names, me = self._connection, self._names, self._worker_id
        for write, items in _bound_parts(batch):
            if items:
                written.tasks |= write(connection, names, me, items)
        if batch.put_down:
            is_due = tasks.put_down(connection, names, me, batch.put_down)
            written.tasks |= is_due.keys()
            written.has_due = any(is_due.values())

    def _take_events(self, waits: Sequence[EventToTake]) -> dict[tuple[UUID, str], RecordedStep]:
        taken = events.take(self._connection, self._names, self._worker_id, waits)
        by_key = {(wait.task.run_id, wait.step.name): wait for wait in waits}
        recorded = {key: replace(by_key[key].step, result=result) for key, result in taken.items()}
        missing = [wait for key, wait in by_key.items() if key not in taken]
        if missing:  # lost, or there is no event, or it was taken before by a commit whose answer did not arrive
            recorded |= {(wait.task.run_id, wait.step.name): wait.step for wait in self._held(missing)}
            recorded |= self._find_steps(missing)
        return recorded

    def _find_steps(self, items: Sequence[Item]) -> dict[tuple[UUID, str], RecordedStep]:
        keys = [(item.task.run_id, item.step.name) for item in self._held(items)]
        return tasks.find_steps(self._connection, self._names, keys)

    def _held(self, items: Sequence[Item]) -> list[Item]:
        held = tasks.held(self._connection, self._names, self._worker_id, [item.task for item in items])
        return [item for item in items if item.task.task_id in held]


def _bound_parts(batch: Batch) -> Iterable[tuple[Callable[..., set[UUID]], Sequence[Any]]]:
    """Return what needs the task itself: for each kind the function that writes it, and what there is to write."""
    return (
        (children.add, batch.add),
        (children.give_up, batch.give_up),
        (children.remove, batch.done),
        (tasks.finish, batch.finish),
        (tasks.renew, batch.renew),
    )


def _refused(start: ExecutionToStart, known: Mapping[str, ExecutionInfo]) -> RecordedStep:
    """Return the checkpoint of a start whose execution id is taken."""
    execution_id = start.new.execution_id
    error = faults.taken_id_record(start.step.name, execution_id, known[execution_id].status)
    return replace(start.step, result=None, error=error)
