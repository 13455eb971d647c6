"""The codec: values become JSON text and come back as their declared type, or are refused where they enter."""

import json
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from typing import Annotated, Any, Literal, NamedTuple, NotRequired, TypedDict
from uuid import UUID

import pytest
import typing_extensions
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field

from zart_sqla import ConfigError, InvalidDataError
from zart_sqla.codec import MAX_DATA_BYTES, Codec, annotations_of, codec_for, plain_json

AT = datetime(2026, 1, 1, 12, 30, 0, 123456, tzinfo=UTC)


class Color(Enum):
    """An enum of mixed values."""

    RED = "red"
    GREEN = 2


class Size(IntEnum):
    """An enum of numbers."""

    SMALL = 1


class Kind(StrEnum):
    """An enum of text."""

    A = "a"


@dataclass
class Item:
    """A dataclass in another one."""

    sku: str
    photo: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """A dataclass with all that there is."""

    id: UUID
    cents: Decimal
    at: datetime
    color: Color
    items: list[Item]
    notes: dict[str, str | None] = field(default_factory=dict[str, str | None])
    parent: "Order | None" = None


class Address(TypedDict):
    """A typed dictionary of the standard library."""

    street: str
    seal: bytes
    floor: NotRequired[int]


class Loose(TypedDict, total=False):
    """A typed dictionary of which all may be missing."""

    address: Address


class Extended(typing_extensions.TypedDict):
    """A typed dictionary of typing_extensions."""

    at: datetime


class Point(NamedTuple):
    """A named tuple."""

    x: int
    raw: bytes = b"\xff"


class Model(BaseModel):
    """A Pydantic model."""

    id: UUID
    cents: Decimal
    size: Annotated[int, Field(gt=0)] = 1
    item: Item | None = None


class ModelWithBytes(BaseModel):
    """A Pydantic model that says how its bytes are written."""

    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")
    raw: bytes


KEY = UUID(int=7)
ORDER = Order(
    id=KEY,
    cents=Decimal("1.50"),
    at=AT,
    color=Color.GREEN,
    items=[Item("a", b"\xff\x00"), Item("b")],
    notes={"x": None},
    parent=Order(id=KEY, cents=Decimal(0), at=AT, color=Color.RED, items=[]),
)

ROUND_TRIPS: list[tuple[Any, Any]] = [
    (Order, ORDER),
    (list[Order], [ORDER]),
    (dict[str, Order], {"x": ORDER}),
    (Order | None, ORDER),
    (Order | None, None),
    (tuple[Order, int], (ORDER, 1)),
    (Model, Model(id=KEY, cents=Decimal("1.5"), item=Item("a", b"utf-8"))),
    (list[Model], [Model(id=KEY, cents=Decimal(1))]),
    (ModelWithBytes, ModelWithBytes(raw=b"\xff\x00")),
    (Address, {"street": "x", "seal": b"\xff"}),
    (Address, {"street": "x", "seal": b"", "floor": 3}),
    (list[Address], [{"street": "x", "seal": b"\xff"}]),
    (Address | None, {"street": "x", "seal": b"\xff"}),
    (Loose, {}),
    (Loose, {"address": {"street": "x", "seal": b"\xff"}}),
    (Extended, {"at": AT}),
    (Point, Point(1, b"\x80")),
    (list[Point], [Point(1)]),
    (datetime, AT),
    (datetime, datetime(2026, 1, 1)),  # noqa: DTZ001 - without a time zone it stays so
    (datetime, AT.astimezone(timezone(timedelta(hours=5, minutes=30)))),
    (datetime, datetime.max.replace(tzinfo=UTC)),
    (date, date(2026, 2, 28)),
    (time, time(1, 2, 3, 4)),
    (timedelta, timedelta(days=-1, microseconds=1)),
    (timedelta, timedelta.max),
    (UUID, KEY),
    (Decimal, Decimal("1.50")),
    (Decimal, Decimal("-1E+400")),
    (Decimal, Decimal("0.1") + Decimal("1e-30")),
    (Color, Color.RED),
    (Color, Color.GREEN),
    (Size, Size.SMALL),
    (Kind, Kind.A),
    (bytes, b""),
    (bytes, bytes(range(256))),
    (bytes | None, b"\xff"),
    (list[bytes], [b"\xff", b""]),
    (dict[str, bytes], {"x": b"\xff"}),
    (str, ""),
    (str, "\N{GRINNING FACE}'\"%_/:\\u0000\n\x01\x7f\ufffd"),
    (int, 2**63),
    (int, -(2**200)),
    (float, 1e308),
    (float, -0.0),
    (float, 5e-324),
    (bool, False),
    (None, None),
    (Literal["a", 1], 1),
    (list[int], []),
    (set[int], {1, 2}),
    (frozenset[UUID], frozenset({KEY})),
    (tuple[int, ...], (1, 2)),
    (tuple[int, str, bytes], (1, "a", b"\xff")),
    (dict[int, str], {1: "a"}),
    (dict[UUID, int], {KEY: 1}),
    (dict[Kind, int], {Kind.A: 1}),
    (dict[date, list[Decimal]], {date(2026, 1, 1): [Decimal("1.5")]}),
    (Mapping[str, int], {"a": 1}),
    (Sequence[int], [1, 2]),
    (int | str, "1"),
    (int | str, 1),
    (int | float, 1.0),
    (int | float, 1),
    (bool | int, 1),
    (Decimal | float, Decimal("1.5")),
    (Decimal | float, 1.5),
    (Item | Point, Point(1)),
    (list[int] | dict[str, int], {"a": 1}),
    (date | datetime, AT),
    (date | datetime, date(2026, 1, 1)),
    (UUID | None, KEY),
    (Any, None),
    (Any, {"a": [1, 2.5, "x", None, True, {}]}),
    (object, 7),
]


@pytest.mark.parametrize(("declared", "value"), ROUND_TRIPS, ids=[f"{i}-{d}" for i, (d, _) in enumerate(ROUND_TRIPS)])
def test_round_trip(declared: Any, value: Any) -> None:
    """The value comes back equal and of the same type, and the text is JSON that PostgreSQL takes."""
    codec: Codec[Any] = codec_for(declared)
    text, packed = codec.pack(value, subject="it")
    again = codec.unpack(text, subject="it")
    assert again == packed == value
    assert type(again) is type(packed) is type(value)
    json.loads(text, parse_constant=pytest.fail)


def test_typed_dictionary_fields_keep_their_types() -> None:
    """A field of a typed dictionary comes back as it is declared."""
    _, packed = codec_for(Address).pack({"street": "x", "seal": b"\xff", "floor": 3}, subject="it")
    assert packed == {"street": "x", "seal": b"\xff", "floor": 3}
    assert typing.get_type_hints(Address)["seal"] is bytes


REFUSED: dict[str, tuple[Any, Any, str]] = {
    "text for a number": (int, "1", "value: Input should be a valid integer"),
    "number for text": (str, 1, "value: Input should be a valid string"),
    "text for a truth": (bool, "true", "value: Input should be a valid boolean"),
    "fraction": (int, 1.5, "value: Input should be a valid integer"),
    "in a list": (list[int], [1, "x", 2], "1: Input should be a valid integer"),
    "in a dictionary": (dict[str, int], {"a": {"b": 1}}, "a: Input should be a valid integer"),
    "a key": (dict[int, int], {"x": 1}, r"x.\[key\]: Input should be a valid integer"),
    "in a dataclass": (Item, Item(3), "sku: Input should be a valid string"),  # type: ignore[arg-type]
    "deep in a dataclass": (
        list[Order],
        [Order(id=KEY, cents=Decimal(1), at=AT, color=Color.RED, items=[Item("a"), Item(None)])],  # type: ignore[arg-type]
        r"0\.items\.1\.sku: Input should be a valid string",
    ),
    "missing field": (Item, {}, "sku: Field required"),
    "missing key": (Address, {"street": "x"}, "seal: Field required"),
    "in a typed dictionary": (Address, {"street": 1, "seal": b""}, "street: Input should be a valid string"),
    "in a model": (Model, {"id": "x", "cents": "1"}, "id: Input should be a valid UUID"),
    "a model's own rule": (Model, Model.model_construct(id=KEY, cents=Decimal(1), size=0), "size: .*greater than 0"),
    "in a named tuple": (Point, ("x", b""), "0: Input should be a valid integer"),
    "no member": (Color, "blue", "value: Input should be 'red' or 2"),
    "no literal": (Literal["a"], "b", "value: Input should be 'a'"),
    "something for nothing": (None, 5, "value: Input should be null"),
    "nothing for something": (int, None, "value: Input should be a valid integer"),
    "wrong in each way": (int | bytes, 1.5, "int: .*valid integer; bytes: .*"),
    "naive text": (datetime, "soon", "value: Input should be a valid datetime"),
    "NaN": (float, float("nan"), "it has the number NaN, which JSON cannot express"),
    "infinity": (list[float], [float("inf")], "it has the number Infinity, which JSON cannot express"),
    "minus infinity": (Any, {"a": -float("inf")}, "it has the number -Infinity"),
    "decimal NaN": (Decimal, Decimal("NaN"), "value: Input should be a finite number"),
    "decimal infinity": (Decimal, Decimal("Infinity"), "value: Input should be a finite number"),
    "NUL": (str, "a\x00b", r"it has a NUL character \(U\+0000\), which PostgreSQL cannot hold"),
    "NUL in a key": (Any, {"\x00": 1}, "it has a NUL character"),
    "NUL after a backslash": (str, "\\\x00", "it has a NUL character"),
    "lone surrogate": (str, "\ud800", "surrogates not allowed"),
    "lone surrogate within": (Any, {"a": ["x\udfff"]}, "surrogates not allowed"),
    "lone surrogate in a key": (Any, {"a": [{"\ud800": 1}]}, "surrogate"),
    "lone surrogate in a field's key": (dict[str, int], {"x\udfff": 1}, "has a lone surrogate"),
    "too large a number": (Any, 10**5000, "number out of range"),
    "object": (Any, object(), "value: input was not a valid JSON value"),
    "object within": (list[Any], [1, object()], "object"),
    "function": (Any, {"f": print}, "f: input was not a valid JSON value"),
    "bytes of a model that is not told how to write them": (
        Model,
        Model(id=KEY, cents=Decimal(1), item=Item("a", b"\xff")),
        "invalid utf-8 sequence",
    ),
}


@pytest.mark.parametrize(("declared", "value", "message"), list(REFUSED.values()), ids=list(REFUSED))
def test_refused(declared: Any, value: Any, message: str) -> None:
    """What does not fit, or cannot be stored, is refused with the path to it."""
    with pytest.raises(InvalidDataError, match=f"^the thing cannot be stored: .*{message}") as caught:
        codec_for(declared).pack(value, subject="the thing")
    assert caught.value.subject == "the thing"
    assert isinstance(caught.value, ValueError)


def nested(levels: int) -> list[Any]:
    """Return a list in a list in a list."""
    value: list[Any] = ["NaN"]
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize("levels", [250, 1_000, 10_000, 100_000])
def test_nested_too_deeply(levels: int) -> None:
    """What is too deep for a JSON reader is refused in one line, and breaks nothing."""
    with pytest.raises(InvalidDataError) as caught:
        plain_json.pack(nested(levels), subject="it")
    assert len(str(caught.value)) < 500


def test_nested_deeply() -> None:
    """A hundred levels are fine."""
    assert plain_json.pack(nested(100), subject="it")[1] == nested(100)


def test_cycles() -> None:
    """What contains itself is refused."""
    cycle: list[Any] = []
    cycle.append(cycle)
    order = Order(id=KEY, cents=Decimal(1), at=AT, color=Color.RED, items=[])
    object.__setattr__(order, "parent", order)
    for codec, value in ((plain_json, cycle), (codec_for(list[Any]), cycle), (codec_for(Order), order)):
        with pytest.raises(InvalidDataError, match=r"(?i)cyclic|circular|recursion"):
            codec.pack(value, subject="it")


def test_keys_beside_replacement_characters() -> None:
    """A replacement character is text like any other; a lone surrogate that became one is found, however deep."""
    codec: Codec[Any] = codec_for(dict[str, list[dict[str, tuple[int, ...]]]])
    value = {"\ufffd": [{"\ufffd": (1, 2)}]}
    assert codec.pack(value, subject="it")[1] == value
    with pytest.raises(InvalidDataError, match="lone surrogate"):
        codec.pack({"a": [{"\ufffd": (1,)}, {"x\ud800": (1,)}]}, subject="it")


def test_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text can be as long as the limit, in bytes, and no longer."""
    assert MAX_DATA_BYTES == 32 * 1024 * 1024
    monkeypatch.setattr("zart_sqla.codec.MAX_DATA_BYTES", 1000)
    assert plain_json.pack("x" * 998, subject="it")[1] == "x" * 998
    for value in ("x" * 999, "\N{GRINNING FACE}" * 250):
        with pytest.raises(InvalidDataError, match="bytes long, at most 1,000 can be stored"):
            plain_json.pack(value, subject="it")


def test_many_problems() -> None:
    """Only the first of many problems are told, and how many there are."""
    with pytest.raises(InvalidDataError, match="and 100 in all") as caught:
        codec_for(list[int]).pack(["x"] * 100, subject="it")
    assert len(caught.value.problems) == 6


def test_long_path() -> None:
    """The path to something deep is shortened."""
    declared: Any = int
    value: Any = "x"
    for _ in range(20):
        declared, value = list[declared], [value]
    with pytest.raises(InvalidDataError, match=r"0\.0.*\.\.\. \(20 levels deep\): Input should be"):
        codec_for(declared).pack(value, subject="it")


def test_what_is_given_back() -> None:
    """Where the text changes a value, the changed one is given back at once."""
    assert plain_json.pack((1, {2: "x"}), subject="it")[1] == [1, {"2": "x"}]
    assert codec_for(float).pack(1, subject="it")[1] == 1.0
    assert codec_for(Item).pack({"sku": "a"}, subject="it")[1] == Item("a")
    assert codec_for(Color).pack("red", subject="it")[1] is Color.RED


def test_unpack_of_text_that_does_not_fit() -> None:
    """Text that an older code wrote is refused with the path, too."""
    with pytest.raises(InvalidDataError, match=r"the recorded result cannot be stored|the recorded result"):
        codec_for(Item).unpack('{"sku": 3}', subject="the recorded result")


class Unknown:
    """No type that JSON can be made from."""


@pytest.mark.parametrize("declared", [Unknown, list[Unknown], Unknown | None, 3], ids=str)
def test_types_that_are_no_json(declared: Any) -> None:
    """A type that JSON cannot be made from is refused when its codec is made."""
    with pytest.raises(ConfigError, match=r"^annotation: expected a type that JSON can be made from, got "):
        codec_for(declared)


def test_one_codec_for_each_type() -> None:
    """A codec is made once; a type that cannot be hashed has one too."""
    assert codec_for(list[Order]) is codec_for(list[Order])
    assert codec_for(Annotated[int, {"a": 1}]).pack(1, subject="it") == ("1", 1)


def test_annotations_of() -> None:
    """Annotations are resolved where the function stands."""

    def function(data: "Order") -> "list[Order]": ...  # type: ignore[empty-body]

    assert annotations_of(function) == {"data": Order, "return": list[Order]}


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(min_codepoint=1, max_codepoint=999)), inner),
    max_leaves=20,
)


@given(json_values)
def test_plain_json_is_an_identity(value: Any) -> None:
    """Every JSON value comes back as it is, down to the types of its numbers."""
    text, packed = plain_json.pack(value, subject="it")
    again = plain_json.unpack(text, subject="it")
    assert repr(again) == repr(packed) == repr(value)


# Not all that there are: before there was a zone's first offset of whole minutes, its seconds would be lost.
offsets = st.integers(-23, 23).map(lambda hours: timezone(timedelta(hours=hours, minutes=30)))
typed = st.sampled_from(
    [
        (list[UUID], st.lists(st.uuids())),
        (dict[str, Decimal], st.dictionaries(st.text("ab"), st.decimals(allow_nan=False, allow_infinity=False))),
        (set[bytes], st.sets(st.binary())),
        (tuple[datetime, ...], st.lists(st.datetimes(timezones=offsets)).map(tuple)),
        (list[timedelta | None], st.lists(st.timedeltas() | st.none())),
        (dict[date, time], st.dictionaries(st.dates(), st.times())),
        (list[int | float | str], st.lists(st.integers() | st.floats(-1e9, 1e9) | st.text("1.e-"))),
        (list[Item], st.lists(st.builds(Item, st.text("ab"), st.binary()))),
    ]
)


@given(st.data())
def test_typed_containers_are_identities(data: st.DataObject) -> None:
    """Every value of a typed container comes back equal, and a second journey changes nothing."""
    declared, strategy = data.draw(typed)
    value = data.draw(strategy)
    codec: Codec[Any] = codec_for(declared)
    _, packed = codec.pack(value, subject="it")
    assert packed == value
    assert codec.pack(packed, subject="it")[1] == packed


@given(st.text() | st.dictionaries(st.text(), st.text(st.characters(categories=["Cs", "Cc", "L"]))))
def test_any_text_is_stored_or_refused(value: Any) -> None:
    """Text of any kind either comes back as it is or is refused: nothing is replaced."""
    try:
        text, packed = plain_json.pack(value, subject="it")
    except InvalidDataError:
        return
    assert packed == value
    assert "\x00" not in text
