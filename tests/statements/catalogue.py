"""Every statement of the package, by a name, with one set of rows for its list parameters."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from types import ModuleType
from typing import Any

from sqlalchemy import Executable

from zart_sqla import ExecutionStatus, TableNames
from zart_sqla.records import ExecutionFilter
from zart_sqla.statements import (
    children,
    diagnosis,
    events,
    executions,
    fences,
    notifications,
    steps,
    streams,
    tasks,
    workers,
)

MODULES: tuple[ModuleType, ...] = (
    children,
    diagnosis,
    events,
    executions,
    fences,
    notifications,
    steps,
    streams,
    tasks,
    workers,
)
Builder = Callable[[TableNames], Executable]

WANTED = ExecutionFilter(
    status=ExecutionStatus.FAILED,
    task_name="task",
    search="order_",
    since=datetime(2026, 1, 1, tzinfo=UTC),
    limit=10,
)
EVERYTHING = ExecutionFilter(status=None, task_name=None, search=None, since=None, limit=10)
UNFINISHED = replace(EVERYTHING, is_unfinished=True)
CURSOR = (datetime(2026, 1, 1, tzinfo=UTC), "order-1")

# Those that take more than the names, or none. `alive` and `completed` are parts of statements, and none themselves.
SPECIAL: dict[str, Builder] = {
    "diagnosis.backend": lambda _: diagnosis.backend(),
    "executions.browse": lambda names: executions.browse(names, WANTED, CURSOR),
    "executions.browse everything": lambda names: executions.browse(names, EVERYTHING, None),
    "executions.browse unfinished": lambda names: executions.browse(names, UNFINISHED, CURSOR),
    "notifications.notify": lambda _: notifications.notify(),
    "notifications.notify_all": lambda _: notifications.notify_all(),
    "tasks.claim": lambda names: tasks.claim(names, all_queues=True),
    "tasks.claim some queues": lambda names: tasks.claim(names, all_queues=False),
    "workers.is_locked": lambda _: workers.is_locked(),
}
NO_STATEMENTS = {
    "children.delete_steps",
    "children.error_of",
    "fences.alive",
    "fences.mine",
    "steps.completed",
    "steps.is_recorded",
}


def builders() -> dict[str, Any]:
    """Return every public function of the modules, by its name and its module's."""
    return {
        f"{module.__name__.rpartition('.')[2]}.{name}": function
        for module in MODULES
        for name, function in vars(module).items()
        if not name.startswith("_") and getattr(function, "__module__", None) == module.__name__
    }


def catalogue() -> dict[str, Builder]:
    """Return a builder of every statement, by a name."""
    plain = {
        name: function
        for name, function in builders().items()
        if name not in SPECIAL and name not in NO_STATEMENTS and not _takes_more(function)
    }
    return plain | SPECIAL


def _takes_more(function: Callable[..., Any]) -> bool:
    return list(inspect.signature(function).parameters) != ["names"]
