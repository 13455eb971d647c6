"""Code that changes between two turns: the run stops as failed, resumable with the old code, instead of guessing."""

import contextlib
from typing import Any

import pytest

from tests.unit.support.memory import LONG, SHORT, MemoryRun
from zart_sqla import Durable, Retry, durable, sleep, step, sync
from zart_sqla.runtime.outcomes import Completed, Failed

calls: list[str] = []


@pytest.fixture(autouse=True)
def _forget_calls() -> None:
    """Start each test without calls."""
    calls.clear()


@step("{name}")
async def work(name: str) -> str:
    """Do something."""
    calls.append(name)
    return name


def version(*names: str, **options: Any) -> Durable[None, list[str]]:
    """Return a version of the code: it calls these steps, and sleeps before the last."""

    @durable("task", **options)
    async def look() -> list[str]:
        found = [await work(name) for name in names[:-1]]
        await sleep("nap", LONG)
        return [*found, await work(names[-1])]

    return look


OLD = version("a", "b", "c")
CHANGED: dict[str, tuple[Durable[Any, Any], str, str | None]] = {
    "renamed": (version("a", "x", "c"), "b", "x"),
    "reordered": (version("b", "a", "c"), "a", "b"),
    "removed": (version("a", "c"), "b", "nap"),
    "inserted": (version("new", "a", "b", "c"), "a", "new"),
}


@pytest.mark.parametrize(("new", "recorded", "called"), list(CHANGED.values()), ids=list(CHANGED))
async def test_changed_code(new: Durable[Any, Any], recorded: str, called: str) -> None:
    """The error names both steps; nothing new is recorded; with the old code the run goes on."""
    run = MemoryRun(OLD)
    await run.turn()
    outcome = await run.turn(new)
    assert isinstance(outcome, Failed)
    assert outcome.error.error_type == "NonDeterminismError"
    assert f"step {recorded!r} is recorded, but the code called {called!r}" in outcome.error.message
    assert run.steps == ["a", "b", "nap"]
    run.recorder.time = max(one.wake_at or run.recorder.time for one in run.recorder.steps.values())
    assert await run.turn(OLD) == Completed('["a","b","c"]')
    assert calls == ["a", "b", "c"]


async def test_appended_steps() -> None:
    """Steps after those that are recorded can be added."""
    run = MemoryRun(OLD)
    await run.turn()
    assert await run.finish(version("a", "b", "x")) == Completed('["a","b","x"]')


async def test_code_that_ends_too_early() -> None:
    """A body that returns before it has called all that is recorded has changed too."""

    @durable("task")
    async def short() -> list[str]:
        return [await work("a")]

    run = MemoryRun(OLD)
    await run.turn()
    outcome = await run.turn(short)
    assert isinstance(outcome, Failed)
    assert "step 'b' is recorded, but the code ended without calling it" in outcome.error.message


async def test_body_that_catches_it() -> None:
    """A body that catches the error does not go on: no further step starts, and the run fails."""

    @durable("task")
    async def stubborn() -> str:
        for name in ("x", "y", "z"):
            with contextlib.suppress(Exception):  # as many bodies do
                await work(name)
        return "done"

    run = MemoryRun(OLD)
    await run.turn()
    calls.clear()
    outcome = await run.turn(stubborn)
    assert isinstance(outcome, Failed)
    assert outcome.error.error_type == "NonDeterminismError"
    assert "step 'a' is recorded, but the code called 'x'" in outcome.error.message
    assert calls == []


async def test_def_body_that_catches_it() -> None:
    """The same goes for a body in a thread."""

    @step("{name}")
    def thread(name: str) -> None:
        calls.append(name)

    @durable("task")
    def stubborn() -> str:
        for name in ("x", "y", "z"):
            with contextlib.suppress(Exception):
                thread(name)
                sync.sleep("later", LONG)
        return "done"

    run = MemoryRun(OLD)
    await run.turn()
    calls.clear()
    outcome = await run.turn(stubborn)
    assert isinstance(outcome, Failed)
    assert outcome.error.error_type == "NonDeterminismError"
    assert calls == []


async def test_it_is_not_retried() -> None:
    """To run the body again would not help."""
    run = MemoryRun(version("a", "b", "c", retry=Retry.fixed(3, SHORT)))
    await run.turn()
    outcome = await run.turn(version("a", "x", "c", retry=Retry.fixed(3, SHORT)))
    assert isinstance(outcome, Failed)
    assert run.task.retries == 0


@pytest.mark.parametrize("raised", [ValueError, SystemExit])
async def test_body_that_turns_it_into_another(raised: type[BaseException]) -> None:
    """A body that raises something else instead fails with the error that it hid."""

    @durable("task", retry=Retry.fixed(3, SHORT))
    async def stubborn() -> None:
        try:
            await work("x")
        except Exception as error:
            raise raised from error

    run = MemoryRun(OLD)
    await run.turn()
    outcome = await run.turn(stubborn)
    assert isinstance(outcome, Failed)
    assert outcome.error.error_type == "NonDeterminismError"


async def test_branch_on_something_else() -> None:
    """A body that asks the outside world without `capture` is caught when it decides otherwise."""
    answers = iter([True, False])

    @durable
    async def moody() -> None:
        await work("a" if next(answers) else "b")
        await sleep("nap", LONG)

    run = MemoryRun(moody)
    await run.turn()
    outcome = await run.turn()
    assert isinstance(outcome, Failed)
    assert outcome.error.error_type == "NonDeterminismError"
