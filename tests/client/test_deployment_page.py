"""The deployment page is a test, line by line: how schedulers, names, registries and workers are made."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import FrozenInstanceError
from typing import Any

import asyncpg
import pytest
from sqlalchemy import inspect, make_url, text
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from tests.support.waiting import PATIENCE, eventually
from tests.support.working import scheduler_on, until
from zart_sqla import (
    ConfigError,
    ExecutionStatus,
    InvalidIdentifierError,
    PoolConfig,
    PostgresScheduler,
    TableNames,
    TaskRegistry,
    Worker,
    WorkerConfig,
    ZartError,
    durable,
)

TABLES = ("executions", "execution_runs", "tasks", "steps", "step_attempts", "stream_items", "workers")


class OnboardingTask:
    """Any object with `async def run(self, data)`."""

    async def run(self, data: Any) -> str:
        """Welcome somebody."""
        return f"welcome {data['name']}"


@durable
async def checkout(cart: list[int]) -> int:
    """Add up what is in the cart."""
    return sum(cart)


@pytest.fixture
async def engine(migrated_url: str) -> AsyncIterator[AsyncEngine]:
    """Yield the app's own engine."""
    made = create_async_engine(migrated_url.replace("postgresql://", "postgresql+asyncpg://"))
    yield made
    await made.dispose()


@pytest.fixture
def registry() -> TaskRegistry:
    """Return the registry of the page."""
    made = TaskRegistry()
    made.register("onboarding", OnboardingTask())
    made.register(checkout)
    return made


@pytest.fixture
async def scheduler(migrated_url: str) -> AsyncIterator[PostgresScheduler]:
    """Yield a scheduler with an engine of its own."""
    async with scheduler_on(migrated_url) as made:
        yield made


# Schedulers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+asyncpg"])
async def test_connect(migrated_url: str, scheme: str) -> None:
    """`connect(url)` makes an engine; "postgresql://" is enough. Closing the scheduler closes it."""
    scheduler = await PostgresScheduler.connect(migrated_url.replace("postgresql://", f"{scheme}://"))
    outside = await asyncpg.connect(migrated_url)
    assert scheduler.engine.dialect.driver == "asyncpg"
    assert (await scheduler.start(checkout, [1])).execution_id
    await scheduler.close()
    others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
    await eventually(lambda: outside.fetchval(others + " AND backend_type = 'client backend'"), 0)
    await outside.close()


async def test_connect_fails_at_once(migrated_url: str) -> None:
    """A database that cannot be reached, or is none, is noticed by `connect`, without the URL in the error."""
    with pytest.raises(Exception, match="does not exist"):
        await PostgresScheduler.connect(make_url(migrated_url).set(database="nothing"))
    for url in ("mysql://user:secret@host/db", "postgresql+psycopg://user:secret@host/db", "secret"):
        with pytest.raises(ConfigError) as caught:
            await PostgresScheduler.connect(url)
        assert "secret" not in str(caught.value)


async def test_connect_with_pool(migrated_url: str) -> None:
    """The pool opens its minimum at the start, has a maximum, and says when it has waited for too long."""
    config = PoolConfig(max_connections=3, min_connections=2, acquire_timeout="50ms")
    async with await PostgresScheduler.connect_with_pool(migrated_url, config) as scheduler:
        pool: Any = scheduler.engine.pool
        assert (pool.checkedin(), pool.checkedout()) == (2, 0)
        held = [await scheduler.engine.connect() for _ in range(3)]
        with pytest.raises(PoolTimeoutError):
            await scheduler.list_executions()
        for connection in held:
            await connection.close()
        assert len(await scheduler.list_executions()) == 0
        assert pool.checkedin() == 3
    for wrong in ({"max_connections": 0}, {"min_connections": 21}, {"acquire_timeout": "soon"}):
        with pytest.raises(ConfigError):
            PoolConfig(**wrong)


async def test_shared_engine(engine: AsyncEngine) -> None:
    """A scheduler on the app's own engine leaves it open, and its pool as it was."""
    async with PostgresScheduler(engine) as scheduler:
        handle = await scheduler.start(checkout, [1])
        with pytest.raises(TimeoutError):
            await handle.result(timeout="10ms")
    pool: Any = engine.pool
    assert pool.checkedin() > 0
    async with engine.connect() as connection:
        assert await connection.scalar(text("SELECT count(*) FROM zart_executions")) == 1
    assert pool.checkedout() == 0


async def test_wrong_engine() -> None:
    """An engine that is not for PostgreSQL through asyncpg is refused."""
    with pytest.raises(ConfigError, match="asyncpg"):
        PostgresScheduler(create_async_engine("postgresql+psycopg://host/db"))


@pytest.mark.parametrize("level", ["AUTOCOMMIT", "SERIALIZABLE", "READ COMMITTED"])
async def test_engine_of_any_isolation_level(engine: AsyncEngine, registry: TaskRegistry, level: Any) -> None:
    """Whatever isolation level the app has given its engine, ours are our own."""
    shared = engine.execution_options(isolation_level=level)
    async with PostgresScheduler(shared) as scheduler:
        await scheduler.start(checkout, [1], execution_id="taken")
        with pytest.raises(ZartError):
            await scheduler.start_many(checkout, [("new", [1]), ("taken", [1])])
        assert len(await scheduler.list_executions()) == 1
        async with Worker(scheduler, registry, WorkerConfig(poll_interval="1h")):
            assert await scheduler.handle("taken").result(timeout=PATIENCE) == 1
            handles = await scheduler.start_many(checkout, [(None, [number]) for number in range(50)])
            assert [await one.result(timeout=PATIENCE) for one in handles] == list(range(50))
    async with shared.connect() as connection:
        assert await connection.get_isolation_level() == ("READ COMMITTED" if level == "AUTOCOMMIT" else level)


# Names --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Return the means to set environment variables, of which none is set."""
    for name in ("ZART_TABLE_PREFIX", "ZART_SCHEMA"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_names(clean_environment: pytest.MonkeyPatch) -> None:
    """Names are made from a prefix, a schema, both, or the environment; they are values, and answer for each table."""
    mine = TableNames.with_prefix("myapp_")
    assert (mine.tasks, mine.executions, mine.prefix, mine.schema) == (
        "myapp_tasks",
        "myapp_executions",
        "myapp_",
        None,
    )
    tenant = TableNames.default().with_schema("tenant_a")
    assert tenant.qualified("tasks") == '"tenant_a"."zart_tasks"'
    both = TableNames.with_prefix("svc_").with_schema("myschema")
    assert both.qualified("tasks") == '"myschema"."svc_tasks"'
    for table in TABLES:
        assert getattr(mine, table) == f"myapp_{table}"
        assert mine.qualified(table) == f'"myapp_{table}"'
    assert TableNames.from_env_or_default() == TableNames.default()
    clean_environment.setenv("ZART_TABLE_PREFIX", "svc_")
    assert TableNames.from_env_or_default() == TableNames.with_prefix("svc_")
    clean_environment.setenv("ZART_SCHEMA", "myschema")
    assert TableNames.from_env_or_default() == both
    assert len({both, TableNames.from_env_or_default(), mine, tenant}) == 3
    with pytest.raises(FrozenInstanceError):
        mine.prefix = "other_"  # type: ignore[misc]


BAD = {
    "": "is empty",
    "9a_": "does not start with an ASCII letter",
    "_a": "does not start with an ASCII letter",
    "ä_": "does not start with an ASCII letter",
    "my-app_": "has characters other than",
    "my app": "has characters other than",
    'a"; DROP TABLE orders; --': "has characters other than",
    "a\n": "has characters other than",
    "größe_": "has characters other than",
    "x" * 64: "64 bytes long",
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_names(bad: str, clean_environment: pytest.MonkeyPatch) -> None:
    """A bad prefix or schema is refused with what is wrong with which one, and the variable if it came from there."""
    for part, make in (("prefix", TableNames.with_prefix), ("schema", TableNames.default().with_schema)):
        with pytest.raises(InvalidIdentifierError, match=part) as caught:
            make(bad)
        assert isinstance(caught.value, ValueError)
        assert isinstance(caught.value, ZartError)
        assert BAD[bad] in str(caught.value)
        assert (caught.value.part, caught.value.actual, caught.value.variable) == (part, bad, None)
    for variable in ("ZART_TABLE_PREFIX", "ZART_SCHEMA"):
        with clean_environment.context() as environment:
            environment.setenv(variable, bad)
            with pytest.raises(InvalidIdentifierError, match=variable) as caught:
                TableNames.from_env_or_default()
            assert caught.value.variable == variable
            assert BAD[bad] in str(caught.value)


async def test_longest_names(migrated_url: str) -> None:
    """The longest prefix and schema that are accepted make tables that work; one more character is refused."""
    longest = 0
    while longest < 63:
        try:
            TableNames.with_prefix("x" * (longest + 1))
        except InvalidIdentifierError:
            break
        longest += 1
    assert longest >= 20
    names = TableNames.with_prefix("x" * longest).with_schema("s" * 63)
    async with scheduler_on(migrated_url, names=names) as scheduler:
        await scheduler.migrate()
        async with scheduler.engine.connect() as connection:
            relations = list(
                await connection.scalars(
                    text("SELECT relname::text FROM pg_class WHERE relnamespace = to_regnamespace(:schema)"),
                    {"schema": names.schema},
                )
            )
    assert len(relations) > len(TABLES)
    assert all(one.startswith(names.prefix) for one in relations)


async def test_two_of_them_share_nothing(migrated_url: str) -> None:
    """Two sets of names in one database have different executions, tables, types, indexes, channels and workers."""
    both = (TableNames.with_prefix("a_"), TableNames.default().with_schema("tenant"))
    ran: list[str] = []

    def named(prefix: str) -> Any:
        async def order(data: str) -> str:
            ran.append(f"{prefix} {data}")
            return f"{prefix} {data}"

        return order

    schedulers: list[PostgresScheduler] = []
    workers: list[Worker] = []
    try:
        for names in both:
            scheduler = await PostgresScheduler.connect(migrated_url, names=names)
            schedulers.append(scheduler)
            await scheduler.migrate()
            registry = TaskRegistry()
            registry.register("order", named(names.prefix))
            workers.append(await Worker(scheduler, registry, WorkerConfig(poll_interval="1h")).__aenter__())
        handles = [await one.start("order", "x", execution_id="same") for one in schedulers]
        assert [await one.result(timeout=PATIENCE) for one in handles] == ["a_ x", "zart_ x"]
        assert [len(await one.list_executions()) for one in schedulers] == [1, 1]
        async with schedulers[0].engine.connect() as connection:
            tables = await connection.run_sync(lambda sync: set(inspect(sync).get_table_names(schema="tenant")))
            own = await connection.run_sync(lambda sync: set(inspect(sync).get_table_names()))
            enums = await connection.scalar(text("SELECT count(*) FROM pg_type WHERE typtype = 'e'"))
            registered = [
                await connection.scalar(text("SELECT count(*) FROM a_workers")),
                await connection.scalar(text("SELECT count(*) FROM tenant.zart_workers")),
                await connection.scalar(text("SELECT count(*) FROM zart_workers")),
            ]
        assert {f"zart_{table}" for table in TABLES} <= tables
        assert {f"a_{table}" for table in TABLES} <= own
        assert enums == 0
        assert registered == [1, 1, 0]
        assert both[0].work_channel != both[1].work_channel
        assert both[0].done_channel != both[1].done_channel
    finally:
        for worker in workers:
            await worker.stop()
        for scheduler in schedulers:
            await scheduler.close()
    assert sorted(ran) == ["a_ x", "zart_ x"]


async def test_with_table_names(engine: AsyncEngine) -> None:
    """`with_table_names(engine, names)` is `PostgresScheduler(engine, names=names)`."""
    names = TableNames.with_prefix("myapp_")
    for scheduler in (PostgresScheduler.with_table_names(engine, names), PostgresScheduler(engine, names=names)):
        await scheduler.migrate()
        assert scheduler.names == names
        assert scheduler.engine is engine
        assert (await scheduler.start("order", 1)).execution_id
        await scheduler.close()
    async with engine.connect() as connection:
        assert await connection.scalar(text("SELECT count(*) FROM myapp_executions")) == 2


# Registries and workers ---------------------------------------------------------------------------------------------


async def test_registry(registry: TaskRegistry, scheduler: PostgresScheduler) -> None:
    """A registry takes objects under a name and durable functions under their own; each name is taken once."""
    assert registry.names == ["checkout", "onboarding"]
    registry.register(checkout)  # again: it is the same
    for wrong in (
        ("onboarding", OnboardingTask()),
        ("onboarding", checkout),
        (OnboardingTask(),),
        ("x", OnboardingTask),
    ):
        with pytest.raises(ConfigError):
            registry.register(*wrong)
    async with Worker(scheduler, registry):
        welcome = await scheduler.start("onboarding", {"name": "Ada"})
        assert await welcome.result(timeout=PATIENCE) == "welcome Ada"
        assert await (await scheduler.start(checkout, [1, 2])).result(timeout=PATIENCE) == 3


async def test_worker_beside_the_app(registry: TaskRegistry, scheduler: PostgresScheduler) -> None:
    """`create_task(worker.run())` does not block the app; cancelling it is graceful."""
    config = WorkerConfig(poll_interval="5s", max_tasks_per_poll=10, max_concurrent_tasks=16, shutdown_timeout="30s")
    running = asyncio.create_task(Worker(scheduler, registry, config).run())
    handle = await scheduler.start(checkout, [1, 2])
    assert await handle.result(timeout=PATIENCE) == 3
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await (await scheduler.start(checkout, [1])).status() is ExecutionStatus.SCHEDULED


@pytest.mark.parametrize("way", ["cancel", "stop", "async with"])
async def test_graceful(scheduler: PostgresScheduler, way: str) -> None:
    """However it is stopped, what runs finishes, nothing more is claimed, and nothing stays behind."""
    started, let_go = asyncio.Event(), asyncio.Event()

    @durable
    async def order(number: int) -> int:
        started.set()
        await let_go.wait()
        return number

    registry = TaskRegistry()
    registry.register(order)
    worker = Worker(scheduler, registry, WorkerConfig(max_concurrent_tasks=1))

    async def work_within() -> None:
        async with worker:
            await started.wait()

    running = asyncio.create_task(work_within() if way == "async with" else worker.run())
    first, second = await scheduler.start_many(order, [(None, 1), (None, 2)])
    await started.wait()
    match way:
        case "cancel":
            running.cancel()
        case "stop":
            stopping = asyncio.create_task(worker.stop())
            await asyncio.sleep(0)
            assert not stopping.done()
        case _:
            await asyncio.sleep(0)
    let_go.set()
    await asyncio.wait([running])
    assert running.cancelled() == (way == "cancel")
    statuses = sorted([await first.status(), await second.status()])
    assert statuses == [ExecutionStatus.COMPLETED, ExecutionStatus.SCHEDULED]
    async with scheduler.engine.connect() as connection:
        assert await connection.scalar(text("SELECT count(*) FROM zart_workers")) == 0


async def test_stop_that_is_cancelled(scheduler: PostgresScheduler) -> None:
    """Who cancels the stop itself is in a hurry: what runs goes back to the queue at once."""
    started = asyncio.Event()

    @durable
    async def endless() -> None:
        started.set()
        await asyncio.Event().wait()

    registry = TaskRegistry()
    registry.register(endless)
    async with Worker(scheduler, registry, WorkerConfig(shutdown_timeout="1h")) as worker:
        handle = await scheduler.start(endless)
        await started.wait()
        stopping = asyncio.create_task(worker.stop())
        await asyncio.sleep(0)
        stopping.cancel()
        with pytest.raises(asyncio.CancelledError):
            await stopping
        await until(handle, ExecutionStatus.SCHEDULED)


async def test_wrong_settings() -> None:
    """A wrong setting is a ConfigError that names it."""
    wrong: dict[str, list[Any]] = {
        "poll_interval": ["0s", "never", -1, None],
        "max_tasks_per_poll": [0, 1.5, True],
        "max_concurrent_tasks": [0, "many"],
        "shutdown_timeout": [-1, "later"],
        "lease_timeout": [0, "0s"],
        "heartbeat_interval": ["11s", 0],
        "max_crashes": [0],
        "queues": [[], "mail", [""]],
    }
    for setting, values in wrong.items():
        for value in values:
            with pytest.raises(ConfigError) as caught:
                WorkerConfig(**{setting: value})
            assert caught.value.setting == setting
            assert isinstance(caught.value, ValueError)
