"""What a worker tells on the standard error, as text for people or as JSON for programs."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final

from zart_sqla.errors import NotInWorkflowError
from zart_sqla.runtime.context import context

if TYPE_CHECKING:
    from collections.abc import Mapping

FIELDS: Final = ("execution_id", "task_name", "step", "attempt")
"""The fields that tell which execution a record is about."""

_STANDARD: Final = frozenset({*vars(logging.makeLogRecord({})), "asctime", "message", "taskName"})


class LogFormat(StrEnum):
    """How a record is written."""

    TEXT = "text"
    JSON = "json"


class LogLevel(StrEnum):
    """How grave a record must be to be written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


def configure(log_format: LogFormat, level: LogLevel) -> None:
    """Write the records of all loggers to the standard error."""
    handler = logging.StreamHandler()
    handler.addFilter(add_context)
    handler.setFormatter(JsonFormatter() if log_format is LogFormat.JSON else TextFormatter())
    logging.basicConfig(level=level.value.upper(), handlers=[handler], force=True)
    logging.captureWarnings(capture=True)


def add_context(record: logging.LogRecord) -> bool:
    """Tell of what a workflow logs which execution and which step it is about."""
    if hasattr(record, "execution_id"):
        return True
    try:
        here = context()
    except NotInWorkflowError:
        return True
    found = (here.execution_id, here.task_name, here.step_name, here.attempt)
    for name, value in zip(FIELDS, found, strict=True):
        if value is not None and not hasattr(record, name):
            setattr(record, name, value)
    return True


def extra_of(record: logging.LogRecord) -> Mapping[str, Any]:
    """Return what was logged beside the message by `extra=`."""
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


class JsonFormatter(logging.Formatter):
    """Writes a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **extra_of(record),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


class TextFormatter(logging.Formatter):
    """Writes a record as one line of text, and a traceback below it if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the lines."""
        extra = " ".join(f"{name}={value}" for name, value in extra_of(record).items())
        line = f"{_time(record)} {record.levelname:<7} {record.name}: {record.getMessage()}"
        lines = [f"{line} [{extra}]" if extra else line]
        if record.exc_info:
            lines.append(self.formatException(record.exc_info))
        return "\n".join(lines)


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
