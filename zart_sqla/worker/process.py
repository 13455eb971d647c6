"""A process that does nothing but work: its event loop and its garbage collector are set up for that."""

from __future__ import annotations

import asyncio
import gc
import importlib
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable

# A busy worker holds thousands of small objects for some milliseconds each. With the defaults the collector walks
# all of them over and over: a fifth of the process's time in a drain of five-step runs.
_GC_THRESHOLDS: Final = (50_000, 20, 50)


def make_runner() -> asyncio.Runner:
    """Set this process up to do nothing but work, and return what its worker runs in: uvloop if that is installed."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
    return asyncio.Runner(loop_factory=_loop_factory())


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        uvloop = importlib.import_module("uvloop")
    except ImportError:  # it comes with an extra
        return None
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
