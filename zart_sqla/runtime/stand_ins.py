"""What is called in place of the functions of steps, for a while: a test's fakes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class StandIn:
    """A function that is called in place of a step's.

    Attributes:
        function: the step's own.
        bound: the arguments with which a call has to begin for it, such as a method's `self`; it does not get them.
        replacement: what is called, of the same kind, `def` or `async def`.
    """

    function: Callable[..., Any]
    bound: tuple[Any, ...]
    replacement: Callable[..., Any]

    def is_for(self, args: tuple[Any, ...]) -> bool:
        """Return whether a call with these arguments is one for it."""
        known = args[: len(self.bound)]
        return len(known) == len(self.bound) and all(one is other for one, other in zip(known, self.bound, strict=True))


_active: Final[dict[Callable[..., Any], list[StandIn]]] = {}


def put(stand_in: StandIn) -> None:
    """Have it called from now on, in place of whatever was called before."""
    _active.setdefault(stand_in.function, []).append(stand_in)


def remove(stand_in: StandIn) -> None:
    """Have it called no more; others that were put in the same place stay."""
    others = [one for one in _active.get(stand_in.function, ()) if one is not stand_in]
    if others:
        _active[stand_in.function] = others
    else:
        _active.pop(stand_in.function, None)


def call(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return what the function returns, or what stands in for it."""
    if _active:
        for stand_in in reversed(_active.get(function, ())):
            if stand_in.is_for(args):
                return stand_in.replacement(*args[len(stand_in.bound) :], **kwargs)
    return function(*args, **kwargs)
