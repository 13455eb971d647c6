"""The app in the folder `app`, copied to where a test can change it, and its `alembic` command."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
APP = Path(__file__).parent / "app"


@dataclass(frozen=True)
class HostApp:
    """An app that has models, revisions and an Alembic of its own.

    Attributes:
        folder: where it is.
        environment: the environment variables that it gets, beside those of the test.
    """

    folder: Path
    environment: dict[str, str]

    @classmethod
    def create(cls, folder: Path, database_url: str, **environment: str) -> "HostApp":
        """Copy the app into a folder."""
        shutil.copytree(APP, folder, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        fixed = {"DATABASE_URL": database_url, "PYTHONPATH": path, "PYTHONWARNINGS": "error"}
        return cls(folder, {"APP_WAY": "apart", **fixed, **environment})

    def add_revision(self, revision: str) -> None:
        """Add one of the revisions that have to do with us."""
        shutil.copy(APP / "revisions" / f"{revision}.py", self.folder / "migrations" / "versions")

    def alembic(self, *arguments: str, fails: bool = False, **environment: str) -> str:
        """Run the app's `alembic` in a process of its own and return what it prints."""
        done = subprocess.run(
            [sys.executable, "-m", "alembic", *arguments],
            cwd=self.folder,
            env={**os.environ, **self.environment, **environment},
            stdout=subprocess.PIPE,
            stderr=None if "--sql" in arguments else subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert bool(done.returncode) is fails, done.stdout
        return done.stdout
