"""The page about testing: the tests on it pass."""

import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.docs.pages import ROOT, blocks
from zart_sqla import PostgresScheduler, Worker
from zart_sqla.testing.workers import workers_on

PAGE = ROOT / "docs" / "testing.md"


@pytest.fixture
def code(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return all that the page defines; what it imports from `tests.shop` is its own first block."""
    found: dict[str, Any] = {}
    for number, block in enumerate(blocks(PAGE)):
        module = ModuleType("tests.shop" if number == 0 else f"page_{number}")
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(compile(block, str(PAGE), "exec", dont_inherit=True), vars(module))  # noqa: S102 - it is our own page
        found |= vars(module)
    return found


async def test_without_a_database(code: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those without a fixture pass, also the one that finds a history in its folder."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "tests" / "histories"
    folder.mkdir(parents=True)
    run = code["Simulation"](code["order"], "42")
    await run.advance("2d")
    (folder / "order-42.json").write_text(run.history.to_json())
    tests = [one for name, one in code.items() if name.startswith("test_") and not inspect.signature(one).parameters]
    assert len(tests) == 4
    for one in tests:
        await one()


async def test_on_a_real_worker(code: dict[str, Any], migrated_url: str) -> None:
    """The one with a worker passes on one."""
    async with (
        await PostgresScheduler.connect(migrated_url) as scheduler,
        workers_on(migrated_url, scheduler.names) as start,
    ):
        started: list[Worker] = []

        async def zart_worker(*workflows: Any) -> None:
            started.append(await start(*workflows))

        await code["test_on_a_real_worker"](scheduler, zart_worker)
        assert len(started) == 1
