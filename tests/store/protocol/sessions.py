"""Sessions whose transactions interleave: each in a thread of its own, so that one can wait for another's lock."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Any

from sqlalchemy import Connection, Engine, text

_BLOCKERS = text("SELECT unnest(pg_blocking_pids(:pid))")
_UNHURRIED = text("SET LOCAL idle_in_transaction_session_timeout = 0")  # however busy the machine is
_MOMENT = 0.005
_CANCEL = text("SELECT pg_cancel_backend(:pid)")


class Session:
    """A connection with at most one transaction, of which one statement after the other is sent.

    Attributes:
        pid: the server's process.
        waiting: what has been sent and is not answered; None if nothing is.
    """

    def __init__(self, engine: Engine, number: int) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"session-{number}")
        self._connection = engine.connect()
        self.number = number
        self.pid: int = self._connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        self.waiting: Future[Any] | None = None
        # A circle is found by the machine, at once: the server would say so only after a while.
        self._connection.execute(text("SET deadlock_timeout = '1h'"))
        self._connection.commit()

    def __repr__(self) -> str:
        return f"session {self.number}"

    def send(self, function: Callable[[Connection], Any]) -> None:
        """Have something done; the answer comes later."""

        def do() -> Any:
            answer = function(self._connection)
            self._connection.execute(_UNHURRIED)
            return answer

        self.waiting = self._thread.submit(do)

    def commit(self) -> None:
        """Commit."""
        self._thread.submit(self._connection.commit).result()

    def rollback(self) -> None:
        """Roll back."""
        self._thread.submit(self._connection.rollback).result()

    def close(self) -> None:
        """Close the connection, whatever state it is in."""
        self._thread.shutdown()
        self._connection.close()


class Sessions:
    """All of them, and one that looks who waits for whom.

    Args:
        engine: where they connect.
        count: how many.
    """

    def __init__(self, engine: Engine, count: int) -> None:
        self.all = [Session(engine, number) for number in range(count)]
        self.observer = engine.connect().execution_options(isolation_level="AUTOCOMMIT")

    def close(self) -> None:
        """Close all connections."""
        self.calm()
        for session in self.all:
            session.close()
        self.observer.close()

    def calm(self) -> None:
        """Roll everything back, whatever is under way."""
        for session in self.all:
            if session.waiting is not None:
                self.interrupt(session)
        for session in self.all:
            session.waiting = None
            session.rollback()

    def interrupt(self, session: Session) -> None:
        """Cancel what a session waits for; return when it has heard of that."""
        assert session.waiting is not None
        while not session.waiting.done():
            self.observer.execute(_CANCEL, {"pid": session.pid})
            time.sleep(0.001)

    def is_blocked(self, session: Session) -> bool:
        """Return when the session has its answer, or waits for another one; tell whether it waits."""
        assert session.waiting is not None
        while not wait([session.waiting], _MOMENT).done:
            if self._blockers(session):
                return not session.waiting.done()
        return False

    def circle(self, session: Session) -> set[Session]:
        """Return the sessions that wait for each other in a circle with this one, none if there is no circle."""
        by_pid = {one.pid: one for one in self.all}
        waits_for = {one: {by_pid[pid] for pid in self._blockers(one)} for one in self.all if one.waiting is not None}

        def reached(start: Session) -> set[Session]:
            found: set[Session] = set()
            left = [start]
            while left:
                for other in waits_for.get(left.pop(), set()) - found:
                    found.add(other)
                    left.append(other)
            return found

        return {one for one in reached(session) if session in reached(one)}

    def _blockers(self, session: Session) -> list[int]:
        """Return the sessions, by their processes, for which this one waits; others hold no lock for long."""
        known = {one.pid for one in self.all}
        return [pid for pid in self.observer.scalars(_BLOCKERS, {"pid": session.pid}) if pid in known]
