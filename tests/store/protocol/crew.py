"""Workers that come, live, die and go, and what they claim."""

from collections.abc import Iterable
from datetime import timedelta
from uuid import UUID

from hypothesis import strategies as st
from sqlalchemy import Connection, func, select, update

from tests.store.crew import GRACE, LEASE
from tests.store.protocol.model import LATER, NOW, Model
from tests.store.protocol.transactions import Transactions
from tests.store.protocol.work import HOUR, Claim, Work, move, places
from zart_sqla.records import (
    SUSPECT_CRASHES,
    ClaimedTask,
)
from zart_sqla.store import tasks, workers


class Crew(Transactions):
    """Rules of workers."""

    @move(2, "_has_room", has_lock=st.booleans())
    def register(self, *, has_lock: bool) -> None:
        """A worker comes. Nobody holds the lock that it names: only its heartbeat says that it lives."""
        worker = self._new_id()
        key = 1 if has_lock else None
        workers.register(self.observer, self.names, worker, hostname="here", pid=1, lock_key=key, lease_seconds=LEASE)
        self.has_news = True
        self.model.workers.add(worker)
        self.registered.append(worker)

    def _worker(self, at: int) -> UUID | None:
        return self.registered[at % len(self.registered)] if self.registered else None

    @move(2, "_living", at=places, by_lock=st.booleans())
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

    @move(1, "_idle", "_any_registered", at=places)
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
                assert beat.has_dead is has_dead
                assert beat.lost == lost or not beat.is_alive  # then nothing is its own
            if beat.is_alive:
                work.effects.append(lambda: self.model.dead.discard(worker))

        self._send(
            work,
            lambda connection: workers.beat(
                connection, self.names, worker, running=running, lease_seconds=LEASE, grace_seconds=GRACE
            ),
            told,
        )

    @move(5, "_idle", "_any_dead", at=places, most=st.sampled_from([1, 3, 3]), is_brief=st.booleans())
    def bury(self, *, at: int, most: int, is_brief: bool) -> None:
        """A worker buries the dead, and frees what they held, but for what has taken down so many in a row."""
        me = self._living()[at % len(self._living())]
        work = self._begin("liveness", me)
        if work is None:
            return
        work.is_brief = is_brief

        def send(connection: Connection) -> tuple[set[UUID], list[workers.Orphan]]:
            dead = workers.bury(connection, self.names, me, grace_seconds=GRACE)
            buried = [one.worker_id for one in dead]
            return set(buried), workers.take_over(connection, self.names, buried, max_crashes=most)

        self._send(work, send, lambda answer: self._told_of_burial(work, most, *answer))

    def _told_of_burial(self, work: Work, most: int, buried: set[UUID], orphans: list[workers.Orphan]) -> None:
        model, me = self.model, work.worker
        assert me is not None
        others = [one for one in self.works.values() if one is not work]
        fenced = {one.fence for one in others} | {gone for one in others for gone in one.buried}
        is_clear = not any(one.session.waiting is not None for one in others)
        assert buried <= model.dead - {me} - fenced, "a worker was buried that lives, or whose writes are under way"
        if is_clear:  # who has written nothing may have locked the row all the same
            assert model.dead - {me} - fenced - {one.worker for one in others} <= buried
        living = model.workers - buried
        orphaned = {task_id for task_id, task in model.tasks.items() if task.holder and task.holder not in living}
        taken = {orphan.task_id for orphan in orphans}
        assert taken <= orphaned
        assert orphaned - self._locked(work) <= taken
        for orphan in orphans:
            self._check_crashes(orphan, buried, most)
        work.buried = buried
        work.locks |= taken | {id_ for orphan in orphans for id_ in model.open_children(orphan.task_id)}
        work.effects.append(lambda: model.bury(me, buried))
        work.effects.append(lambda: self._free_orphans(me, orphans))

    def _check_crashes(self, orphan: workers.Orphan, buried: set[UUID], most: int) -> None:
        task = self.model.tasks[orphan.task_id]
        if task.holder not in buried:
            assert orphan.crashes == task.crashes
        elif task.step is None and task.run_id in self.model.progress:
            assert orphan.crashes in {1, task.crashes + 1}
        else:
            assert orphan.crashes == task.crashes + 1
        assert orphan.is_failed is (task.holder in buried and orphan.crashes >= most)

    def _free_orphans(self, me: UUID, orphans: list[workers.Orphan]) -> None:
        model = self.model
        failed_runs = {one.task_id for one in orphans if one.is_failed and one.step is None}
        for one in sorted(orphans, key=lambda orphan: orphan.step is not None):
            task = model.tasks.get(one.task_id)
            if one.task_id in failed_runs:
                assert task is not None
                if task.is_cleanup:  # the run has ended already
                    del model.tasks[one.task_id]
                    continue
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

    @move(1, "_idle", "_any_registered", at=places)
    def leave(self, at: int) -> None:
        """A worker goes home, and frees what it holds."""
        worker = self._worker(at)
        if worker is None or any(worker in owers for owers in self.model.debts.values()):
            return
        if any(work.worker == worker for work in self.works.values()):
            return  # it waits until all is written, and has looked
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

    @move(2, "_later", at=places)
    def let_time_pass(self, at: int) -> None:
        """What was to be due later is due now."""
        table = self.world.tables.tasks
        later = select(table.c.task_id).where(table.c.task_id == self._later()[at % len(self._later())])
        later = later.where(table.c.worker_id.is_(None)).with_for_update(skip_locked=True)
        changed = update(table).values(due_at=func.now()).where(table.c.task_id.in_(later)).returning(table.c.task_id)
        for task_id in self.observer.scalars(changed):
            self.has_news = True
            self.model.change(task_id, due=NOW)

    # Claims -------------------------------------------------------------------------------------------------------

    @move(
        8,
        "_idle",
        "_any_registered",
        "_claimable",
        at=places,
        limit=st.sampled_from([1, 100]),
        has_cleanup=st.booleans(),
        is_brief=st.booleans(),
        is_heard=st.integers(0, 5),
    )
    def claim(self, *, at: int, limit: int, has_cleanup: bool, is_brief: bool, is_heard: int) -> None:
        """A worker claims; now and then it does not hear what it got."""
        worker = self._worker(at)
        work = worker and self._begin("poller", worker)
        if not worker or not work:
            return
        work.is_brief = is_brief
        self._put_in_order()
        before, cleaners = self._claimable(), ["task"] if has_cleanup else []

        def told(answer: tuple[list[ClaimedTask], float | None]) -> None:
            claimed, _ = answer
            self._check_claim(work, claimed, before, limit)
            work.fence = worker if claimed else None
            work.locks |= {one.task_id for one in claimed}
            work.effects.append(lambda: self._give(worker, claimed, has_cleanup=has_cleanup))
            if is_heard:
                work.effects.append(lambda: self._believe(worker, claimed))

        self._send(
            work,
            lambda connection: tasks.claim(
                connection, self.names, worker, task_names=["task"], cleaners=cleaners, queues=None, limit=limit
            ),
            told,
        )

    def _put_in_order(self) -> None:
        """Let no two tasks be due at the same moment: which of them comes first would be anybody's guess."""
        table = self.world.tables.tasks
        for place, task_id in enumerate(self.model.tasks):
            if self.model.tasks[task_id].is_claimable:
                free = select(table.c.task_id).where(table.c.task_id == task_id, table.c.worker_id.is_(None))
                free = free.with_for_update(skip_locked=True)
                moment = func.now() - HOUR + timedelta(seconds=place)
                self.observer.execute(update(table).values(due_at=moment).where(table.c.task_id.in_(free)))

    def _give(self, worker: UUID, claimed: Iterable[ClaimedTask], *, has_cleanup: bool) -> None:
        tokens = {(one.task_id, one.attempt) for one in claimed}
        assert not tokens & self.given, "two claims have the same token"
        self.given |= tokens
        self.model.claim(worker, claimed, has_cleanup=has_cleanup)

    def _believe(self, worker: UUID, claimed: Iterable[ClaimedTask]) -> None:
        known = list(self.model.tasks)
        for one in sorted(claimed, key=lambda one: known.index(one.task_id)):  # the ids of some are random
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
        if work.was_blocked:
            return  # it has waited for the end of a burial of its own worker; what it saw before may be gone
        assert len(claimed) >= min(limit, len(sure))
        if len(claimed) < limit:
            assert sure <= taken

    @move(1, "_idle", "_any_registered", at=places)
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


def one_run(orphans: list[workers.Orphan], one: workers.Orphan, model: Model) -> UUID | None:
    """Return the run of a child whose task is gone with the run."""
    runs = [orphan.task_id for orphan in orphans if orphan.step is None and orphan.execution_id == one.execution_id]
    return next((run_id for run_id in runs if run_id in model.runs), None)
