"""The protocol of claims, leases and fences, as a machine that Hypothesis drives through transactions side by side.

A statement is sent by a rule; whether and when it is committed, and what others do before, is for other rules.
The answers say what will be so when it is committed, and the model is changed by that then. After each rule the tables
must be what the model says, and nothing may wait for what nobody will bring.
"""

import inspect
import json
import sys
from collections.abc import Mapping
from typing import Any
from uuid import UUID

from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, rule
from sqlalchemy import func, select, update

from tests.store.protocol.apps import Apps
from tests.store.protocol.crew import Crew
from tests.store.protocol.family import Family
from tests.store.protocol.model import ANYONE, LATER, NEVER, NOW, Task
from tests.store.protocol.work import HOUR, Move, move
from zart_sqla.store import diagnosis

LATE = (
    *("record", "record_attempt", "put_down", "await_children", "finish", "renew", "take_event", "emit"),
    *("end_cleanup", "add_children", "give_up_children", "end_child", "start_child"),
)
"""What a worker may do for a task that is not its own any more."""


class Protocol(Apps, Crew, Family):
    """The machine: all rules, and what must be so after each."""

    def teardown(self) -> None:
        """Let all that is under way end, and see that all comes to its end."""
        try:
            if sys.exc_info()[0] is None:  # else something is wrong already
                self._end_all()
                self._drain()
        finally:
            self.sessions.calm()

    @initialize()
    def begin(self) -> None:
        """There are two executions, and two workers, of which one holds both."""
        for execution_id in ("a", "b"):
            self.start(at=0, execution_id=execution_id)
            self._end_all()
        for has_lock in (True, False):
            self.register(has_lock=has_lock)
        self.claim(at=0, limit=100, has_cleanup=True, is_brief=True, is_heard=1)

    @rule(data=st.data())
    def happen(self, data: st.DataObject) -> None:
        """Something happens: what can, and as often as it weighs."""
        possible = [one for one in MOVES if all(getattr(self, need)() for need in one.needs)]
        self.is_late = False
        chosen = data.draw(st.sampled_from([one.name for one in possible for _ in range(one.weight)]), "move")
        (known,) = (one for one in possible if one.name == chosen)
        getattr(self, chosen)(**data.draw(known.choices, "with"))

    @move(5, "_idle", "_late", data=st.data(), name=st.sampled_from(LATE))
    def write_late(self, data: st.DataObject, name: str) -> None:
        """A worker writes for a task that is not its own any more: it was stopped, or does not know yet."""
        self.is_late = True
        (known,) = (one for one in MOVES if one.name == name)
        getattr(self, name)(**data.draw(known.choices, f"{name} with"))

    # What must be so at any time ----------------------------------------------------------------------------------

    @invariant()
    def all_is_as_it_must_be(self) -> None:
        """What is committed is as the model says; there is something to look at only if something was."""
        if self.has_news:
            self.has_news = False
            self.tables_are_as_the_model_says()
            self.history_is_as_the_model_says()
            self.nothing_waits_in_vain()
            self.diagnosis_agrees()

    def tables_are_as_the_model_says(self) -> None:
        """What is committed is what the answers have said; tokens only rise, and no two claims had the same."""
        t, connection = self.world.tables, self.observer
        known = {row.task_id: row for row in connection.execute(select(t.tasks, func.now().label("now")))}
        for task_id, row in known.items():
            assert row.attempt >= self.tokens.get(task_id, 0)
            self.tokens[task_id] = row.attempt
        _check_same({task_id: _task_of(row) for task_id, row in known.items()}, self.model.tasks)
        steps = {(row.run_id, row.name): _value_of(row.error) for row in connection.execute(select(t.steps))}
        _check_same(steps, self.model.steps)
        runs = {row.run_id: row.outcome for row in connection.execute(select(t.execution_runs))}
        _check_same(runs, {run_id: run.outcome for run_id, run in self.model.runs.items()})
        current = {row.execution_id: row.run_id for row in connection.execute(select(t.executions))}
        _check_same(current, {execution_id: one.run_id for execution_id, one in self.model.executions.items()})
        assert set(connection.scalars(select(t.workers.c.worker_id))) == self.model.workers

    def history_is_as_the_model_says(self) -> None:
        """Events are numbered in the order of their commits and taken once; streams have no gaps."""
        t, connection = self.world.tables, self.observer
        offered: dict[str, list[tuple[str, str, UUID | None]]] = {}
        for row in connection.execute(select(t.events).order_by(t.events.c.event_seq)):
            offered.setdefault(row.execution_id, []).append((row.name, json.dumps(row.payload), row.run_id))
        _check_same(offered, {one: found for one, found in self.model.events.items() if found})
        emitted: dict[str, list[str]] = {}
        for row in connection.execute(select(t.stream_items).order_by(t.stream_items.c.seq)):
            assert row.seq == len(emitted.setdefault(row.execution_id, []))
            emitted[row.execution_id].append(json.dumps(row.value))
        _check_same(emitted, {one: found for one, found in self.model.items.items() if found})
        attempts = connection.execute(select(t.step_attempts))
        assert {(row.run_id, row.name, row.attempt) for row in attempts} == self.model.attempts

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

    def diagnosis_agrees(self) -> None:
        """What `zart doctor` would say is what the model knows."""
        assert diagnosis.lost(self.observer, self.names, 10).total == 0
        overdue = sum(one.tasks for one in diagnosis.overdue(self.observer, self.names, 0))
        assert overdue == len(self._claimable())

    # The end ------------------------------------------------------------------------------------------------------

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
        self.bury(at=at, most=3, is_brief=True)
        assert self.model.workers == {me}
        self.claims.clear()
        self.is_late = False
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
        self.claim(at=self.registered.index(me), limit=100, has_cleanup=False, is_brief=True, is_heard=1)
        while self.claims:
            claimed = self.claims[-1].task
            if claimed.child is not None:
                self.end_child(at=0, has_failed=False, is_brief=True, is_trx=False)
            elif claimed.is_cleanup:
                self.end_cleanup(at=0, is_brief=True)
            else:
                self.finish(at=0, outcome="completed", is_brief=True)
            self.claims.pop()


MOVES: list[Move] = [method.move for _, method in inspect.getmembers(Protocol) if hasattr(method, "move")]
"""All that can happen."""


def _check_same(found: Mapping[Any, Any], expected: Mapping[Any, Any]) -> None:
    """Check that a table holds what the model says; tell only what differs."""
    keys = found.keys() | expected.keys()
    different = {key: (found.get(key), expected.get(key)) for key in keys if found.get(key) != expected.get(key)}
    assert not different, f"found, and expected: {different}"


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
        is_cleanup=row.task_id != row.run_id and row.step is None,
    )


def _value_of(error: dict[str, Any] | None) -> str:
    return "ok" if error is None else str(error["category"])
