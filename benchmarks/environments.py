"""The environments of the contenders: each peer has its own, with the current release from PyPI."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from benchmarks import contenders

ROOT: Final = Path(__file__).parents[1]
"""Where contenders run, so that each finds its module whatever its environment has."""


@dataclass(frozen=True)
class Contender:
    """Somebody who is measured.

    Attributes:
        name: what it is called.
        requirements: what its environment needs from PyPI; none if it runs in this one.
        packages: whose versions are printed.
        is_durable: whether it records steps, so that a run goes on after a crash where it was.
    """

    name: str
    requirements: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()
    is_durable: bool = False

    @property
    def module(self) -> str:
        """The name of the module that does its workloads."""
        return f"{contenders.__name__}.with_{self.name}"


CONTENDERS: Final = (
    Contender("zart", packages=("zart-sqla", "SQLAlchemy", "asyncpg", "uvloop"), is_durable=True),
    Contender("floor", packages=("asyncpg", "uvloop")),
    Contender("dbos", ("dbos", "uvloop"), ("dbos", "psycopg", "SQLAlchemy"), is_durable=True),
    Contender("absurd", ("absurd-sdk", "absurdctl", "uvloop"), ("absurd-sdk", "psycopg"), is_durable=True),
    Contender("procrastinate", ("procrastinate", "psycopg[binary]", "uvloop"), ("procrastinate", "psycopg")),
    Contender("pgqueuer", ("pgqueuer[asyncpg]", "uvloop"), ("pgqueuer", "asyncpg", "uvloop")),
)


@dataclass(frozen=True)
class Abilities:
    """What a contender says of itself.

    Attributes:
        can: the workloads that it does.
        cannot: those that it cannot do, and why.
    """

    can: Sequence[str]
    cannot: Mapping[str, str]


@dataclass
class Environments:
    """Makes the environments when they are first asked for.

    Args:
        folder: where they are kept.
    """

    folder: Path
    _made: dict[str, Path] = field(default_factory=dict[str, Path])

    def python(self, contender: Contender) -> Path:
        """Return the interpreter that runs the contender."""
        if not contender.requirements:
            return Path(sys.executable)
        if contender.name not in self._made:
            home = self.folder / contender.name
            venv.create(home, with_pip=True)
            python = (home / "bin" / "python").absolute()
            pip = (str(python), "-m", "pip", "install", "--quiet", "--upgrade", *contender.requirements)
            subprocess.run(pip, check=True)
            self._made[contender.name] = python
        return self._made[contender.name]

    def versions(self, contender: Contender) -> dict[str, str]:
        """Return the versions of its packages."""
        listed = [str(self.python(contender)), "-m", "pip", "list", "--format", "json"]
        found: list[dict[str, Any]] = json.loads(subprocess.check_output(listed))
        wanted = {package.lower(): package for package in contender.packages}
        return {wanted[one["name"].lower()]: one["version"] for one in found if one["name"].lower() in wanted}

    def abilities(self, contender: Contender) -> Abilities:
        """Return what it can do, and what it cannot."""
        listed = (str(self.python(contender)), "-m", contender.module)
        return Abilities(**json.loads(subprocess.check_output(listed, cwd=ROOT)))
