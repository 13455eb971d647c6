"""What is done to workers, connections, the network and the server. Each fault returns what it has hit."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from typing import LiteralString, TypeVar

import asyncpg

from tests.chaos.arena import APPLICATION_NAME, LEASE_SECONDS, OUTAGES, Arena, Connection, Post, connected
from tests.chaos.plan import Fault
from tests.support.proxies import Mode

T = TypeVar("T")

OTHERS: LiteralString = f"datname = current_database() AND application_name <> '{APPLICATION_NAME}'"
"""Whose connections faults are for: all but those of the test itself."""

MOMENTS: dict[str, LiteralString] = {
    "beat": "state = 'active' AND query LIKE '%heartbeat_at=%'",
    "checkpoint": "state = 'active' AND query LIKE '%INSERT INTO zart_steps%'",
    "claim": "state = 'active' AND query LIKE '%claimed_at=%'",
    "commit": "state = 'active' AND query ILIKE 'commit%'",
    "end": "state = 'active' AND query LIKE '%DELETE FROM zart_tasks%'",
    "idle in transaction": "state = 'idle in transaction'",
    "put down": "state = 'active' AND query LIKE '%is_waiting=%'",
}
"""What a connection can be at, as a condition on `pg_stat_activity`."""

SLOTS = 200


def pick(fault: Fault, candidates: Sequence[T]) -> T:
    """Return the one that the plan has chosen, of those that there are."""
    return candidates[int(fault.pick * len(candidates))]


def running(posts: Sequence[Post]) -> list[Post]:
    """Return the posts whose process is there and goes."""
    return [post for post in posts if post.process.is_running and not post.is_frozen]


async def kill(arena: Arena, fault: Fault) -> str:
    """End a worker without warning."""
    return _end(pick(fault, running(arena.workers)))


async def driver(arena: Arena, fault: Fault) -> str:
    """End a driver without warning."""
    return _end(pick(fault, running(arena.drivers)))


def _end(post: Post) -> str:
    post.process.kill()
    return post.process.name


async def term(arena: Arena, fault: Fault) -> str:
    """Ask a worker to stop in order."""
    post = pick(fault, running(arena.workers))
    post.process.signal(signal.SIGTERM)
    return post.process.name


async def stop(arena: Arena, fault: Fault) -> str:
    """Have a worker stand still, mostly for longer than its lease, and go on."""
    post = pick(fault, running(arena.workers))
    post.is_frozen = True
    post.process.freeze()
    await asyncio.sleep(fault.seconds)  # how long is a part of the fault
    post.process.thaw()
    post.is_frozen = False
    return f"{post.process.name}, {'past' if fault.seconds > LEASE_SECONDS else 'within'} its lease"


async def _cut(arena: Arena, condition: LiteralString, *arguments: object) -> list[str]:
    """End all connections of which this is true, and return whose they were."""
    async with connected(arena.server.url) as connection:
        return await _cut_over(connection, condition, *arguments)


async def _cut_over(connection: Connection, condition: LiteralString, *arguments: object) -> list[str]:
    rows = await connection.fetch(
        f"SELECT application_name, pg_terminate_backend(pid) FROM pg_stat_activity WHERE {OTHERS} AND {condition}",  # noqa: S608 - conditions of our own
        *arguments,
    )
    return [row["application_name"] for row in rows]


async def cut(arena: Arena, fault: Fault) -> str:
    """End a connection, whatever it is at."""
    async with connected(arena.server.url) as connection:
        rows = await connection.fetch(f"SELECT pid FROM pg_stat_activity WHERE {OTHERS} ORDER BY pid")  # noqa: S608
    chosen = pick(fault, rows)["pid"]
    return ", ".join(await _cut(arena, "pid = $1", chosen))


async def cut_all(arena: Arena, _: Fault) -> str:
    """End every connection."""
    return f"{len(await _cut(arena, 'true'))} connections"


async def cut_at(arena: Arena, fault: Fault) -> str:
    """End connections that are at something, as soon as there are some."""
    return await _hit_at("pg_terminate_backend", arena, fault)


async def interrupt(arena: Arena, fault: Fault) -> str:
    """Cancel statements of ours, as soon as there are some; one of a step's own would be an error of the step."""
    moment = fault.moment if fault.moment != "idle in transaction" else "checkpoint"
    return await _hit_at("pg_cancel_backend", arena, replace(fault, moment=moment))


async def _hit_at(how: LiteralString, arena: Arena, fault: Fault) -> str:
    query = f"SELECT application_name, {how}(pid) FROM pg_stat_activity WHERE {OTHERS} AND {MOMENTS[fault.moment]}"  # noqa: S608
    deadline = asyncio.get_running_loop().time() + fault.seconds
    async with connected(arena.server.url) as connection:
        while asyncio.get_running_loop().time() < deadline:
            if rows := await connection.fetch(query):
                return f"{fault.moment} of {', '.join(row['application_name'] for row in rows)}"
            await asyncio.sleep(0.001)  # until the moment comes
    return f"{fault.moment} of nobody"


async def crash(arena: Arena, fault: Fault) -> str:
    """Crash the server, and start it a little later."""
    await arena.server.restart(signal.SIGQUIT, fault.seconds)
    return f"away for {fault.seconds:.1f} s"


async def restart(arena: Arena, fault: Fault) -> str:
    """Restart the server in order."""
    await arena.server.restart(signal.SIGINT, fault.seconds)
    return f"away for {fault.seconds:.1f} s"


async def backend_killed(arena: Arena, fault: Fault) -> str:
    """Kill one of the server's processes, after which it ends all others and recovers."""
    async with connected(arena.server.url) as connection:
        rows = await connection.fetch(
            f"SELECT pid, application_name FROM pg_stat_activity WHERE {OTHERS} ORDER BY pid"  # noqa: S608
        )
    chosen = pick(fault, rows)
    os.kill(chosen["pid"], signal.SIGKILL)
    return str(chosen["application_name"])


async def slots(arena: Arena, fault: Fault) -> str:
    """Use up all connections that the server has, and end some of the others', who then need new ones."""
    deadline = asyncio.get_running_loop().time() + fault.seconds
    cuts: list[str] = []
    async with AsyncExitStack() as stack:
        taken = await _take_slots(arena, stack)
        cuts = await _cut_over(taken[0], "pid % 2 = 0") if taken else []
        while asyncio.get_running_loop().time() < deadline:
            taken += await _take_slots(arena, stack)
            await asyncio.sleep(0.02)
    return f"{len(taken)} taken and {len(cuts)} cut for {fault.seconds:.1f} s"


async def _take_slots(arena: Arena, stack: AsyncExitStack) -> list[Connection]:
    taken: list[Connection] = []
    try:
        while len(taken) < SLOTS:
            taken.append(await stack.enter_async_context(connected(arena.server.url)))
    except asyncpg.TooManyConnectionsError:
        return taken
    raise RuntimeError(f"the server has more than {SLOTS} connections")


async def timeout(arena: Arena, fault: Fault) -> str:
    """Have everybody's statements time out, while somebody locks the table of steps now and then."""
    try:
        async with connected(arena.server.url) as connection:
            await connection.execute(await _altered(connection, "SET statement_timeout = '1s'"))
            await _cut_over(connection, "true")
            await _lock_steps(connection, fault.seconds)
    finally:
        cut = await _end_timeouts(arena)
    return f"{cut} connections for {fault.seconds:.1f} s"


async def _altered(connection: Connection, how: LiteralString) -> str:
    """Return the statement by which this database is altered."""
    return f"ALTER DATABASE {await connection.fetchval('SELECT quote_ident(current_database())')} {how}"


async def _lock_steps(connection: Connection, seconds: float) -> None:
    deadline = asyncio.get_running_loop().time() + seconds
    while asyncio.get_running_loop().time() < deadline:
        async with connection.transaction():
            await connection.execute("LOCK TABLE zart_steps IN EXCLUSIVE MODE")
            await asyncio.sleep(1.5)  # for longer than the timeout
        await asyncio.sleep(0.2)


async def _end_timeouts(arena: Arena) -> int:
    """Have no statement time out any more, and return how many connections were ended for that."""
    while True:
        with suppress(*OUTAGES):  # other faults may be in the way
            async with connected(arena.server.url) as connection:
                await connection.execute(await _altered(connection, "RESET statement_timeout"))
                return len(await _cut_over(connection, "true"))
        await asyncio.sleep(0.2)


def _cut_off(arena: Arena, fault: Fault) -> Post:
    return pick(fault, [post for post in arena.workers if post.network is not None])


async def held(arena: Arena, fault: Fault) -> str:
    """Hold back all that a worker and the server tell each other; it arrives later."""
    return await _take_away(_cut_off(arena, fault), Mode.HOLD, fault)


async def black_hole(arena: Arena, fault: Fault) -> str:
    """Lose all that a worker and the server tell each other; neither is told."""
    return await _take_away(_cut_off(arena, fault), Mode.DROP, fault)


async def _take_away(post: Post, mode: Mode, fault: Fault) -> str:
    assert post.network is not None
    await post.network.set_mode(mode)
    await asyncio.sleep(fault.seconds)  # how long is a part of the fault
    if mode is Mode.DROP:
        post.network.abort()  # what is lost stays lost
    await post.network.set_mode(Mode.FORWARD)
    return f"{post.process.name}, {'past' if fault.seconds > LEASE_SECONDS else 'within'} its lease"


async def late(arena: Arena, fault: Fault) -> str:
    """Have all that a worker and the server tell each other arrive a little later."""
    post = _cut_off(arena, fault)
    assert post.network is not None
    post.network.delay = 0.05 + fault.pick / 5
    await asyncio.sleep(fault.seconds)  # how long is a part of the fault
    delay, post.network.delay = post.network.delay, 0.0
    return f"{post.process.name}, each way {delay:.2f} s"


async def reset(arena: Arena, fault: Fault) -> str:
    """Reset all connections of a worker."""
    post = _cut_off(arena, fault)
    assert post.network is not None
    post.network.abort()
    return post.process.name


FAULTS: dict[str, Callable[[Arena, Fault], Awaitable[str]]] = {
    "backend killed": backend_killed,
    "black hole": black_hole,
    "crash": crash,
    "cut": cut,
    "cut all": cut_all,
    "cut at": cut_at,
    "driver": driver,
    "held": held,
    "interrupt": interrupt,
    "kill": kill,
    "late": late,
    "reset": reset,
    "restart": restart,
    "slots": slots,
    "stop": stop,
    "term": term,
    "timeout": timeout,
}
