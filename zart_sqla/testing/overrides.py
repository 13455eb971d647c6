"""Fakes in place of the functions of steps."""

from __future__ import annotations

import asyncio
import functools
import inspect
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

from zart_sqla.errors import ConfigError
from zart_sqla.runtime import stand_ins
from zart_sqla.runtime.answers import settled
from zart_sqla.runtime.stand_ins import StandIn
from zart_sqla.runtime.steps import Step

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

F = TypeVar("F", bound="Callable[..., Any]")


class override:  # noqa: N801 - it is called like a function
    """Have a step call another function than its own, as long as the context lasts; or a function that it decorates.

    The step keeps its name, its retry, its timeout and its type: what the fake returns is checked as ever. It counts
    for all calls in this process: of a simulated run, of a worker, and without a workflow. The last one that was
    entered wins; when it ends, the one before it is back, in whatever order they end.

    Args:
        step: the step. A method of one object (`service.charge`) is replaced for that object alone, and its fake
            is called without `self`; that of a class (`Service.charge`) for all of them, with `self`.
        with_: what is called instead, with the same arguments: `def` or `async def`, whatever the step is.

    Raises:
        ConfigError: it is no step, or no function.
    """

    def __init__(self, step: Step[..., Any], *, with_: Callable[..., Any]) -> None:
        given: Any = step
        if not isinstance(given, Step):
            raise ConfigError("override", expected="a function that @step has made a step", actual=given)
        if not callable(with_):
            raise ConfigError("with_", expected="a function that is called in place of the step's", actual=with_)
        replacement = _as_async(with_) if step.is_async else _as_plain(with_)
        self._step = step
        self._replacement = replacement
        self._entered: list[StandIn] = []

    def __enter__(self) -> Self:
        stand_in = StandIn(function=self._step.function, bound=self._step.bound, replacement=self._replacement)
        self._entered.append(stand_in)
        stand_ins.put(stand_in)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stand_ins.remove(self._entered.pop())

    def __call__(self, function: F) -> F:
        """Return the function, `def` or `async def`, for whose calls it counts."""
        decorate = self._async_decorated if inspect.iscoroutinefunction(function) else self._decorated
        return cast("F", decorate(function))

    def _async_decorated(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        async def call(*args: Any, **kwargs: Any) -> Any:
            with self:
                return await function(*args, **kwargs)

        return call

    def _decorated(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return call


def _as_async(fake: Callable[..., Any]) -> Callable[..., Any]:
    async def call(*args: Any, **kwargs: Any) -> Any:
        return await settled(fake(*args, **kwargs))

    return call


def _as_plain(fake: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        value = fake(*args, **kwargs)
        return asyncio.run(value) if inspect.iscoroutine(value) else value

    return call
