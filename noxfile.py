"""All checks of the project. Plain `nox` runs what CI runs; `nox --list` shows the rest."""

import os
import shutil
import tempfile
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.error_on_external_run = True
nox.options.sessions = [
    "lint",
    "layers",
    "types",
    "tests(18-latest)",
    "tests(16-oldest)",
    "chaos",
    "wheel",
    "bench-quick",
]

ROOT = Path(__file__).parent
PYPROJECT = nox.project.load_toml(ROOT / "pyproject.toml")
EXTRAS = "embedded,sync,uvloop"
SQLALCHEMY = {
    "latest": (),
    # 2.0.40 is older than Python 3.14.
    "oldest": ("sqlalchemy==2.0.40; python_version<'3.14'", "sqlalchemy==2.0.*; python_version>='3.14'"),
}
SERVERS = [
    nox.param(postgres, sqlalchemy, id=f"{postgres}-{sqlalchemy}")
    for postgres in ("18", "16")
    for sqlalchemy in SQLALCHEMY
]
# Most tests wait for something, so more of them run side by side than there are processors.
SIDE_BY_SIDE = ("-n", str(2 * (os.cpu_count() or 1)), "--dist", "worksteal")
# On Ctrl-C, nox kills after half a second by default: too soon for tests to drop databases and stop workers.
PATIENCE = 20.0


def group(name: str) -> tuple[str, ...]:
    """Return the requirements of one dependency group of pyproject.toml."""
    return nox.project.dependency_groups(PYPROJECT, name)


def run_python(session: nox.Session, *args: str, env: dict[str, str] | None = None) -> None:
    """Run `python -m` with these arguments, and leave interrupted tests the time to clean up."""
    session.run("python", "-m", *args, env=env, interrupt_timeout=PATIENCE, terminate_timeout=PATIENCE)


@nox.session
def lint(session: nox.Session) -> None:
    """Lint, and check the formatting."""
    session.install(*group("lint"))
    session.run("ruff", "check", *session.posargs)
    session.run("ruff", "format", "--check")


@nox.session
def layers(session: nox.Session) -> None:
    """Check that imports point down only."""
    session.install(*group("layers"))
    session.run("lint-imports", *session.posargs)


@nox.session
def types(session: nox.Session) -> None:
    """Check types with mypy and pyright, both strict, and that all of the installed package's are known."""
    session.install(f".[{EXTRAS}]", *group("typing"))
    session.run("mypy")
    session.run("pyright")
    with session.chdir(session.create_tmp()):
        session.run("pyright", "--verifytypes", "zart_sqla", "--ignoreexternal")


@nox.session
@nox.parametrize(("postgres", "sqlalchemy"), SERVERS)
def tests(session: nox.Session, postgres: str, sqlalchemy: str) -> None:
    """Run the tests side by side; with the latest SQLAlchemy, measure coverage."""
    session.install("-e", f".[{EXTRAS}]", *SQLALCHEMY[sqlalchemy], *group("tests"))
    env = {"ZART_TEST_POSTGRES": postgres}
    pytest = ("pytest", *SIDE_BY_SIDE, *session.posargs)
    if sqlalchemy == "oldest" or session.posargs:
        run_python(session, *pytest, env=env)
        return
    session.run("coverage", "erase")
    run_python(session, "coverage", "run", "-m", *pytest, env=env)
    session.run("coverage", "combine", "--quiet")
    session.run("coverage", "report")


@nox.session
def migrations(session: nox.Session) -> None:
    """Run the migration tests alone: each revision up and down, and `alembic check`."""
    session.install("-e", f".[{EXTRAS}]", *group("tests"))
    run_python(session, "pytest", "tests/migrations", *session.posargs)


@nox.session
def docs(session: nox.Session) -> None:
    """Check the documentation alone: its Python compiles, its names and links exist."""
    session.install("-e", f".[{EXTRAS}]", *group("tests"))
    run_python(session, "pytest", "tests/docs", *session.posargs)


@nox.session
def wheel(session: nox.Session) -> None:
    """Build sdist and wheel, and run the acceptance tests against the wheel, outside the checkout."""
    session.install(*group("build"))
    with tempfile.TemporaryDirectory(prefix="zart-wheel-") as folder:
        outside = Path(folder)
        session.run("python", "-m", "build", "--outdir", f"{outside}/dist")
        session.run("python", "-m", "virtualenv", "--quiet", f"{outside}/venv")
        (built,) = outside.glob("dist/*.whl")
        scripts = outside / "venv" / "bin"
        python = str(scripts / "python")
        session.run(python, "-m", "pip", "install", "--quiet", f"{built}[{EXTRAS}]", *group("tests"), external=True)
        for folder_needed in ("tests", "examples"):
            shutil.copytree(ROOT / folder_needed, outside / folder_needed, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", outside)
        session.chdir(outside)
        session.run(
            python,
            *("-m", "pytest", *SIDE_BY_SIDE, "tests/acceptance", *session.posargs),
            env={"PATH": f"{scripts}:{os.environ['PATH']}"},
            external=True,
            interrupt_timeout=PATIENCE,
            terminate_timeout=PATIENCE,
        )


@nox.session
def chaos(session: nox.Session) -> None:
    """Break all that can break while workers are at work, and check that nothing is lost and nothing is there twice."""
    session.install("-e", f".[{EXTRAS}]", *group("tests"))
    run_python(session, "tests.chaos", *session.posargs)


@nox.session
def flights(session: nox.Session) -> None:
    """Run the whole year of the flights example, while a worker is killed every second."""
    session.install("-e", ".[embedded,examples]")
    command = ("python", "-m", "examples.flights", "--months", "12", *session.posargs)
    session.run(*command, interrupt_timeout=PATIENCE, terminate_timeout=PATIENCE)


@nox.session
def bench(session: nox.Session) -> None:
    """Measure zart_sqla beside its peers and a floor, on an embedded server; `-- --help` tells its options."""
    session.install("-e", f".[{EXTRAS}]", *group("bench"))
    run_python(session, "benchmarks", *session.posargs)


@nox.session(name="bench-quick")
def bench_quick(session: nox.Session) -> None:
    """Run each measurement once, small and without peers, and write a page: all of it runs, however fast."""
    session.install("-e", f".[{EXTRAS}]", *group("bench"))
    folder = Path(session.create_tmp())
    run_python(session, "benchmarks", "--quick", "--json", str(folder / "quick.json"))
    shutil.copy(ROOT / "docs" / "benchmarks.md", folder)
    run_python(session, "benchmarks.page", str(folder / "quick.json"), "--page", str(folder / "benchmarks.md"))


@nox.session
def takeover(session: nox.Session) -> None:
    """Measure how long after a worker's SIGKILL another one runs its step again, with default settings."""
    session.install("-e", f".[{EXTRAS}]", *group("tests"))
    run_python(session, "tests.worker.measure_takeover", *session.posargs)
