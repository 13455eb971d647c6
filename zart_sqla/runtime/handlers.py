"""Workflows: the functions and objects that a worker runs, and the registry that it finds them in."""

from __future__ import annotations

import inspect
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast, overload, runtime_checkable

from zart_sqla.codec import annotations_of, checked_name, codec_for, plain_json
from zart_sqla.durations import to_positive_timedelta
from zart_sqla.errors import ConfigError
from zart_sqla.runtime.retry import checked_retry

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from datetime import timedelta

    from zart_sqla.codec import Codec
    from zart_sqla.durations import Duration
    from zart_sqla.runtime.failures import Failure
    from zart_sqla.runtime.retry import Retry

D = TypeVar("D")
R = TypeVar("R")


class Handler(Generic[D, R]):
    """A function that a worker runs under a name, with what is declared about it.

    Attributes:
        name: the task name.
        function: the function.
        retry: when the body is run again after an error that is not a step's.
        timeout: how long an execution may take from its first claim; None: as long as it does.
        on_failure: what is called when the run fails; None: nothing.
        on_cancel: what is called after the run was cancelled; None: nothing.
        is_async: whether the function is an `async def`.
    """

    def __init__(
        self,
        name: str,
        function: Callable[..., Any],
        *,
        retry: Retry | None = None,
        timeout: Duration | None = None,
        on_failure: Callable[[D, Failure], Any] | None = None,
        on_cancel: Callable[[D], Any] | None = None,
    ) -> None:
        self.name: str = checked_name("task name", name)
        self.function = function
        self.retry: Retry = checked_retry(retry)
        self.timeout: timedelta | None = None if timeout is None else to_positive_timedelta(timeout, setting="timeout")
        if on_failure is not None and not callable(on_failure):
            raise ConfigError("on_failure", expected="a function of the input and the failure", actual=on_failure)
        if on_cancel is not None and not callable(on_cancel):
            raise ConfigError("on_cancel", expected="a function of the input", actual=on_cancel)
        self.on_failure = on_failure
        self.on_cancel = on_cancel
        self.is_async: bool = inspect.iscoroutinefunction(function)
        self._parameter = _data_parameter(function)
        self._data_codec: Codec[D] | None = None
        self._result_codec: Codec[R] | None = None

    @property
    def module(self) -> str:
        """The name of the function's module."""
        return getattr(self.function, "__module__", None) or ""

    @property
    def data_codec(self) -> Codec[D]:
        """The codec of the function's input: `None` if it takes none."""
        if self._data_codec is None:
            annotations = annotations_of(self.function)
            declared = annotations.get(self._parameter, Any) if self._parameter else None
            self._data_codec = codec_for(declared)
        return self._data_codec

    @property
    def result_codec(self) -> Codec[R]:
        """The codec of the function's output."""
        if self._result_codec is None:
            annotations = annotations_of(self.function)
            self._result_codec = codec_for(annotations["return"]) if "return" in annotations else plain_json
        return self._result_codec

    def arguments(self, data: D) -> tuple[D, ...]:
        """Return the arguments to call the function with."""
        return (data,) if self._parameter else ()


class Durable(Generic[D, R]):
    """A workflow made from a function by `durable`. Called directly, it is the function itself.

    Attributes:
        handler: what a worker runs, with what is declared about it.
    """

    def __init__(self, function: Callable[..., Any], handler: Handler[D, R]) -> None:
        self.handler = handler
        self.__doc__ = function.__doc__
        self.__name__: str = function.__name__
        self.__qualname__ = function.__qualname__
        self.__module__ = function.__module__
        self.__wrapped__ = function

    @property
    def name(self) -> str:
        """The task name."""
        return self.handler.name

    def __repr__(self) -> str:
        return f"<durable {self.name!r}: {self.__module__}.{self.__qualname__}>"


class AsyncDurable(Durable[D, R]):
    """A workflow made from an `async def`."""

    def __call__(self, *data: D) -> Coroutine[Any, Any, R]:
        """Return the plain function's coroutine: nothing is started, and nothing is recorded."""
        coroutine: Coroutine[Any, Any, R] = self.handler.function(*data)
        return coroutine


class SyncDurable(Durable[D, R]):
    """A workflow made from a `def`."""

    def __call__(self, *data: D) -> R:
        """Return what the plain function returns: nothing is started, and nothing is recorded."""
        result: R = self.handler.function(*data)
        return result


class _DurableDecorator:
    """What `durable(...)` with options returns."""

    def __init__(self, name: str | None, options: dict[str, Any]) -> None:
        self._name = name
        self._options = options

    @overload
    def __call__(self, function: Callable[[], Coroutine[Any, Any, R]]) -> AsyncDurable[None, R]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, function: Callable[[D], Coroutine[Any, Any, R]]) -> AsyncDurable[D, R]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, function: Callable[[], R]) -> SyncDurable[None, R]: ...
    @overload
    def __call__(self, function: Callable[[D], R]) -> SyncDurable[D, R]: ...
    def __call__(self, function: Callable[..., Any]) -> Any:
        if not callable(function) or not hasattr(function, "__name__"):
            raise ConfigError("durable", expected="a function", actual=function)
        name = function.__name__ if self._name is None else self._name
        handler: Handler[Any, Any] = Handler(name, function, **self._options)
        return (AsyncDurable if handler.is_async else SyncDurable)(function, handler)


@overload
def durable(function: Callable[[], Coroutine[Any, Any, R]], /) -> AsyncDurable[None, R]: ...  # type: ignore[overload-overlap]
@overload
def durable(function: Callable[[D], Coroutine[Any, Any, R]], /) -> AsyncDurable[D, R]: ...  # type: ignore[overload-overlap]
@overload
def durable(function: Callable[[], R], /) -> SyncDurable[None, R]: ...
@overload
def durable(function: Callable[[D], R], /) -> SyncDurable[D, R]: ...
@overload
def durable(
    name: str | None = None,
    /,
    *,
    retry: Retry | None = None,
    timeout: Duration | None = None,
    on_failure: Callable[[Any, Failure], Any] | None = None,
    on_cancel: Callable[[Any], Any] | None = None,
) -> _DurableDecorator: ...
def durable(
    function: Callable[..., Any] | str | None = None,
    /,
    *,
    retry: Retry | None = None,
    timeout: Duration | None = None,
    on_failure: Callable[[Any, Failure], Any] | None = None,
    on_cancel: Callable[[Any], Any] | None = None,
) -> Any:
    """Make a function a workflow: each step that it calls is recorded, and after a crash it goes on where it was.

    It can be used bare, as `@durable`, or with options. It takes one argument, its input, or none; input and output
    are typed by its annotations.

    Args:
        function: the function; or the task name. Default: the function's name.
        retry: when the body is run again after an error that is not a step's. Default: never.
        timeout: how long an execution may take, waits included, from when a worker first takes it up.
        on_failure: called as `(data, failure)` when the run fails; what it returns is the run's output, what it
            raises is the run's error. It can call steps.
        on_cancel: called as `(data)` about a second after the run was cancelled, if a worker had taken it up. It can
            call steps; what it returns or raises changes nothing.

    Raises:
        ConfigError: an option is out of range, or the function takes more than one argument.
        InvalidNameError: the name cannot be stored.
    """
    options = {"retry": retry, "timeout": timeout, "on_failure": on_failure, "on_cancel": on_cancel}
    if function is None or isinstance(function, str):
        return _DurableDecorator(function, options)
    return _DurableDecorator(None, options)(function)


@runtime_checkable
class TaskObject(Protocol):
    """An object with a method `run(data)`, sync or async."""

    @property
    def run(self) -> Callable[[Any], Any]:
        """What a worker calls with the execution's input."""
        ...


class TaskRegistry:
    """The workflows that a worker can run, by their task names."""

    def __init__(self) -> None:
        self._handlers: dict[str, Handler[Any, Any]] = {}

    @overload
    def register(self, workflow: Durable[Any, Any], /) -> None: ...
    @overload
    def register(self, name: str, workflow: Durable[Any, Any] | TaskObject | Callable[..., Any], /) -> None: ...
    def register(self, *args: Any) -> None:
        """Add a workflow: `register(durable_function)` or `register(name, workflow)`.

        Args:
            *args: the task name, unless it is to be the durable function's own; and a durable function, an object
                with a method `run(data)`, or a function.

        Raises:
            ConfigError: it is not a workflow, or the name is taken by another one.
            InvalidNameError: the name cannot be stored.
        """
        handler = self._handler_for(*args)
        if self._handlers.get(handler.name, handler) is not handler:
            raise ConfigError("task name", expected="a name that is not registered yet", actual=handler.name)
        self._handlers[handler.name] = handler

    def get(self, name: str) -> Handler[Any, Any] | None:
        """Return what is registered under the name, None if nothing is."""
        return self._handlers.get(name)

    @property
    def names(self) -> list[str]:
        """The names of all that is registered, sorted."""
        return sorted(self._handlers)

    @property
    def cleaners(self) -> list[str]:
        """The names of those that do something when a run of theirs is cancelled."""
        return [name for name in self.names if self._handlers[name].on_cancel is not None]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self._handlers)

    @staticmethod
    def _handler_for(*args: Any) -> Handler[Any, Any]:
        match args:
            case (Durable(),):
                return cast("Durable[Any, Any]", args[0]).handler
            case (str() as name, Durable()):
                return _under_name(name, cast("Durable[Any, Any]", args[1]))
            case (str() as name, TaskObject() as workflow) if not isinstance(workflow, type):
                return Handler(name, workflow.run)
            case (str() as name, FunctionType() | MethodType() | BuiltinFunctionType() as workflow):
                return Handler(name, workflow)
            case _:
                raise ConfigError(
                    "workflow",
                    expected="a @durable function; or a name and a @durable function, a function, or an object with "
                    "a method 'run(self, data)'",
                    actual=args[0] if len(args) == 1 else args,
                )


def _under_name(name: str, workflow: Durable[Any, Any]) -> Handler[Any, Any]:
    known = workflow.handler
    if name == known.name:
        return known
    return Handler(
        name,
        known.function,
        retry=known.retry,
        timeout=known.timeout,
        on_failure=known.on_failure,
        on_cancel=known.on_cancel,
    )


def _data_parameter(function: Callable[..., Any]) -> str | None:
    """Return the name of the parameter that takes the input, None if the function takes none."""
    name = getattr(function, "__qualname__", repr(function))
    expected = "a function of one argument, its input, or of none"
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError) as error:
        raise ConfigError("workflow", expected=expected, actual=name) from error
    required = [parameter for parameter in parameters if parameter.default is parameter.empty]
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if len(required) > 1 or any(parameter.kind not in positional for parameter in required):
        raise ConfigError("workflow", expected=expected, actual=name)
    return parameters[0].name if parameters and parameters[0].kind in positional else None
