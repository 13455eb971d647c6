"""What the workers under test run: a workflow that does what its input says, line by line, and notes it in the ledger.

A line is `command label [argument]`; most are steps, named by their label. Gates, files that the test makes, let the
steps that wait for them go on.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from sqlalchemy import text

from tests.worker.processes.ledger import Ledger
from zart_sqla import (
    Answer,
    Durable,
    EventTimeout,
    Failure,
    Ok,
    Retry,
    StepCall,
    TaskRegistry,
    context,
    continue_as_new,
    durable,
    emit,
    gather,
    progress,
    schedule,
    shield,
    sleep,
    start_child,
    step,
    sync,
    trx,
    wait,
    wait_any,
    wait_first_n,
    wait_for_event,
)

FOLDER = "ZART_TEST_STAGE"
NAME = "ZART_TEST_WORKER_NAME"


def _note(label: str, event: str) -> None:
    ledger = Ledger(Path(os.environ[FOLDER]) / "ledger")
    ledger.write(context().execution_id, label, event, worker=os.environ[NAME])


def _is_open(gate: str) -> bool:
    return (Path(os.environ[FOLDER]) / f"{gate}.gate").exists()


async def _pass(gate: str) -> None:
    while not _is_open(gate):  # noqa: ASYNC110 - another process opens it
        await asyncio.sleep(0.02)


def _pass_in_thread(gate: str) -> None:
    while not _is_open(gate):
        time.sleep(0.02)


@step("{label}")
async def note(label: str, _: str) -> int:
    """Note that it ran. The result is the number of the attempt."""
    _note(label, "began")
    _note(label, "ended")
    return context().attempt


@step("{label}")
async def hold(label: str, gate: str) -> int:
    """Wait for the gate."""
    _note(label, "began")
    await _pass(gate)
    _note(label, "ended")
    return context().attempt


@step("{label}")
def hold_thread(label: str, gate: str) -> int:
    """Wait for the gate in a thread."""
    _note(label, "began")
    _pass_in_thread(gate)
    _note(label, "ended")
    return context().attempt


@step("{label}")
async def defy(label: str, gate: str) -> int:
    """Wait for the gate, whoever cancels it."""
    _note(label, "began")
    while not _is_open(gate):
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0.02)
    _note(label, "ended")
    return context().attempt


@step("{label}")
async def block(label: str, seconds: str) -> int:
    """Block the event loop."""
    _note(label, "began")
    time.sleep(float(seconds))  # noqa: ASYNC251  that is the point
    _note(label, "ended")
    return context().attempt


@step("{label}")
def block_thread(label: str, seconds: str) -> int:
    """Block a thread."""
    _note(label, "began")
    time.sleep(float(seconds))
    _note(label, "ended")
    return context().attempt


@step("{label}")
async def deposit(label: str, gate: str) -> int:
    """Insert a row into the app's table in the step's own transaction; then wait for the gate, if one is named."""
    _note(label, "began")
    session = await trx()
    row = {"execution_id": context().execution_id, "step": label}
    await session.execute(text("INSERT INTO deposits (execution_id, step) VALUES (:execution_id, :step)"), row)
    _note(label, "inserted")
    if gate:
        await _pass(gate)
    return context().attempt


@step("{label}")
def deposit_thread(label: str, gate: str) -> int:
    """Do the same in a thread."""
    _note(label, "began")
    session = sync.trx()
    row = {"execution_id": context().execution_id, "step": label}
    session.execute(text("INSERT INTO deposits (execution_id, step) VALUES (:execution_id, :step)"), row)
    _note(label, "inserted")
    if gate:
        _pass_in_thread(gate)
    return context().attempt


@step("{label}")
async def die(label: str, _: str) -> int:
    """Take the worker down, as a fault in C code or the out-of-memory killer would."""
    _note(label, "began")
    os.kill(os.getpid(), signal.SIGKILL)
    return context().attempt


@step("{label}")
async def leave(label: str, _: str) -> int:
    """Take the worker down, by ending the process."""
    _note(label, "began")
    os._exit(3)


@step("{label}")
async def die_once(label: str, _: str) -> int:
    """Take the first worker down that runs it."""
    _note(label, "began")
    ledger = Ledger(Path(os.environ[FOLDER]) / "ledger")
    if len(ledger.began(label, context().execution_id)) == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return context().attempt


@step("{label}")
async def tell(label: str, _: str) -> str:
    """Note that it ran, and give its own name."""
    _note(label, "began")
    return label


@step("{label}")
async def fail(label: str, _: str) -> None:
    """Fail."""
    _note(label, "began")
    raise LookupError(label)


@step("{label}", retry=Retry.fixed(9, "200ms"))
async def flaky(label: str, attempts: str) -> int:
    """Fail on each attempt but the last of so many."""
    _note(label, "began")
    if context().attempt < int(attempts):
        raise LookupError(label)
    return context().attempt


@step("{label}", retry=Retry.fixed(1, "600ms"))
async def falter(label: str, _: str) -> int:
    """Fail on the first attempt."""
    _note(label, "began")
    if not context().is_retry:
        raise OSError(label)
    return context().attempt


@step("{label}")
async def stand(label: str, _: str) -> None:
    """Stand until interrupted, and note that."""
    _note(label, "began")
    try:
        await asyncio.Event().wait()
    finally:
        _note(label, "interrupted")


async def _give_back(label: str, gate: str) -> None:
    _note(label, "gives back")
    await asyncio.sleep(0.5)  # for longer than the heartbeat of the step
    _note(label, "is late")
    await _pass(gate)
    _note(label, "has given back")


@step("{label}", heartbeat="400ms", retry=Retry.fixed(9, "1h"))
async def stall(label: str, gate: str) -> int:
    """Be late on the first attempt, with something that is not to be interrupted; on the next, show progress."""
    _note(label, "began")
    if context().attempt == 1:
        await shield(_give_back(label, gate))
    for _ in range(12):
        progress()
        await asyncio.sleep(0.05)  # what the step does, for longer than its heartbeat
    _note(label, "ended")
    return context().attempt


def compute(label: str, seconds: str) -> None:
    """Compute in the body itself."""
    _note(label, "began")
    until = time.monotonic() + float(seconds)
    while time.monotonic() < until:
        sum(range(1000))
    _note(label, "ended")


STEPS: dict[str, Callable[[str, str], StepCall[Any]]] = {
    "block": block,
    "defy": defy,
    "deposit": deposit,
    "die": die,
    "die_once": die_once,
    "fail": fail,
    "falter": falter,
    "flaky": flaky,
    "hold": hold,
    "leave": leave,
    "note": note,
    "stall": stall,
    "stand": stand,
    "tell": tell,
}


def _calls(label: str, argument: str) -> list[StepCall[Any]]:
    """Return several calls, as each part of the argument says: `command:count[:argument],...`.

    They are named `<command>-<label>-<number>`.
    """
    calls: list[StepCall[Any]] = []
    for part in argument.split(","):
        command, count, further = (*part.split(":"), "")[:3]
        calls += [STEPS[command](f"{command}-{label}-{number}", further) for number in range(int(count))]
    return calls


def _values(answers: list[Answer[Any]]) -> str:
    return "+".join(str(answer.value) for answer in answers if isinstance(answer, Ok))


async def _fan(label: str, argument: str) -> None:
    """Have children do things; note those that fail."""
    handles = [schedule(call) for call in _calls(label, argument)]
    answers: list[Answer[Any]] = await wait(handles)
    for handle, answer in zip(handles, answers, strict=True):
        if not isinstance(answer, Ok):
            await note(f"failed-{handle.name}", "")


async def _any(label: str, argument: str) -> None:
    """Have children do things, note the first that is done, and do not wait for the others."""
    handles = [schedule(call) for call in _calls(label, argument)]
    _, others = await wait_any(handles)
    (first,) = set(handles) - set(others)
    await note(f"{label}-{first.name}", "")


async def _race(label: str, argument: str) -> None:
    """Have children do things; note each as it is the first of those that are left: `<label>-<how many>-<name>`."""
    rest = [schedule(call) for call in _calls(label, argument)]
    while rest:
        _, others = await wait_any(rest)
        (first,) = set(rest) - set(others)
        await note(f"{label}-{len(others)}-{first.name}", "")
        rest = others


async def _first(label: str, argument: str) -> None:
    """Have children do things, and note what the first of them give: the argument begins with how many."""
    count, _, parts = argument.partition(",")
    answers = await wait_first_n([schedule(call) for call in _calls(label, parts)], int(count))
    await note(f"{label}-{_values(answers)}", "")


async def _gather(label: str, argument: str) -> None:
    """Do things side by side in this worker."""
    await gather(*_calls(label, argument))


async def _scatter(label: str, argument: str) -> None:
    """Have children do things, and do not wait for them."""
    for call in _calls(label, argument):
        schedule(call)


async def _expect(label: str, limit: str) -> None:
    """Wait for an event; if it does not come in time, note that, and take it whenever it comes."""
    try:
        await wait_for_event(label, int, timeout=limit or None)
    except EventTimeout:
        await note(f"late-{label}", "")
        await wait_for_event(label, int)


COMMANDS: dict[str, Callable[[str, str], Awaitable[None]]] = {
    "any": _any,
    "emit": emit,
    "expect": _expect,
    "fan": _fan,
    "first": _first,
    "gather": _gather,
    "nap": sleep,
    "race": _race,
    "scatter": _scatter,
}


async def _perform(command: str, label: str, argument: str) -> None:
    """Do what one line of the input says."""
    match command:
        case "compute":
            compute(label, argument)
        case "raise":
            raise RuntimeError(label)
        case "wait":  # in the body, between two steps
            _note(label, "began")
            await _pass(argument)
        case "hold_thread":
            await hold_thread.call(label, argument)
        case "block_thread":
            await block_thread.call(label, argument)
        case "deposit_thread":
            await deposit_thread.call(label, argument)
        case _ if command in COMMANDS:
            await COMMANDS[command](label, argument)
        case _:
            await STEPS[command](label, argument)


@durable
async def script(lines: list[str]) -> int:
    """Do what the lines say. The result is how many they were."""
    for line in lines:
        await _perform(*(*line.split(), "")[:3])
    return len(lines)


def _fan_in_thread(label: str, argument: str) -> None:
    """Do as `_fan` does, in a `def` workflow."""
    handles = [sync.schedule(call) for call in _calls(label, argument)]
    answers: list[Answer[Any]] = sync.wait(handles)
    for handle, answer in zip(handles, answers, strict=True):
        if not isinstance(answer, Ok):
            sync.gather(note(f"failed-{handle.name}", ""))


def _any_in_thread(label: str, argument: str) -> None:
    """Do as `_any` does, in a `def` workflow."""
    handles = [sync.schedule(call) for call in _calls(label, argument)]
    _, others = sync.wait_any(handles)
    (first,) = set(handles) - set(others)
    sync.gather(note(f"{label}-{first.name}", ""))


def _race_in_thread(label: str, argument: str) -> None:
    """Do as `_race` does, in a `def` workflow."""
    rest = [sync.schedule(call) for call in _calls(label, argument)]
    while rest:
        _, others = sync.wait_any(rest)
        (first,) = set(rest) - set(others)
        sync.gather(note(f"{label}-{len(others)}-{first.name}", ""))
        rest = others


def _first_in_thread(label: str, argument: str) -> None:
    """Do as `_first` does, in a `def` workflow."""
    count, _, parts = argument.partition(",")
    answers = sync.wait_first_n([sync.schedule(call) for call in _calls(label, parts)], int(count))
    sync.gather(note(f"{label}-{_values(answers)}", ""))


GROUPS_IN_THREAD: dict[str, Callable[[str, str], None]] = {
    "any": _any_in_thread,
    "fan": _fan_in_thread,
    "first": _first_in_thread,
    "race": _race_in_thread,
}


@durable
def script_thread(lines: list[str]) -> int:
    """Do the same in a thread, with the commands that are plain functions."""
    for line in lines:
        command, label, argument = (*line.split(), "")[:3]
        match command:
            case "compute":
                compute(label, argument)
            case "nap":
                sync.sleep(label, argument)
            case "wait":
                _note(label, "began")
                _pass_in_thread(argument)
            case "hold_thread":
                hold_thread(label, argument)
            case "deposit_thread":
                deposit_thread(label, argument)
            case _ if command in GROUPS_IN_THREAD:
                GROUPS_IN_THREAD[command](label, argument)
            case _:
                block_thread(label, argument)
    return len(lines)


@durable
async def parent(scripts: list[list[str]]) -> int:
    """Have a child for each script, and wait for all. The result is how many lines they were."""
    own = context().execution_id
    children = [
        await start_child(script, lines, execution_id=f"{own}-{number}") for number, lines in enumerate(scripts)
    ]
    await note("started", "")
    return sum([await child.result() for child in children])


@durable
async def endless(state: list[int]) -> int:
    """Count from the first number up to the second, a run for each. The result is the last one."""
    number, last = state
    await note(f"run-{number}", "")
    if number == 0:
        await start_child(script, ["nap night 8h"], execution_id=f"{context().execution_id}-child")
    if number < last:
        await continue_as_new([number + 1, last])
    return number


@durable
async def nested(lines: list[str]) -> list[int]:
    """Have two children do what the lines say, and one that has a child for it, beside groups; wait for all of them."""
    own = context().execution_id

    async def has_child(workflow: Durable[Any, int], data: Any) -> int:
        child = await start_child(workflow, data, execution_id=f"{own}-{workflow.name}")
        return await child.result()

    async def has_groups(label: str, *groups: str) -> int:
        for number, group in enumerate(groups):
            await _fan(f"{label}-{number}", group)
        return len(groups)

    async with asyncio.TaskGroup() as tasks:
        sides = [tasks.create_task(has_child(workflow, lines)) for workflow in (script, script_thread)]
        sides.append(tasks.create_task(has_child(parent, [lines])))
        sides.append(tasks.create_task(has_groups("x", "note:1", "deposit:1", "note:1,hold:1:gate")))
        sides.append(tasks.create_task(has_groups("y", "hold:4:gate,deposit:1")))
    return [side.result() for side in sides]


@durable
async def restless(state: list[Any]) -> int:
    """Begin one run after the other, from this number on, until the gate is open. The result is the last number."""
    number, gate = state
    await note(f"run-{number}", "")
    if not _is_open(gate):
        await continue_as_new([number + 1, gate])
    return int(number)


@durable
async def guardian() -> list[int]:
    """Wait for two restless children, of which one is left and one is cancelled when this is cancelled."""
    own = context().execution_id
    left = await start_child(restless, [0, "left"], execution_id=f"{own}-left", on_parent_cancel="leave")
    bound = await start_child(restless, [0, "never"], execution_id=f"{own}-bound")
    return [await child.result() for child in (left, bound)]


@durable
async def relay(state: list[int]) -> int:
    """Emit three values and begin the next run, from the first number up to the last. The result is that one."""
    number, last = state
    for part in range(3):
        await emit("progress", f"{number}-{part}")
    if number < last:
        await continue_as_new([number + 1, last])
    return number


@durable
async def savings(state: list[int]) -> int:
    """Make a deposit and begin the next run, from the first number up to the last. The result is that one."""
    number, last = state
    await deposit(f"deposit-{number}", "")
    if number < last:
        await continue_as_new([number + 1, last])
    return number


@durable(retry=Retry.fixed(9, "200ms"))
async def stubborn(lines: list[str]) -> int:
    """Do what the lines say, but the last one, which is how many attempts this takes. The result is that number."""
    attempt = context().attempt  # of the body, out here
    *todo, attempts = lines
    await script(todo)
    if attempt < int(attempts):
        raise LookupError(attempts)
    return attempt


@durable(retry=Retry.fixed(1, "600ms"))
async def restive(lines: list[str]) -> int:
    """Do what the lines say; the body itself fails on its first attempt. The result is the number of the attempt."""
    await script(lines)
    if not context().is_retry:
        raise OSError("not yet")
    return context().attempt


async def mend(scripts: list[list[str]], failure: Failure) -> str:
    """Do what the second script says, after the failure. The result is what that was."""
    await script(scripts[1])
    return f"{type(failure).__name__}: {failure.message}"


@durable(on_failure=mend)
async def mended(scripts: list[list[str]]) -> str:
    """Do what the first script says, in which something is to fail."""
    await script(scripts[0])
    return "nothing failed"


async def undo(lines: list[str]) -> None:
    """Do again what the lines say, after the cancellation."""
    for line in lines:
        command, label, argument = (*line.split(), "")[:3]
        await _perform(command, f"undo-{label}", argument)


@durable(on_cancel=undo)
async def undone(lines: list[str]) -> None:
    """Do what the lines say, but for what would take the worker down, and then wait to be cancelled."""
    await script([line for line in lines if not line.startswith("die ")])
    await sleep("night", "8h")


ALL: dict[str, Durable[Any, Any]] = {
    "endless": endless,
    "guardian": guardian,
    "mended": mended,
    "nested": nested,
    "parent": parent,
    "relay": relay,
    "restive": restive,
    "restless": restless,
    "savings": savings,
    "script": script,
    "script_thread": script_thread,
    "stubborn": stubborn,
    "undone": undone,
}


def registry(names: list[str]) -> TaskRegistry:
    """Return a registry with some of the workflows, or with all."""
    made = TaskRegistry()
    for name in names or ALL:
        made.register(ALL[name])
    return made
