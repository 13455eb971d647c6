"""Exceptions as data: what a replay raises is what the first time raised."""

import json
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Self
from uuid import UUID, uuid4

import pytest

from zart_sqla.errors import ExecutionTimeout, RetryExhausted, StepError, StepFailed, StepTimeout
from zart_sqla.records import ErrorRecord
from zart_sqla.runtime.faults import (
    MAX_MESSAGE,
    business_record,
    error_from,
    message_of,
    record_of,
    step_error,
    step_timeout,
)
from zart_sqla.store.rows import error_from_json, error_to_json

if TYPE_CHECKING:
    from nowhere import Response  # type: ignore[import-not-found]


class Reason(StrEnum):
    """Why."""

    FUNDS = "funds"


class PlainDeclined(Exception):
    """Nothing but arguments."""


class DeclinedWithAttributes(Exception):
    """Builds its own message."""

    def __init__(self, reason: str, *, cents: int) -> None:
        self.reason = reason
        self.cents = cents
        super().__init__(f"declined: {reason} ({cents})")


class TypedDeclined(Exception):
    """Has annotated attributes."""

    amount: Decimal
    at: datetime
    id: UUID
    reason: Reason
    raw: bytes
    limit: Decimal | None

    def __init__(self, amount: Decimal, at: datetime, key: UUID) -> None:
        super().__init__("declined")
        self.amount = amount
        self.at = at
        self.id = key
        self.reason = Reason.FUNDS
        self.raw = b"\xff\x00"
        self.limit = None


@dataclass
class DataDeclined(Exception):
    """A dataclass."""

    reason: str
    amount: Decimal


@dataclass(frozen=True)
class FrozenDeclined(Exception):
    """A frozen dataclass."""

    reason: str
    amount: Decimal


@dataclass(slots=True)
class SlottedDeclined(Exception):
    """A dataclass whose attributes are slots."""

    reason: str
    amount: Decimal


class Stolen(DeclinedWithAttributes):
    """One of several kinds."""


class UnknownAnnotation(Exception):
    """Has an annotation that exists for type checkers only."""

    response: "Response"

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.response = {"code": code}


class UnstorableAnnotation(Exception):
    """Has an annotation that JSON cannot be made from."""

    socket: "Handle"
    code: int

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.socket = Handle()
        self.code = code


class WrongAnnotation(Exception):
    """Has a value that its annotation does not allow."""

    code: int

    def __init__(self) -> None:
        super().__init__()
        self.code = None  # type: ignore[assignment]


class Handle:
    """What JSON knows nothing of."""

    def __str__(self) -> str:
        return "a handle"


class NewWithArguments(Exception):
    """Takes its arguments in `__new__`."""

    code: int

    def __new__(cls, reason: str, code: int) -> Self:
        """Make one."""
        made = super().__new__(cls, reason)
        made.code = code
        return made


class MadeByKeyword(Exception):
    """Cannot be made from its own arguments."""

    code: int

    def __new__(cls, *, code: int) -> Self:
        """Make one."""
        made = super().__new__(cls)
        made.code = code
        return made

    def __init__(self, *, code: int) -> None:
        super().__init__(f"code {code}")


class BrokenText(Exception):
    """Has no text."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


def replayed(error: BaseException, declared: Iterable[type[BaseException]] | None = None) -> BaseException:
    """Return the error that a replay raises, after a journey through the database's text."""
    record = business_record("charge", error, attempts=2)
    return error_from(error_from_json(error_to_json(record)) or record, declared or [type(error)])


AMOUNT = Decimal("1.50")
ERRORS: list[BaseException] = [
    PlainDeclined(),
    PlainDeclined("no funds", 3, None, [1, {"a": 2}]),
    DeclinedWithAttributes("funds", cents=3),
    TypedDeclined(AMOUNT, datetime(2026, 1, 1, tzinfo=UTC), uuid4()),
    DataDeclined("funds", AMOUNT),
    FrozenDeclined("funds", AMOUNT),
    SlottedDeclined("funds", AMOUNT),
    Stolen("funds", cents=3),
    NewWithArguments("funds", 3),
    MadeByKeyword(code=3),
    KeyError("missing"),
    OSError(2, "no such file"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
]


@pytest.mark.parametrize("error", ERRORS, ids=[f"{i}-{type(error).__name__}" for i, error in enumerate(ERRORS)])
def test_declared_error_comes_back_as_itself(error: BaseException) -> None:
    """It has the type, the text and the attributes that it had."""
    again = replayed(error)
    assert type(again) is type(error)
    assert str(again) == str(error)
    known = [*vars(error), *getattr(type(error), "__dataclass_fields__", ())]
    assert {name: getattr(again, name) for name in known} == {name: getattr(error, name) for name in known}


def test_dataclass_matches() -> None:
    """It can be taken apart by `match`, as the first time."""
    match replayed(DataDeclined("funds", AMOUNT)):
        case DataDeclined(reason="funds", amount=amount):
            assert amount == AMOUNT
        case other:
            pytest.fail(f"{other!r} does not match")


def test_subclass_of_the_declared_type() -> None:
    """A subclass comes back as the subclass, wherever it stands."""
    assert type(replayed(Stolen("x", cents=1), [OSError, DeclinedWithAttributes])) is Stolen
    assert type(replayed(Stolen("x", cents=1), [Exception])) is Stolen


def test_attributes_that_json_does_not_know() -> None:
    """What JSON cannot express comes back as its text; it must not hide the error."""
    error = PlainDeclined("x")
    error.handle = Handle()  # type: ignore[attr-defined]
    error.number = float("nan")  # type: ignore[attr-defined]
    again: Any = replayed(error)
    assert (again.handle, again.number) == ("a handle", None)


def test_attributes_that_are_hostile() -> None:
    """Neither a cycle, nor a broken text, nor a lone surrogate keeps an error from being recorded."""
    error = PlainDeclined("\ud800 \x00")
    cycle: list[Any] = []
    cycle.append(cycle)
    error.cycle = cycle  # type: ignore[attr-defined]
    error.broken = BrokenText()  # type: ignore[attr-defined]
    again = replayed(error)
    assert type(again) is PlainDeclined


@pytest.mark.parametrize("error", [UnknownAnnotation(3), UnstorableAnnotation(3), WrongAnnotation()], ids=repr)
def test_annotations_that_do_not_help(error: BaseException) -> None:
    """An annotation that cannot be read, or does not fit, leaves the attribute as plain JSON."""
    again: Any = replayed(error)
    assert type(again) is type(error)
    assert getattr(again, "code", None) == getattr(error, "code", None)
    assert getattr(again, "response", None) == getattr(error, "response", None)


def test_attributes_without_annotation() -> None:
    """A value of a well-known type keeps it, as an argument and as an attribute."""
    at = datetime(2026, 1, 1, tzinfo=UTC)
    error = PlainDeclined(AMOUNT, at, b"\xff", {"$type": "Decimal", "value": "1"})
    error.limit = AMOUNT  # type: ignore[attr-defined]
    again: Any = replayed(error)
    assert again.args == error.args
    assert again.limit == AMOUNT


def test_arguments_that_its_own_type_refuses() -> None:
    """An error whose arguments somebody has changed comes back with those."""
    error = UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
    error.args = ("changed",)
    again = replayed(error)
    assert type(again) is UnicodeDecodeError
    assert again.args == ("changed",)


def test_notes_are_not_kept() -> None:
    """Notes are for the log of the process where it happened."""
    error = PlainDeclined("x")
    error.add_note("seen by the log")
    assert not hasattr(replayed(error), "__notes__")


def test_declared_no_more() -> None:
    """An error that the code does not declare any more comes back as StepFailed."""
    again = replayed(PlainDeclined("no funds"), [OSError])
    assert isinstance(again, StepFailed)
    known = (again.step, again.error_type, again.message, again.attempts)
    assert known == ("charge", "PlainDeclined", "no funds", 2)


@pytest.mark.parametrize("kind", [StepFailed, RetryExhausted])
def test_step_error(kind: type[StepError]) -> None:
    """It tells of its cause, and comes back without it."""
    cause = ValueError("no")
    error = step_error(kind, "charge", cause, attempts=3)
    assert error.cause is cause
    again = error_from(record_of(error), [])
    assert type(again) is kind
    assert again.cause is None
    assert str(again) == str(error)
    assert "ValueError: no" in "".join(traceback.format_exception(error))


def test_step_timeout() -> None:
    """It comes back as itself."""
    error = step_timeout("charge", timedelta(seconds=1.5), attempts=1)
    again = error_from(record_of(error), [])
    assert isinstance(again, StepTimeout)
    assert str(again) == str(error) == "step 'charge' timed out: it had not ended after 1.5 s"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("no"), ErrorRecord(error_type="ValueError", message="no")),
        (
            StepFailed("a", error_type="ValueError", message="no", attempts=2),
            ErrorRecord(error_type="ValueError", message="no", step="a", attempts=2, category="step_failed"),
        ),
        (
            ExecutionTimeout("look", timedelta(seconds=1)),
            ErrorRecord(
                error_type="ExecutionTimeout",
                message="'look' had not ended 1 s after its first turn began",
                category="execution_timeout",
            ),
        ),
    ],
    ids=["plain", "step", "timeout"],
)
def test_record_of(error: BaseException, expected: ErrorRecord) -> None:
    """An error is what those who await the run will hear of it."""
    assert record_of(error) == expected


def test_record_of_a_users_step_error() -> None:
    """A subclass that the app made of a step's error is recorded too."""

    class OurFailure(StepFailed):
        pass

    assert record_of(OurFailure("a", error_type="ValueError", message="no", attempts=1)).step == "a"


def test_message_of() -> None:
    """A text is kept as far as PostgreSQL can hold it, and a broken one is named."""
    assert message_of(ValueError("no")) == "no"
    assert message_of(ValueError("a\x00b\ud800c")) == "a\\x00b\\ud800c"
    assert len(message_of(ValueError("x" * 10**6))) == MAX_MESSAGE
    assert message_of(BrokenText()) == "(its text cannot be had: RuntimeError)"


def test_records_are_json() -> None:
    """A record's text is JSON that PostgreSQL takes: ASCII, without NUL."""
    text = error_to_json(business_record("charge", PlainDeclined("a\x00b\ud800"), attempts=1))
    assert text is not None
    assert text.isascii()
    assert "\\u0000" not in text.replace("\\\\u0000", "")
    json.loads(text)
