"""The errors of the testing kit: they fail a test."""

from __future__ import annotations

from zart_sqla.errors import ZartError


class WorkflowStuck(ZartError, AssertionError):
    """A simulated run will never end: it waits for what nobody brings, or goes on for ever.

    Attributes:
        task_name: the task that it runs.
        problem: why it gets nowhere, and what to do about it.
    """

    def __init__(self, task_name: str, problem: str) -> None:
        self.task_name = task_name
        self.problem = problem
        super().__init__(f"the run of {task_name!r} gets nowhere: {problem}")


class CrashInconsistency(ZartError, AssertionError):
    """A run went otherwise because a worker had died in it.

    Attributes:
        task_name: the task.
        place: where the worker died.
        expected: how the run ends without that.
        actual: how it ended, or what went wrong.
    """

    def __init__(self, task_name: str, *, place: str, expected: str, actual: str) -> None:
        self.task_name = task_name
        self.place = place
        self.expected = expected
        self.actual = actual
        super().__init__(f"{task_name!r}, after a crash {place}: expected that it {expected}; it {actual}")
