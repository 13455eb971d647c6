"""Children: steps that are tasks of their own, and executions that a body starts."""

from uuid import UUID

from hypothesis import strategies as st
from sqlalchemy import Connection, func, select

from tests.store.crew import ERROR, new
from tests.store.family import CALL
from tests.store.protocol.model import ANYONE, NOW
from tests.store.protocol.turns import Turns
from tests.store.protocol.work import CHILD, Work, child_names, ids, move, places
from zart_sqla.records import (
    GIVEN_UP,
    Child,
    RecordedStep,
    StepKind,
)
from zart_sqla.store import children, executions, tasks
from zart_sqla.store.children import ChildrenToAdd, ChildrenToGiveUp
from zart_sqla.store.tasks import StepToRecord


class Family(Turns):
    """Rules of children."""

    @move(5, "_idle", "_run_turns", at=places, names=child_names, is_brief=st.booleans())
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

    @move(2, "_idle", "_run_turns", at=places, names=child_names, is_brief=st.booleans())
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

    @move(6, "_idle", "_child_turns", at=places, has_failed=st.booleans(), is_brief=st.booleans(), is_trx=st.booleans())
    def end_child(self, *, at: int, has_failed: bool, is_brief: bool, is_trx: bool) -> None:
        """Record a child, and end its task."""
        if (found := self._writing(at, self._lane(is_trx=is_trx), kind=CHILD, is_brief=is_brief)) is None:
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

    @move(3, "_idle", "_run_turns", at=places, child=ids, is_bound=st.booleans(), is_brief=st.booleans())
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

    @move(8, "_idle", "_owed", at=places, before=places)
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

    @move(1, "_idle", "_living", at=places)
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

    def _told_of_wake(self, work: Work, found: dict[UUID, bool], ready: set[UUID]) -> None:
        assert set(found) == ready
        for run_id, is_woken in found.items():
            assert is_woken or run_id in self._locked(work)
            if is_woken:
                work.effects.append(self._changing(run_id, due=NOW))
