"""How PostgreSQL carries out each statement beside a million runs that have ended: by indexes, at a bounded cost."""

from typing import Final

import asyncpg
import pytest
from sqlalchemy import Dialect, Executable, Insert, create_engine, text
from sqlalchemy.sql import ClauseElement

from tests.statements.catalogue import NO_STATEMENTS, builders, catalogue
from tests.store.connections import Database
from tests.store.crew import claim, new, register
from tests.store.plans.calls import AFTER, CALLS, PAGES
from tests.store.plans.crowd import fill
from tests.store.plans.explain import MODES, Plan, explained, planned
from tests.support.postgres import QUIET, private_server
from tests.support.working import scheduler_on
from zart_sqla import TableNames
from zart_sqla.models import tables_of
from zart_sqla.statements import executions as statements_of_executions
from zart_sqla.store import executions

NAMES = TableNames()
ASYNCPG = create_engine("postgresql+asyncpg://").dialect
REGISTRATION = ["worker_id", "hostname", "pid", "lock_key", "lease_seconds"]
GROWING = set(tables_of(NAMES).tasks.metadata.tables) - {"zart_workers"}
"""The tables that may be large. There are as many workers as live."""

BOUNDS: Final = {
    "children.add": 1500,
    "children.attempts": 10,
    "children.give_up": 60,
    "children.payloads": 60,
    "children.remove": 10,
    "children.wake": 60,
    "children.wake_all": 5000,
    "diagnosis.backend": 0,
    "diagnosis.overdue": 1500,
    "diagnosis.workers": 5000,
    "events.offer": 70,
    "events.take": 250,
    "executions.adopt": 250,
    "executions.await_end": 40,
    "executions.browse": 450,
    "executions.cancel": 40,
    "executions.cancel_children": 100,
    "executions.describe": 180,
    "executions.ending": 20,
    "executions.has_children": 20,
    "executions.has_open_parent": 20,
    "executions.has_started": 20,
    "executions.resume": 100,
    "executions.start": 350,
    "executions.tell_parent": 20,
    "notifications.notify": 0,
    "notifications.notify_all": 0,
    "steps.describe": 60,
    "steps.journal": 300,
    "steps.record": 200,
    "steps.record_attempts": 200,
    "steps.recorded": 60,
    "steps.retries": 60,
    "streams.emit": 400,
    "streams.follow": 40,
    "streams.read": 40,
    "tasks.claim": 400,
    "tasks.finish": 250,
    "tasks.held": 70,
    "tasks.put_down": 100,
    "tasks.release_others": 2500,
    "tasks.renew": 400,
    "tasks.touch": 300,
    "workers.beat": 80,
    "workers.bury": 60,
    "workers.has_orphans": 500,
    "workers.is_locked": 10,
    "workers.register": 20,
    "workers.release": 2500,
    "workers.set_lock": 20,
    "workers.take_over": 4500,
    "workers.unregister": 20,
}
"""How many pages a statement looks at, at most.

That is for ten rows where it takes rows, for fifty new children, and for the hundred tasks of a worker that resigns or
is dead. There are a thousand workers, a thousand runs that wait for children, and 27,000 tasks that are overdue.
"""
UNBOUNDED: Final = {
    "diagnosis.lost": "It reads all runs, when somebody calls `zart doctor`. With an index of those that have not "
    "ended, each run would cost more when it ends: PostgreSQL could not leave the other indexes alone any more.",
}
"""What reads a table from end to end, and why."""
ALWAYS: Final = {
    *("executions.start", "executions.describe", "executions.ending", "executions.await_end", "executions.cancel"),
    *("tasks.claim", "tasks.held", "tasks.touch", "tasks.put_down", "tasks.finish"),
    *("steps.record", "steps.record_attempts"),
    *("children.add", "children.remove"),
    *("events.offer", "events.take"),
    *("streams.emit", "streams.read", "streams.follow"),
    "workers.beat",
}
"""What is said all the time, in a database that may have been empty a moment ago."""


QUEUED = 20_000
KNOWN = ("nothing", "it was empty", "all slept")
"""What the planner can have been told of a queue that is long now."""


def test_every_statement_has_a_bound() -> None:
    """Each statement of the product has a bound, or a reason why not."""
    assert set(BOUNDS) | set(UNBOUNDED) == set(builders()) - NO_STATEMENTS
    assert not set(BOUNDS) & set(UNBOUNDED)


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_plans(postgres_version: int, subtests: pytest.Subtests) -> None:
    """A statement looks at no more pages than its bound, and reads no table from end to end, in either mode."""
    with private_server(postgres_version, QUIET) as server:
        url = server.get_uri()
        async with scheduler_on(url) as scheduler:
            await scheduler.migrate()
        fill(url)
        database = Database(NAMES, "asyncpg", url)
        for mode in MODES:
            plans = await plans_of(database, mode)
            assert set(plans) == set(BOUNDS) | set(UNBOUNDED)
            for name, found in plans.items():
                with subtests.test(name, mode=mode):
                    check(name, found)
        await database.close()


async def test_plans_that_were_made_early(migrated_url: str) -> None:
    """A plan that is kept from when there was nothing in the tables would not read them from end to end later."""
    driver = await asyncpg.connect(migrated_url)
    try:
        made = [(name, await planned(driver, text)) for text, name in statements().items() if name in ALWAYS]
    finally:
        await driver.close()
    assert {name for name, _ in made} == ALWAYS
    assert {name: str(plan) for name, plan in made if plan.scanned & GROWING} == {}


@pytest.mark.slow
@pytest.mark.parametrize("known", KNOWN)
async def test_claim_from_a_long_queue(migrated_url: str, known: str) -> None:
    """A claim costs what it takes, and not what is in the queue, whatever the planner has been told of that."""
    database = Database(NAMES, "asyncpg", migrated_url)
    try:
        worker = await register(database)
        if known == "it was empty":
            await say(database, "ANALYZE zart_tasks")
        for first in range(0, QUEUED, 5000):
            await start_many(database, first, 5000)
        if known == "all slept":
            await say(database, "UPDATE zart_tasks SET due_at = now() + INTERVAL '1 day'", "ANALYZE zart_tasks")
            await say(database, "UPDATE zart_tasks SET due_at = now()", "VACUUM zart_tasks")
        for mode in MODES:
            with explained(database.engine, mode) as plans:
                assert len(await claim(database, worker, 10)) == 10
            (plan,) = plans
            assert plan.pages <= BOUNDS["tasks.claim"] / 2, f"{mode}:\n{plan}"
    finally:
        await database.close()


async def start_many(database: Database, first: int, count: int) -> None:
    """Start so many executions at once."""
    await database.run(executions.insert, [new(f"run-{number}") for number in range(first, first + count)])


async def say(database: Database, *statements: str) -> None:
    """Send statements, each a transaction of its own."""
    async with database.engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        for statement in statements:
            await connection.execute(text(statement))


async def plans_of(database: Database, mode: str) -> dict[str, list[Plan]]:
    """Return the plans of each statement that the product sends, by its name."""
    plans: dict[str, list[Plan]] = {}
    names = statements()
    with explained(database.engine, mode) as found:
        for call in CALLS:
            async with database.connected() as link:
                await call(link)
                await link.rollback()
    for plan in found:
        if "pg_try_advisory_lock" not in plan.statement:  # it is none of `zart_sqla.statements`
            plans.setdefault(names[plan.statement], []).append(plan)
    return plans


def check(name: str, plans: list[Plan]) -> None:
    """Fail if a plan of the statement is not good enough."""
    for plan in plans:
        if name in UNBOUNDED:
            assert plan.scanned & GROWING, f"{name} reads no table from end to end any more: give it a bound"
        else:
            assert not plan.scanned & GROWING, f"{name} reads {plan.scanned & GROWING} from end to end:\n{plan}"
            assert plan.pages <= BOUNDS[name], f"{name} looks at {plan.pages} pages, not {BOUNDS[name]}:\n{plan}"


def statements() -> dict[str, str]:
    """Return the names of the functions that make statements, by what these are as text."""
    listed = [statements_of_executions.browse(NAMES, wanted, after) for wanted in PAGES for after in (None, AFTER)]
    made = {text_of(build(NAMES)): name.split(" ")[0] for name, build in catalogue().items()}
    return made | {text_of(one): "executions.browse" for one in listed}


def text_of(statement: Executable, dialect: Dialect = ASYNCPG) -> str:
    """Return the statement as the driver gets it."""
    assert isinstance(statement, ClauseElement)
    keys = REGISTRATION if isinstance(statement, Insert) and statement.select is None else None
    return str(statement.compile(dialect=dialect, column_keys=keys))
