"""What sessions are at: transactions that are not over, and what is known of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar
from uuid import UUID

from hypothesis import strategies as st
from sqlalchemy import create_engine, make_url, text

from tests.store.protocol.sessions import Session, Sessions
from zart_sqla import TableNames
from zart_sqla.models.mapping import tables_of
from zart_sqla.records import ClaimedTask

F = TypeVar("F", bound=Callable[..., None])

SESSIONS = 4
MOST_WORKERS = 3
RUN, CHILD, CLEANUP = KINDS = ("run", "child", "cleanup")
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

    @property
    def kind(self) -> str:
        """What the task is."""
        if self.task.is_cleanup:
            return CLEANUP
        return RUN if self.task.child is None else CHILD


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
        fence: the worker for which it has written, whose row it has locked against being deleted.
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


@dataclass(frozen=True, kw_only=True)
class Move:
    """One of the things that can happen.

    Attributes:
        name: the method that does it.
        weight: how often it is chosen, compared with others.
        needs: methods that all give something true where it can be chosen.
        choices: what it is called with.
    """

    name: str
    weight: int
    needs: Sequence[str]
    choices: st.SearchStrategy[dict[str, Any]]


def move(weight: int, *needs: str, **choices: st.SearchStrategy[Any]) -> Callable[[F], F]:
    """Make a method a move. The arguments are those of `Move`."""

    def mark(method: F) -> F:
        found = Move(name=method.__name__, weight=weight, needs=needs, choices=st.fixed_dictionaries(choices))
        method.move = found  # type: ignore[attr-defined]
        return method

    return mark


class World:
    """The database in which the machine runs again and again, each time the same way.

    Plans depend on what the server knows of the tables, and which rows are locked can depend on the plan. So nobody
    counts the rows meanwhile, and each history begins with new files.

    Args:
        url: the database, which has the tables.
    """

    def __init__(self, url: str) -> None:
        parsed = make_url(url).set(drivername="postgresql+psycopg")
        self._engine = create_engine(parsed, pool_size=SESSIONS + 1, connect_args={"prepare_threshold": None})
        self.names = TableNames()
        self.tables = tables_of(self.names)
        self.sessions = Sessions(self._engine, SESSIONS)
        t = self.tables
        self._all = [t.executions, t.execution_runs, t.tasks, t.steps, t.step_attempts, t.events, t.stream_items]
        for table in (*self._all, t.workers):
            self.sessions.observer.execute(text(f"ALTER TABLE {table.name} SET (autovacuum_enabled = false)"))

    def reset(self) -> None:
        """Begin anew."""
        self.sessions.calm()
        names = ", ".join(table.name for table in (*self._all, self.tables.workers))
        self.sessions.observer.execute(text(f"TRUNCATE {names}"))

    def close(self) -> None:
        """Close all connections."""
        self.sessions.close()
        self._engine.dispose()
