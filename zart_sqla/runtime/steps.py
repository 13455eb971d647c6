"""Steps: functions whose results are checkpoints."""

from __future__ import annotations

import asyncio
import inspect
import string
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, Self, TypeVar, cast, overload

from zart_sqla.codec import annotations_of, codec_for, plain_json
from zart_sqla.durations import to_positive_timedelta
from zart_sqla.errors import ConfigError, NotInWorkflowError
from zart_sqla.records import StepKind
from zart_sqla.runtime import stand_ins
from zart_sqla.runtime.context import body_turn
from zart_sqla.runtime.retry import checked_retry, error_types

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator
    from datetime import timedelta

    from zart_sqla.codec import Codec
    from zart_sqla.durations import Duration
    from zart_sqla.runtime.retry import ErrorTypes, Retry

P = ParamSpec("P")
Q = ParamSpec("Q")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class Step(Generic[P, T]):
    """A function whose result is a checkpoint when a workflow calls it.

    Outside a workflow, and within another step, it is the plain function. Make one with `step`.

    Attributes:
        function: the function itself.
        kind: what its checkpoints are.
        retry: when a failed attempt is made again.
        timeout: how long an attempt may take; None: as long as it does.
        heartbeat: how long an attempt may take between two calls of `progress()`; None: as long as it does.
        raises: the errors that are answers, not faults.
        signature: the parameters of the function.
        bound: the arguments that each call begins with: of a method, its object.
    """

    def __init__(  # noqa: PLR0913 - the options of the decorator
        self,
        function: Callable[P, Any],
        *,
        name: str | None = None,
        kind: StepKind = StepKind.STEP,
        retry: Retry | None = None,
        timeout: Duration | None = None,
        heartbeat: Duration | None = None,
        raises: ErrorTypes = (),
        bound: tuple[Any, ...] = (),
    ) -> None:
        self.function = function
        self.kind = kind
        self.retry: Retry = checked_retry(retry)
        self.timeout: timedelta | None = _limit("timeout", timeout)
        self.heartbeat: timedelta | None = _limit("heartbeat", heartbeat)
        self.raises: tuple[type[BaseException], ...] = error_types("raises", raises)
        self.is_async: bool = inspect.iscoroutinefunction(function)
        self.signature: inspect.Signature = inspect.signature(function)
        self._template = name if name is not None else function.__name__
        self.is_templated: bool = _fields_of(self._template, self.signature, function.__name__)
        self.bound: tuple[Any, ...] = bound
        self._codec: Codec[T] | None = None
        self.__doc__ = function.__doc__
        self.__name__: str = function.__name__
        self.__qualname__ = function.__qualname__
        self.__module__ = function.__module__
        self.__wrapped__ = function

    def __repr__(self) -> str:
        return f"<step {self._template!r}: {self.__module__}.{self.__qualname__}>"

    @property
    def codec(self) -> Codec[T]:
        """The codec of the function's declared result."""
        if self._codec is None:
            annotations = annotations_of(self.function)
            self._codec = codec_for(annotations["return"]) if "return" in annotations else plain_json
        return self._codec

    def call(self, *args: P.args, **kwargs: P.kwargs) -> StepCall[T]:
        """Return the call, to be awaited; the function has not run yet."""
        return StepCall(self, (*self.bound, *args), kwargs)

    def name_for(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """Return the name of a call with these arguments.

        Raises:
            TypeError: the function does not take such arguments.
        """
        if not self.is_templated:
            return self._template
        arguments = self.signature.bind(*args, **kwargs)
        arguments.apply_defaults()
        return self._template.format(**arguments.arguments)

    def _bound_to(self, instance: object) -> Any:
        return type(self)(
            self.function,
            name=self._template,
            kind=self.kind,
            retry=self.retry,
            timeout=self.timeout,
            heartbeat=self.heartbeat,
            raises=self.raises,
            bound=(instance,),
        )


class AsyncStep(Step[P, T]):
    """A step made from an `async def`."""

    @overload
    def __get__(self, instance: None, owner: type | None = None) -> Self: ...
    @overload
    def __get__(
        self: AsyncStep[Concatenate[Any, Q], T], instance: object, owner: type | None = None
    ) -> AsyncStep[Q, T]: ...
    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return self if instance is None else self._bound_to(instance)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> StepCall[T]:
        """Return the call, to be awaited."""
        return StepCall(self, (*self.bound, *args), kwargs)


class SyncStep(Step[P, T]):
    """A step made from a `def`."""

    @overload
    def __get__(self, instance: None, owner: type | None = None) -> Self: ...
    @overload
    def __get__(
        self: SyncStep[Concatenate[Any, Q], T], instance: object, owner: type | None = None
    ) -> SyncStep[Q, T]: ...
    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return self if instance is None else self._bound_to(instance)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> T:
        """Return the step's value.

        Raises:
            NotInWorkflowError: it is called in an `async def` workflow, which has to await `.call(...)`.
        """
        call = self.call(*args, **kwargs)
        turn = body_turn()
        if turn is None:
            return cast("T", call.invoke())
        if turn.is_async:
            raise NotInWorkflowError(
                f"{self.__name__}(...)",
                f"is a plain 'def' step: in an 'async def' workflow write 'await {self.__name__}.call(...)'",
            )
        return turn.bridge(turn.run_step(call))


class StepCall(Generic[T_co]):
    """The call of a step, which runs when it is awaited.

    Attributes:
        step: the step.
        args: its positional arguments.
        kwargs: its keyword arguments.
        name: the name it will have in the run, before a number is added.
        has_own_name: whether the name is its own, given or filled from its arguments, and not that of all such calls.
    """

    __slots__ = ("args", "has_own_name", "kwargs", "name", "step")

    def __init__(
        self, step: Step[..., T_co], args: tuple[Any, ...], kwargs: dict[str, Any], name: str | None = None
    ) -> None:
        self.step: Step[..., T_co] = step
        self.args: tuple[Any, ...] = args
        self.kwargs: dict[str, Any] = kwargs
        self.name: str = step.name_for(args, kwargs) if name is None else name
        self.has_own_name: bool = step.is_templated or name is not None

    def named(self, name: str) -> StepCall[T_co]:
        """Return the same call under this name."""
        return StepCall(self.step, self.args, self.kwargs, name)

    def __await__(self) -> Generator[Any, None, T_co]:
        turn = body_turn()
        return (self.run_plainly() if turn is None else turn.run_step(self)).__await__()

    async def run_plainly(self) -> T_co:
        """Return what the function returns, without a checkpoint."""
        if self.step.is_async:
            return cast("T_co", await self.invoke())
        return cast("T_co", await asyncio.to_thread(self.invoke))

    def invoke(self) -> Any:
        """Return what the function returns, or what stands in for it: of an `async def` something to await."""
        return stand_ins.call(self.step.function, self.args, self.kwargs)


def check_call(caller: str, call: object) -> None:
    """Check that a function which takes calls of steps was given one.

    Raises:
        NotInWorkflowError: it was not.
    """
    if not isinstance(call, StepCall):
        raise NotInWorkflowError(
            f"{caller}({type(call).__name__})",
            "takes calls of steps, such as 'check(x)', or 'check.call(x)' of a 'def' step",
        )


class _StepDecorator:
    """What `step(...)` with options returns."""

    def __init__(self, name: str | None, options: dict[str, Any]) -> None:
        self._name = name
        self._options = options

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, T]]) -> AsyncStep[P, T]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, function: Callable[P, T]) -> SyncStep[P, T]: ...
    def __call__(self, function: Callable[..., Any]) -> Any:
        if not callable(function) or not hasattr(function, "__name__"):
            raise ConfigError("step", expected="a function", actual=function)
        kind: Any = AsyncStep if inspect.iscoroutinefunction(function) else SyncStep
        return kind(function, name=self._name, **self._options)


@overload
def step(function: Callable[P, Coroutine[Any, Any, T]], /) -> AsyncStep[P, T]: ...  # type: ignore[overload-overlap]
@overload
def step(function: Callable[P, T], /) -> SyncStep[P, T]: ...
@overload
def step(
    name: str | None = None,
    /,
    *,
    retry: Retry | None = None,
    timeout: Duration | None = None,
    heartbeat: Duration | None = None,
    raises: ErrorTypes = (),
) -> _StepDecorator: ...
def step(
    function: Callable[..., Any] | str | None = None,
    /,
    *,
    retry: Retry | None = None,
    timeout: Duration | None = None,
    heartbeat: Duration | None = None,
    raises: ErrorTypes = (),
) -> Any:
    """Make a function a step: in a workflow its result is recorded, and it never runs again once it is.

    It can be used bare, as `@step`, or with options. The result is typed by the function's annotation.

    Args:
        function: the function; or the name of the step, in which `{parameter}` is filled from the arguments.
            Default: the function's name.
        retry: when a failed attempt is made again. Default: never.
        timeout: how long one attempt may take. It is final: a step that timed out is not retried.
        heartbeat: how long one attempt may take between two calls of `progress()`. One that takes longer is stuck, and
            has failed with `StepStalled`: the retry decides what follows. Default: a step may be silent for hours.
        raises: the errors that are answers, not faults: they come out of the call as themselves, also on replay. They
            are not retried, unless the retry names them in `on`. Their attributes are kept as plain JSON, or as
            their annotations say.

    Raises:
        ConfigError: an option is out of range, or the name asks for a parameter that there is not.
    """
    options = {"retry": retry, "timeout": timeout, "heartbeat": heartbeat, "raises": raises}
    if function is None or isinstance(function, str):
        return _StepDecorator(function, options)
    return _StepDecorator(None, options)(function)


def _limit(setting: str, value: Duration | None) -> timedelta | None:
    return None if value is None else to_positive_timedelta(value, setting=setting)


def _fields_of(template: str, signature: inspect.Signature, function_name: str) -> bool:
    """Return whether the name has fields to be filled, all of which are parameters of the function."""
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(template) if field is not None]
    except ValueError as error:
        raise ConfigError("step name", expected=f"a format string ({error})", actual=template) from None
    for field in fields:
        parameter = field.split(".")[0].split("[")[0]
        if parameter not in signature.parameters:
            raise ConfigError("step name", expected=f"fields that are parameters of {function_name}()", actual=template)
    return bool(fields)
