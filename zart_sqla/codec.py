"""How values become the text of a JSON column and come back as their declared type.

A value goes in through `Codec.pack`, which answers with the text *and* with what that text will be read back as.
Callers go on with the latter, so that the first time and a replay see the same value, and what would not survive
the journey is refused where it enters.
"""

from __future__ import annotations

import functools
import json
import re
import sys
import typing
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from types import UnionType
from typing import TYPE_CHECKING, Any, Final, Generic, NoReturn, TypeVar, cast, get_type_hints
from uuid import UUID

from pydantic import (
    BaseModel,
    ConfigDict,
    JsonValue,
    PydanticUserError,
    RootModel,
    TypeAdapter,
    ValidationError,
)
from pydantic_core import PydanticSerializationError

from zart_sqla.errors import ConfigError, InvalidDataError, InvalidNameError

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

MAX_DATA_BYTES: Final = 32 * 1024 * 1024
"""How long the JSON text of one value can be."""

MAX_NAME_BYTES: Final = 2000
MAX_INNER_NAME_BYTES: Final = 600
"""The same of names that are unique only within an execution: its id stands with them in the entries of an index."""
"""How long an id or a name can be in UTF-8: what an index entry of PostgreSQL holds."""

_CONFIG = ConfigDict(
    ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="constants", allow_inf_nan=False
)
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_MAX_PROBLEMS = 5
_MAX_PATH = 12


class Codec(Generic[T]):
    """Writes and reads the values of one declared type.

    Args:
        declared: the type as it is annotated. `Any` and `object` stand for plain JSON.

    Raises:
        ConfigError: JSON cannot be made from the type.
    """

    def __init__(self, declared: Any) -> None:
        self.declared = declared
        self._wrapper: type[RootModel[Any]] | None = None
        try:
            self._adapter = self._make_adapter(JsonValue if declared in (Any, object) else declared)
        except (PydanticUserError, TypeError) as error:
            raise ConfigError("annotation", expected="a type that JSON can be made from", actual=declared) from error

    def pack(self, value: object, *, subject: str) -> tuple[str, T]:
        """Return the JSON text of the value, and the value as that text will be read back.

        Args:
            value: the value.
            subject: what the value is, for the error.

        Raises:
            InvalidDataError: the value does not fit the type, or cannot be stored.
        """
        text = self._dump(value, subject)
        return text, self.unpack(text, subject=subject)

    def unpack(self, text: str, *, subject: str) -> T:
        """Return the value that the JSON text stands for.

        Raises:
            InvalidDataError: the text does not fit the type.
        """
        try:
            value: Any = self._adapter.validator.validate_json(text, strict=True)
        except ValidationError as error:
            raise InvalidDataError(subject, _problems(error)) from error
        return cast("T", value if self._wrapper is None else value.root)

    def _make_adapter(self, declared: Any) -> TypeAdapter[Any]:
        declared = _with_known_typed_dicts(declared)
        try:
            return TypeAdapter(declared, config=_CONFIG)
        except PydanticUserError as error:
            if error.code != "type-adapter-config-unused":
                raise
        if isinstance(declared, type) and issubclass(declared, BaseModel):
            return TypeAdapter(declared)
        # Dataclasses and typed dictionaries take their settings from what holds them.
        self._wrapper = type("Wrapper", (RootModel[declared],), {"model_config": _CONFIG})
        return TypeAdapter(self._wrapper)

    def _dump(self, value: object, subject: str) -> str:
        try:
            wrapped = value if self._wrapper is None else self._wrapper.model_construct(value)
            encoded = self._adapter.serializer.to_json(wrapped, warnings=False)
        except (PydanticSerializationError, RecursionError, AttributeError) as error:
            self._refuse(value, subject, error)
        text = encoded.decode()
        if "\N{REPLACEMENT CHARACTER}" in text:
            _refuse_lone_surrogates(self._adapter.serializer.to_python(wrapped, warnings=False), subject)
        return checked_json(text, subject=subject)

    def _refuse(self, value: object, subject: str, error: Exception) -> NoReturn:
        """Raise the error that says where in the value the trouble is, as far as the type's own check can tell."""
        try:
            self._adapter.validate_python(value)
        except ValidationError as invalid:
            raise InvalidDataError(subject, _problems(invalid)) from error
        except RecursionError:
            pass
        raise InvalidDataError(subject, [str(error)]) from error


def checked_json(text: str, *, subject: str) -> str:
    """Return the JSON text if PostgreSQL can hold it.

    Raises:
        InvalidDataError: it is too long, or has a NUL character or a number that JSON does not know.
    """
    if len(text) > MAX_DATA_BYTES // 4 and len(text.encode()) > MAX_DATA_BYTES:
        problem = f"its JSON text is {len(text.encode()):,} bytes long, at most {MAX_DATA_BYTES:,} can be stored"
        raise InvalidDataError(subject, [problem])
    if "\\u0000" in text and _NUL.search(text):
        raise InvalidDataError(subject, ["it has a NUL character (U+0000), which PostgreSQL cannot hold"])
    if "NaN" in text or "Infinity" in text:
        _refuse_constants(text, subject)
    return text


def _refuse_constants(text: str, subject: str) -> None:
    def refuse(constant: str) -> NoReturn:
        raise InvalidDataError(subject, [f"it has the number {constant}, which JSON cannot express"])

    json.loads(text, parse_constant=refuse)


def _refuse_lone_surrogates(data: Any, subject: str) -> None:
    """Refuse the keys in which Pydantic has replaced what UTF-8 cannot express; in values it refuses that itself."""
    kind: type[Any] = data.__class__
    if issubclass(kind, dict):
        for key in data:
            if isinstance(key, str) and _LONE_SURROGATE.search(key):
                problem = f"its key {key!a} has a lone surrogate, which UTF-8 cannot express"
                raise InvalidDataError(subject, [problem])
            _refuse_lone_surrogates(data[key], subject)
    elif issubclass(kind, list | tuple | set | frozenset):
        for value in data:
            _refuse_lone_surrogates(value, subject)


def _problems(error: ValidationError) -> list[str]:
    problems = [
        f"{_path(detail['loc'])}: {detail['msg']}"
        for detail in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    return problems if len(problems) <= _MAX_PROBLEMS else [*problems[:_MAX_PROBLEMS], f"and {len(problems)} in all"]


def _path(location: tuple[int | str, ...]) -> str:
    if not location:
        return "value"
    shown = ".".join(map(str, location[:_MAX_PATH]))
    return shown if len(location) <= _MAX_PATH else f"{shown}... ({len(location)} levels deep)"


if sys.version_info >= (3, 12):

    def _with_known_typed_dicts(declared: Any) -> Any:
        return declared

else:
    import typing_extensions

    def _with_known_typed_dicts(declared: Any) -> Any:
        """Return the type with each `typing.TypedDict` as one of typing_extensions, as Pydantic wants before 3.12."""
        if typing.is_typeddict(declared) and type(declared).__module__ == "typing":
            fields = {
                name: _with_known_typed_dicts(field)
                for name, field in get_type_hints(declared, include_extras=True).items()
            }
            optional = {name: typing_extensions.NotRequired[fields[name]] for name in declared.__optional_keys__}
            make: Any = typing_extensions.TypedDict
            return make(declared.__name__, {**fields, **optional})
        arguments = typing.get_args(declared)
        known = tuple(_with_known_typed_dicts(argument) for argument in arguments)
        if known == arguments:
            return declared
        origin = typing.get_origin(declared)
        return functools.reduce(lambda left, right: left | right, known) if origin is UnionType else origin[known]


@functools.lru_cache(maxsize=4096)
def _shared_codec(declared: Any) -> Codec[Any]:
    return Codec(declared)


def codec_for(declared: Any) -> Codec[Any]:
    """Return the codec of a type, made once for each type."""
    try:
        return _shared_codec(declared)
    except TypeError:  # an annotation that cannot be hashed
        return Codec(declared)


plain_json: Final[Codec[Any]] = codec_for(Any)
"""The codec for what has no annotation."""


class _TaggedCodec(Codec[Any]):
    """Writes a value of a well-known type together with the type's name, and other values as plain JSON."""

    _TAG: Final = "$type"
    _KINDS: Final = {kind.__name__: kind for kind in (datetime, date, time, timedelta, Decimal, UUID, bytes)}
    _PLAIN: Final = "json"  # of a value that could itself be taken for a tagged one

    def __init__(self) -> None:
        super().__init__(Any)

    def pack(self, value: object, *, subject: str) -> tuple[str, Any]:
        kind = type(value).__name__
        if self._KINDS.get(kind) is type(value):
            text, packed = codec_for(type(value)).pack(value, subject=subject)
        else:
            text, packed = plain_json.pack(value, subject=subject)
            if not self._is_tagged(packed):
                return text, packed
            kind = self._PLAIN
        return json.dumps({self._TAG: kind, "value": json.loads(text)}), packed

    def unpack(self, text: str, *, subject: str) -> Any:
        value: Any = super().unpack(text, subject=subject)
        if not self._is_tagged(value):
            return value
        kind = self._KINDS.get(value[self._TAG])
        return value["value"] if kind is None else codec_for(kind).unpack(json.dumps(value["value"]), subject=subject)

    def _is_tagged(self, value: object) -> bool:
        return isinstance(value, dict) and self._TAG in value


tagged_json: Final[Codec[Any]] = _TaggedCodec()
"""The codec for what has no annotation and yet is to keep its type, if that is a well-known one."""


def annotations_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the resolved annotations of a function.

    Raises:
        ConfigError: an annotation names something that does not exist.
    """
    try:
        return get_type_hints(function, include_extras=True)
    except NameError as error:
        name = getattr(function, "__qualname__", repr(function))
        raise ConfigError(
            f"annotations of {name}", expected="names that can be found in its module", actual=str(error)
        ) from error


def checked_name(noun: str, name: object, *, longest: int = MAX_NAME_BYTES) -> str:
    """Return the name if it can be stored and found again.

    Args:
        noun: what is being named.
        name: the name.
        longest: how many bytes it may have in UTF-8.

    Raises:
        InvalidNameError: it is not text, is empty or too long, or has a NUL character or a lone surrogate.
    """
    if not isinstance(name, str):
        raise InvalidNameError(noun, name, problem=f"is {type(name).__name__}, not text")
    if not name:
        raise InvalidNameError(noun, name, problem="is empty")
    if "\x00" in name:
        raise InvalidNameError(noun, name, problem="has a NUL character, which PostgreSQL cannot hold")
    try:
        size = len(name.encode())
    except UnicodeEncodeError:
        raise InvalidNameError(noun, name, problem="has a lone surrogate, which UTF-8 cannot express") from None
    if size > longest:
        raise InvalidNameError(noun, name, problem=f"is {size:,} bytes long, at most {longest:,} can be stored")
    return name
