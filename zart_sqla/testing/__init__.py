"""What tests of workflows need: run them without a database, without waiting, and with crashes at every step."""

from zart_sqla.histories import ExecutionHistory
from zart_sqla.testing.crashes import CrashPoint, CrashReport, crash_at_every_step
from zart_sqla.testing.errors import CrashInconsistency, WorkflowStuck
from zart_sqla.testing.overrides import override
from zart_sqla.testing.replays import replay
from zart_sqla.testing.simulation import Simulation
from zart_sqla.testing.workers import WorkerFactory
from zart_sqla.testing.workflows import run_workflow, run_workflow_sync

__all__ = [
    "CrashInconsistency",
    "CrashPoint",
    "CrashReport",
    "ExecutionHistory",
    "Simulation",
    "WorkerFactory",
    "WorkflowStuck",
    "crash_at_every_step",
    "override",
    "replay",
    "run_workflow",
    "run_workflow_sync",
]
