"""Workers that die at each point of the protocol: before and after each commit, and while it is on its way.

Whoever comes next goes on with what is written, and does again what is not. Nothing is there twice.
"""

import ast
import asyncio
import json
import signal
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, LiteralString

import pytest

import zart_sqla.worker
from tests.worker.processes.crew import WorkerProcess
from tests.worker.processes.points import POINTS, READS, Moment, Point
from tests.worker.processes.stage import Stage, eventually, stage
from tests.worker.test_processes_connections import cut
from zart_sqla import ExecutionFailed, ExecutionHandle, ExecutionStatus

QUICK: dict[str, Any] = {"heartbeat_interval": "200ms", "shutdown_timeout": "100ms"}
"""Settings with which the dead are noticed sooner than by default, and nobody waits for those who leave."""


@dataclass(kw_only=True)
class Act:
    """One death.

    Attributes:
        play: where.
        queue: the queue of this act alone.
        handle: the execution.
    """

    play: Stage
    queue: str
    handle: ExecutionHandle[Any]

    async def began(self, step: str) -> WorkerProcess:
        """Return the worker in which a step has begun, when it has."""
        return self.play.find(await self.play.began(step, self.handle.execution_id))

    async def is_recorded(self, step: str) -> None:
        """Return when a step is recorded."""
        await eventually(lambda: (self.handle.execution_id, step) in self.play.recorded())

    async def helper(self, **settings: Any) -> WorkerProcess:
        """Return another worker that does what is in this queue."""
        return await self.play.worker(**QUICK, queues=[self.queue], **settings)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What brings a worker to a point.

    Attributes:
        data: the input of the execution, in which `<queue>` stands for the name of its queue.
        result: what it comes to: a value, or how it ends without one.
        task: the workflow.
        settings: those of the worker that is to die which are not the usual ones.
        prepare: what happens before the worker comes that is to die.
        provoke: what happens when it is there.
        is_apart: whether the deaths of others would disturb it.
    """

    data: Any
    result: Any
    task: str = "script"
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    prepare: Callable[[Act], Awaitable[Any]] | None = None
    provoke: Callable[[Act, WorkerProcess], Awaitable[Any]] | None = None
    is_apart: bool = False


async def _offer(act: Act, *_: Any) -> None:
    await act.handle.offer_event("paid", 1)


async def _send_home(act: Act, worker: WorkerProcess) -> None:
    await act.began("a")
    worker.signal(signal.SIGTERM)


WAITS: LiteralString = """
SELECT bool_or(t.awaits_open = 0 AND t.worker_id IS NULL) FROM zart_tasks t WHERE queue = %s AND step IS NULL
"""


async def _cut_off(act: Act, worker: WorkerProcess) -> None:
    await act.began("b")
    cut(act.play, worker, "liveness")


async def _break_claim(act: Act, worker: WorkerProcess) -> None:
    await act.began("b")
    cut(act.play, worker, "pool")
    await act.play.scheduler.start("script", ["note x"], queue=act.queue)


async def _cancel(act: Act) -> None:
    helper = await act.helper()
    await act.is_recorded("night")
    helper.kill()
    await act.handle.cancel()


async def _orphan(act: Act) -> None:
    helper = await act.helper()
    (await act.began("b")).kill()
    assert not helper.is_running


async def _end_child(act: Act, *_: Any) -> None:
    """Have the child end when the run waits for it."""
    await act.began("hold-f-0")
    await eventually(lambda: act.play.database.value(WAITS, act.queue))
    act.play.open(act.queue)


async def _orphan_group(act: Act) -> None:
    helper = act.play.crew.spawn(**QUICK, queues=[act.queue], dies=("wake at the end of a child", Moment.UNSENT))
    await _end_child(act)
    await eventually(lambda: not helper.is_running)


async def _leave_group(act: Act, worker: WorkerProcess) -> None:
    await act.began("hold-f-0")
    worker.signal(signal.SIGTERM)
    await eventually(lambda: " stops" in worker.log)
    await _end_child(act)


SCENES: Mapping[str, Scene] = {
    "notes": Scene(data=["note a", "note b", "note c", "compute tail 0"], result=4),
    "hold": Scene(data=["note a", "hold b gate", "note c"], result=3),
    "cut off": Scene(data=["note a", "hold b gate"], result=2, provoke=_cut_off),
    "broken claim": Scene(data=["note a", "hold b gate"], result=2, provoke=_break_claim),
    "leave": Scene(data=["hold a gate", "note b"], result=2, provoke=_send_home),
    "leave defiant": Scene(data=["defy a gate", "note b"], result=2, provoke=_send_home),
    "group": Scene(data=["fan f hold:1:<queue>", "note b"], result=2, provoke=_end_child),
    "leave a group": Scene(
        data=["fan f hold:1:<queue>", "note b"], result=2, settings={"shutdown_timeout": "60s"}, provoke=_leave_group
    ),
    "take over": Scene(data=["note a", "hold b gate"], result=2, prepare=_orphan, is_apart=True),
    "take over a group": Scene(data=["fan f hold:1:<queue>", "note b"], result=2, prepare=_orphan_group, is_apart=True),
    "nap": Scene(data=["compute turn 0", "nap b 700ms", "note c"], result=3),
    "falter": Scene(data=["falter a", "note b"], result=2),
    "restive": Scene(data=["compute turn 0", "note a"], result=2, task="restive"),
    "event before": Scene(data=["expect paid", "note a"], result=2, prepare=_offer),
    "event later": Scene(data=["expect paid", "note a"], result=2),
    "emit": Scene(data=["emit progress 1", "emit progress 2", "emit progress 3"], result=3),
    "deposit": Scene(data=["deposit deposit-a", "note b"], result=2),
    "deposit in a thread": Scene(data=["deposit_thread deposit-a", "note b"], result=2),
    "one child": Scene(data=["fan f note:1", "note z"], result=2),
    "child that falters": Scene(data=["fan f falter:1", "note z"], result=2),
    "child that deposits": Scene(data=["fan f deposit:1", "note z"], result=2),
    "first": Scene(data=["first f 1,note:1,hold:1:never", "note z"], result=2),
    "parent": Scene(data=[["note a"], ["note b"]], result=2, task="parent"),
    "fail": Scene(data=["note a", "compute turn 0", "fail b"], result=ExecutionStatus.FAILED),
    "mended": Scene(data=[["compute turn 0", "fail b"], ["note c"]], result="StepFailure: b", task="mended"),
    "mended group": Scene(
        data=[["scatter s hold:1:never", "compute turn 0", "fail b"], ["note c"]],
        result="StepFailure: b",
        task="mended",
    ),
    "endless": Scene(data=[0, 3], result=3, task="endless"),
    "cancelled": Scene(
        data=["note a", "compute tail 0"], result=ExecutionStatus.CANCELLED, task="undone", prepare=_cancel
    ),
}


async def _die(play: Stage, name: str, moment: Moment) -> Act:
    """Have a worker die at a point; return what is left."""
    point, queue = POINTS[name], str(moment)
    scene = SCENES[point.scene]
    data = json.loads(json.dumps(scene.data).replace("<queue>", queue))
    handle = await play.scheduler.start(scene.task, data, execution_id=queue, queue=queue)
    act = Act(play=play, queue=queue, handle=handle)
    if scene.prepare is not None:
        await scene.prepare(act)
    worker = play.crew.spawn(**{**QUICK, **scene.settings}, queues=[queue], dies=(name, moment))
    if scene.provoke is not None:
        await scene.provoke(act, worker)
    await eventually(lambda: not worker.is_running)
    assert worker.exit_code == -signal.SIGKILL
    return act


async def _all_die(play: Stage, name: str) -> list[Act]:
    """Have a worker die at each moment of a point."""
    point = POINTS[name]
    if SCENES[point.scene].is_apart:
        return [await _die(play, name, moment) for moment in point.moments]
    return await asyncio.gather(*(_die(play, name, moment) for moment in point.moments))


async def _result(act: Act, expected: Any) -> Any:
    """Return what an execution has come to: a value, or how it ended without one."""
    if expected is ExecutionStatus.CANCELLED:
        return await act.handle.status()
    try:
        return await act.handle.result(timeout="30s")
    except ExecutionFailed:
        return ExecutionStatus.FAILED


def _times(point: Point, moment: Moment) -> int:
    return point.kept if moment.is_kept else point.lost


LEFT: LiteralString = """
SELECT count(*) FROM zart_tasks WHERE run_id NOT IN (
    SELECT run_id FROM zart_executions WHERE execution_id LIKE '%-child')
"""
"""How many tasks there are, but for those that nobody has waited for."""


OWN: LiteralString = "FROM zart_tasks t JOIN zart_executions e ON e.run_id = t.run_id WHERE execution_id = %s"
STEPS: LiteralString = "FROM zart_steps JOIN zart_execution_runs USING (run_id) WHERE execution_id = %s"
CHILD: LiteralString = "SELECT count(*) = 1 FROM zart_executions WHERE parent_id = %s"

PROOFS: Mapping[str, LiteralString] = {
    "claim": f"SELECT bool_or(attempt = 1) {OWN}",
    "claim a second turn": f"SELECT bool_or(attempt = 2) {OWN}",
    "claim a child": f"SELECT bool_or(attempt = 1) {OWN} AND step IS NOT NULL",
    "claim a cleanup": f"SELECT bool_or(attempt = 2) {OWN}",
    "wait for an event": f"SELECT awaits IS NOT NULL {OWN}",
    "wait for children": f"SELECT awaits_open = 0 {OWN} AND step IS NULL",
    "wait begins": f"SELECT count(*) = 1 {STEPS} AND kind = 'event'",
    "event": f"SELECT count(*) = 1 {STEPS} AND kind = 'event'",
    "emit": f"SELECT count(*) = 2 {STEPS} AND kind = 'emit'",
    "add children": f"SELECT count(*) = 1 {OWN} AND step IS NOT NULL",
    "tell of children": f"SELECT count(*) = 1 {OWN} AND step IS NOT NULL",
    "give up children": f"SELECT count(*) = 2 {STEPS} AND kind = 'child'",
    "touch": CHILD,
    "start": CHILD,
    "record a start": CHILD,
    "tell of a start": CHILD,
    "end of a child execution": "SELECT bool_or(outcome = 'completed') FROM zart_execution_runs r"
    " JOIN zart_executions USING (run_id) WHERE parent_id = %s",
    "renew": "SELECT max(run_index) = 2 FROM zart_execution_runs WHERE execution_id = %s",
    "begin a cleanup": f"SELECT count(*) = 1 {STEPS} AND kind = 'cancellation'",
}
"""What tells, where no step does, whether what was to be written is there when the worker is dead."""


def _check_proof(play: Stage, name: str, moment: Moment, execution_id: str) -> None:
    if name in PROOFS:
        assert bool(play.database.value(PROOFS[name], execution_id)) is moment.is_kept


@pytest.mark.parametrize("name", POINTS)
async def test_killed(name: str, migrated_url: str, tmp_path: Path) -> None:
    """Whatever the moment: another worker goes on to the end, and what was written is not done again."""
    point = POINTS[name]
    scene = SCENES[point.scene]
    async with stage(migrated_url, tmp_path) as play:
        acts = await _all_die(play, name)
        for moment, act in zip(point.moments, acts, strict=True):
            _check_proof(play, name, moment, act.queue)
        play.open("gate")
        if point.scene == "event later":
            await asyncio.gather(*(_offer(act) for act in acts))
        await play.worker(**QUICK)
        assert [await _result(act, scene.result) for act in acts] == [scene.result] * len(acts)
        await eventually(lambda: play.database.value(LEFT) == 0)
        await eventually(lambda: play.database.value("SELECT count(*) FROM zart_workers") == 1)
        if point.witness is not None:
            begun = {act.queue: len(play.ledger.began(point.witness, act.queue)) for act in acts}
            assert begun == {moment: _times(point, moment) for moment in point.moments}


def _called() -> set[str]:
    """Return the functions of the store that the worker package calls, as `module.name`."""
    found: set[str] = set()
    for file in Path(zart_sqla.worker.__path__[0]).glob("*.py"):
        tree = ast.parse(file.read_text())
        modules = {
            alias.asname or alias.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module == "zart_sqla.store"
            for alias in node.names
        }
        found |= {
            f"{node.value.id}.{node.attr}"
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules
            if node.attr.islower()  # and so is no constant
        }
    return found


def test_no_point_is_missing() -> None:
    """Each function of the store that the worker package calls is a point, or only reads."""
    assert {point.function for point in POINTS.values()} | READS.keys() == _called()
    assert {point.scene for point in POINTS.values()} == SCENES.keys()
