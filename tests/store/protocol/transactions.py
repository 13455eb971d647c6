"""Transactions side by side: sent, answered, committed, each when a rule says so."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

from hypothesis.stateful import RuleBasedStateMachine
from sqlalchemy import Connection

from tests.store.protocol.model import ANYONE, NOW, Model
from tests.store.protocol.sessions import Session
from tests.store.protocol.work import CHILD, CLEANUP, MOST_WORKERS, RUN, Claim, Work, World, move, places


class Transactions(RuleBasedStateMachine):
    """What is under way in the sessions, and the rules by which it ends.

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
        self.is_late = False
        self.has_news = True

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

    def _has_room(self) -> bool:
        return len(self.model.workers) < MOST_WORKERS

    def _any_dead(self) -> bool:
        return bool(self.model.dead) and bool(self.model.workers)

    def _claims_of(self, kind: str) -> list[Claim]:
        return [one for one in self.claims if one.kind == kind]

    def _turns(self) -> list[Claim]:
        """Return the claims that count."""
        return [one for one in self.claims if self._is_effective(one)]

    def _run_turns(self) -> list[Claim]:
        return [one for one in self._turns() if one.kind == RUN]

    def _child_turns(self) -> list[Claim]:
        return [one for one in self._turns() if one.kind == CHILD]

    def _cleanup_turns(self) -> list[Claim]:
        return [one for one in self._turns() if one.kind == CLEANUP]

    def _late(self) -> list[Claim]:
        """Return the claims that do not count any more."""
        return [one for one in self.claims if not self._is_effective(one)]

    def _owed(self) -> list[tuple[UUID, UUID]]:
        living = self.model.workers
        known = self.model.debts.items()
        return [(run, ower) for run, owers in known for ower in owers if ower in living or (living and ower == ANYONE)]

    # From a statement to its end ----------------------------------------------------------------------------------

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
        self.has_news = True
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

    @move(8, "_ready", at=places)
    def commit(self, at: int) -> None:
        """Commit what a session has done."""
        ready = self._ready()
        self._commit(ready[at % len(ready)])
        self._settle()

    @move(1, "_ready", at=places)
    def roll_back(self, at: int) -> None:
        """Undo what a session has done, as when its connection is lost."""
        ready = self._ready()
        self._roll_back(ready[at % len(ready)])
        self._settle()

    def _is_effective(self, claim: Claim) -> bool:
        return self.model.is_effective(claim.worker, claim.task)

    def _claimable(self) -> set[UUID]:
        return {task_id for task_id, task in self.model.tasks.items() if task.is_claimable}

    def _is_ready(self, task_id: UUID) -> bool:
        """Return whether a run waits for children of which few enough are open."""
        task = self.model.tasks[task_id]
        if task.holder is not None or task.awaits_open is None or task.due == NOW:
            return False
        return len(self.model.open_children(task.run_id)) <= task.awaits_open

    def _record_if_new(self, run_id: UUID | None, name: str, value: str, *, is_child: bool) -> None:
        if run_id is not None and (run_id, name) not in self.model.steps:
            self.model.record(run_id, name, value, is_child=is_child)

    def _end_all(self) -> None:
        while self.works:
            for work in self._ready()[:1]:
                self._commit(work)
            self._settle()
