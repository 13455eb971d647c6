"""What apps do to executions, in transactions that stay open for as long as they like."""

from uuid import UUID

from sqlalchemy import Connection, func, update

from tests.store.crew import new
from tests.store.protocol.model import LATER, Task
from tests.store.protocol.transactions import Transactions
from tests.store.protocol.work import HOUR, event_names, ids, move, places
from zart_sqla.records import (
    NewEvent,
)
from zart_sqla.store import events, executions


class Apps(Transactions):
    """Rules of apps."""

    @move(2, "_has_idle_or_app", at=places, execution_id=ids)
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

    @move(3, "_has_idle_or_app", at=places, execution_id=ids, name=event_names)
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

    @move(1, "_has_idle_or_app", at=places, execution_id=ids)
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
                work.effects.append(lambda: self._cancelled(ended))

        work.statements += 1  # it is more than one
        self._send(work, send, told)

    def _cancelled(self, ended: set[UUID]) -> None:
        """Note what follows: a task for each run whose handler has something to do then. It is put off here."""
        cleaned = ended & self.model.cleaners
        signals = {run_id: self.model.tasks[run_id].signals for run_id in ended}
        self.model.cancel(ended)
        table = self.world.tables.tasks
        new = (table.c.task_id != table.c.run_id) & table.c.step.is_(None) & table.c.run_id.in_(ended)
        found = self.observer.execute(
            update(table).values(due_at=func.now() + HOUR).where(new).returning(table.c.task_id, table.c.run_id)
        )
        runs = {row.task_id: row.run_id for row in found}
        assert sorted(runs.values()) == sorted(cleaned)
        for task_id, run_id in runs.items():
            self.model.tasks[task_id] = Task(run_id, token=1, due=LATER, signals=signals[run_id], is_cleanup=True)

    @move(2, "_has_idle_or_app", at=places, execution_id=ids)
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
            # Even if it is refused: the parent looks once too often then.
            if self.model.executions.get(execution_id) is not None:
                work.effects.append(lambda: self.model.tell_parent(execution_id))
            if is_resumed:
                work.touched |= set(self.model.executions)
                work.effects.append(lambda: self.model.resume(execution_id, run_id))
                work.effects.append(lambda: self.resumed.add(execution_id))
            work.locks |= set(self.model.tasks)

        work.statements += 1
        self._send(work, lambda connection: executions.resume(connection, self.names, execution_id, run_id), told)
