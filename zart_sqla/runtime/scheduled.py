"""Steps that run as tasks of their own, on any worker, and waiting for them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from zart_sqla.errors import ConfigError, NonDeterminismError, NotInWorkflowError
from zart_sqla.records import Child, RecordedStep, StepKind
from zart_sqla.runtime import arguments
from zart_sqla.runtime.answers import answer_of, outcome
from zart_sqla.runtime.context import body_turn
from zart_sqla.runtime.steps import check_call

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Sequence

    from zart_sqla.runtime.answers import Answer
    from zart_sqla.runtime.journal import Place
    from zart_sqla.runtime.steps import StepCall
    from zart_sqla.runtime.turn import Turn

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Scheduled(Generic[T_co]):
    """A step that `schedule` has made a task of its own. Awaited, it gives the step's value, or raises its error.

    Attributes:
        name: its name in the run.
    """

    __slots__ = ("_call", "_place", "name")

    def __init__(self, call: StepCall[T_co], place: Place | None) -> None:
        self.name: str = call.name if place is None else place.name
        self._call = call
        self._place = place

    def __repr__(self) -> str:
        return f"<scheduled step {self.name!r}>"

    def __await__(self) -> Generator[Any, None, T_co]:
        return self._value().__await__()

    @property
    def recorded(self) -> RecordedStep | None:
        """What is recorded for it, None if it was not done when this turn of the run began."""
        return None if self._place is None else self._place.recorded

    @property
    def call(self) -> StepCall[T_co]:
        """The call that was scheduled."""
        return self._call

    async def _value(self) -> T_co:
        turn = body_turn()
        if turn is None or self._place is None:
            return await self._call
        await _done(turn, [self], 1)
        return turn.replayed(cast("RecordedStep", self.recorded), self._call)


def schedule(call: StepCall[T]) -> Scheduled[T]:
    """Make a step a task of its own, which any worker may run, and go on at once.

    It has its own retry, timeout and `trx()`, and its checkpoint in the run, as if it had been called. To wait for it,
    await what this returns, or give it to `wait`, `wait_any` or `wait_first_n`. When the body ends, what it has
    scheduled and not waited for is cancelled.

    Outside a workflow the step is the plain function, which is called when it is waited for.

    Args:
        call: the call, not awaited yet; of a `def` step, `f.call(...)`. The step is a function of a module, not of
            another function, and its arguments are stored, typed by their annotations.

    Raises:
        ConfigError: the step cannot be found by the name of its module and its own.
        InvalidDataError: an argument does not fit its annotation, or cannot be stored.
        NotInWorkflowError: something else than the call of a step was given; or it is called in a `def` workflow,
            which has `zart_sqla.sync.schedule`.
    """
    turn = body_turn()
    if turn is not None and not turn.is_async:
        raise NotInWorkflowError("schedule(...)", "is for 'async def' workflows: here use 'zart_sqla.sync.schedule'")
    return _scheduled(turn, call)


async def scheduled_here(call: StepCall[T]) -> Scheduled[T]:
    """Do the same for a `def` workflow, on the worker's loop."""
    return _scheduled(body_turn(), call)


def _scheduled(turn: Turn | None, call: StepCall[T]) -> Scheduled[T]:
    check_call("schedule", call)
    if turn is None:
        return Scheduled(call, None)
    text = arguments.pack(call, turn.handler.module)
    place = turn.enter(call.name, StepKind.CHILD, is_own=call.has_own_name)
    if place.recorded is None and place.name not in turn.children.open:
        turn.children.add(Child(name=place.name, position=place.position, call=text))
    return Scheduled(call, place)


async def wait(handles: Iterable[Scheduled[T]]) -> list[Answer[T]]:
    """Wait until all of these steps are done, and return what each of them answers, in this order.

    Args:
        handles: what `schedule` returned. There may be none.
    """
    wanted = _checked("wait", handles)
    turn = body_turn()
    if turn is None:
        return [await outcome(handle.call) for handle in wanted]
    await _done(turn, wanted, len(_distinct(wanted)))
    return [_answer(turn, handle) for handle in wanted]


async def wait_any(handles: Iterable[Scheduled[T]]) -> tuple[Answer[T], list[Scheduled[T]]]:
    """Wait until one of these steps is done; return what it answers, and the others, which go on.

    Which was the first is recorded: it is the first on replay too.

    Args:
        handles: what `schedule` returned, at least one.

    Raises:
        ConfigError: there is none to wait for.
    """
    wanted = _checked("wait_any", handles)
    [first] = await _first(wanted, 1, "wait_any", gives_up=False)
    turn = body_turn()
    answer = await outcome(first.call) if turn is None else _answer(turn, first)
    return answer, [handle for handle in wanted if handle is not first]


async def wait_first_n(handles: Iterable[Scheduled[T]], n: int) -> list[Answer[T]]:
    """Wait until so many of these steps are done, cancel the others, and return what those answer.

    Which they were is recorded: they are the same on replay.

    Args:
        handles: what `schedule` returned.
        n: how many to wait for.

    Returns:
        The answers, that of the first to be done first.

    Raises:
        ConfigError: there are not so many.
    """
    wanted = _checked("wait_first_n", handles)
    winners = await _first(wanted, n, "wait_first_n", gives_up=True)
    turn = body_turn()
    return [await outcome(handle.call) if turn is None else _answer(turn, handle) for handle in winners]


def _checked(caller: str, handles: Iterable[Scheduled[T]]) -> list[Scheduled[T]]:
    listed: list[Any] = list(handles)
    for handle in listed:
        if not isinstance(handle, Scheduled):
            raise NotInWorkflowError(
                f"{caller}({type(handle).__name__})", "takes a list of what 'schedule(...)' has returned"
            )
    return listed


async def _done(turn: Turn, wanted: Sequence[Scheduled[Any]], count: int) -> None:
    """Return if so many of them are done; if not, end the turn until they are."""
    turn.arrive()
    distinct = _distinct(wanted)
    missing = count - sum(handle.recorded is not None for handle in distinct)
    if missing > 0:
        # What this turn has given up is done. The next one will see what is recorded for it.
        given_up = sum(handle.recorded is None and handle.name not in turn.children.open for handle in distinct)
        with turn.calls.under_way():
            await turn.children.written()
            await turn.pause(None, awaits_done=max(0, missing - given_up))


async def _first(wanted: Sequence[Scheduled[T]], n: int, name: str, *, gives_up: bool) -> list[Scheduled[T]]:
    """Return the first `n` of them to be done."""
    distinct = _distinct(wanted)
    if not (name == "wait_first_n" and n == 0) and not 1 <= n <= len(distinct):
        raise ConfigError(name, expected=f"at least {n if n > 0 else 1} scheduled steps", actual=len(distinct))
    turn = body_turn()
    if turn is None:
        return distinct[:n]
    place = turn.enter(name, StepKind.CHOICE)
    recorded = place.recorded
    if recorded is None:
        await _done(turn, wanted, n)
        winners = sorted((handle for handle in distinct if handle.recorded), key=_done_first)[:n]
        losers = [handle.name for handle in distinct if handle.recorded is None] if gives_up else []
        recorded = await _record(turn, place, [handle.name for handle in winners], losers)
    chosen = _chosen(turn, place, distinct, json.loads(recorded.result or "[]"))
    await _done(turn, chosen, n)
    return chosen


def _chosen(turn: Turn, place: Place, handles: Sequence[Scheduled[T]], names: Sequence[str]) -> list[Scheduled[T]]:
    """Return those of the handles that are recorded as the first."""
    by_name = {handle.name: handle for handle in handles}
    for name in names:
        if name not in by_name:
            called = f"{place.name} (without {name})"
            raise turn.diverge(NonDeterminismError(place.position or 0, recorded=place.name, called=called))
    return [by_name[name] for name in names]


async def _record(turn: Turn, place: Place, winners: Sequence[str], losers: Sequence[str]) -> RecordedStep:
    with turn.calls.under_way():
        if losers:  # what has only just been scheduled could not be given up
            await turn.children.written()
        step = RecordedStep(
            name=place.name,
            kind=place.kind,
            position=place.position,
            result=json.dumps(winners),
            started_at=turn.recorder.now(),
        )
        recorded = await turn.record(step, gives_up=losers)
        turn.children.open.difference_update(losers)
        return recorded


def _done_first(handle: Scheduled[Any]) -> tuple[Any, ...]:
    recorded = cast("RecordedStep", handle.recorded)
    return recorded.completed_at, recorded.position is None, recorded.position, recorded.name


def _distinct(handles: Sequence[Scheduled[T]]) -> list[Scheduled[T]]:
    return list(dict.fromkeys(handles))


def _answer(turn: Turn, handle: Scheduled[T]) -> Answer[T]:
    return answer_of(turn, handle.call, cast("RecordedStep", handle.recorded))
