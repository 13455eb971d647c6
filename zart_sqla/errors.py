"""Every error that zart_sqla raises.

```
ZartError
├── ConfigError                 (ValueError)    a setting has a wrong value
├── InvalidIdentifierError      (ValueError)    a table prefix or schema PostgreSQL cannot use
├── InvalidNameError            (ValueError)    an execution id, task, step or event name that cannot be stored
├── InvalidDataError            (ValueError)    a value that does not fit its type or cannot be stored
├── SchemaOutdated                              the database's tables are not the ones this code was written for
├── NotInWorkflowError          (RuntimeError)  a durable call where no workflow runs, or in a place it cannot work
├── ExecutionAlreadyExists                      the execution id is taken
├── ExecutionNotFound           (LookupError)   no execution has this id
├── ExecutionFinished                           the execution has ended, so it cannot change any more
├── ExecutionFailed                             the awaited execution failed
├── ExecutionCancelled                          the awaited execution was cancelled
├── WaitTimedOut                (TimeoutError)  the execution went on for longer than the caller would wait
├── ExecutionTimeout                            the execution passed its own deadline
├── NonDeterminismError                         the code no longer fits the recorded steps of a run
├── StepStalled                 (TimeoutError)  an attempt of a step has made no progress for too long
└── StepError                                   a step did not give a value
    ├── StepFailed                              it raised
    ├── RetryExhausted                          it raised, on every attempt that its retry allowed
    ├── StepTimeout                             it ran for longer than its timeout
    ├── StepCancelled                           it was scheduled, and others were enough
    └── EventTimeout                            no event came before a wait's timeout was over
```
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import timedelta


class ZartError(Exception):
    """The root of all errors of zart_sqla."""


class ConfigError(ZartError, ValueError):
    """A setting has a value that it cannot have.

    Attributes:
        setting: the name of the setting.
        expected: what it can be, in words.
        actual: the value that came.
    """

    def __init__(self, setting: str, *, expected: str, actual: object) -> None:
        self.setting = setting
        self.expected = expected
        self.actual = actual
        super().__init__(f"{setting}: expected {expected}, got {actual!r}")


class InvalidIdentifierError(ZartError, ValueError):
    """A table prefix or schema from which PostgreSQL identifiers cannot be made.

    Attributes:
        part: `"prefix"` or `"schema"`.
        actual: the value that came.
        problem: what is wrong with it.
        variable: the environment variable that it came from, if it did.
    """

    def __init__(self, part: str, actual: object, *, problem: str, variable: str | None = None) -> None:
        self.part = part
        self.actual = actual
        self.problem = problem
        self.variable = variable
        origin = f" (from the environment variable {variable})" if variable else ""
        super().__init__(
            f"table name {part} {actual!r}{origin} {problem}; expected ASCII letters, digits and '_', "
            "starting with a letter"
        )


class InvalidNameError(ZartError, ValueError):
    """An id or a name that cannot be stored.

    Attributes:
        noun: what was being named, such as `"execution id"`.
        actual: the name that came.
        problem: what is wrong with it.
    """

    def __init__(self, noun: str, actual: object, *, problem: str) -> None:
        self.noun = noun
        self.actual = actual
        self.problem = problem
        shown = repr(actual)
        if len(shown) > 80:  # noqa: PLR2004 - a message stays on a line
            shown = f"{shown[:76]}...{shown[0]}"
        super().__init__(f"{noun} {shown} {problem}")


class InvalidDataError(ZartError, ValueError):
    """A value that does not fit its declared type, or that cannot be stored as JSON.

    Attributes:
        subject: what the value was meant to be, such as `"the result of step 'charge_card'"`.
        problems: one line for each problem, each with the path to the field.
    """

    def __init__(self, subject: str, problems: list[str]) -> None:
        self.subject = subject
        self.problems = problems
        super().__init__(f"{subject} cannot be stored: " + "; ".join(problems))


class SchemaOutdated(ZartError):
    """The tables in the database are missing, or not the ones that this code was written for.

    Attributes:
        tables: the qualified name of the table that was looked at.
        expected: the revision that the code needs.
        actual: the revision that the database has, None if there are no tables.
    """

    def __init__(self, tables: str, *, expected: str, actual: str | None) -> None:
        self.tables = tables
        self.expected = expected
        self.actual = actual
        found = f"at revision {actual!r}" if actual else "missing"
        super().__init__(
            f"the tables of zart_sqla ({tables}) are {found}, this code needs revision {expected!r}; "
            "run 'alembic upgrade heads' in the app that owns them, or 'zart migrate'"
        )


class NotInWorkflowError(ZartError, RuntimeError):
    """A durable call was made where no workflow runs, or in a place where it cannot work.

    Attributes:
        call: the call that was made.
        advice: what to do instead.
    """

    def __init__(self, call: str, advice: str) -> None:
        self.call = call
        self.advice = advice
        super().__init__(f"{call} {advice}")


class ExecutionAlreadyExists(ZartError):
    """An execution with this id was started before.

    Attributes:
        execution_id: the id.
        status: the status of the one that exists.
    """

    def __init__(self, execution_id: str, status: str) -> None:
        self.execution_id = execution_id
        self.status = status
        super().__init__(
            f"execution {execution_id!r} already exists and is {status}; "
            "start with on_conflict='return' to get its handle instead"
        )


class ExecutionNotFound(ZartError, LookupError):
    """No execution has this id.

    Attributes:
        execution_id: the id that was looked for.
    """

    def __init__(self, execution_id: str) -> None:
        self.execution_id = execution_id
        super().__init__(f"no execution has the id {execution_id!r} in these tables")


class ExecutionFinished(ZartError):
    """The execution has ended, so what was asked of it cannot happen any more.

    Attributes:
        execution_id: the id.
        status: how it ended.
    """

    def __init__(self, execution_id: str, status: str) -> None:
        self.execution_id = execution_id
        self.status = status
        super().__init__(f"execution {execution_id!r} is {status} and cannot change any more")


class ExecutionFailed(ZartError):
    """The awaited execution failed.

    Attributes:
        execution_id: the id.
        error_type: the name of the error's type, as it was where it was raised.
        message: the error's own text.
        step: the step that it came from, None if it came from the body.
    """

    def __init__(self, execution_id: str, *, error_type: str, message: str, step: str | None) -> None:
        self.execution_id = execution_id
        self.error_type = error_type
        self.message = message
        self.step = step
        place = f" in step {step!r}" if step else ""
        super().__init__(f"execution {execution_id!r} failed{place}: {error_type}: {message}")


class ExecutionCancelled(ZartError):
    """The awaited execution was cancelled.

    Attributes:
        execution_id: the id.
    """

    def __init__(self, execution_id: str) -> None:
        self.execution_id = execution_id
        super().__init__(f"execution {execution_id!r} was cancelled")


class WaitTimedOut(ZartError, TimeoutError):
    """The execution had not ended when the caller's time for waiting was over; it goes on.

    Attributes:
        execution_id: the id.
        timeout: how long the caller waited.
    """

    def __init__(self, execution_id: str, timeout: timedelta) -> None:
        self.execution_id = execution_id
        self.timeout = timeout
        super().__init__(f"execution {execution_id!r} had not ended after {timeout.total_seconds():g} s; it goes on")


class ExecutionTimeout(ZartError):
    """The execution was still at work when its own `timeout` had passed.

    Attributes:
        task_name: the task whose timeout it is.
        timeout: the timeout that was declared.
    """

    def __init__(self, task_name: str, timeout: timedelta) -> None:
        self.task_name = task_name
        self.timeout = timeout
        super().__init__(f"{task_name!r} had not ended {timeout.total_seconds():g} s after its first turn began")


class NonDeterminismError(ZartError):
    """The code no longer fits the steps that were recorded for this run, or could not be fitted to them.

    The run fails, and its checkpoints stay: with the old code back in place it can be resumed.

    Attributes:
        position: the place in the run, counted from 0.
        recorded: the step that is recorded there, None if there is none.
        called: the step that the code called there, None if it ended without calling one.
    """

    def __init__(self, position: int, *, recorded: str | None, called: str | None, problem: str | None = None) -> None:
        self.position = position
        self.recorded = recorded
        self.called = called
        if problem is not None:
            super().__init__(problem)
            return
        was = f"step {recorded!r} is recorded" if recorded is not None else "no step is recorded"
        now = f"the code called {called!r}" if called is not None else "the code ended without calling it"
        super().__init__(
            f"at position {position} of this run {was}, but {now}; a workflow must call the same steps in the same "
            "order when it is replayed: bring the old code back and resume the run, or start it anew"
        )


class StepStalled(ZartError, TimeoutError):
    """An attempt of a step with a heartbeat has not called `progress()` for that long. It counts as having raised this.

    Attributes:
        step: the step's name in the run.
        heartbeat: the heartbeat that was declared.
    """

    def __init__(self, step: str, heartbeat: timedelta) -> None:
        self.step = step
        self.heartbeat = heartbeat
        super().__init__(f"step {step!r} has made no progress for {heartbeat.total_seconds():g} s")


class StepError(ZartError):
    """A step did not give a value.

    Attributes:
        step: the step's name in the run.
        error_type: the name of the type of the error that it raised.
        message: that error's own text.
        attempts: how many attempts were made.
        cause: that error itself, in the process where it happened; None on replay.
    """

    def __init__(self, step: str, *, error_type: str, message: str, attempts: int) -> None:
        self.step = step
        self.error_type = error_type
        self.message = message
        self.attempts = attempts
        super().__init__(self._describe())

    @property
    def cause(self) -> BaseException | None:
        """The error that the step raised, in the process where it happened; None on replay."""
        return self.__cause__

    def _describe(self) -> str:
        return f"step {self.step!r} failed: {self.error_type}: {self.message}"


class StepFailed(StepError):
    """A step raised an error that its retry does not cover."""


class RetryExhausted(StepError):
    """A step raised on every attempt that its retry allowed."""

    def _describe(self) -> str:
        return (
            f"step {self.step!r} failed on all of {self.attempts} attempts, last with {self.error_type}: {self.message}"
        )


class StepTimeout(StepError):
    """A step ran for longer than its timeout. A timeout is final: it is not retried."""

    def _describe(self) -> str:
        return f"step {self.step!r} timed out: {self.message}"


class StepCancelled(StepError):
    """A scheduled step was cancelled, since `wait_first_n` had got as many others as it wanted."""

    def _describe(self) -> str:
        return f"step {self.step!r} was cancelled: {self.message}"


class EventTimeout(StepError):
    """A wait for an event came to its timeout. An event that comes later is kept for the next wait of its name."""

    def _describe(self) -> str:
        return f"no event came for {self.step!r}: {self.message}"
