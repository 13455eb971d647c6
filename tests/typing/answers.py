"""What type checkers make of a step's error as a value."""

from dataclasses import dataclass
from typing import Any, assert_never, assert_type

from zart_sqla import Answer, BusinessErr, Ok, StepCall, StepError, ZartErr, outcome, step, step_or, step_or_else, sync


@dataclass
class CardDeclined(Exception):
    """An answer, not a fault."""

    reason: str


@step(raises=CardDeclined)
async def charge(cents: int) -> str:
    """Be an `async def` step."""
    return f"paid {cents}"


@step(raises=CardDeclined)
def fetch(number: int) -> list[int]:
    """Be a `def` step."""
    return [number]


def declined(error: CardDeclined) -> str:
    """Be a function for the error that the step declares."""
    return error.reason


async def refund(error: Exception) -> bytes:
    """Be an `async def` function for any error."""
    return str(error).encode()


async def outcomes() -> None:
    """An outcome is one of three, and `match` tells them apart, to the last."""
    answer = await outcome(charge(3))
    assert_type(answer, Ok[str] | BusinessErr | ZartErr)
    match answer:
        case Ok(payment):
            assert_type(payment, str)
        case BusinessErr(CardDeclined(reason=reason)):
            assert_type(reason, str)
        case BusinessErr(business):
            assert_type(business, Exception)
        case ZartErr(error):
            assert_type(error, StepError)
        case _:
            assert_never(answer)
    assert_type(await outcome(fetch.call(3)), Ok[list[int]] | BusinessErr | ZartErr)
    assert_type(await outcome(charge(3).named("x")), Ok[str] | BusinessErr | ZartErr)


async def as_in_the_contract() -> str:
    """Where the declared error is the only one, its case is all that is written."""
    match await outcome(charge(3)):  # pyright: ignore[reportMatchNotExhaustive] - for checkers it could be another
        case Ok(payment):
            return payment
        case BusinessErr(CardDeclined(reason=reason)):
            return reason
        case ZartErr(error):
            return error.message
    return ""


def describe(answer: Answer[list[int]]) -> list[int]:
    """Take an answer, and look at its attributes."""
    if isinstance(answer, Ok):
        assert_type(answer.value, list[int])
        return answer.value
    assert_type(answer, BusinessErr | ZartErr)
    error: Exception = answer.error
    return [len(error.args)]


async def defaults() -> None:
    """A default is of the step's type, or adds its own."""
    assert_type(await step_or(charge(3), "none"), str)
    assert_type(await step_or(charge(3), None), str | None)
    assert_type(await step_or(charge(3), 7), str | int)
    assert_type(await step_or(fetch.call(3), []), list[int])


async def replace(error: CardDeclined) -> str:
    """Be an `async def` function for the error that the step declares."""
    return await charge(len(error.reason))


async def functions() -> None:
    """So does what a function returns, at once or to be awaited; it may take the very error that the step declares."""
    assert_type(await step_or_else(charge(3), declined), str)
    assert_type(await step_or_else(charge(3), replace), str)
    assert_type(await step_or_else(charge(3), refund), str | bytes)
    assert_type(await step_or_else(charge(3), lambda _: "none"), str)
    assert_type(await step_or_else(charge(3), lambda _: None), str | None)
    assert_type(await step_or_else(fetch.call(3), lambda _: []), list[int])


async def functions_that_are_less_known(anything: Any) -> tuple[str, str, str]:
    """Where a checker knows less of the function, it may know less of the value, and has no objection."""
    reason: str = await step_or_else(charge(3), lambda error: error.reason)
    again: str = await step_or_else(charge(3), lambda _: charge(1))
    whatever: str = await step_or_else(charge(3), anything)
    return reason, again, whatever


async def wider() -> str | list[int] | None:
    """They fit where a wider type is awaited."""
    nothing: str | None = await step_or(charge(3), None)
    reason: str | None = await step_or_else(charge(3), lambda error: error.reason)
    other: str | list[int] = await step_or_else(charge(3), lambda _: fetch.call(1))
    return nothing or reason or other or await step_or_else(charge(3), replace)


def in_a_def_workflow() -> None:
    """The same holds without `await`."""
    assert_type(sync.outcome(charge(3)), Ok[str] | BusinessErr | ZartErr)
    assert_type(sync.step_or(fetch.call(3), []), list[int])
    assert_type(sync.step_or(charge(3), None), str | None)
    assert_type(sync.step_or_else(charge(3), declined), str)
    assert_type(sync.step_or_else(charge(3), refund), str | bytes)
    assert_type(sync.step_or_else(charge(3), lambda _: 7), str | int)


def covariance(call: StepCall[bool], answer: Answer[bool]) -> tuple[StepCall[int], Answer[int]]:
    """A call or an answer of a narrower type is one of a wider type."""
    return call, answer


async def refused() -> None:
    """What is no call of a step is told before anything runs."""
    await outcome(fetch(3))  # type: ignore[arg-type]
    await outcome("x")  # type: ignore[arg-type]
    await step_or(fetch(3), [])  # type: ignore[call-overload]
    await step_or_else(charge(3), 7)  # type: ignore[call-overload]
    Ok(3).value = 4  # type: ignore[misc]
