"""`outcome`, `step_or`, `step_or_else`: a step's error as a value, the same on replay."""

import asyncio
import copy
from collections.abc import Callable
from dataclasses import FrozenInstanceError, dataclass, replace
from enum import Enum
from typing import Any

import pytest

from tests.unit.support.memory import LONG, SHORT, MemoryRun
from zart_sqla import (
    Answer,
    BusinessErr,
    NotInWorkflowError,
    Ok,
    Retry,
    RetryExhausted,
    StepCall,
    StepError,
    StepFailed,
    ZartErr,
    context,
    durable,
    outcome,
    sleep,
    step,
    step_or,
    step_or_else,
    sync,
)
from zart_sqla.runtime.outcomes import Cancelled, Completed, Failed, LeaseLost, Suspended
from zart_sqla.runtime.turn import StopReason


@dataclass
class CardDeclined(Exception):
    """An answer, not a fault."""

    reason: str


@step("charge-{card}", raises=CardDeclined)
async def charge(card: str) -> str:
    """Charge a card: a good one, an expired one, or one that nobody has thought of."""
    match card:
        case "good":
            return "paid"
        case "expired":
            raise CardDeclined("expired")
        case _:
            raise LookupError(card)


@step("fetch-{card}", raises=CardDeclined)
def fetch(card: str) -> str:
    """Do the same in a thread."""
    if card != "good":
        raise CardDeclined(card) if card == "expired" else LookupError(card)
    return "fetched"


@step("note-{text}")
async def note(text: str) -> str:
    """Be a step that follows."""
    return text


def describe(answer: Answer[str]) -> str:
    """Return which branch it is."""
    match answer:
        case Ok(value):
            return f"ok {value}"
        case BusinessErr(CardDeclined(reason=reason)):
            return f"declined {reason}"
        case BusinessErr(error):
            return f"business {type(error).__name__}"
        case ZartErr(error):
            return f"{type(error).__name__} {error.error_type}"


async def test_each_branch_is_followed_by_more() -> None:
    """Each of the three is the same on replay, and the steps that follow it run once."""
    branches: list[list[str]] = []

    @durable
    async def look() -> list[str]:
        found = [describe(await outcome(call)) for call in (charge("good"), charge("expired"), charge("lost"))]
        branches.append(found)
        await note(found[-1])
        await sleep("nap", LONG)
        return [*found, describe(await outcome(fetch.call("good").named("later")))]

    run = MemoryRun(look)
    expected = ["ok paid", "declined expired", "StepFailed LookupError"]
    assert await run.result() == [*expected, "ok fetched"]
    assert branches == [expected] * 3
    names = ["charge-good", "charge-expired", "charge-lost", "note-StepFailed LookupError", "nap", "later"]
    assert run.steps == names


async def test_every_failure_of_a_step() -> None:
    """A failure, an exhausted retry, a timeout and a result that cannot be kept are all `ZartErr`."""

    @step(retry=Retry.fixed(2, SHORT))
    async def flaky() -> None:
        raise OSError("down")

    @step(timeout=SHORT)
    async def hangs() -> None:
        await asyncio.Event().wait()

    @step(raises=ValueError)
    async def odd() -> int:
        return "text"  # type: ignore[return-value]

    @step(raises=CardDeclined)
    async def leaves() -> None:
        raise SystemExit(3)

    @durable
    async def look() -> list[str | int]:
        found: list[str | int] = []
        for call in (flaky(), hangs(), odd(), leaves()):
            match await outcome(call):
                case ZartErr(error):
                    found += [type(error).__name__, error.step, error.attempts]
                case other:
                    found.append(repr(other))
        return found

    kinds = ["RetryExhausted", "flaky", 3, "StepTimeout", "hangs", 1, "StepFailed", "odd", 1, "StepFailed", "leaves", 1]
    assert await MemoryRun(look).result() == kinds


async def test_cause_the_first_time() -> None:
    """Where it happened, a failure carries the error itself."""
    causes: list[object] = []

    @durable
    async def look() -> None:
        match await outcome(charge("lost")):
            case ZartErr(error):
                causes.append(error.cause)
            case _:
                causes.append("something else")

    await MemoryRun(look).result()
    assert [type(cause) for cause in causes] == [LookupError, type(None)]


async def test_declared_error_after_its_retries() -> None:
    """A declared error that a retry names is an answer when the retry is used up."""

    @step(raises=CardDeclined, retry=Retry.fixed(1, LONG, on=CardDeclined))
    async def decline() -> str:
        raise CardDeclined(f"attempt {context().attempt}")

    @durable
    async def look() -> str:
        return describe(await outcome(decline()))

    run = MemoryRun(look)
    assert isinstance(await run.turn(), Suspended)
    assert await run.result() == "declined attempt 2"


class OutOfStock(StepError):
    """A declared error that has been made a step's."""

    def __init__(self) -> None:
        super().__init__("elsewhere", error_type="OutOfStock", message="none left", attempts=1)


class OwnFailure(StepFailed):
    """The same, of a closer kin, which even names the step that raises it."""

    def __init__(self) -> None:
        super().__init__("reserve", error_type="OwnFailure", message="none left", attempts=1)


@pytest.mark.parametrize("error", [OutOfStock, OwnFailure])
async def test_declared_step_error(error: Callable[[], StepError]) -> None:
    """A declared error is an answer also where it is a `StepError`, and comes back as itself."""

    @step(raises=(OutOfStock, OwnFailure))
    async def reserve() -> str:
        raise error()

    @durable
    async def look() -> str:
        answer = describe(await outcome(reserve()))
        await sleep("nap", LONG)
        return answer

    assert await MemoryRun(look).result() == f"business {error.__name__}"


async def test_failure_where_every_step_error_is_declared() -> None:
    """What became of the step is no answer of it, even if it declares that type; a failure of another step is."""
    failures: list[StepError] = []

    @step(raises=StepError)
    async def fail() -> str:
        raise ValueError("no")

    @step(raises=StepError)
    async def pass_on() -> str:
        raise failures[-1]

    @durable
    async def look() -> list[str]:
        match await outcome(fail()):
            case ZartErr(error):
                failures.append(error)
            case other:
                return [describe(other)]
        return [describe(await outcome(pass_on()))]

    assert await MemoryRun(look).result() == ["business StepFailed"]


async def test_the_record_decides() -> None:
    """A later version of the code that declares something else takes the branch that was taken."""

    def version(*raises: type[Exception]) -> Any:
        @step(raises=raises)
        async def pay(card: str) -> str:
            raise CardDeclined(card) if card == "expired" else LookupError(card)

        @durable("pay")
        async def look() -> list[str]:
            answers = [await outcome(pay("expired")), await outcome(pay("lost"))]
            await sleep("nap", LONG)
            return [type(answer).__name__ for answer in answers]

        return look

    run = MemoryRun(version(CardDeclined))
    assert isinstance(await run.turn(), Suspended)
    run.recorder.time = run.recorder.steps["nap"].wake_at or run.recorder.time
    assert await run.turn(version(LookupError)) == Completed('["BusinessErr","ZartErr"]')


async def test_wait_for_a_retry_passes() -> None:
    """A step that has to wait ends the turn, whatever it declares, and no branch is taken yet."""
    branches: list[str] = []

    @step(raises=BaseException, retry=Retry.fixed(1, LONG, on=OSError))
    async def flaky() -> str:
        if not context().is_retry:
            raise OSError("down")
        return "up"

    @durable
    async def look() -> None:
        branches.append(describe(await outcome(flaky())))
        branches.append(await step_or(flaky(), "default"))

    run = MemoryRun(look)
    assert isinstance(await run.turn(), Suspended)
    assert branches == []
    assert await run.result() is None
    assert branches == ["ok up", "ok up", "up", "ok up", "up"]


async def test_lost_task_passes() -> None:
    """A task that is lost while the step is recorded ends the turn."""

    @durable
    async def look() -> str:
        return await step_or(charge("expired"), "default")

    run = MemoryRun(look)
    run.recorder.writes_left = 0
    assert await run.turn() == LeaseLost()


async def test_cancellation_passes() -> None:
    """A cancelled execution takes none of the branches."""
    started = asyncio.Event()
    branches: list[object] = []

    @step(raises=BaseException)
    async def hang() -> str:
        started.set()
        await asyncio.Event().wait()
        return "never"

    @durable
    async def look() -> None:
        branches.append(await step_or(hang(), "default"))

    assert await MemoryRun(look).stopped(StopReason.CANCELLED, started) == Cancelled()
    assert branches == []


async def test_other_code_passes() -> None:
    """A replay that meets another step stops the run."""

    def version(name: str) -> Any:
        @step(raises=Exception)
        async def work() -> str:
            return "done"

        @durable("work")
        async def look() -> str:
            answer = await step_or(work().named(name), "default")
            await sleep("nap", LONG)
            return answer

        return look

    run = MemoryRun(version("old"))
    assert isinstance(await run.turn(), Suspended)
    ending = await run.turn(version("new"))
    assert isinstance(ending, Failed)
    assert ending.error.error_type == "NonDeterminismError"


async def test_recorded_result_that_does_not_fit_passes() -> None:
    """That the record cannot be read is no error of the step's, though it declares that type."""

    @step(raises=Exception)
    async def count() -> int:
        return 3

    @durable
    async def look() -> int:
        number = await step_or(count(), 0)
        await sleep("nap", LONG)
        return number

    run = MemoryRun(look)
    assert isinstance(await run.turn(), Suspended)
    run.recorder.steps["count"] = replace(run.recorder.steps["count"], result='"three"')
    assert (await run.failure()).error.error_type == "InvalidDataError"


async def test_bad_name_passes() -> None:
    """A call that cannot be entered is no error of the step's either."""

    @step(raises=ValueError)
    async def work() -> str:
        return "done"

    @durable
    async def look() -> str:
        return await step_or(work().named(""), "default")

    assert (await MemoryRun(look).failure()).error.error_type == "InvalidNameError"


@pytest.mark.parametrize("other", ["paid", None, charge])
async def test_only_calls(other: Any) -> None:
    """Whatever is not the call of a step is refused before anything runs, in a workflow and outside."""

    async def refuse() -> str:
        with pytest.raises(NotInWorkflowError, match=r"^outcome\(.* takes calls of steps, .* or 'check\.call\(x\)'"):
            await outcome(other)
        with pytest.raises(NotInWorkflowError, match=r"^step_or\(.* takes calls of steps"):
            await step_or(other, 3)
        with pytest.raises(NotInWorkflowError, match=r"^step_or_else\(.* takes calls of steps"):
            await step_or_else(other, str)
        return "refused"

    run = MemoryRun(durable(refuse))
    assert await run.result() == "refused"
    assert run.steps == []
    assert await refuse() == "refused"


async def test_step_or() -> None:
    """The default is for every error, and for no value."""

    @step
    async def nothing() -> None: ...

    @durable
    async def look() -> list[str | None]:
        found = [await step_or(charge(card), "default") for card in ("good", "expired", "lost")]
        await sleep("nap", LONG)
        return [*found, await step_or(nothing(), "default")]

    assert await MemoryRun(look).result() == ["paid", "default", "default", None]


async def test_step_or_else() -> None:
    """The function gets the declared error; what it returns is the value, at once or when it is awaited."""

    async def note_reason(error: CardDeclined) -> str:
        await sleep(f"before {error.reason}", LONG)
        return await note(error.reason)

    @durable
    async def look() -> list[str]:
        return [
            await step_or_else(charge("good"), lambda _: "instead"),
            await step_or_else(charge("expired"), lambda error: f"instead of {error.reason}"),
            await step_or_else(charge("expired"), note_reason),
            await step_or_else(charge("expired"), lambda _: charge("good")),
            await step_or_else(charge("good"), note_reason),
        ]

    run = MemoryRun(look)
    assert await run.result() == ["paid", "instead of expired", "expired", "paid", "paid"]
    after = ["before expired", "note-expired", "charge-expired#3", "charge-good#2", "charge-good#3"]
    assert run.steps == ["charge-good", "charge-expired", "charge-expired#2", *after]


async def test_step_or_else_of_a_failure() -> None:
    """A failure propagates: the body can catch it, and if it does not, the run fails with the step."""

    @durable
    async def look() -> None:
        with pytest.raises(StepFailed, match="charge-lost"):
            await step_or_else(charge("lost"), lambda _: "instead")
        await step_or_else(charge("lost"), lambda _: "instead")

    error = (await MemoryRun(look).failure()).error
    assert (error.step, error.error_type, error.attempts) == ("charge-lost#2", "LookupError", 1)


@pytest.mark.parametrize("card", ["expired", "lost"])
async def test_raised_after_all(card: str) -> None:
    """An error that the body raises from an answer fails the run as the step's, and its retry is not for that."""

    @durable(retry=Retry.fixed(3, SHORT))
    async def look() -> None:
        answer = await outcome(charge(card))
        if not isinstance(answer, Ok):
            raise answer.error

    run = MemoryRun(look)
    assert (await run.failure()).error.step == f"charge-{card}"
    assert run.recorder.attempts == []


async def test_side_by_side() -> None:
    """In tasks of the body's own each gets its answer."""

    @durable
    async def look() -> list[str]:
        cards = ("good", "expired", "lost")
        return [describe(answer) for answer in await asyncio.gather(*(outcome(charge(card)) for card in cards))]

    assert await MemoryRun(look).result() == ["ok paid", "declined expired", "StepFailed LookupError"]


@pytest.mark.parametrize("kind", [charge, fetch.call])
async def test_outside_a_workflow(kind: Callable[[str], StepCall[str]]) -> None:
    """There every branch can be reached too, with the plain function."""
    assert describe(await outcome(kind("expired"))) == "declined expired"
    match await outcome(kind("lost")):
        case ZartErr(StepFailed(error_type="LookupError", message="lost", attempts=1) as error):
            assert isinstance(error.cause, LookupError)
        case other:
            pytest.fail(repr(other))
    assert isinstance(await outcome(kind("good")), Ok)
    assert [await step_or(kind(card), "default") for card in ("expired", "lost")] == ["default", "default"]
    assert await step_or_else(kind("expired"), lambda error: error.reason) == "expired"
    assert await step_or_else(kind("expired"), lambda _: note("instead")) == "instead"
    with pytest.raises(StepFailed, match="LookupError: lost"):
        await step_or_else(kind("lost"), lambda error: error.reason)


async def test_outside_a_workflow_signals_pass() -> None:
    """There an interruption is none of the three, and neither is a call that needs a workflow."""

    @step(raises=Exception)
    async def needs_a_workflow() -> str:
        return context().execution_id

    @step(raises=Exception)
    async def interrupted() -> str:
        raise asyncio.CancelledError

    with pytest.raises(NotInWorkflowError, match=r"^context\(\)"):
        await step_or(needs_a_workflow(), "default")
    with pytest.raises(asyncio.CancelledError):
        await step_or(interrupted(), "default")


async def test_in_another_step() -> None:
    """A step that a step calls is part of it, and so are its answers."""

    @step
    async def outer() -> list[str]:
        return [describe(await outcome(charge(card))) for card in ("good", "expired", "lost")]

    @durable
    async def look() -> list[str]:
        return await outer()

    run = MemoryRun(look)
    assert await run.result() == ["ok paid", "declined expired", "StepFailed LookupError"]
    assert run.steps == ["outer"]


async def test_in_a_def_workflow() -> None:
    """The twins without `await` do the same in a thread, and so may the function: it calls `def` steps as ever."""

    def fetch_good(error: CardDeclined) -> str:
        sync.sleep(f"before {error.reason}", LONG)
        return fetch("good")

    async def note_reason(error: CardDeclined) -> str:
        return await note(error.reason)

    @durable
    def look() -> list[str]:
        return [
            *(describe(sync.outcome(fetch.call(card))) for card in ("good", "expired", "lost")),
            *(sync.step_or(charge(card), "default") for card in ("good", "expired", "lost")),
            sync.step_or_else(charge("good"), fetch_good),
            sync.step_or_else(charge("expired"), fetch_good),
            sync.step_or_else(charge("expired"), note_reason),
            sync.step_or_else(charge("expired"), lambda _: note("instead")),
        ]

    run = MemoryRun(look)
    assert await run.result() == [
        *("ok fetched", "declined expired", "StepFailed LookupError"),
        *("paid", "default", "default"),
        *("paid", "fetched", "expired", "instead"),
    ]
    assert [run.recorder.steps[name].position for name in run.steps] == list(range(len(run.steps)))


async def test_failure_in_a_def_workflow() -> None:
    """There a failure propagates from `step_or_else`, and a wait for a retry from each of them."""

    @step(raises=BaseException, retry=Retry.fixed(1, LONG, on=OSError))
    def flaky() -> str:
        if context().is_retry:
            return "up"
        raise OSError("down")

    @durable
    def look() -> str:
        assert sync.step_or(flaky.call(), "default") == "up"
        return sync.step_or_else(fetch.call("lost"), str)

    run = MemoryRun(look)
    assert isinstance(await run.turn(), Suspended)
    assert (await run.failure()).error.step == "fetch-lost"


def test_sync_outside_a_workflow() -> None:
    """There the twins call the plain function."""
    assert [describe(sync.outcome(fetch.call(card))) for card in ("good", "expired")] == [
        "ok fetched",
        "declined expired",
    ]
    assert sync.step_or(charge("lost"), "default") == "default"
    assert sync.step_or_else(fetch.call("expired"), lambda _: fetch("good")) == "fetched"
    assert sync.step_or_else(fetch.call("expired"), lambda _: charge("good")) == "paid"
    with pytest.raises(StepFailed, match="LookupError: lost"):
        sync.step_or_else(fetch.call("lost"), str)


async def test_sync_in_an_async_workflow() -> None:
    """There the twins are refused, with what to write instead."""

    @durable
    async def look() -> str:
        with pytest.raises(NotInWorkflowError, match=r"here write 'await outcome\(\.\.\.\)'"):
            sync.outcome(charge("good"))
        with pytest.raises(NotInWorkflowError, match=r"here write 'await step_or\(\.\.\.\)'"):
            sync.step_or(charge("good"), "default")
        with pytest.raises(NotInWorkflowError, match=r"here write 'await step_or_else\(\.\.\.\)'"):
            sync.step_or_else(charge("good"), str)
        return "refused"

    run = MemoryRun(look)
    assert await run.result() == "refused"
    assert run.steps == []


@pytest.mark.parametrize(
    "answer",
    [
        Ok[int](3),
        BusinessErr(CardDeclined("x")),
        ZartErr(RetryExhausted("s", error_type="E", message="m", attempts=2)),
    ],
    ids=lambda answer: type(answer).__name__,
)
def test_answers_are_values(answer: Any) -> None:
    """An answer is frozen, has no attributes but its own, compares by them, and can be copied."""
    (name,) = answer.__match_args__
    assert answer == type(answer)(getattr(answer, name))
    assert copy.copy(answer) == answer  # as pickling does it
    assert not hasattr(answer, "__dict__")
    with pytest.raises(FrozenInstanceError):
        setattr(answer, name, None)


class Reason(Enum):
    """Why a card is declined."""

    EMPTY = "empty"


class DeclinedFor(Exception):
    """Has an attribute of which nothing says how it is kept."""

    def __init__(self, reason: Any) -> None:
        self.reason = reason
        super().__init__(reason)


async def test_attributes_are_those_of_a_replay() -> None:
    """What the body sees of a declared error is what is recorded, the first time too."""

    @step(raises=DeclinedFor)
    async def charge() -> None:
        raise DeclinedFor(Reason.EMPTY)

    @durable
    async def order() -> str:
        match await outcome(charge()):
            case BusinessErr(DeclinedFor(reason=Reason.EMPTY)):
                return "the enum"
            case BusinessErr(error):
                return f"{type(error).__name__} {error.args}"
            case _:
                return "no business error"

    assert await MemoryRun(order).result() == "DeclinedFor ('empty',)"
