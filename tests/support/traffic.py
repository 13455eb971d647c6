"""What this process says to PostgreSQL, whichever of its engines says it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, Pool, event

_BEAT = "heartbeat_at="


class Traffic:
    """A record of all statements that were sent, and of the round trips around them.

    Attributes:
        statements: what SQLAlchemy executed, but for heartbeats.
        beats: the heartbeats.
        transactions: the BEGINs, COMMITs and the like; a statement without them is a transaction of its own.
        alone: how many of the statements are such.
        answered: to how many of the statements the database has answered.
    """

    def __init__(self) -> None:
        self.statements: list[str] = []
        self.beats: list[str] = []
        self.transactions: list[str] = []
        self.alone = 0
        self.answered = 0

    @property
    def committed(self) -> int:
        """How many transactions were committed."""
        return self.transactions.count("COMMIT") + self.alone

    @property
    def has_swept(self) -> bool:
        """Whether a worker has looked for the dead for the first time, and for what they have left behind."""
        return any(statement.startswith("WITH ready") for statement in self.statements)

    @property
    def is_settled(self) -> bool:
        """Whether all transactions that have begun are over. The driver tells of that a moment after it is so."""
        ended = self.transactions.count("COMMIT") + self.transactions.count("ROLLBACK")
        return self.transactions.count("BEGIN") <= ended

    def clear(self) -> None:
        """Count from nothing."""
        self.statements.clear()
        self.beats.clear()
        self.transactions.clear()
        self.alone = 0
        self.answered = 0

    def on_statement(self, statement: str, *, is_alone: bool) -> None:
        """Note a statement, and whether it is a transaction of its own."""
        if _BEAT in statement:
            self.beats.append(statement)
            return
        self.statements.append(statement)
        self.alone += is_alone

    def on_answer(self, statement: str) -> None:
        """Note that a statement has been answered."""
        self.answered += _BEAT not in statement

    def on_query(self, query: str) -> None:
        """Note what the driver sent by itself."""
        word = query.split(maxsplit=1)[0].strip(";").upper()
        if word in ("BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE"):
            self.transactions.append(word)


@contextmanager
def traffic() -> Iterator[Traffic]:
    """Yield the record of what this process says to PostgreSQL, over connections that are made from now on."""
    record = Traffic()

    def on_execute(connection: Connection, _cursor: Any, statement: str, *_rest: Any) -> None:
        is_alone = connection.get_execution_options().get("isolation_level") == "AUTOCOMMIT"
        record.on_statement(statement, is_alone=is_alone)

    def on_executed(_connection: Connection, _cursor: Any, statement: str, *_rest: Any) -> None:
        record.on_answer(statement)

    def on_connect(connection: Any, _record: Any) -> None:
        connection.driver_connection.add_query_logger(lambda logged: record.on_query(logged.query))

    event.listen(Engine, "before_cursor_execute", on_execute)
    event.listen(Engine, "after_cursor_execute", on_executed)
    event.listen(Pool, "connect", on_connect)
    try:
        yield record
    finally:
        event.remove(Engine, "before_cursor_execute", on_execute)
        event.remove(Engine, "after_cursor_execute", on_executed)
        event.remove(Pool, "connect", on_connect)
