"""What workers write for what they have claimed, or believe to have."""

from datetime import UTC, datetime
from uuid import UUID

from hypothesis import strategies as st

from tests.store.crew import ERROR
from tests.store.protocol.model import LATER, NEVER, NOW
from tests.store.protocol.transactions import Transactions
from tests.store.protocol.work import CLEANUP, HOUR, KINDS, RUN, Claim, Work, event_names, move, places, step_names
from zart_sqla.records import (
    ClaimedTask,
    FailedAttempt,
    RecordedStep,
    StepKind,
)
from zart_sqla.store import children, events, streams, tasks
from zart_sqla.store.events import EventToTake
from zart_sqla.store.streams import ItemToEmit
from zart_sqla.store.tasks import AttemptToRecord, RunToFinish, RunToRenew, StepToRecord, TaskToPutDown


class Turns(Transactions):
    """Rules of turns."""

    def _writing(self, at: int, lane: str, *, kind: str = RUN, is_brief: bool = False) -> tuple[Work, Claim] | None:
        """Return new work for a claim, one that counts, or not if it is late; None if it cannot be just now."""
        chosen = [one for one in self._claims_of(kind) if self._is_effective(one) is not self.is_late]
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
        if is_written:
            work.fence = claim.worker
            work.locks.add(claim.task.task_id)
            work.locks |= set(self.model.open_children(claim.task.run_id))

    def _told_of_step(self, work: Work, claim: Claim, name: str, *, is_written: bool, was_effective: bool) -> None:
        """Check a write of a checkpoint."""
        is_new = (claim.task.run_id, name) not in self.model.steps
        assert is_new or not is_written, "a checkpoint is written anew"
        assert was_effective or not is_written, "a checkpoint of a worker that does not hold the task"
        if self._is_effective(claim) and is_new:
            assert is_written, "a checkpoint of the worker that holds the task was not written"
        if is_written:
            work.fence = claim.worker

    def _lane(self, *, is_trx: bool) -> str:
        return "trx" if is_trx else "writer"

    @move(
        4,
        "_idle",
        "_turns",
        at=places,
        name=step_names,
        kind=st.sampled_from([RUN, CLEANUP]),
        has_failed=st.booleans(),
        is_trx=st.booleans(),
        is_brief=st.booleans(),
    )
    def record(self, *, at: int, name: str, kind: str, has_failed: bool, is_trx: bool, is_brief: bool) -> None:
        """Record a step, by the writer or in the step's own transaction."""
        if (found := self._writing(at, self._lane(is_trx=is_trx), kind=kind, is_brief=is_brief)) is None:
            return
        work, claim = found
        result, error = (None, ERROR) if has_failed else ("1", None)
        step = RecordedStep(name=name, kind=StepKind.STEP, position=0, result=result, error=error)
        was_effective, key = self._is_effective(claim), (claim.task.run_id, name)
        value = ERROR.category if has_failed else "ok"

        def told(written: int) -> None:
            self._told_of_step(work, claim, name, is_written=written == 1, was_effective=was_effective)
            if written:
                work.effects.append(lambda: self.model.record(*key, value))

        wanted = [StepToRecord(claim.task, step)]
        self._send(work, lambda connection: tasks.record_steps(connection, self.names, claim.worker, wanted), told)

    @move(1, "_idle", "_run_turns", at=places, name=step_names, number=st.integers(1, 2), is_brief=st.booleans())
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
            if written:
                work.fence = claim.worker
                work.effects.append(lambda: self.model.attempts.add((claim.task.run_id, name, number)))

        wanted = [AttemptToRecord(claim.task, failed)]
        self._send(work, lambda connection: tasks.record_attempts(connection, self.names, claim.worker, wanted), told)

    @move(
        3,
        "_idle",
        "_turns",
        at=places,
        due=st.sampled_from([NOW, LATER]),
        is_brief=st.booleans(),
        kind=st.sampled_from(KINDS),
    )
    def put_down(self, *, at: int, due: str, is_brief: bool, kind: str) -> None:
        """Put a task down, for others to go on, or until a retry."""
        self._put_down(at, due, None, None, is_brief=is_brief, kind=kind)

    @move(3, "_idle", "_run_turns", at=places, name=event_names, has_timeout=st.booleans(), is_brief=st.booleans())
    def await_event(self, *, at: int, name: str, has_timeout: bool, is_brief: bool) -> None:
        """Put a run down until an event comes."""
        self._put_down(at, LATER if has_timeout else NEVER, frozenset({name}), None, is_brief=is_brief)

    @move(4, "_idle", "_run_turns", at=places, few=st.integers(0, 1), is_brief=st.booleans())
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
        kind: str = RUN,
    ) -> None:
        if (found := self._writing(at, "writer", kind=kind, is_brief=is_brief)) is None:
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
            assert answer[task.task_id] is bool(is_due), (
                "a turn has not heard of what came meanwhile, or of what did not"
            )
            work.effects.append(lambda: self.model.free(task.task_id, NOW if is_due else due, awaits, awaits_open))
            if awaits_open is not None:
                work.effects.append(lambda: self.model.debts[task.run_id].add(claim.worker))

        self._send(work, lambda connection: tasks.put_down(connection, self.names, claim.worker, [down]), told)

    def _has_seen(self, claim: Claim, name: str) -> bool:
        """Return whether an event of this name was there at the claim that has not been taken."""
        return any(place < claim.seen for place in self.model.untaken(claim.task.execution_id, name))

    def _signals(self, task: ClaimedTask) -> int:
        return self.model.tasks[task.task_id].signals

    @move(
        2,
        "_idle",
        "_run_turns",
        at=places,
        outcome=st.sampled_from(["completed", "failed", "failed, all handled"]),
        is_brief=st.booleans(),
    )
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

    @move(3, "_idle", "_cleanup_turns", at=places, is_brief=st.booleans())
    def end_cleanup(self, *, at: int, is_brief: bool) -> None:
        """End what follows a cancellation."""
        if (found := self._writing(at, "writer", kind=CLEANUP, is_brief=is_brief)) is None:
            return
        work, claim = found

        def end() -> None:
            del self.model.tasks[claim.task.task_id]

        def told(written: set[UUID]) -> None:
            self._told_of_bound(work, claim, is_written=bool(written))
            if written:
                work.effects.append(end)

        self._send(work, lambda connection: children.remove(connection, self.names, claim.worker, [claim.task]), told)

    @move(2, "_idle", "_run_turns", at=places, is_brief=st.booleans())
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
            if written:
                work.fence = claim.worker
                work.locks |= own | {new_id}
                work.effects.append(lambda: self.model.renew(run_id, new_id))

        wanted = [RunToRenew(claim.task, new_id, "2")]
        self._send(work, lambda connection: tasks.renew(connection, self.names, claim.worker, wanted), told)

    @move(
        3,
        "_idle",
        "_run_turns",
        at=places,
        name=event_names,
        step=st.sampled_from(["w0", "w1"]),
        is_brief=st.booleans(),
    )
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
            if taken:
                work.fence = claim.worker
                work.effects.append(lambda: self.model.take(task.run_id, step, name, taken[key]))

        wanted = [EventToTake(task, wait, name)]
        self._send(work, lambda connection: events.take(connection, self.names, claim.worker, wanted), told)

    @move(2, "_idle", "_run_turns", at=places, name=st.sampled_from(["x0", "x1"]), is_brief=st.booleans())
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
