"""Points of the protocol between a worker and the database, at each of which a worker under test can take itself down.

A point is a call of one of the store's functions. The functions are wrapped in the process that is to die, and its
connections are of a class of their own: the product knows nothing of it.
"""

import asyncio
import importlib
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from typing import Any, Final, TypeVar

import asyncpg
from sqlalchemy import Connection, func, select

from zart_sqla import StepKind, TableNames
from zart_sqla.models import tables_of
from zart_sqla.statements import workers
from zart_sqla.store.tasks import RunToFinish, StepToRecord, TaskToPutDown

T = TypeVar("T")

_MOMENT = timedelta(seconds=2)
NOTHING: Final = {"limit": 0}
"""How a claim gets nothing for which nothing was due: something could have come since."""


class Moment(StrEnum):
    """When, at a point, the worker dies."""

    UNSENT = "unsent"
    """Nothing of it has been sent."""

    UNCOMMITTED = "uncommitted"
    """It is done and answered, and its COMMIT is not sent."""

    UNANSWERED = "unanswered"
    """What commits it is sent, and the answer is never read."""

    UNTOLD = "untold"
    """It is committed and the answer is read, but nobody in the worker knows."""

    @property
    def is_kept(self) -> bool:
        """Whether what was to be written is."""
        return self in {Moment.UNANSWERED, Moment.UNTOLD}


def _always(*_arguments: Any, **_options: Any) -> bool:
    return True


@dataclass(frozen=True, kw_only=True)
class Point:
    """A call of a function of the store by the worker package.

    Attributes:
        function: the function, as `module.name`.
        scene: what brings a worker there, of the test's scenes.
        is_alone: whether its statement is a transaction of its own; else others are in the same transaction.
        is_fixed: whether it is so each time; else something else may be written just then, and goes along.
        nth: the how manieth of such calls it is.
        when: which calls count, by what they are given.
        otherwise: what other calls are given instead, so that they do not do what the one that is meant should.
        witness: a step, or a place in a body, whose beginnings tell whether what was written is lost.
        kept: how often it begins if it is not.
        lost: how often it begins if it is.
    """

    function: str
    scene: str
    is_alone: bool = True
    is_fixed: bool = True
    nth: int = 1
    when: Callable[..., bool] = _always
    otherwise: Mapping[str, Any] = field(default_factory=dict[str, Any])
    witness: str | None = None
    kept: int = 1
    lost: int = 2

    @property
    def moments(self) -> Sequence[Moment]:
        """The moments that there are at this point: what is alone is committed by the server as it is done."""
        return [moment for moment in Moment if not (self.is_alone and moment is Moment.UNCOMMITTED)]


def _something_is_due(connection: Connection, names: TableNames, _: Any, **options: Any) -> bool:
    """Return whether the claim will get something; what is due in a moment is waited for, or it might come between."""
    tasks = tables_of(names).tasks
    free = tasks.c.worker_id.is_(None) & tasks.c.queue.in_(options["queues"])
    left: timedelta | None = connection.scalar(select(func.min(tasks.c.due_at - func.now())).where(free))
    if left is None or left > _MOMENT:
        return False
    connection.execute(select(func.pg_sleep(max(0.0, left.total_seconds()) + 0.01)))
    return True


def _somebody_is_dead(connection: Connection, names: TableNames, me: Any, *, grace_seconds: float) -> bool:
    others = tables_of(names).workers
    dead = select(func.count()).where(others.c.worker_id != me, workers._is_dead(names))
    return bool(connection.scalar(dead, {"grace_seconds": grace_seconds}))


def _somebody_was_dead(_: Connection, __: TableNames, dead: Sequence[Any], **___: Any) -> bool:
    return bool(dead)


def _is_registered(connection: Connection, names: TableNames) -> bool:
    known = tables_of(names).workers
    return bool(connection.scalar(select(func.count()).where(known.c.pid == os.getpid())))


def _turns_tell(*_: Any) -> bool:
    return threading.current_thread().name != "zart-liveness"


def _heirs_tell(connection: Connection, names: TableNames) -> bool:
    return not _turns_tell() and _is_registered(connection, names)


def _leavers_tell(connection: Connection, names: TableNames) -> bool:
    return not _turns_tell() and not _is_registered(connection, names)


def _records(kind: StepKind) -> Callable[..., bool]:
    def are_of(_: Connection, __: TableNames, ___: Any, new: Sequence[StepToRecord]) -> bool:
        return {item.step.kind for item in new} == {kind}

    return are_of


def _puts_down(condition: Callable[[TaskToPutDown], bool]) -> Callable[..., bool]:
    def are_so(_: Connection, __: TableNames, ___: Any, freed: Sequence[TaskToPutDown]) -> bool:
        return all(condition(item) for item in freed)

    return are_so


def _is_failure(_: Connection, __: TableNames, ___: Any, ended: Sequence[RunToFinish]) -> bool:
    return all(item.error is not None for item in ended)


def _together(function: str, scene: str, **options: Any) -> Point:
    return Point(function=function, scene=scene, is_alone=False, **options)


def _alone(function: str, scene: str, **options: Any) -> Point:
    return Point(function=function, scene=scene, **options)


_to_sleep = _puts_down(lambda item: item.due_at is not None and item.awaits_open is None and not item.awaits)
_for_event = _puts_down(lambda item: bool(item.awaits))
_for_children = _puts_down(lambda item: item.awaits_open is not None)
_to_others = _puts_down(lambda item: item.due_at is None and not item.is_waiting)

POINTS: Mapping[str, Point] = {
    # A worker comes, lives and goes.
    "lock": _alone("workers.lock", "notes"),
    "register": _alone("workers.register", "notes"),
    "beat": _alone("workers.beat", "hold", nth=3, witness="b", kept=2),
    "new lock": _alone("workers.set_lock", "cut off", witness="b", kept=2),
    "hand back": _alone("tasks.put_down", "leave", when=_to_others),
    "unregister": _together("workers.unregister", "leave"),
    "unregister with tasks": _together("workers.unregister", "leave defiant"),
    "farewell": _together("executions.notify_work", "leave", when=_leavers_tell),
    "bury": _together("workers.bury", "take over", when=_somebody_is_dead),
    "take over": _together("workers.take_over", "take over", when=_somebody_was_dead),
    "tell of takeover": _together("executions.notify_work", "take over", when=_heirs_tell),
    "wake all": _alone("children.wake_all", "take over a group"),
    "tell of those woken": _alone("executions.notify_work", "take over a group", when=_heirs_tell),
    # A task is taken and put down.
    "claim": _alone("tasks.claim", "notes", when=_something_is_due, otherwise=NOTHING),
    "claim a second turn": _alone("tasks.claim", "nap", when=_something_is_due, otherwise=NOTHING, nth=2),
    "claim a child": _alone("tasks.claim", "one child", when=_something_is_due, otherwise=NOTHING, nth=2),
    "claim a cleanup": _alone("tasks.claim", "cancelled", when=_something_is_due, otherwise=NOTHING),
    "give back a broken claim": _alone("tasks.release_others", "broken claim", witness="b", kept=2),
    "journal": _alone("tasks.journal", "nap"),
    "history of a child": _alone("children.histories", "child that falters"),
    "sleep": _together("tasks.put_down", "nap", when=_to_sleep, witness="turn", kept=2, lost=3),
    "retry later": _alone("tasks.put_down", "falter", when=_to_sleep, witness="a", kept=2),
    "retry the body later": _together("tasks.put_down", "restive", when=_to_sleep, witness="turn", kept=2, lost=3),
    "wait for an event": _together("tasks.put_down", "event later", when=_for_event),
    "wait for children": _alone("tasks.put_down", "one child", when=_for_children, is_fixed=False),
    # What a turn writes.
    "step": _alone("tasks.record_steps", "notes", nth=2, witness="b"),
    "step that failed": _alone("tasks.record_steps", "fail", nth=2, witness="b"),
    "sleep begins": _together(
        "tasks.record_steps", "nap", when=_records(StepKind.SLEEP), witness="turn", kept=2, lost=3
    ),
    "wait begins": _together("tasks.record_steps", "event later", when=_records(StepKind.EVENT)),
    "failed attempt": _alone("tasks.record_attempts", "falter", witness="a", kept=2, lost=3),
    "failed attempt of the body": _together("tasks.record_attempts", "restive", witness="turn", kept=2, lost=3),
    "event": _alone("events.take", "event before"),
    "emit": _alone("streams.emit", "emit", nth=2),
    "transaction": _together("tasks.record_steps", "deposit", witness="deposit-a"),
    "transaction in a thread": _together("tasks.record_steps", "deposit in a thread", witness="deposit-a"),
    # Children.
    "add children": _together("children.add", "one child"),
    "tell of children": _together("executions.notify_work", "one child", when=_turns_tell),
    "child": _together("tasks.record_steps", "one child", when=_records(StepKind.CHILD), witness="note-f-0"),
    "end of a child": _together("children.remove", "one child", witness="note-f-0"),
    "transaction of a child": _together("children.remove", "child that deposits", witness="deposit-f-0"),
    "wake": _alone("children.wake", "one child"),
    "wake at the end of a child": _alone("children.wake", "group", nth=2),
    "tell of who is woken at leaving": _alone("executions.notify_work", "leave a group", when=_turns_tell),
    "give up children": _together("children.give_up", "first"),
    # Executions that a body starts.
    "touch": _together("tasks.touch", "parent"),
    "start": _together("executions.insert", "parent"),
    "record a start": _together("tasks.record_steps", "parent", when=_records(StepKind.EXECUTION)),
    "tell of a start": _together("executions.notify_work", "parent", when=_turns_tell),
    "end of a child execution": _alone("tasks.finish", "parent", is_fixed=False),
    "wake a parent": _alone("children.wake", "parent"),
    # Ends.
    "finish": _alone("tasks.finish", "notes", witness="tail"),
    "finish as failed": _alone("tasks.finish", "fail", when=_is_failure, witness="turn"),
    "take up a failure": _alone("tasks.record_steps", "mended", when=_records(StepKind.FAILURE), witness="turn"),
    "take up a failure with children": _together("children.give_up", "mended group", witness="turn"),
    "renew": _alone("tasks.renew", "endless", nth=2),
    "begin a cleanup": _alone("tasks.record_steps", "cancelled", when=_records(StepKind.CANCELLATION)),
    "step of a cleanup": _alone("tasks.record_steps", "cancelled", nth=2, witness="undo-a"),
    "end of a cleanup": _alone("children.remove", "cancelled", witness="undo-tail"),
}
"""Every function of the store by which a worker writes is here, at least once; some reads are too."""

READS: Mapping[str, str] = {
    "diagnosis.overdue": "it reads, for the log only",
    "executions.ending": "it reads",
    "executions.find": "it reads why a start was refused, in the transaction that records it",
    "schema.check_schema": "it reads, before the worker is anybody",
    "tasks.find_steps": "it reads what a lost commit may have written, in the batch that writes it again",
    "tasks.held": "it reads, after what was written in the batch",
    "workers.has_orphans": "it reads, in the transaction that takes over",
}
"""What the worker package calls of the store that has no point of its own, and why not."""


def arm(name: str, moment: str) -> type[asyncpg.Connection]:
    """Have this process die at a point, at a moment; return the class that all its connections must be of."""
    point = POINTS[name]
    module_name, function_name = point.function.split(".")
    module = importlib.import_module(f"zart_sqla.store.{module_name}")
    setattr(module, function_name, _Trap(point, Moment(moment), getattr(module, function_name)))
    return MortalConnection


def die() -> None:
    """Take this process down without warning."""
    os.kill(os.getpid(), signal.SIGKILL)


class _Trap:
    """A function of the store that takes the process down at the call that is meant, or has its connection do so."""

    def __init__(self, point: Point, moment: Moment, function: Callable[..., Any]) -> None:
        self._point = point
        self._moment = moment
        self._function = function
        self._left = point.nth

    def __call__(self, connection: Connection, *arguments: Any, **options: Any) -> Any:
        if not self._counts(connection, *arguments, **options):
            return self._function(connection, *arguments, **{**options, **self._point.otherwise})
        self._left -= 1
        if self._left != 0:
            return self._function(connection, *arguments, **options)
        if self._moment is Moment.UNSENT:
            die()
        if self._moment is not Moment.UNCOMMITTED:
            driver: Any = connection.connection.driver_connection
            driver.moment = self._moment
        answer = self._function(connection, *arguments, **options)
        if self._moment is Moment.UNCOMMITTED:
            die()
        return answer

    def _counts(self, connection: Connection, *arguments: Any, **options: Any) -> bool:
        pooled: Any = connection.connection.dbapi_connection
        can_be_meant = pooled.autocommit is self._point.is_alone or not self._point.is_fixed
        return can_be_meant and self._point.when(connection, *arguments, **options)


class MortalConnection(asyncpg.Connection):
    """A connection that can take its process down around its next commit.

    Attributes:
        moment: when it does; None for never.
    """

    moment: Moment | None = None

    async def execute(self, query: str, *arguments: Any, **options: Any) -> str:
        """Do so around a COMMIT."""
        sending = super().execute(query, *arguments, **options)
        return await (self.last(sending) if query.startswith("COMMIT") else sending)

    async def prepare(self, *arguments: Any, **options: Any) -> Any:
        """Return a statement that does so where it is a transaction of its own."""
        return _Statement(self, await super().prepare(*arguments, **options))

    async def last(self, sending: Awaitable[T]) -> T:
        """Die when this is sent, or when it is answered."""
        if self.moment is Moment.UNANSWERED:  # what is sent goes to the kernel at once; answers are read later
            asyncio.get_running_loop().call_soon(die)
        answer = await sending
        if self.moment is not None:
            die()
        return answer


class _Statement:
    """A prepared statement of such a connection."""

    def __init__(self, connection: MortalConnection, prepared: Any) -> None:
        self._connection = connection
        self._prepared = prepared

    def __getattr__(self, name: str) -> Any:
        return getattr(self._prepared, name)

    async def fetch(self, *arguments: Any) -> Any:
        """Return the rows."""
        sending = self._prepared.fetch(*arguments)
        return await (sending if self._connection.is_in_transaction() else self._connection.last(sending))
