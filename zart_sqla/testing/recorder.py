"""Where the checkpoints of one turn go in a simulated run."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from zart_sqla.runtime._signals import TurnSignal
from zart_sqla.runtime.outcomes import LeaseLost

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence
    from datetime import datetime

    from zart_sqla.records import Child, Ending, FailedAttempt, NewExecution, RecordedStep
    from zart_sqla.runtime.bridges import Bridge
    from zart_sqla.runtime.ports import StepTransaction
    from zart_sqla.testing.clock import VirtualClock
    from zart_sqla.testing.storage import Storage
    from zart_sqla.testing.transactions import Transactions
    from zart_sqla.testing.writes import Writes
    from zart_sqla.worker.threads import Threads

T = TypeVar("T")

_ROUNDS = 3  # of the loop, in which a turn that was stopped hears of it


class MemoryRecorder:
    """The `Recorder` of one turn of a simulated run. Each write goes through `write`, where the worker can die.

    Args:
        storage: the record of the run.
        clock: the time.
        writes: counts what is written.
        transactions: opens the transactions of steps.
        threads: where plain functions run.

    Attributes:
        storage: the record of the run.
        on_death: called when the worker dies in this turn.
    """

    def __init__(
        self,
        storage: Storage,
        clock: VirtualClock,
        *,
        writes: Writes,
        transactions: Transactions,
        threads: Threads,
    ) -> None:
        self.storage: Storage = storage
        self._clock = clock
        self._writes = writes
        self._transactions = transactions
        self._threads = threads
        self.on_death: Callable[[], object] = bool
        self._is_closed = False

    @property
    def short_wait(self) -> timedelta:
        """Nothing: each wait ends the turn, so that its time can be skipped."""
        return timedelta(0)

    def now(self) -> datetime:
        """Return the time by the run's clock."""
        return self._clock.now()

    def close(self) -> None:
        """Write nothing more: the turn is over."""
        self._is_closed = True

    def note_call(self, name: str) -> None:
        """Note that the function of a step is called."""
        self.storage.note_call(name)

    async def write(self, what: str, keep: Callable[[], T]) -> T:
        """Write something; return what is recorded then.

        Args:
            what: what it is, in words.
            keep: puts it into the record.

        Raises:
            TurnSignal: the worker dies here, or the turn is over; what is not written then never is.
        """
        await asyncio.sleep(0)  # others go on meanwhile, as they do while a database answers

        async def keep_at_once() -> T:
            return keep()

        return await self.commit(what, keep_at_once)

    async def commit(self, what: str, keep: Callable[[], Awaitable[T]]) -> T:
        """Do the same with something that takes its time to be put into the record.

        Raises:
            TurnSignal: as `write` does.
        """
        if self._is_closed:
            raise TurnSignal(LeaseLost())
        number = self._writes.begin()
        if self._writes.dies(number, what, is_after=False):
            await self._die()
        kept = await keep()
        if self._writes.dies(number, what, is_after=True):
            await self._die()
        return kept

    async def _die(self) -> NoReturn:
        self.close()
        self.on_death()
        for _ in range(_ROUNDS):
            await asyncio.sleep(0)
        raise TurnSignal(LeaseLost())

    async def record(self, step: RecordedStep, *, gives_up: Sequence[str] = ()) -> RecordedStep:
        """Keep a checkpoint."""

        def keep() -> RecordedStep:
            self.storage.give_up(gives_up)
            return self.storage.keep(step)

        return await self.write(checkpoint_of(step), keep)

    async def add_children(self, children: Sequence[Child]) -> None:
        """Keep children."""
        names = ", ".join(repr(child.name) for child in children)
        await self.write(f"the scheduled step {names}", lambda: self.storage.add(children))

    async def start_execution(self, step: RecordedStep, new: NewExecution) -> RecordedStep:
        """Start an execution, which is simulated beside the run."""
        what = f"the start of execution {new.execution_id!r}"
        return await self.write(what, lambda: self.storage.start(step, new))

    async def ending_of(self, execution_id: str) -> Ending | None:
        """Return how an execution stands."""
        return self.storage.endings.get(execution_id)

    async def emit(self, step: RecordedStep, stream: str, value: str) -> None:
        """Add a value to a stream."""
        await self.write(f"the value {step.name!r}", lambda: self.storage.emit(step, stream, value))

    async def take_event(self, wait: RecordedStep, name: str) -> RecordedStep:
        """Give the wait the first event of this name, if there is one."""
        if not self.storage.has_event({name}):
            return self.storage.take(wait, name)
        return await self.write(f"the event {wait.name!r}", lambda: self.storage.take(wait, name))

    async def record_attempt(self, failed: FailedAttempt) -> None:
        """Keep a failed attempt."""
        what = f"the failed attempt {failed.attempt} of step {failed.step!r}"
        await self.write(what, lambda: self.storage.attempts.append(failed))

    async def begin(self, bridge: Bridge | None) -> StepTransaction:
        """Begin a transaction in the test's database."""
        return await self._transactions.begin(self, bridge)

    async def in_thread(self, function: Callable[[], Any], *, is_body: bool) -> Any:
        """Call a function in a thread."""
        return await self._threads.call(function, is_body=is_body)


def checkpoint_of(step: RecordedStep) -> str:
    """Return, in words, what is written with this checkpoint."""
    return f"the checkpoint of {step.kind} {step.name!r}"
