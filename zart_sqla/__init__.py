"""Durable execution for SQLAlchemy and PostgreSQL: workflows that go on where they were after a crash."""

from zart_sqla import sync
from zart_sqla.client.handles import ExecutionHandle
from zart_sqla.client.scheduler import PostgresScheduler
from zart_sqla.client.streams import StreamReader, SyncStreamReader
from zart_sqla.client.sync import SyncExecutionHandle, SyncScheduler
from zart_sqla.config import PoolConfig, WorkerConfig
from zart_sqla.errors import (
    ConfigError,
    EventTimeout,
    ExecutionAlreadyExists,
    ExecutionCancelled,
    ExecutionFailed,
    ExecutionFinished,
    ExecutionNotFound,
    ExecutionTimeout,
    InvalidDataError,
    InvalidIdentifierError,
    InvalidNameError,
    NonDeterminismError,
    NotInWorkflowError,
    RetryExhausted,
    SchemaOutdated,
    StepCancelled,
    StepError,
    StepFailed,
    StepStalled,
    StepTimeout,
    WaitTimedOut,
    ZartError,
)
from zart_sqla.histories import ExecutionHistory
from zart_sqla.models import ZartModels, zart_models
from zart_sqla.records import ExecutionInfo, ExecutionStatus, Page, StepInfo, StepKind, StepStatus
from zart_sqla.runtime.answers import Answer, BusinessErr, Ok, ZartErr, outcome, step_or, step_or_else
from zart_sqla.runtime.context import Context, context
from zart_sqla.runtime.executions import ChildExecution, continue_as_new, start_child
from zart_sqla.runtime.failures import BodyError, DeadlineExceeded, Failure, RetriesExhausted, StepFailure
from zart_sqla.runtime.groups import gather
from zart_sqla.runtime.handlers import Durable, TaskRegistry, durable
from zart_sqla.runtime.interruptions import progress, shield
from zart_sqla.runtime.retry import Retry
from zart_sqla.runtime.scheduled import Scheduled, schedule, wait, wait_any, wait_first_n
from zart_sqla.runtime.steps import Step, StepCall, step
from zart_sqla.runtime.streams import emit
from zart_sqla.runtime.transactions import trx
from zart_sqla.runtime.values import capture, now, random, uuid
from zart_sqla.runtime.waits import sleep, wait_for_event
from zart_sqla.table_names import TableNames
from zart_sqla.worker.worker import Worker

__all__ = [
    "Answer",
    "BodyError",
    "BusinessErr",
    "ChildExecution",
    "ConfigError",
    "Context",
    "DeadlineExceeded",
    "Durable",
    "EventTimeout",
    "ExecutionAlreadyExists",
    "ExecutionCancelled",
    "ExecutionFailed",
    "ExecutionFinished",
    "ExecutionHandle",
    "ExecutionHistory",
    "ExecutionInfo",
    "ExecutionNotFound",
    "ExecutionStatus",
    "ExecutionTimeout",
    "Failure",
    "InvalidDataError",
    "InvalidIdentifierError",
    "InvalidNameError",
    "NonDeterminismError",
    "NotInWorkflowError",
    "Ok",
    "Page",
    "PoolConfig",
    "PostgresScheduler",
    "RetriesExhausted",
    "Retry",
    "RetryExhausted",
    "Scheduled",
    "SchemaOutdated",
    "Step",
    "StepCall",
    "StepCancelled",
    "StepError",
    "StepFailed",
    "StepFailure",
    "StepInfo",
    "StepKind",
    "StepStalled",
    "StepStatus",
    "StepTimeout",
    "StreamReader",
    "SyncExecutionHandle",
    "SyncScheduler",
    "SyncStreamReader",
    "TableNames",
    "TaskRegistry",
    "WaitTimedOut",
    "Worker",
    "WorkerConfig",
    "ZartErr",
    "ZartError",
    "ZartModels",
    "capture",
    "context",
    "continue_as_new",
    "durable",
    "emit",
    "gather",
    "now",
    "outcome",
    "progress",
    "random",
    "schedule",
    "shield",
    "sleep",
    "start_child",
    "step",
    "step_or",
    "step_or_else",
    "sync",
    "trx",
    "uuid",
    "wait",
    "wait_any",
    "wait_first_n",
    "wait_for_event",
    "zart_models",
]
