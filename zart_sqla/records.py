"""What the client hands out and what the layers hand to each other: records, without behaviour, that nobody changes.

They are frozen, but for two that are made for each run and each step: to make one would take three times as long.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import datetime
    from uuid import UUID

T = TypeVar("T")

DEFAULT_QUEUE: Final = "default"

SUSPECT_CRASHES: Final = 2
"""How many workers in a row have to die with a task for it to be suspected; one may have died of anything."""

GIVEN_UP: Final = "step_cancelled"
"""The category of the error that is recorded for a child that was cancelled, since its siblings were enough."""


class ExecutionStatus(StrEnum):
    """Where an execution stands."""

    SCHEDULED = "scheduled"
    """It will be taken up by a worker, now or when its time comes."""
    RUNNING = "running"
    """A worker is at it."""
    WAITING = "waiting"
    """It sleeps, or waits for an event, its children or a retry."""
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_terminal(self) -> bool:
        """Whether it will never change again."""
        return self in _TERMINAL


_TERMINAL = frozenset({ExecutionStatus.COMPLETED, ExecutionStatus.FAILED, ExecutionStatus.CANCELLED})


class StepKind(StrEnum):
    """What a recorded step is."""

    STEP = "step"
    SLEEP = "sleep"
    CAPTURE = "capture"
    EVENT = "event"
    """A wait for an event: recorded when it begins, done when the event is taken or the wait times out."""
    EMIT = "emit"
    """A value that the body has emitted into a stream."""
    CHILD = "child"
    """A step that the body has scheduled: a task of its own."""
    CHOICE = "choice"
    """Which of several children were the first."""
    EXECUTION = "execution"
    """The start of an execution of its own."""
    RESULT = "result"
    """What an execution that the body has started came to."""
    FAILURE = "failure"
    """The place at which the body failed and its `on_failure` took over."""
    CANCELLATION = "cancellation"
    """The place at which the run was cancelled and its `on_cancel` took over."""


class StepStatus(StrEnum):
    """Where a step stands."""

    WAITING = "waiting"
    """It sleeps, waits for an event or before its next attempt, or is a child that is not done."""
    COMPLETED = "completed"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorRecord:
    """An error as data.

    Attributes:
        error_type: the qualified name of the exception's type.
        message: its text.
        step: the step that it came from, None if it came from the body.
        attempts: how many attempts were made.
        category: which of the errors of zart_sqla it is to those who await it.
        state: the exception's own data as JSON text, where a replay must raise it again as itself.
    """

    error_type: str
    message: str
    step: str | None = None
    attempts: int = 1
    category: str = "error"
    state: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionInfo:
    """An execution and its current run, as they stood when they were read.

    Attributes:
        execution_id: the id.
        task_name: the task that it runs.
        status: where it stands.
        run_id: the current run.
        run_index: the current run's number, from 0.
        payload: the run's input, as plain JSON data.
        result: its output, as plain JSON data; None until it completed.
        error: what it failed with (`error_type`, `message`, `step`, `attempts`); None if it did not fail.
        queue: the queue that its tasks are in.
        parent_id: the execution that started it; None if an app did.
        created_at: when the run was started.
        started_at: when a worker first took it up.
        completed_at: when it ended.
    """

    execution_id: str
    task_name: str
    status: ExecutionStatus
    run_id: UUID
    run_index: int
    payload: Any
    result: Any
    error: dict[str, Any] | None
    queue: str
    parent_id: str | None
    created_at: datetime
    started_at: datetime | None
    completed_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInfo:
    """A recorded step of a run.

    Attributes:
        name: its name in the run.
        kind: what it is.
        status: where it stands.
        attempts: how many attempts came to an end so far.
        result: what it gave, as plain JSON data.
        error: what it failed with, or its latest failed attempt; None if there was none.
        started_at: when its (last) attempt began.
        completed_at: when it was recorded; for a sleep, when it ends; None until then.
    """

    name: str
    kind: StepKind
    status: StepStatus
    attempts: int
    result: Any
    error: dict[str, Any] | None
    started_at: datetime | None
    completed_at: datetime | None


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A part of a longer list. It can be iterated.

    Attributes:
        items: the records of this page.
        next_cursor: what to pass as `cursor` for the next page; None on the last one.
    """

    items: Sequence[T]
    next_cursor: str | None = None

    def __iter__(self) -> Iterator[T]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExecutionFilter:
    """Which executions are listed.

    Attributes:
        status: only those that stand there.
        task_name: only those of this task.
        search: only those whose id starts with this.
        since: only those that were started then or later.
        limit: how many at most.
        is_unfinished: only those that have not ended.
    """

    status: ExecutionStatus | None
    task_name: str | None
    search: str | None
    since: datetime | None
    limit: int
    is_unfinished: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class NewExecution:
    """An execution to be started.

    Attributes:
        execution_id: the id.
        run_id: the id of its first run.
        task_name: the task.
        payload: its input as JSON text.
        queue: the queue of its tasks.
        parent_id: the execution that starts it; None if an app does.
        parent_run_id: that execution's run.
        is_bound: whether it is cancelled with the execution that starts it.
    """

    execution_id: str
    run_id: UUID
    task_name: str
    payload: str
    queue: str = DEFAULT_QUEUE
    parent_id: str | None = None
    parent_run_id: UUID | None = None
    is_bound: bool = False


@dataclass(frozen=True, slots=True)
class Ending:
    """How an execution's current run stands, and what it ended with, as text.

    Attributes:
        run_id: the run.
        status: where it stands.
        result: its output as JSON text, if it completed.
        error: what it failed with, if it failed.
    """

    run_id: UUID
    status: ExecutionStatus
    result: str | None
    error: ErrorRecord | None


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEvent:
    """An event to be offered.

    Attributes:
        execution_id: the execution that it is for.
        name: its name.
        payload: its value as JSON text.
        event_id: what tells it from others, so that it counts once however often it is offered; None: nothing does.
    """

    execution_id: str
    name: str
    payload: str
    event_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamPosition:
    """Where somebody is who reads a stream.

    Attributes:
        execution_id: the execution.
        stream: the stream's name there.
        offset: the number of the next item, from 0.
    """

    execution_id: str
    stream: str
    offset: int


@dataclass(slots=True, kw_only=True)
class RecordedStep:
    """A checkpoint: a step that is done, with its value or its error, and never runs again.

    Attributes:
        name: its name in the run, unique there.
        kind: what it is.
        position: its place in the order of calls, from 0; None if it was called from a task of the body's own.
        attempts: how many attempts were made.
        result: its value as JSON text; None if it failed.
        error: what it failed with; None if it did not.
        started_at: when the last attempt began.
        wake_at: when a sleep ends, or a wait for an event times out; None for other kinds.
        completed_at: when it was recorded; None if it was not when this was made.
    """

    name: str
    kind: StepKind
    position: int | None
    attempts: int = 1
    result: str | None = None
    error: ErrorRecord | None = None
    started_at: datetime | None = None
    wake_at: datetime | None = None
    completed_at: datetime | None = field(default=None, compare=False)

    @property
    def is_open(self) -> bool:
        """Whether it has only begun: the one case in which a checkpoint is written a second time."""
        return self.kind is StepKind.EVENT and self.result is None and self.error is None


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """A step that a run has scheduled, as a task of its own.

    Attributes:
        name: its name in the run, unique there.
        position: its place in the order of calls, from 0; None if it was scheduled from a task of the body's own.
        call: the step and its arguments as JSON text.
    """

    name: str
    position: int | None
    call: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedAttempt:
    """One attempt of a step, or of the body, that failed.

    Attributes:
        step: the step's name in the run, empty for the body.
        attempt: its number, from 1.
        error: what it failed with.
        started_at: when it began.
    """

    step: str
    attempt: int
    error: ErrorRecord
    started_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class RunHistory:
    """What earlier turns of a run recorded.

    Attributes:
        steps: its checkpoints, in no particular order.
        attempts: for each step that has failed attempts and no checkpoint, how many.
        children: the children that are not done yet: for each name its position.
        executions: the ids of the executions that it has started and that have not ended.
    """

    steps: Sequence[RecordedStep] = ()
    attempts: dict[str, int] = field(default_factory=dict[str, int])
    children: dict[str, int | None] = field(default_factory=dict[str, "int | None"])
    executions: Sequence[str] = ()


@dataclass(slots=True, kw_only=True)
class ClaimedTask:
    """A task that a worker holds, with all that its turn needs.

    Attributes:
        task_id: the task.
        run_id: the run that it belongs to.
        execution_id: the execution that the run belongs to.
        task_name: the name under which its handler is registered.
        queue: the queue that it is in.
        attempt: the fencing token: the number of this claim of the task, from 1.
        retries: how often the body has been retried.
        payload: the run's input as JSON text.
        started_at: when the run was first claimed.
        claimed_at: when this claim was made.
        crashes: how many workers in a row died with it.
        signals: how many events had been offered to the run.
        parent_run_id: the run whose child it is; None if it is nobody's.
        child: the step that it is; None if it runs a run.
        is_recorded: whether it is a step that is recorded already.
        is_cleanup: whether the run was cancelled, and this is what its handler does then.
    """

    task_id: UUID
    run_id: UUID
    execution_id: str
    task_name: str
    queue: str
    attempt: int
    retries: int
    payload: str
    started_at: datetime
    claimed_at: datetime
    crashes: int = 0
    signals: int = 0
    parent_run_id: UUID | None = None
    child: Child | None = None
    is_recorded: bool = False
    is_cleanup: bool = False

    @property
    def has_history(self) -> bool:
        """Whether there may be something that earlier turns recorded."""
        return self.attempt > 1 or self.is_recorded

    @property
    def is_suspect(self) -> bool:
        """Whether it may be what its workers died of."""
        return self.crashes >= SUSPECT_CRASHES
