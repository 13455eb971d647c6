"""What the workers under test run: a workflow that does what its input says, line by line, and notes it in the ledger.

A line is `command label [argument]`; most are steps, named by their label. Gates, files that the test makes, let the
steps that wait for them go on.
"""

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sqlalchemy import text

from tests.worker.processes.ledger import Ledger
from zart_sqla import (
    Answer,
    Durable,
    Ok,
    StepCall,
    TaskRegistry,
    context,
    continue_as_new,
    durable,
    emit,
    schedule,
    sleep,
    start_child,
    step,
    sync,
    trx,
    wait,
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


def compute(label: str, seconds: str) -> None:
    """Compute in the body itself."""
    _note(label, "began")
    until = time.monotonic() + float(seconds)
    while time.monotonic() < until:
        sum(range(1000))
    _note(label, "ended")


STEPS: dict[str, Callable[[str, str], StepCall[int]]] = {
    "block": block,
    "defy": defy,
    "deposit": deposit,
    "die": die,
    "die_once": die_once,
    "hold": hold,
    "leave": leave,
    "note": note,
}


async def _fan(label: str, argument: str) -> None:
    """Have children do things, each what one part of the argument says: `command:count[:argument],...`.

    They are named `<command>-<label>-<number>`; those that fail are noted.
    """
    handles = []
    for part in argument.split(","):
        command, count, further = (*part.split(":"), "")[:3]
        handles += [schedule(STEPS[command](f"{command}-{label}-{number}", further)) for number in range(int(count))]
    answers: list[Answer[int]] = await wait(handles)
    for handle, answer in zip(handles, answers, strict=True):
        if not isinstance(answer, Ok):
            await note(f"failed-{handle.name}", "")


async def _perform(command: str, label: str, argument: str) -> None:
    """Do what one line of the input says."""
    match command:
        case "compute":
            compute(label, argument)
        case "nap":
            await sleep(label, argument)
        case "expect":
            await wait_for_event(label, int)
        case "fan":
            await _fan(label, argument)
        case "emit":
            await emit(label, argument)
        case "wait":  # in the body, between two steps
            _note(label, "began")
            await _pass(argument)
        case "hold_thread":
            await hold_thread.call(label, argument)
        case "block_thread":
            await block_thread.call(label, argument)
        case "deposit_thread":
            await deposit_thread.call(label, argument)
        case _:
            await STEPS[command](label, argument)


@durable
async def script(lines: list[str]) -> int:
    """Do what the lines say. The result is how many they were."""
    for line in lines:
        await _perform(*(*line.split(), "")[:3])
    return len(lines)


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
    "parent": parent,
    "script": script,
    "script_thread": script_thread,
    "undone": undone,
}


def registry(names: list[str]) -> TaskRegistry:
    """Return a registry with some of the workflows, or with all."""
    made = TaskRegistry()
    for name in names or ALL:
        made.register(ALL[name])
    return made
