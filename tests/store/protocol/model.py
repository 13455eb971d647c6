"""What the protocol's tables hold once a transaction is committed, in a few dictionaries."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from uuid import UUID

from zart_sqla.records import GIVEN_UP, ClaimedTask
from zart_sqla.store.children import child_id

NOW, LATER, NEVER = "now", "later", "never"
ANYONE = UUID(int=0)
"""Whoever lives and hears of a cancellation."""


@dataclass(frozen=True)
class Task:
    """A row of the queue."""

    run_id: UUID
    token: int = 0
    holder: UUID | None = None
    due: str = NOW
    awaits: frozenset[str] | None = None
    awaits_open: int | None = None
    step: str | None = None
    parent: UUID | None = None
    crashes: int = 0
    signals: int = 0
    is_cleanup: bool = False

    @property
    def is_claimable(self) -> bool:
        """Whether a worker can have it now."""
        return self.holder is None and self.due == NOW


@dataclass(frozen=True)
class Run:
    """A run, and how it has ended."""

    execution_id: str
    outcome: str | None = None
    keeps_failures: bool = False


@dataclass(frozen=True)
class Execution:
    """An execution, and who has started it."""

    run_id: UUID
    parent_id: str | None = None
    is_bound: bool = False


@dataclass
class Model:
    """The tables.

    Attributes:
        debts: the runs that wait for children, and perhaps long enough; with the workers that have still to look.
        progress: the runs that have got somewhere since they were claimed.
        cleaners: the tasks whose handlers have something to do when their runs are cancelled.
    """

    workers: set[UUID] = field(default_factory=set)
    dead: set[UUID] = field(default_factory=set)
    executions: dict[str, Execution] = field(default_factory=dict)
    runs: dict[UUID, Run] = field(default_factory=dict)
    tasks: dict[UUID, Task] = field(default_factory=dict)
    steps: dict[tuple[UUID, str], str] = field(default_factory=dict)
    attempts: set[tuple[UUID, str, int]] = field(default_factory=set)
    events: dict[str, list[tuple[str, str, UUID | None]]] = field(default_factory=lambda: defaultdict(list))
    items: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    debts: dict[UUID, set[UUID]] = field(default_factory=lambda: defaultdict(set))
    progress: set[UUID] = field(default_factory=set)
    cleaners: set[UUID] = field(default_factory=set)

    def change(self, task_id: UUID, **values: object) -> None:
        """Change a row of the queue."""
        self.tasks[task_id] = replace(self.tasks[task_id], **values)  # type: ignore[arg-type]

    def is_effective(self, worker: UUID, claimed: ClaimedTask) -> bool:
        """Return whether the claim still counts: what the worker writes for it is written."""
        task = self.tasks.get(claimed.task_id)
        is_its_own = task is not None and (task.token, task.holder) == (claimed.attempt, worker)
        return is_its_own and worker in self.workers

    def open_children(self, run_id: UUID) -> list[UUID]:
        """Return the tasks of a run's children, steps and executions."""
        return [task_id for task_id, task in self.tasks.items() if task.parent == run_id]

    def untaken(self, execution_id: str, name: str) -> list[int]:
        """Return the places of the events of a name that nobody has taken."""
        known = enumerate(self.events[execution_id])
        return [place for place, (other, _, taken_by) in known if other == name and taken_by is None]

    # What is committed --------------------------------------------------------------------------------------------

    def start(self, execution_id: str, run_id: UUID, parent: tuple[str, UUID] | None, *, is_bound: bool) -> None:
        """There is an execution, with its first run and its task."""
        parent_id, parent_run_id = parent or (None, None)
        self.executions[execution_id] = Execution(run_id, parent_id, is_bound)
        self.runs[run_id] = Run(execution_id)
        self.tasks[run_id] = Task(run_id, parent=parent_run_id)

    def claim(self, worker: UUID, claimed: Iterable[ClaimedTask], *, has_cleanup: bool) -> None:
        """The worker holds tasks."""
        for one in claimed:
            self.change(one.task_id, token=one.attempt, holder=worker)
            self.cleaners.discard(one.task_id)
            if has_cleanup:
                self.cleaners.add(one.task_id)
            if one.child is None:
                self.progress.discard(one.run_id)

    def record(self, run_id: UUID, name: str, value: str, *, is_child: bool = False) -> None:
        """There is a checkpoint."""
        assert (run_id, name) not in self.steps, "a checkpoint was written twice"
        self.steps[run_id, name] = value
        if not is_child:
            self.progress.add(run_id)

    def free(self, task_id: UUID, due: str, awaits: frozenset[str] | None, awaits_open: int | None) -> None:
        """A task was put down."""
        self.change(task_id, holder=None, due=due, awaits=awaits, awaits_open=awaits_open, crashes=0)

    def add(self, run_id: UUID, names: Iterable[str]) -> None:
        """The run has children, but for those that are done."""
        for name in names:
            if (run_id, name) not in self.steps:
                self.tasks.setdefault(child_id(run_id, name), Task(run_id, step=name, parent=run_id))

    def drop_children(self, run_id: UUID) -> None:
        """The run's scheduled steps are gone; the executions that it has started are not."""
        for task_id in self.open_children(run_id):
            if self.tasks[task_id].step is not None:
                del self.tasks[task_id]

    def end(self, run_id: UUID, outcome: str, *, keeps_failures: bool = False) -> None:
        """The run has ended: the one terminal transition."""
        assert self.runs[run_id].outcome is None, f"{self.runs[run_id]} has ended twice"
        self.runs[run_id] = replace(self.runs[run_id], outcome=outcome, keeps_failures=keeps_failures)
        del self.tasks[run_id]
        self.drop_children(run_id)

    def follow(self, old: UUID, new: UUID) -> None:
        """The executions that a run has started are another's now, and so is what is to be looked at."""
        for task_id, task in list(self.tasks.items()):
            if task.parent == old and task.step is None:
                self.change(task_id, parent=new)
        if old in self.debts:
            self.debts[new] |= self.debts.pop(old)

    def renew(self, old: UUID, new: UUID) -> None:
        """The run is followed by another one of its execution."""
        before, execution_id = self.tasks[old], self.runs[old].execution_id
        self.end(old, "completed")
        self.executions[execution_id] = replace(self.executions[execution_id], run_id=new)
        self.runs[new] = Run(execution_id)
        self.tasks[new] = Task(new, signals=before.signals, parent=before.parent)
        self.follow(old, new)
        if old in self.cleaners:
            self.cleaners.add(new)

    def cancel(self, run_ids: Iterable[UUID]) -> None:
        """Runs were cancelled; whoever waits for one of them has to look."""
        for run_id in run_ids:
            parent = self.tasks[run_id].parent
            self.end(run_id, "cancelled")
            if parent is not None:
                self.debts[parent].add(ANYONE)

    def resume(self, execution_id: str, new: UUID) -> None:
        """A failed execution goes on in a new run, with what succeeded."""
        execution = self.executions[execution_id]
        old = execution.run_id
        assert self.runs[old].outcome == "failed"
        self.executions[execution_id] = replace(execution, run_id=new)
        self.runs[new] = Run(execution_id)
        for (run_id, name), value in list(self.steps.items()):
            if run_id == old and (self.runs[old].keeps_failures or value in {"ok", GIVEN_UP}):
                self.steps[new, name] = value
        parent = None if execution.parent_id is None else self.executions[execution.parent_id].run_id
        has_events = any(taken_by is None for _, _, taken_by in self.events[execution_id])
        self.tasks[new] = Task(new, token=1, parent=parent, signals=int(has_events))
        self.follow(old, new)

    def tell_parent(self, execution_id: str) -> None:
        """Whoever has started an execution counts its children anew, since there may be one more."""
        execution = self.executions.get(execution_id)
        if execution is None or execution.parent_id is None:
            return
        run_id = self.executions[execution.parent_id].run_id
        task = self.tasks.get(run_id)
        if task is not None:
            waits = task.holder is None and task.awaits_open is not None
            self.change(run_id, signals=task.signals + 1, due=NOW if waits else task.due)

    def offer(self, execution_id: str, name: str, value: str) -> None:
        """There is an event; the run that awaits it is due."""
        run_id = self.executions[execution_id].run_id
        task = self.tasks[run_id]
        self.events[execution_id].append((name, value, None))
        is_awaited = task.holder is None and name in (task.awaits or ())
        self.change(run_id, due=NOW if is_awaited else task.due, signals=task.signals + 1)

    def take(self, run_id: UUID, step: str, name: str, value: str) -> None:
        """The first event of a name is taken."""
        execution_id = self.runs[run_id].execution_id
        place = self.untaken(execution_id, name)[0]
        assert self.events[execution_id][place][1] == value, "another event was taken than the first"
        self.events[execution_id][place] = (name, value, run_id)
        self.record(run_id, step, "ok")

    def bury(self, me: UUID, buried: Iterable[UUID]) -> None:
        """Workers are gone; who has buried them looks in their place."""
        gone = set(buried)
        self.workers -= gone
        self.dead -= gone
        for owers in self.debts.values():
            if owers & gone:
                owers.difference_update(gone)
                owers.add(me)

    def leave(self, worker: UUID, freed: Iterable[UUID]) -> None:
        """A worker has gone home."""
        self.workers.discard(worker)
        self.dead.discard(worker)
        for task_id in freed:
            self.change(task_id, holder=None, due=NOW)
