"""The protocol of claims, leases and fences, as a machine that Hypothesis drives through transactions side by side.

A statement is sent by a rule; whether and when it is committed, and what others do before, is for other rules.
The answers say what will be so when it is committed, and the model is changed by that then. After each rule the tables
must be what the model says, and nothing may wait for what nobody will bring.
"""

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from sqlalchemy import Connection, Engine, delete, func, select, update

from tests.store.crew import ERROR, GRACE, LEASE, new
from tests.store.family import CALL
from tests.store.protocol.model import ANYONE, LATER, NEVER, NOW, Model, Task
from tests.store.protocol.sessions import Session, Sessions
from zart_sqla import TableNames
from zart_sqla.models.mapping import tables_of
from zart_sqla.records import (
    GIVEN_UP,
    SUSPECT_CRASHES,
    Child,
    ClaimedTask,
    FailedAttempt,
    NewEvent,
    RecordedStep,
    StepKind,
)
from zart_sqla.store import children, diagnosis, events, executions, streams, tasks, workers
from zart_sqla.store.children import ChildrenToAdd, ChildrenToGiveUp
from zart_sqla.store.events import EventToTake
from zart_sqla.store.streams import ItemToEmit
from zart_sqla.store.tasks import AttemptToRecord, RunToFinish, RunToRenew, StepToRecord, TaskToPutDown

SESSIONS = 4
MOST_WORKERS = 3
MAX_CRASHES = 3
HOUR = timedelta(hours=1)

places = st.integers(0, 30)
ids = st.sampled_from(["a", "b", "c"])
step_names = st.sampled_from(["s0", "s1"])
event_names = st.sampled_from(["e", "f"])
child_names = st.lists(st.sampled_from(["c0", "c1"]), min_size=1, unique=True)


@dataclass(frozen=True)
class Claim:
    """What a worker believes to hold.

    Attributes:
        worker: the worker.
        task: the task, as it was claimed.
        seen: how many events the execution had been offered then.
    """

    worker: UUID
    task: ClaimedTask
    seen: int


@dataclass(eq=False)
class Work:
    """What a session is at: a transaction that is not over.

    Attributes:
        session: the session.
        lane: what part of a worker, or `app`; of most, a worker has one at a time.
        worker: the worker.
        claim: what it writes for.
        statements: how many have been sent.
        is_brief: whether it is committed as soon as it is answered.
        fence: the worker whose row it has locked against being deleted.
        locks: the tasks that it may have locked.
        touched: the executions that the model does not know as this transaction does.
        buried: the workers that it has deleted.
        effects: what will be so when it is committed.
        told: what is done with the answer.
    """

    session: Session
    lane: str
    worker: UUID | None = None
    claim: Claim | None = None
    statements: int = 0
    is_brief: bool = False
    fence: UUID | None = None
    locks: set[UUID] = field(default_factory=set)
    touched: set[str] = field(default_factory=set)
    buried: set[UUID] = field(default_factory=set)
    effects: list[Callable[[], None]] = field(default_factory=list)
    told: Callable[[Any], None] | None = None
    was_blocked: bool = False


def _can(*conditions: str) -> Callable[[Any], Any]:
    """Return the precondition that all of these methods of the machine give something true."""
    return precondition(lambda machine: all(getattr(machine, condition)() for condition in conditions))


class World:
    """The database in which the machine runs again and again.

    Args:
        engine: where it is.
        names: its tables.
    """

    def __init__(self, engine: Engine, names: TableNames) -> None:
        self.names = names
        self.tables = tables_of(names)
        self.sessions = Sessions(engine, SESSIONS)

    def reset(self) -> None:
        """Begin anew."""
        self.sessions.calm()
        t = self.tables
        for table in (t.executions, t.execution_runs, t.tasks, t.steps, t.step_attempts, t.events, t.stream_items):
            self.sessions.observer.execute(delete(table))
        self.sessions.observer.execute(delete(t.workers))

    def close(self) -> None:
        """Close all connections."""
        self.sessions.close()


class Protocol(RuleBasedStateMachine):
    """The machine.

    Args:
        world: where it runs.
    """

    def __init__(self, world: World) -> None:
        super().__init__()
        world.reset()
        self.world = world
        self.names = world.names
        self.sessions = world.sessions
        self.observer = world.sessions.observer
        self.model = Model()
        self.works: dict[Session, Work] = {}
        self.registered: list[UUID] = []
        self.claims: list[Claim] = []
        self.given: set[tuple[UUID, int]] = set()
        self.tokens: dict[UUID, int] = {}
        self.resumed: set[str] = set()
        self.counter = 0

    def teardown(self) -> None:
        """Let all that is under way end, and see that all comes to its end."""
        try:
            self._end_all()
            self._drain()
        finally:
            self.sessions.calm()

    # Sessions -----------------------------------------------------------------------------------------------------

    def _idle(self) -> list[Session]:
        return [one for one in self.sessions.all if one not in self.works]

    def _ready(self) -> list[Work]:
        return [work for work in self.works.values() if work.session.waiting is None]

    def _begin(self, lane: str, worker: UUID | None = None, claim: Claim | None = None) -> Work | None:
        """Return new work, None if no session is idle or that part of the worker is busy."""
        idle = self._idle()
        others = {(work.worker, work.lane) for work in self.works.values()}
        if not idle or (lane not in {"trx", "app"} and (worker, lane) in others):
            return None
        work = self.works[idle[0]] = Work(idle[0], lane, worker, claim)
        return work

    def _new_id(self) -> UUID:
        """Return an id that is the same when the same history is run again."""
        self.counter += 1
        return UUID(int=self.counter)

    # What rules need ----------------------------------------------------------------------------------------------

    def _has_idle_or_app(self) -> bool:
        return bool(self._idle()) or any(work.lane == "app" for work in self._ready())

    def _any_registered(self) -> bool:
        return bool(self.registered)

    def _living(self) -> list[UUID]:
        return [worker for worker in self.registered if worker in self.model.workers]

    def _any_dead(self) -> bool:
        return bool(self.model.dead) and bool(self.model.workers)

    def _run_claims(self) -> list[Claim]:
        return [one for one in self.claims if one.task.child is None]

    def _child_claims(self) -> list[Claim]:
        return [one for one in self.claims if one.task.child is not None]

    def _any_claims(self) -> bool:
        return bool(self.claims)

    def _owed(self) -> list[tuple[UUID, UUID]]:
        living = self.model.workers
        known = self.model.debts.items()
        return [(run, ower) for run, owers in known for ower in owers if ower in living or (living and ower == ANYONE)]

    # Sessions again -----------------------------------------------------------------------------------------------

    def _app(self, at: int) -> Work | None:
        """Return the work of an app, under way or new."""
        under_way = [work for work in self._ready() if work.lane == "app"]
        return under_way[at % len(under_way)] if under_way and at % 2 else self._begin("app")

    def _send(self, work: Work, function: Callable[[Connection], Any], told: Callable[[Any], None]) -> None:
        work.statements += 1
        work.told = told
        work.was_blocked = False
        work.session.send(function)
        self._listen(work)
        self._settle()

    def _listen(self, work: Work) -> None:
        if self.sessions.is_blocked(work.session):
            work.was_blocked = True
            circle = self.sessions.circle(work.session)
            if circle:
                self._break(circle, work)
        else:
            self._hear(work)

    def _break(self, circle: set[Session], victim: Work) -> None:
        """End a circle. Only an app that does several things in one transaction may have brought it about."""
        culprits = [self.works[one] for one in circle]
        lanes = [(work.lane, work.statements) for work in culprits]
        assert any(work.lane == "app" and work.statements > 1 for work in culprits), f"a deadlock of {lanes}"
        self.sessions.interrupt(victim.session)
        victim.session.waiting = None
        self._roll_back(victim)

    def _hear(self, work: Work) -> None:
        assert work.session.waiting is not None
        assert work.told is not None
        answer = work.session.waiting.result()
        work.session.waiting = None
        work.told(answer)
        if work.is_brief:
            self._commit(work)

    def _settle(self) -> None:
        """Hear all answers that have come."""
        again = True
        while again:
            again = False
            for work in list(self.works.values()):
                if work.session.waiting is not None and not self.sessions.is_blocked(work.session):
                    self._hear(work)
                    again = True
        for work in list(self.works.values()):
            if work.session.waiting is not None and (circle := self.sessions.circle(work.session)):
                self._break(circle, work)
                self._settle()
                return

    def _commit(self, work: Work) -> None:
        if work.fence is not None:
            assert work.fence in self.model.workers, "a worker that was buried commits what it has written"
        work.session.commit()
        del self.works[work.session]
        for effect in work.effects:
            effect()

    def _roll_back(self, work: Work) -> None:
        work.session.rollback()
        del self.works[work.session]

    def _changing(self, task_id: UUID, **values: object) -> Callable[[], None]:
        return lambda: self.model.change(task_id, **values)

    def _locked(self, own: Work) -> set[UUID]:
        """Return the tasks that others may have locked."""
        others = [work for work in self.works.values() if work is not own]
        # What has not been answered may have locked anything.
        if any(work.session.waiting is not None for work in others):
            return set(self.model.tasks)
        return {task_id for work in others for task_id in work.locks}

    @_can("_ready")
    @rule(at=places)
    def commit(self, at: int) -> None:
        """Commit what a session has done."""
        ready = self._ready()
        self._commit(ready[at % len(ready)])
        self._settle()

    @_can("_ready")
    @rule(at=places)
    def roll_back(self, at: int) -> None:
        """Undo what a session has done, as when its connection is lost."""
        ready = self._ready()
        self._roll_back(ready[at % len(ready)])
        self._settle()

    # What apps do -------------------------------------------------------------------------------------------------

    @_can("_has_idle_or_app")
    @rule(at=places, execution_id=ids)
    def start(self, at: int, execution_id: str) -> None:
        """Start an execution."""
        work = self._app(at)
        if work is None:
            return
        run_id = self._new_id()
        wanted = [new(execution_id, run_id=run_id)]

        def told(inserted: set[UUID]) -> None:
            if execution_id not in work.touched:
                assert bool(inserted) is (execution_id not in self.model.executions)
            if inserted:
                work.touched.add(execution_id)
                work.locks.add(run_id)
                work.effects.append(lambda: self.model.start(execution_id, run_id, None, is_bound=False))

        self._send(work, lambda connection: executions.insert(connection, self.names, wanted), told)

    def _is_open(self, execution_id: str) -> bool:
        execution = self.model.executions.get(execution_id)
        return execution is not None and self.model.runs[execution.run_id].outcome is None

    def _has_open(self, connection: Connection, execution_id: str) -> bool:
        """Return whether, as a client asks, the execution is there and has not ended: by another run of it, then."""
        found = executions.find(connection, self.names, [execution_id])
        return execution_id in found and not found[execution_id].status.is_terminal

    @_can("_has_idle_or_app")
    @rule(at=places, execution_id=ids, name=event_names)
    def offer(self, at: int, execution_id: str, name: str) -> None:
        """Offer an event."""
        work = self._app(at)
        if work is None:
            return
        self.counter += 1
        value = str(self.counter)
        event = NewEvent(execution_id=execution_id, name=name, payload=value)

        def send(connection: Connection) -> bool:
            while events.offer(connection, self.names, event) is None:
                if not self._has_open(connection, execution_id):
                    return False
            return True

        def told(is_there: bool) -> None:  # noqa: FBT001 - the answer
            if execution_id not in work.touched:
                assert is_there is self._is_open(execution_id)
            if is_there:
                if execution_id in self.model.executions:
                    work.locks.add(self.model.executions[execution_id].run_id)
                work.effects.append(lambda: self.model.offer(execution_id, name, value))

        self._send(work, send, told)

    @_can("_has_idle_or_app")
    @rule(at=places, execution_id=ids)
    def cancel(self, at: int, execution_id: str) -> None:
        """Cancel an execution."""
        work = self._app(at)
        if work is None:
            return

        def send(connection: Connection) -> set[UUID]:
            while not (ended := executions.cancel(connection, self.names, execution_id)):
                if not self._has_open(connection, execution_id):
                    return set()
            return ended

        def told(ended: set[UUID]) -> None:
            if execution_id not in work.touched:
                assert bool(ended) is self._is_open(execution_id)
            if ended:
                work.touched |= set(self.model.executions) | {execution_id}
                work.locks |= set(self.model.tasks)
                work.effects.append(lambda: self.model.cancel(ended))

        work.statements += 1  # it is more than one
        self._send(work, send, told)

    @_can("_has_idle_or_app")
    @rule(at=places, execution_id=ids)
    def resume(self, at: int, execution_id: str) -> None:
        """Let a failed execution go on."""
        work = self._app(at)
        if work is None:
            return
        run_id = self._new_id()

        def told(is_resumed: bool) -> None:  # noqa: FBT001 - the answer
            if execution_id not in work.touched:
                execution = self.model.executions.get(execution_id)
                has_failed = execution is not None and self.model.runs[execution.run_id].outcome == "failed"
                assert is_resumed is has_failed
            if is_resumed:
                work.touched |= set(self.model.executions)
                work.effects.append(lambda: self.model.resume(execution_id, run_id))
                work.effects.append(lambda: self.resumed.add(execution_id))
            work.locks |= set(self.model.tasks)

        work.statements += 1
        self._send(work, lambda connection: executions.resume(connection, self.names, execution_id, run_id), told)

    @initialize()
    def begin(self) -> None:
        """There are two executions, and two workers, of which one holds both."""
        for execution_id in ("a", "b"):
            self.start(at=0, execution_id=execution_id)
            self._end_all()
        for has_lock in (True, False):
            self.register(has_lock=has_lock)
        self.claim(at=0, limit=100, is_brief=True, is_heard=1)

    # Workers ------------------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.model.workers) < MOST_WORKERS)
    @rule(has_lock=st.booleans())
    def register(self, *, has_lock: bool) -> None:
        """A worker comes. Nobody holds the lock that it names: only its heartbeat says that it lives."""
        worker = self._new_id()
        key = 1 if has_lock else None
        workers.register(self.observer, self.names, worker, hostname="here", pid=1, lock_key=key, lease_seconds=LEASE)
        self.model.workers.add(worker)
        self.registered.append(worker)

    def _worker(self, at: int) -> UUID | None:
        return self.registered[at % len(self.registered)] if self.registered else None

    @precondition(lambda self: self.model.workers)
    @rule(at=places, by_lock=st.booleans())
    def die(self, *, at: int, by_lock: bool) -> None:
        """A worker falls silent: its lease is over, or its connection is gone and its last heartbeat a while ago."""
        table = self.world.tables.workers
        worker = self._living()[at % len(self._living())]
        free = select(table.c.worker_id).where(table.c.worker_id == worker)
        free = free.with_for_update(skip_locked=True, key_share=True)
        silent = {"heartbeat_at": func.now() - HOUR} if by_lock else {"lease_until": func.now() - HOUR}
        changed = update(table).values(silent).where(table.c.worker_id.in_(free)).returning(table.c.lock_key)
        for lock_key in self.observer.scalars(changed):
            if not by_lock or lock_key is not None:
                self.model.dead.add(worker)

    @_can("_idle", "_any_registered")
    @rule(at=places)
    def beat(self, at: int) -> None:
        """A worker says that it lives, also one that was stopped and goes on."""
        worker = self._worker(at)
        work = worker and self._begin("liveness", worker)
        if not worker or not work:
            return
        work.is_brief = True
        running = {(one.task.task_id, one.task.attempt) for one in self.claims if one.worker == worker}
        lost = {one.task.task_id for one in self.claims if one.worker == worker and not self._is_effective(one)}
        has_dead = bool(self.model.dead - {worker})

        def told(beat: workers.Beat) -> None:
            assert beat.is_alive is (worker in self.model.workers)
            if not work.was_blocked:
                assert beat.lost == lost
                assert beat.has_dead is has_dead
            if beat.is_alive:
                work.effects.append(lambda: self.model.dead.discard(worker))

        self._send(
            work,
            lambda connection: workers.beat(
                connection, self.names, worker, running=running, lease_seconds=LEASE, grace_seconds=GRACE
            ),
            told,
        )

    @_can("_idle", "_any_dead")
    @rule(at=places, is_brief=st.booleans())
    def bury(self, *, at: int, is_brief: bool) -> None:
        """A worker buries the dead, and frees what they held."""
        me = self._living()[at % len(self._living())]
        work = self._begin("liveness", me)
        if work is None:
            return
        work.is_brief = is_brief

        def send(connection: Connection) -> tuple[set[UUID], list[workers.Orphan]]:
            dead = workers.bury(connection, self.names, me, grace_seconds=GRACE)
            buried = [one.worker_id for one in dead]
            return set(buried), workers.take_over(connection, self.names, buried, max_crashes=MAX_CRASHES)

        self._send(work, send, lambda answer: self._told_of_burial(work, me, *answer))

    def _told_of_burial(self, work: Work, me: UUID, buried: set[UUID], orphans: list[workers.Orphan]) -> None:
        model = self.model
        others = [one for one in self.works.values() if one is not work]
        fenced = {one.fence for one in others} | {gone for one in others for gone in one.buried}
        is_clear = not any(one.session.waiting is not None for one in others)
        assert buried <= model.dead - {me} - fenced, "a worker was buried that lives, or whose writes are under way"
        if is_clear:
            assert buried == model.dead - {me} - fenced
        living = model.workers - buried
        orphaned = {task_id for task_id, task in model.tasks.items() if task.holder and task.holder not in living}
        taken = {orphan.task_id for orphan in orphans}
        assert taken <= orphaned
        assert orphaned - self._locked(work) <= taken
        for orphan in orphans:
            self._check_crashes(orphan, buried)
        work.buried = buried
        work.locks |= taken | {id_ for orphan in orphans for id_ in model.open_children(orphan.task_id)}
        work.effects.append(lambda: model.bury(me, buried))
        work.effects.append(lambda: self._free_orphans(me, orphans))

    def _check_crashes(self, orphan: workers.Orphan, buried: set[UUID]) -> None:
        task = self.model.tasks[orphan.task_id]
        if task.holder not in buried:
            assert orphan.crashes == task.crashes
        elif orphan.task_id in self.model.progress:
            assert orphan.crashes in {1, task.crashes + 1}
        else:
            assert orphan.crashes == task.crashes + 1
        assert orphan.is_failed is (task.holder in buried and orphan.crashes >= MAX_CRASHES)

    def _free_orphans(self, me: UUID, orphans: list[workers.Orphan]) -> None:
        model = self.model
        failed_runs = {one.task_id for one in orphans if one.is_failed and one.step is None}
        for one in sorted(orphans, key=lambda orphan: orphan.step is not None):
            task = model.tasks.get(one.task_id)
            if one.task_id in failed_runs:
                assert task is not None
                if task.parent is not None:
                    model.debts[task.parent].add(me)
                model.end(one.task_id, "failed", keeps_failures=True)
            elif task is not None and task.run_id not in failed_runs:
                if one.is_failed:
                    assert one.step is not None
                    self._record_if_new(task.run_id, one.step, "crash", is_child=True)
                    del model.tasks[one.task_id]
                    model.debts[task.run_id].add(me)
                else:
                    model.change(one.task_id, holder=None, due=NOW, crashes=one.crashes)
            elif one.is_failed and one.step is not None:  # with its run
                self._record_if_new(one_run(orphans, one, model), one.step, "crash", is_child=True)

    def _record_if_new(self, run_id: UUID | None, name: str, value: str, *, is_child: bool) -> None:
        if run_id is not None and (run_id, name) not in self.model.steps:
            self.model.record(run_id, name, value, is_child=is_child)

    @_can("_idle", "_any_registered")
    @rule(at=places)
    def leave(self, at: int) -> None:
        """A worker goes home, and frees what it holds."""
        worker = self._worker(at)
        if worker is None or any(worker in owers for owers in self.model.debts.values()):
            return
        work = self._begin("liveness", worker)
        if work is None:
            return
        held = self.world.tables.tasks

        def send(connection: Connection) -> set[UUID]:
            workers.unregister(connection, self.names, worker)
            return set(connection.scalars(select(held.c.task_id).where(held.c.worker_id == worker)))

        def told(left: set[UUID]) -> None:
            mine = {task_id for task_id, task in self.model.tasks.items() if task.holder == worker}
            assert left <= mine
            assert left <= self._locked(work)
            work.buried = {worker}
            work.locks |= mine
            work.effects.append(lambda: self.model.leave(worker, mine - left))

        self._send(work, send, told)

    def _later(self) -> list[UUID]:
        return [task_id for task_id, task in self.model.tasks.items() if task.due == LATER and task.holder is None]

    @_can("_later")
    @rule(at=places)
    def let_time_pass(self, at: int) -> None:
        """What was to be due later is due now."""
        table = self.world.tables.tasks
        later = select(table.c.task_id).where(table.c.task_id == self._later()[at % len(self._later())])
        later = later.where(table.c.worker_id.is_(None)).with_for_update(skip_locked=True)
        changed = update(table).values(due_at=func.now()).where(table.c.task_id.in_(later)).returning(table.c.task_id)
        for task_id in self.observer.scalars(changed):
            self.model.change(task_id, due=NOW)

    # Claims -------------------------------------------------------------------------------------------------------

    def _claimable(self) -> set[UUID]:
        return {task_id for task_id, task in self.model.tasks.items() if task.is_claimable}

    @_can("_idle", "_any_registered", "_claimable")
    @rule(at=places, limit=st.sampled_from([1, 100]), is_brief=st.booleans(), is_heard=st.integers(0, 5))
    def claim(self, *, at: int, limit: int, is_brief: bool, is_heard: int) -> None:
        """A worker claims; now and then it does not hear what it got."""
        worker = self._worker(at)
        work = worker and self._begin("poller", worker)
        if not worker or not work:
            return
        work.is_brief = is_brief
        before = self._claimable()

        def told(answer: tuple[list[ClaimedTask], float | None]) -> None:
            claimed, _ = answer
            self._check_claim(work, claimed, before, limit)
            work.fence = worker if worker in self.model.workers else None
            work.locks |= {one.task_id for one in claimed}
            work.effects.append(lambda: self.model.claim(worker, claimed))
            if is_heard:
                work.effects.append(lambda: self._believe(worker, claimed))

        self._send(
            work,
            lambda connection: tasks.claim(
                connection, self.names, worker, task_names=["task"], queues=None, limit=limit
            ),
            told,
        )

    def _believe(self, worker: UUID, claimed: Iterable[ClaimedTask]) -> None:
        for one in claimed:
            self.claims.append(Claim(worker, one, len(self.model.events[one.execution_id])))

    def _check_claim(self, work: Work, claimed: list[ClaimedTask], before: set[UUID], limit: int) -> None:
        model = self.model
        taken, due = {one.task_id for one in claimed}, self._claimable()
        assert len(taken) == len(claimed) <= limit
        for one in claimed:
            assert one.attempt == model.tasks[one.task_id].token + 1
        assert taken <= due
        suspects = {task_id for task_id in due if model.tasks[task_id].crashes >= SUSPECT_CRASHES}
        assert len(taken & suspects) <= 1
        if work.worker not in model.workers:
            assert not taken
            return
        sure = (before & due) - self._locked(work) - suspects
        assert len(claimed) >= min(limit, len(sure))
        if len(claimed) < limit:
            assert sure <= taken

    @_can("_idle", "_any_registered")
    @rule(at=places)
    def release_others(self, at: int) -> None:
        """A worker gives back what it holds without knowing."""
        worker = self._worker(at)
        work = worker and self._begin("poller", worker)
        if not worker or not work:
            return
        work.is_brief = True
        kept = [one.task.task_id for one in self.claims if one.worker == worker]

        def told(found: dict[UUID, bool]) -> None:
            freed = {task_id for task_id, is_freed in found.items() if is_freed}
            held = {task_id for task_id, task in self.model.tasks.items() if task.holder == worker} - set(kept)
            if worker not in self.model.workers:
                assert not found
            elif not work.was_blocked:
                assert set(found) == held
                assert held - freed <= self._locked(work)
            for task_id in freed:
                work.effects.append(self._changing(task_id, holder=None, due=NOW))

        self._send(work, lambda connection: tasks.release_others(connection, self.names, worker, kept), told)

    # What is written for a claim ----------------------------------------------------------------------------------

    def _is_effective(self, claim: Claim) -> bool:
        return self.model.is_effective(claim.worker, claim.task)

    def _writing(
        self, at: int, lane: str, *, is_child: bool = False, is_brief: bool = False
    ) -> tuple[Work, Claim] | None:
        """Return new work for a claim, one that counts or an old one; None if it cannot be just now."""
        known = self._child_claims() if is_child else self._run_claims()
        effective = [one for one in known if self._is_effective(one)]
        chosen = effective if effective and at % 4 else known  # some are old
        if not chosen:
            return None
        claim = chosen[-1 - at % len(chosen)]
        if lane == "writer" and any(work.claim == claim and work.lane != "writer" for work in self.works.values()):
            return None  # a turn ends when its steps have ended
        work = self._begin(lane, claim.worker, claim)
        if work is None:
            return None
        work.is_brief = is_brief
        return work, claim

    def _told_of_bound(self, work: Work, claim: Claim, *, is_written: bool) -> None:
        """Check a write that needs the task itself."""
        is_effective = self._is_effective(claim)
        assert is_effective or not is_written, "a write of a worker that does not hold the task"
        if is_effective and claim.task.task_id not in self._locked(work):
            assert is_written, "a write of the worker that holds the task was not done"
        if claim.worker in self.model.workers:
            work.fence = claim.worker
        if is_written:
            work.locks.add(claim.task.task_id)
            work.locks |= set(self.model.open_children(claim.task.run_id))

    def _told_of_step(self, work: Work, claim: Claim, name: str, *, is_written: bool, was_effective: bool) -> None:
        """Check a write of a checkpoint."""
        is_new = (claim.task.run_id, name) not in self.model.steps
        assert not is_written or (was_effective and is_new), "a checkpoint of a worker that does not hold the task"
        if self._is_effective(claim) and is_new:
            assert is_written, "a checkpoint of the worker that holds the task was not written"
        if claim.worker in self.model.workers:
            work.fence = claim.worker

    def _lane(self, *, is_trx: bool) -> str:
        return "trx" if is_trx else "writer"

    @_can("_idle", "_run_claims")
    @rule(at=places, name=step_names, has_failed=st.booleans(), is_trx=st.booleans(), is_brief=st.booleans())
    def record(self, *, at: int, name: str, has_failed: bool, is_trx: bool, is_brief: bool) -> None:
        """Record a step, by the writer or in the step's own transaction."""
        if (found := self._writing(at, self._lane(is_trx=is_trx), is_brief=is_brief)) is None:
            return
        work, claim = found
        result, error = (None, ERROR) if has_failed else ("1", None)
        step = RecordedStep(name=name, kind=StepKind.STEP, position=0, result=result, error=error)
        was_effective, key = self._is_effective(claim), (claim.task.run_id, name)
        value = ERROR.category if has_failed else "ok"

        def told(written: set[tuple[UUID, str]]) -> None:
            self._told_of_step(work, claim, name, is_written=key in written, was_effective=was_effective)
            if written:
                work.effects.append(lambda: self.model.record(*key, value))

        wanted = [StepToRecord(claim.task, step)]
        self._send(work, lambda connection: tasks.record_steps(connection, self.names, claim.worker, wanted), told)

    @_can("_idle", "_run_claims")
    @rule(at=places, name=step_names, number=st.integers(1, 2), is_brief=st.booleans())
    def record_attempt(self, *, at: int, name: str, number: int, is_brief: bool) -> None:
        """Record a failed attempt."""
        if (found := self._writing(at, "writer", is_brief=is_brief)) is None:
            return
        work, claim = found
        failed = FailedAttempt(step=name, attempt=number, error=ERROR, started_at=datetime.now(UTC))
        was_effective = self._is_effective(claim)

        def told(written: set[tuple[UUID, str]]) -> None:
            assert not written or was_effective
            assert written or not self._is_effective(claim)
            if claim.worker in self.model.workers:
                work.fence = claim.worker
            if written:
                work.effects.append(lambda: self.model.attempts.add((claim.task.run_id, name, number)))

        wanted = [AttemptToRecord(claim.task, failed)]
        self._send(work, lambda connection: tasks.record_attempts(connection, self.names, claim.worker, wanted), told)

    @_can("_idle", "_any_claims")
    @rule(at=places, due=st.sampled_from([NOW, LATER]), is_brief=st.booleans(), is_child=st.booleans())
    def put_down(self, *, at: int, due: str, is_brief: bool, is_child: bool) -> None:
        """Put a task down, for others to go on, or until a retry."""
        self._put_down(at, due, None, None, is_brief=is_brief, is_child=is_child)

    @_can("_idle", "_run_claims")
    @rule(at=places, name=event_names, has_timeout=st.booleans(), is_brief=st.booleans())
    def await_event(self, *, at: int, name: str, has_timeout: bool, is_brief: bool) -> None:
        """Put a run down until an event comes."""
        self._put_down(at, LATER if has_timeout else NEVER, frozenset({name}), None, is_brief=is_brief)

    @_can("_idle", "_run_claims")
    @rule(at=places, few=st.integers(0, 1), is_brief=st.booleans())
    def await_children(self, *, at: int, few: int, is_brief: bool) -> None:
        """Put a run down until few enough of its children are open."""
        self._put_down(at, NEVER, None, few, is_brief=is_brief)

    def _put_down(
        self,
        at: int,
        due: str,
        awaits: frozenset[str] | None,
        awaits_open: int | None,
        *,
        is_brief: bool,
        is_child: bool = False,
    ) -> None:
        if (found := self._writing(at, "writer", is_child=is_child, is_brief=is_brief)) is None:
            return
        work, claim = found
        task = claim.task
        if any(self._has_seen(claim, name) for name in awaits or ()):
            del self.works[work.session]  # a turn looks before it waits, and would have found it
            return
        due_at = datetime.now(UTC) + HOUR if due == LATER else None
        down = TaskToPutDown(task, due_at, due != NOW, 0, awaits or frozenset(), awaits_open)

        def told(answer: dict[UUID, bool]) -> None:
            self._told_of_bound(work, claim, is_written=task.task_id in answer)
            if task.task_id not in answer:
                return
            is_called = (awaits or awaits_open is not None) and self._signals(task) != task.signals
            is_due = due == NOW or is_called
            assert answer[task.task_id] is bool(is_due)
            work.effects.append(lambda: self.model.free(task.task_id, NOW if is_due else due, awaits, awaits_open))
            if awaits_open is not None:
                work.effects.append(lambda: self.model.debts[task.run_id].add(claim.worker))

        self._send(work, lambda connection: tasks.put_down(connection, self.names, claim.worker, [down]), told)

    def _has_seen(self, claim: Claim, name: str) -> bool:
        """Return whether an event of this name was there at the claim that has not been taken."""
        return any(place < claim.seen for place in self.model.untaken(claim.task.execution_id, name))

    def _signals(self, task: ClaimedTask) -> int:
        return self.model.tasks[task.task_id].signals

    @_can("_idle", "_run_claims")
    @rule(at=places, outcome=st.sampled_from(["completed", "failed", "failed, all handled"]), is_brief=st.booleans())
    def finish(self, *, at: int, outcome: str, is_brief: bool) -> None:
        """End a run."""
        if (found := self._writing(at, "writer", is_brief=is_brief)) is None:
            return
        work, claim = found
        run_id, has_failed = claim.task.run_id, outcome != "completed"
        handled = frozenset[str]() if outcome == "failed" else None
        ended = RunToFinish(claim.task, None if has_failed else "1", ERROR if has_failed else None, handled)

        def end() -> None:
            parent = self.model.tasks[run_id].parent
            self.model.end(run_id, "failed" if has_failed else "completed", keeps_failures=handled is None)
            if parent is not None:
                self.model.debts[parent].add(claim.worker)

        def told(written: set[UUID]) -> None:
            self._told_of_bound(work, claim, is_written=bool(written))
            if written:
                work.effects.append(end)

        self._send(work, lambda connection: tasks.finish(connection, self.names, claim.worker, [ended]), told)

    @_can("_idle", "_run_claims")
    @rule(at=places, is_brief=st.booleans())
    def renew(self, *, at: int, is_brief: bool) -> None:
        """Let a run be followed by another one."""
        if (found := self._writing(at, "writer", is_brief=is_brief)) is None:
            return
        work, claim = found
        run_id, new_id = claim.task.run_id, self._new_id()

        def told(written: set[UUID]) -> None:
            is_effective = self._is_effective(claim)
            assert is_effective or not written
            own = {run_id, *self.model.open_children(run_id)}
            if is_effective and not own & self._locked(work):
                assert written
            if claim.worker in self.model.workers:
                work.fence = claim.worker
            if written:
                work.locks |= own | {new_id}
                work.effects.append(lambda: self.model.renew(run_id, new_id))

        wanted = [RunToRenew(claim.task, new_id, "2")]
        self._send(work, lambda connection: tasks.renew(connection, self.names, claim.worker, wanted), told)

    @_can("_idle", "_run_claims")
    @rule(at=places, name=event_names, step=st.sampled_from(["w0", "w1"]), is_brief=st.booleans())
    def take_event(self, *, at: int, name: str, step: str, is_brief: bool) -> None:
        """Take an event, if one is there."""
        if (found := self._writing(at, "writer", is_brief=is_brief)) is None:
            return
        work, claim = found
        task = claim.task
        was_effective, before = self._is_effective(claim), self.model.untaken(task.execution_id, name)
        wait = RecordedStep(name=step, kind=StepKind.EVENT, position=0, started_at=datetime.now(UTC))
        key = (task.run_id, step)

        def told(taken: dict[tuple[UUID, str], str]) -> None:
            is_new = key not in self.model.steps
            assert not taken or (was_effective and is_new and before)
            if self._is_effective(claim) and is_new and before:
                assert key in taken
            if claim.worker in self.model.workers:
                work.fence = claim.worker
            if taken:
                work.effects.append(lambda: self.model.take(task.run_id, step, name, taken[key]))

        wanted = [EventToTake(task, wait, name)]
        self._send(work, lambda connection: events.take(connection, self.names, claim.worker, wanted), told)

    @_can("_idle", "_run_claims")
    @rule(at=places, name=st.sampled_from(["x0", "x1"]), is_brief=st.booleans())
    def emit(self, *, at: int, name: str, is_brief: bool) -> None:
        """Emit a value into a stream."""
        if (found := self._writing(at, "writer", is_brief=is_brief)) is None:
            return
        work, claim = found
        task, key = claim.task, (claim.task.run_id, name)
        self.counter += 1
        value = str(self.counter)
        step = RecordedStep(name=name, kind=StepKind.EMIT, position=0, started_at=datetime.now(UTC))

        def told(recorded: set[tuple[UUID, str]]) -> None:
            self._told_of_bound(work, claim, is_written=bool(recorded))
            if recorded and key not in self.model.steps:
                work.effects.append(lambda: self.model.record(*key, "ok"))
                work.effects.append(lambda: self.model.items[task.execution_id].append(value))

        wanted = [ItemToEmit(task, step, "stream", value)]
        self._send(work, lambda connection: streams.emit(connection, self.names, claim.worker, wanted), told)

    # Children -----------------------------------------------------------------------------------------------------

    @_can("_idle", "_run_claims")
    @rule(at=places, names=child_names, is_brief=st.booleans())
    def add_children(self, *, at: int, names: list[str], is_brief: bool) -> None:
        """Make steps of a run tasks of their own."""
        if (found := self._writing(at, "writer", is_brief=is_brief)) is None:
            return
        work, claim = found
        wanted = [ChildrenToAdd(claim.task, [Child(name=name, position=0, call=CALL) for name in names])]

        def told(written: set[UUID]) -> None:
            self._told_of_bound(work, claim, is_written=bool(written))
            if written:
                work.effects.append(lambda: self.model.add(claim.task.run_id, names))

        self._send(work, lambda connection: children.add(connection, self.names, claim.worker, wanted), told)

    @_can("_idle", "_run_claims")
    @rule(at=places, names=child_names, is_brief=st.booleans())
    def give_up_children(self, *, at: int, names: list[str], is_brief: bool) -> None:
        """End children of which the run has no more need."""
        if (found := self._writing(at, "writer", is_brief=is_brief)) is None:
            return
        work, claim = found
        run_id = claim.task.run_id
        wanted = [ChildrenToGiveUp(claim.task, names)]

        def give_up() -> None:
            for name in names:
                if self.model.tasks.pop(children.child_id(run_id, name), None) is not None:
                    self._record_if_new(run_id, name, GIVEN_UP, is_child=True)

        def told(written: set[UUID]) -> None:
            self._told_of_bound(work, claim, is_written=bool(written))
            if written:
                work.effects.append(give_up)

        self._send(work, lambda connection: children.give_up(connection, self.names, claim.worker, wanted), told)

    @_can("_idle", "_child_claims")
    @rule(at=places, has_failed=st.booleans(), is_brief=st.booleans(), is_trx=st.booleans())
    def end_child(self, *, at: int, has_failed: bool, is_brief: bool, is_trx: bool) -> None:
        """Record a child, and end its task."""
        if (found := self._writing(at, self._lane(is_trx=is_trx), is_child=True, is_brief=is_brief)) is None:
            return
        work, claim = found
        task = claim.task
        assert task.child is not None
        name = task.child.name
        result, error = (None, ERROR) if has_failed else ("1", None)
        step = RecordedStep(name=name, kind=StepKind.CHILD, position=0, result=result, error=error)
        was_effective = self._is_effective(claim)
        value = ERROR.category if has_failed else "ok"

        def send(connection: Connection) -> tuple[bool, bool]:
            me, names = claim.worker, self.names
            recorded = tasks.record_steps(connection, names, me, [StepToRecord(task, step)])
            return bool(recorded), bool(children.remove(connection, names, me, [task]))

        def remove() -> None:
            del self.model.tasks[task.task_id]
            self.model.debts[task.run_id].add(claim.worker)

        def told(answer: tuple[bool, bool]) -> None:
            is_written, is_removed = answer
            self._told_of_step(work, claim, name, is_written=is_written, was_effective=was_effective)
            self._told_of_bound(work, claim, is_written=is_removed)
            if is_written:
                work.effects.append(lambda: self.model.record(task.run_id, name, value, is_child=True))
            if is_removed:
                work.effects.append(remove)

        self._send(work, send, told)

    @_can("_idle", "_run_claims")
    @rule(at=places, child=ids, is_bound=st.booleans(), is_brief=st.booleans())
    def start_child(self, *, at: int, child: str, is_bound: bool, is_brief: bool) -> None:
        """Start an execution from a body."""
        if (found := self._writing(at, "starter", is_brief=is_brief)) is None:
            return
        work, claim = found
        task, run_id = claim.task, self._new_id()
        key = (task.run_id, f"start {child}")
        if key in self.model.steps:
            del self.works[work.session]
            return
        parent = {"parent_id": task.execution_id, "parent_run_id": task.run_id, "is_bound": is_bound}
        wanted = new(child, run_id=run_id, **parent)

        def send(connection: Connection) -> tuple[bool, bool, bool]:
            me, names = claim.worker, self.names
            if not tasks.touch(connection, names, me, [task]):
                return False, False, False
            connection.execute(select(func.set_config("lock_timeout", "0", True)))  # noqa: FBT003
            is_new = bool(executions.insert(connection, names, [wanted]))
            result, error = ("1", None) if is_new else (None, ERROR)
            step = RecordedStep(name=key[1], kind=StepKind.EXECUTION, position=0, result=result, error=error)
            return True, is_new, bool(tasks.record_steps(connection, names, me, [StepToRecord(task, step)]))

        def begin(*, is_new: bool) -> None:
            if is_new:
                self.model.start(child, run_id, (task.execution_id, task.run_id), is_bound=is_bound)
            self.model.record(*key, "ok" if is_new else ERROR.category)

        def told(answer: tuple[bool, bool, bool]) -> None:
            is_mine, is_new, is_written = answer
            self._told_of_bound(work, claim, is_written=is_mine)
            assert is_written is is_mine
            assert not is_mine or is_new is (child not in self.model.executions)
            if is_mine:
                work.locks.add(run_id)
                work.effects.append(lambda: begin(is_new=is_new))

        self._send(work, send, told)

    @_can("_idle", "_owed")
    @rule(at=places, before=places)
    def wake(self, at: int, before: int) -> None:
        """A worker looks whether a run has waited for long enough, as it has to."""
        owed, living = self._owed(), self._living()
        run_id, ower = owed[at % len(owed)]
        worker = living[at % len(living)] if ower == ANYONE else ower
        if (work := self._begin("waker", worker)) is None:
            return
        work.is_brief = True
        # Who ends a child knows the run that had it at the claim; another one may have followed since.
        execution_id = self.model.runs[run_id].execution_id
        known = [one for one, run in self.model.runs.items() if run.execution_id == execution_id]
        asked = known[before % len(known)]
        waiting = {asked, self.model.executions[execution_id].run_id}
        ready = {one for one in waiting if one in self.model.tasks and self._is_ready(one)}

        def told(found: dict[UUID, bool]) -> None:
            self._told_of_wake(work, found, ready)
            if self.model.executions[execution_id].run_id == run_id and all(found.values()):
                work.effects.append(lambda: self.model.debts[run_id].discard(ower))

        self._send(work, lambda connection: children.wake(connection, self.names, [asked]), told)

    @_can("_idle", "_living")
    @rule(at=places)
    def wake_all(self, at: int) -> None:
        """A worker looks for all runs that have waited for long enough."""
        worker = self._living()[at % len(self._living())]
        if (work := self._begin("liveness", worker)) is None:
            return
        work.is_brief = True
        ready = {run_id for run_id in self.model.tasks if self._is_ready(run_id)}

        def settle(found: dict[UUID, bool]) -> None:
            for run_id, owers in self.model.debts.items():
                if found.get(run_id, True):
                    owers -= {worker, ANYONE}

        def told(found: dict[UUID, bool]) -> None:
            self._told_of_wake(work, found, ready)
            work.effects.append(lambda: settle(found))

        self._send(work, lambda connection: children.wake_all(connection, self.names), told)

    def _is_ready(self, task_id: UUID) -> bool:
        """Return whether a run waits for children of which few enough are open."""
        task = self.model.tasks[task_id]
        if task.holder is not None or task.awaits_open is None or task.due == NOW:
            return False
        return len(self.model.open_children(task.run_id)) <= task.awaits_open

    def _told_of_wake(self, work: Work, found: dict[UUID, bool], ready: set[UUID]) -> None:
        assert set(found) == ready
        for run_id, is_woken in found.items():
            assert is_woken or run_id in self._locked(work)
            if is_woken:
                work.effects.append(self._changing(run_id, due=NOW))

    # What must be so at any time ----------------------------------------------------------------------------------

    @invariant()
    def tables_are_as_the_model_says(self) -> None:
        """What is committed is what the answers have said; tokens only rise, and no two claims had the same."""
        t, connection = self.world.tables, self.observer
        known = {row.task_id: row for row in connection.execute(select(t.tasks, func.now().label("now")))}
        for task_id, row in known.items():
            if task_id in self.model.tasks:  # it is only looked at
                self.model.change(task_id, signals=row.signals)
            assert row.attempt >= self.tokens.get(task_id, 0)
            self.tokens[task_id] = row.attempt
        assert {task_id: _task_of(row) for task_id, row in known.items()} == self.model.tasks
        steps = {(row.run_id, row.name): _value_of(row.error) for row in connection.execute(select(t.steps))}
        assert steps == self.model.steps
        runs = {row.run_id: row.outcome for row in connection.execute(select(t.execution_runs))}
        assert runs == {run_id: run.outcome for run_id, run in self.model.runs.items()}
        current = {row.execution_id: row.run_id for row in connection.execute(select(t.executions))}
        assert current == {execution_id: one.run_id for execution_id, one in self.model.executions.items()}
        assert set(connection.scalars(select(t.workers.c.worker_id))) == self.model.workers

    @invariant()
    def history_is_as_the_model_says(self) -> None:
        """Events are numbered in the order of their commits and taken once; streams have no gaps."""
        t, connection = self.world.tables, self.observer
        offered: dict[str, list[tuple[str, str, UUID | None]]] = {}
        for row in connection.execute(select(t.events).order_by(t.events.c.event_seq)):
            offered.setdefault(row.execution_id, []).append((row.name, json.dumps(row.payload), row.run_id))
        assert offered == {one: found for one, found in self.model.events.items() if found}
        emitted: dict[str, list[str]] = {}
        for row in connection.execute(select(t.stream_items).order_by(t.stream_items.c.seq)):
            assert row.seq == len(emitted.setdefault(row.execution_id, []))
            emitted[row.execution_id].append(json.dumps(row.value))
        assert emitted == {one: found for one, found in self.model.items.items() if found}
        attempts = connection.execute(select(t.step_attempts))
        assert {(row.run_id, row.name, row.attempt) for row in attempts} == self.model.attempts

    @invariant()
    def nothing_waits_in_vain(self) -> None:
        """Each run that has not ended will be woken: by its task, by an event to come, or by who has still to look."""
        model = self.model
        for run_id, run in model.runs.items():
            assert (run.outcome is None) is (run_id in model.tasks)
        for task_id, task in model.tasks.items():
            if task.holder is None and task.due != NOW:
                self._check_wait(task_id, task)
        for execution_id, execution in model.executions.items():
            if execution.is_bound and execution.parent_id is not None and execution_id not in self.resumed:
                parent = model.runs[model.executions[execution.parent_id].run_id]
                assert parent.outcome != "cancelled" or model.runs[execution.run_id].outcome is not None

    def _check_wait(self, task_id: UUID, task: Task) -> None:
        model = self.model
        if task.due == NEVER:
            assert task.awaits is not None or task.awaits_open is not None
        for name in task.awaits or ():
            assert not model.untaken(model.runs[task.run_id].execution_id, name), "it waits for an event that is there"
        if self._is_ready(task_id):
            owers = model.debts[task_id]
            assert owers & (model.workers | {ANYONE}), "it waits for children that are done, and nobody will look"

    @invariant()
    def diagnosis_agrees(self) -> None:
        """What `zart doctor` would say is what the model knows."""
        assert diagnosis.lost(self.observer, self.names, 10).total == 0
        overdue = sum(one.tasks for one in diagnosis.overdue(self.observer, self.names, 0))
        assert overdue == len(self._claimable())

    # The end ------------------------------------------------------------------------------------------------------

    def _end_all(self) -> None:
        while self.works:
            for work in self._ready():
                self._commit(work)
            self._settle()
            if self.works and not self._ready():
                self._settle()

    def _drain(self) -> None:
        """Let one worker do all that is left: nothing may stay behind."""
        self.tables_are_as_the_model_says()
        self.register(has_lock=False)
        me = self.registered[-1]
        for worker in self.model.workers - {me}:
            self.observer.execute(
                update(self.world.tables.workers)
                .values(lease_until=func.now() - HOUR)
                .where(self.world.tables.workers.c.worker_id == worker)
            )
            self.model.dead.add(worker)
        at = self._living().index(me)
        self.bury(at=at, is_brief=True)
        assert self.model.workers == {me}
        self.claims.clear()
        for _ in range(40):
            self._drain_once(me)
            if not self.model.tasks:
                break
        self.tables_are_as_the_model_says()
        self.nothing_waits_in_vain()
        assert not self.model.tasks, self.model.tasks

    def _drain_once(self, me: UUID) -> None:
        self.wake_all(at=0)
        while self._later():
            self.let_time_pass(at=0)
        for execution_id in list(self.model.executions):
            task = self.model.tasks.get(self.model.executions[execution_id].run_id)
            for name in (task and task.awaits) or ():
                self.offer(at=0, execution_id=execution_id, name=name)
                self._end_all()
        self.tables_are_as_the_model_says()
        self.claim(at=self.registered.index(me), limit=100, is_brief=True, is_heard=1)
        while self.claims:
            is_child = self.claims[-1].task.child is not None
            if is_child:
                self.end_child(at=0, has_failed=False, is_brief=True, is_trx=False)
            else:
                self.finish(at=0, outcome="completed", is_brief=True)
            self.claims.pop()


def one_run(orphans: list[workers.Orphan], one: workers.Orphan, model: Model) -> UUID | None:
    """Return the run of a child whose task is gone with the run."""
    runs = [orphan.task_id for orphan in orphans if orphan.step is None and orphan.execution_id == one.execution_id]
    return next((run_id for run_id in runs if run_id in model.runs), None)


def _task_of(row: Any) -> Task:
    """Return what a row of the queue says."""
    due = NEVER if row.due_at is None else NOW if row.due_at <= row.now else LATER
    return Task(
        run_id=row.run_id,
        token=row.attempt,
        holder=row.worker_id,
        due=due,
        awaits=None if row.awaits is None else frozenset(row.awaits),
        awaits_open=row.awaits_open,
        step=row.step,
        parent=row.parent_run_id,
        crashes=row.crashes,
        signals=row.signals,
    )


def _value_of(error: dict[str, Any] | None) -> str:
    return "ok" if error is None else str(error["category"])
