"""`zart check`: the gate of a deploy; and `zart history`, for a test that replays."""

from pathlib import Path
from uuid import uuid4

import pytest

from tests.acceptance.command import Command, until
from zart_sqla import ExecutionHistory

STEPS = """
from zart_sqla import TaskRegistry, durable, sleep, step

@step
async def reserve(order_id: str) -> str:
    return order_id

@step
async def charge(order_id: str) -> str:
    open(f"{order_id}.charged", "a").write("x")
    return order_id

async def body(first, second, order_id):
    await first(order_id)
    await second(order_id)
    await sleep("settle", "1d")
    return await charge(order_id)

@durable("order")
async def order(order_id: str) -> str:
    return await body(FIRST, SECOND, order_id)

@durable("other")
async def other(order_id: str) -> str:
    return await body(reserve, charge, order_id)

registry = TaskRegistry()
registry.register(order)
"""


def write(folder: Path, first: str, second: str, *, more: str = "") -> str:
    """Write the code of an app, in which the order calls these two steps first; return its registry's address."""
    name = f"jobs_{uuid4().hex}"  # this process imports it, and keeps it
    (folder / f"{name}.py").write_text(STEPS.replace("FIRST", first).replace("SECOND", second) + more)
    return f"{name}:registry"


@pytest.fixture
def old(zart: Command) -> str:
    """Return the code that has run two orders and another task, which all wait."""
    code = write(zart.folder, "reserve", "charge", more="registry.register(other)")
    for execution_id, task in (("order-1", "order"), ("order-2", "order"), ("other-1", "other")):
        zart("start", task, f'"{execution_id}"', "--id", execution_id)
    with zart.started("worker", code) as worker:
        until(lambda: {row["status"] for row in zart("list", "--json").data["items"]} == {"waiting"}, worker)
    return code


def test_fits(zart: Command, old: str) -> None:
    """Code that fits ends with 0, and says how many executions it has replayed."""
    found = zart("check", old, "--since", "7d")
    assert (found.code, found.out) == (0, "")
    assert found.err == "3 executions replayed, 0 would break; 0 have no handler here\n"


def test_breaks(zart: Command, old: str) -> None:
    """Code that does not fit ends with 1; what would break and what has no handler is told, one a line."""
    new = write(zart.folder, "charge", "reserve")
    found = zart("check", new, "--since", "7d")
    assert found.code == 1
    assert sorted(found.out.splitlines()) == [
        "order-1  order  at position 0: recorded 'reserve', called 'charge'",
        "order-2  order  at position 0: recorded 'reserve', called 'charge'",
        "other-1  other  no handler for it is registered",
    ]
    assert found.err == "2 executions replayed, 2 would break; 1 have no handler here\n"


def test_json(zart: Command, old: str) -> None:
    """As JSON it is an object a line, with the parts apart."""
    new = write(zart.folder, "charge", "reserve")
    found = zart("check", new, "--json", "--task", "order", "--limit", "1")
    assert found.code == 1
    assert found.data == {
        "execution_id": "order-2",
        "task_name": "order",
        "problem": "at position 0: recorded 'reserve', called 'charge'",
        "breaks": True,
        "position": 0,
        "recorded": "reserve",
        "called": "charge",
    }


def test_no_handler_alone(zart: Command, old: str) -> None:
    """Executions without a handler break nothing: another worker may have one."""
    found = zart("check", write(zart.folder, "reserve", "charge"))
    assert found.code == 0
    assert found.out == "other-1  other  no handler for it is registered\n"


def test_what_is_looked_at(zart: Command, old: str) -> None:
    """Only what has not ended, was started then, and is of that task, and only so many."""
    new = write(zart.folder, "charge", "reserve")
    zart("cancel", "order-1")
    assert zart("check", new).err.startswith("1 executions replayed, 1 would break; 1")
    assert zart("check", new, "--task", "other").err.startswith("0 executions replayed, 0 would break; 1")
    assert zart("check", new, "--since", "0s").err.startswith("0 executions replayed, 0 would break; 0")
    assert zart("check", new, "--limit", "1").err.startswith("0 executions replayed, 0 would break; 1")


def test_pages(zart: Command, old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many executions are read in pages, each of them once."""
    monkeypatch.setattr("zart_sqla.cli.check._PAGE", 2)
    for number in range(5):
        zart("start", "order", f'"{number}"')
    new = write(zart.folder, "charge", "reserve")
    assert zart("check", new).err.startswith("7 executions replayed, 2 would break; 1")
    assert zart("check", new, "--limit", "4").err.startswith("4 executions replayed, 0 would break; 0")


def test_writes_nothing(zart: Command, old: str) -> None:
    """No step is run, and no row is changed."""
    before = state(zart)
    assert zart("check", old).code == 0
    assert zart("check", write(zart.folder, "charge", "reserve")).code == 1
    assert state(zart) == before


def state(zart: Command) -> dict[str, object]:
    """Return each row with the transaction that wrote it, and what the steps have left behind."""
    tables = ("executions", "execution_runs", "tasks", "steps", "step_attempts", "events", "workers")
    rows = {table: zart.sql(f"SELECT xmin::text, t::text FROM zart_{table} t ORDER BY 2") for table in tables}  # noqa: S608 - of our own tables
    return rows | {path.name: path.read_text() for path in zart.folder.glob("*.charged")}


def test_wrong_usage(zart: Command) -> None:
    """A registry that is not there, an age that is none and a limit of nothing end with 2."""
    for arguments in (("check", "nowhere:registry"), ("check", "shop_jobs:registry", "--since", "yore")):
        assert zart(*arguments).code == 2
    assert zart("check", "shop_jobs:registry", "--limit", "0").code == 2


def test_history(zart: Command, old: str) -> None:
    """`zart history` prints what a test can replay; an id that there is not ends with 3."""
    found = zart("history", "order-1")
    assert found.code == 0
    history = ExecutionHistory.from_json(found.out)
    assert [step.name for step in history.recorded.steps] == ["reserve", "charge", "settle"]
    assert zart("history", "nothing").code == 3
