"""What the product says to a crowded database, each statement by the function of the store that says it."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

from tests.statements.catalogue import EVERYTHING, UNFINISHED
from tests.store.connections import Link
from tests.store.crew import ERROR, GRACE, LEASE, new, step
from tests.store.plans.crowd import (
    DEAD_WORKER,
    DUE,
    FAILED,
    HELD,
    LISTENING,
    LONG_RUN,
    SLEEPING,
    WAITING,
    WIDE_RUN,
    child,
    execution_of,
    held,
    uuid_of,
)
from zart_sqla.records import Child, FailedAttempt, NewEvent, RecordedStep, StepKind, StreamPosition
from zart_sqla.store import children, diagnosis, events, executions, histories, streams, tasks, workers
from zart_sqla.store.children import ChildrenToAdd, ChildrenToGiveUp
from zart_sqla.store.events import EventToTake
from zart_sqla.store.streams import ItemToEmit
from zart_sqla.store.tasks import AttemptToRecord, RunToFinish, RunToRenew, StepToRecord, TaskToPutDown

ME = uuid_of(1)
TEN = [held(number) for number in range(DUE + 1, DUE + 11)]
"""Tasks that the worker holds, among them those of the runs that have done the most."""
RUNS = [one.run_id for one in TEN]
SOON = datetime.now(UTC) + timedelta(hours=1)
PAGES = (
    EVERYTHING,
    UNFINISHED,
    replace(EVERYTHING, task_name="order"),
    replace(EVERYTHING, since=SOON - timedelta(days=1)),
)
"""What is listed. Not those of one status: they are looked for among all others, however few there are (ADR 0002)."""
AFTER = (datetime.now(UTC) - timedelta(seconds=1000), "")

Call = Callable[[Link], Awaitable[object]]


async def claim(link: Link) -> None:
    """Claim, as a worker does that serves all queues, and as one that serves some."""
    for queues in (None, ["default"]):
        await link.run(tasks.claim, ME, task_names=["order", "other"], queues=queues, limit=10, ahead_seconds=5)


async def start(link: Link) -> None:
    """Start executions; one of them is there already."""
    started = [new(f"new-{number}") for number in range(9)]
    await link.run(executions.insert, [*started, new(execution_of(1))])


async def record(link: Link) -> None:
    """Record steps and failed attempts."""
    await link.run(tasks.record_steps, ME, [StepToRecord(one, step("new")) for one in TEN])
    failed = FailedAttempt(step="new", attempt=1, error=ERROR, started_at=SOON)
    await link.run(tasks.record_attempts, ME, [AttemptToRecord(one, failed) for one in TEN])
    await link.run(tasks.find_steps, [(run_id, "charge-card") for run_id in RUNS])


async def take(link: Link) -> None:
    """Take events: for one of the runs there are a thousand."""
    waiting = RecordedStep(name="wait", kind=StepKind.EVENT, position=1)
    await link.run(events.take, ME, [EventToTake(one, waiting, "paid") for one in TEN])


async def emit(link: Link) -> None:
    """Emit values: one of the streams has ten thousand."""
    emitted = RecordedStep(name="emit", kind=StepKind.EMIT, position=1)
    await link.run(streams.emit, ME, [ItemToEmit(one, emitted, "progress", "1") for one in TEN])


async def settle(link: Link) -> None:
    """Put tasks down, end runs, and let others follow."""
    await link.run(tasks.held, ME, TEN)
    await link.run(tasks.touch, ME, TEN)
    sleeping = {"due_at": SOON, "is_waiting": True, "retries": 0}
    await link.run(tasks.put_down, ME, [TaskToPutDown(one, **sleeping) for one in TEN[2:4]])  # type: ignore[arg-type]
    await link.run(tasks.finish, ME, [RunToFinish(one, '"done"', None) for one in TEN[4:8]])
    await link.run(tasks.renew, ME, [RunToRenew(one, uuid4(), "2") for one in TEN[8:]])


async def schedule(link: Link) -> None:
    """Add children, give some up, end some, and look whether their runs have waited for long enough."""
    await link.run(children.add, ME, [ChildrenToAdd(one, [child(number) for number in range(5)]) for one in TEN])
    await link.run(children.give_up, ME, [ChildrenToGiveUp(TEN[1], ["child-2", "child-3"])])
    await link.run(children.remove, ME, [held(WIDE_RUN, task_id=children.child_id(uuid_of(WIDE_RUN), "new-1"))])
    await link.run(children.wake, [uuid_of(number) for number in (WIDE_RUN, WAITING - 1, WAITING)])
    await link.run(children.wake_all)


async def go_on(link: Link) -> None:
    """Read what earlier turns have recorded."""
    await link.run(tasks.journal, RUNS[2:])
    await link.run(children.payloads, RUNS)
    one = held(HELD + 1, child=Child(name="child-1", position=1, call="1"))
    await link.run(children.histories, [one])
    await link.run(histories.histories, [execution_of(number) for number in range(SLEEPING, SLEEPING + 10)])


async def live(link: Link) -> None:
    """Register, say that one lives, and resign."""
    known = {"hostname": "here", "pid": 1, "lock_key": 1, "lease_seconds": LEASE}
    await link.run(workers.register, uuid4(), **known)  # type: ignore[arg-type]
    await link.call(lambda connection: workers.lock(connection, 1))
    await link.run(workers.set_lock, ME, 1)
    running = [(one.task_id, one.attempt) for one in TEN]
    await link.run(workers.beat, ME, running=running, lease_seconds=LEASE, grace_seconds=GRACE)
    await link.run(tasks.release_others, ME, RUNS)
    await link.run(workers.unregister, uuid_of(50))


async def take_over(link: Link) -> None:
    """Bury the dead, and free their tasks."""
    dead = await link.run(workers.bury, ME, grace_seconds=GRACE)
    assert [one.worker_id for one in dead] == [uuid_of(DEAD_WORKER)]
    await link.run(workers.take_over, [one.worker_id for one in dead], max_crashes=5)
    assert not await link.run(workers.has_orphans)


async def ask(link: Link) -> None:
    """Ask for executions, and for their steps."""
    await link.run(executions.find, [execution_of(number) for number in range(1, 11)])
    await link.run(executions.ending, execution_of(1))
    await link.run(executions.steps_of, execution_of(DUE + 3))
    await link.run(executions.await_end, execution_of(LISTENING))
    await link.run(streams.follow, execution_of(LISTENING))
    await link.run(streams.read, StreamPosition(execution_id=execution_of(LONG_RUN), stream="progress", offset=9_900))


async def browse(link: Link) -> None:
    """Ask for the first page of executions, and for a later one."""
    for wanted in PAGES:
        await link.run(executions.browse, wanted, None)
        await link.run(executions.browse, wanted, executions._cursor(*AFTER))


async def offer(link: Link) -> None:
    """Offer an event to a run that waits for it."""
    await link.run(events.offer, NewEvent(execution_id=execution_of(LISTENING), name="paid", payload="1", event_id="1"))


async def cancel(link: Link) -> None:
    """Cancel a run with children of its own, and tell the workers."""
    await link.run(executions.cancel, execution_of(WAITING))
    await link.run(executions.notify_work)


async def resume(link: Link) -> None:
    """Let a run go on that has failed, with the executions that it has started."""
    assert await link.run(executions.resume, execution_of(FAILED), uuid4())


async def diagnose(link: Link) -> None:
    """Ask how the queue and its workers are."""
    await link.call(diagnosis.backend)
    await link.run(diagnosis.workers)
    await link.run(diagnosis.overdue, 1.0)
    await link.run(diagnosis.lost, 10)


CALLS: tuple[Call, ...] = (
    claim,
    start,
    record,
    take,
    emit,
    settle,
    schedule,
    go_on,
    live,
    take_over,
    ask,
    browse,
    offer,
    cancel,
    resume,
    diagnose,
)
