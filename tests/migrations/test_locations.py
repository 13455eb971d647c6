"""`version_locations`: what works, what Alembic skips without a word, and that we notice."""

import os
import sys
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory

from zart_sqla.migrations import find_ignored_version_location
from zart_sqla.migrations.locations import VERSIONS

OURS = "zart_sqla:migrations/versions"
APP = "%(here)s/migrations/versions"
on_posix = pytest.mark.skipif(os.name == "nt", reason="the separator is ';' on Windows, which a resource has not")


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder of an app with one revision, as the current folder."""
    versions = tmp_path / "migrations" / "versions"
    versions.mkdir(parents=True)
    (versions / "app_0001.py").write_text("revision = 'app_0001'\ndown_revision = None\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ini(project: Path, locations: str, *options: str) -> Config:
    """Return the configuration from an `alembic.ini`."""
    main = ["[alembic]", "script_location = %(here)s/migrations", f"version_locations = {locations}"]
    (project / "alembic.ini").write_text("\n".join([*main, *options]))
    return Config(project / "alembic.ini")


def toml(project: Path, *options: str) -> Config:
    """Return the configuration from a `pyproject.toml`."""
    lines = ["[tool.alembic]", 'script_location = "%(here)s/migrations"', *options]
    (project / "pyproject.toml").write_text("\n".join(lines))
    return Config(toml_file=project / "pyproject.toml")


def bases(config: Config) -> set[str]:
    """Return the first revision of each history that Alembic sees."""
    return set(ScriptDirectory.from_config(config).get_bases())


@pytest.mark.parametrize(
    ("locations", "separator"),
    [
        (f"{APP} {OURS}", "space"),
        (f"{APP}   {OURS}", "space"),
        (f"\n    {APP}\n    {OURS}", "newline"),
        (f"{APP};{OURS}", ";"),
        (f"{APP} {VERSIONS}", "space"),
        (f"{APP} zart_sqla:migrations:versions", "space"),
    ],
)
def test_separators_that_work(project: Path, locations: str, separator: str) -> None:
    """With these, Alembic sees the app's revisions and ours, and nothing is reported."""
    config = ini(project, locations, f"path_separator = {separator}")
    assert bases(config) == {"app_0001", "zart_0001"}
    assert find_ignored_version_location(config) is None


def test_pyproject_list_works(project: Path) -> None:
    """In a pyproject.toml the locations are a list, and no separator matters."""
    config = toml(project, f'version_locations = ["{APP}", "{OURS}"]')
    assert bases(config) == {"app_0001", "zart_0001"}
    assert find_ignored_version_location(config) is None


@on_posix
@pytest.mark.parametrize(
    ("locations", "seen"),
    [(f"{APP}:{OURS}", {"app_0001"}), (f"{APP} {OURS}", {"app_0001"}), (OURS, {"app_0001"})],
)
@pytest.mark.parametrize("separator", ["os", ":"])
@pytest.mark.filterwarnings("ignore:File .* loaded twice:UserWarning")
def test_colon_is_reported(project: Path, locations: str, seen: set[str], separator: str) -> None:
    """Split at the colon, ours is skipped without a word; `migrations/versions` may even be the app's."""
    config = ini(project, locations, f"path_separator = {separator}")
    assert bases(config) == seen
    assert find_ignored_version_location(config) == OURS


@on_posix
def test_both_histories_can_be_lost(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Called from another folder, Alembic then finds no revision at all, and still says nothing."""
    monkeypatch.chdir("/")
    config = ini(project, f"{APP} {OURS}", "path_separator = os")
    assert bases(config) == set()
    assert find_ignored_version_location(config) == OURS


@pytest.mark.parametrize("entry", ["zart_sqla:migrations/version", "zart_sqla/migrations/versions"])
def test_folder_that_is_not_there(project: Path, entry: str) -> None:
    """A location that is meant to be ours, but is not, is skipped as well, and reported as it was written."""
    config = ini(project, f"{APP} {entry}", "path_separator = space")
    assert bases(config) == {"app_0001"}
    assert find_ignored_version_location(config) == entry


def test_text_in_pyproject(project: Path) -> None:
    """Text where a pyproject.toml needs a list is read letter by letter; Alembic fails, we report it."""
    config = toml(project, f'version_locations = "{APP} {OURS}"')
    assert find_ignored_version_location(config) == OURS


@pytest.mark.parametrize("locations", [APP, "", f"{APP} app_of_zart_sqla/versions"])
def test_apps_without_our_branch(project: Path, locations: str) -> None:
    """An app that leaves the tables to `zart migrate` mentions nothing of ours, and nothing is reported."""
    assert find_ignored_version_location(ini(project, locations, "path_separator = space")) is None


def test_package_that_is_not_installed(project: Path) -> None:
    """A location in a missing package does not keep us from looking at the others."""
    config = ini(project, f"no_such_package:versions {OURS}", "path_separator = space")
    assert "no_such_package" not in sys.modules
    assert find_ignored_version_location(config) is None


def test_no_configuration_at_all() -> None:
    """A configuration without options has nothing to report."""
    assert find_ignored_version_location(Config()) is None
