"""What SIGTERM and SIGINT do to a worker: the first stops it, the second hurries it, a third ends it at once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from zart_sqla.cli.exits import DONE, SIGNALLED

if TYPE_CHECKING:
    from collections.abc import Callable, Generator

STOP_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class Stops:
    """Counts the signals, and says what to do.

    The handlers are plain ones, not the event loop's: they work even while a step blocks the loop.

    Args:
        on_first: called at the first signal: stop gracefully.
        on_second: called at the second: put back what runs, now.
        patience: how many seconds after the second signal the process ends, whatever it is doing.
    """

    def __init__(self, on_first: Callable[[], None], on_second: Callable[[], None], *, patience: float) -> None:
        self._on_first = on_first
        self._on_second = on_second
        self._patience = patience
        self._count = 0
        self._number: int | None = None

    @property
    def is_asked(self) -> bool:
        """Whether a signal has come."""
        return self._count > 0

    @property
    def exit_code(self) -> int:
        """The exit code: 0, or 128 and the signal's number if it took a second one."""
        return DONE if self._number is None else SIGNALLED + self._number

    @contextmanager
    def installed(self) -> Generator[None]:
        """Handle the signals."""
        before = {number: signal.signal(number, self._handle) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def first(self) -> None:
        """Do what the first signal does, if none has come."""
        if self._count == 0:
            self._count = 1
            self._on_first()

    def _handle(self, number: int, _frame: Any) -> None:
        self._count += 1
        if self._count == 1:
            self._on_first()
            return
        self._number = number
        if self._count > 2:  # noqa: PLR2004 - the third
            end_now(self.exit_code)
        timer = threading.Timer(self._patience, end_now, [self.exit_code])
        timer.daemon = True
        timer.start()
        self._on_second()


def end_now(code: int) -> None:
    """End the process, whatever its threads are doing."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
