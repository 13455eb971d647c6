"""Who a worker is to the database."""

from __future__ import annotations

import os
import secrets
import socket
from typing import TYPE_CHECKING

from zart_sqla.ids import new_id

if TYPE_CHECKING:
    from uuid import UUID


class Identity:
    """A worker's id and the key of the advisory lock that says that it lives.

    Both are random, so two workers started with the same settings never take each other's work. A worker that was
    taken for dead goes on under a new one.

    Attributes:
        worker_id: the id.
        lock_key: the key of its lock.
        hostname: the machine.
        pid: the process.
    """

    def __init__(self) -> None:
        self.hostname: str = socket.gethostname()
        self.pid: int = os.getpid()
        self.renew()

    def renew(self) -> None:
        """Become another worker."""
        self.worker_id: UUID = new_id()
        self.renew_lock()

    def renew_lock(self) -> None:
        """Choose another lock, for another session."""
        self.lock_key: int = secrets.randbits(63)
