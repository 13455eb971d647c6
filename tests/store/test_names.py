"""Tables of other names beside the default ones: the two share nothing."""

import pytest

from tests.store.connections import Database
from tests.store.crew import ERROR, claim, finish, info, kill, register, rows, start
from zart_sqla import TableNames, migrations
from zart_sqla.records import ExecutionFilter
from zart_sqla.store import diagnosis, executions, workers

ELSEWHERE = {
    "prefix": TableNames("svc_"),
    "schema": TableNames(schema="tenant_a"),
    "both": TableNames("svc_", "myschema"),
    "quoted": TableNames("Svc_", "User"),
}
EVERYTHING = ExecutionFilter(status=None, task_name=None, search=None, since=None, limit=10)


@pytest.mark.parametrize("names", list(ELSEWHERE.values()), ids=list(ELSEWHERE))
async def test_side_by_side(database: Database, names: TableNames) -> None:
    """The same ids live two lives; what happens to one is not seen in the other."""
    other = database.of_names(names)
    await other.run(migrations.upgrade)
    for one in (database, other):
        await start(one, "order-1", "order-2")

    worker = await register(other)
    claimed = await claim(other, worker)
    assert [one.execution_id for one in claimed] == ["order-1", "order-2"]
    assert await database.run(executions.cancel, "order-1")
    assert await finish(other, worker, claimed[0], ERROR)
    assert await finish(other, worker, claimed[1])

    assert [(await info(database, name)).status for name in ("order-1", "order-2")] == ["cancelled", "scheduled"]
    assert [(await info(other, name)).status for name in ("order-1", "order-2")] == ["failed", "completed"]
    assert len(await rows(database, lambda tables: tables.tasks)) == 1
    assert await rows(other, lambda tables: tables.tasks) == []
    assert len(await database.run(executions.browse, EVERYTHING, None)) == 2


async def test_workers_are_apart(database: Database) -> None:
    """A worker of one set of tables is nobody in the other, neither alive nor dead."""
    other = database.of_names(TableNames("svc_"))
    await other.run(migrations.upgrade)
    worker, stranger = await register(database), await register(other)
    await start(other, "order-1")
    assert await claim(other, worker) == []
    await kill(database, worker)
    assert await other.run(workers.bury, stranger, grace_seconds=0) == []
    assert [one.worker_id for one in await other.run(diagnosis.workers)] == [stranger]


def test_channels_are_apart() -> None:
    """No two sets of tables have a channel in common."""
    every = [TableNames(), *ELSEWHERE.values()]
    channels = [channel for names in every for channel in (names.work_channel, names.done_channel)]
    assert len(set(channels)) == len(channels)
