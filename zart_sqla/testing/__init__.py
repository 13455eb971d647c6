"""What tests of workflows need: run them without a database, without waiting, and with crashes at every step."""

from zart_sqla.histories import ExecutionHistory
from zart_sqla.testing.errors import WorkflowStuck
from zart_sqla.testing.overrides import override
from zart_sqla.testing.simulation import Simulation
from zart_sqla.testing.workflows import run_workflow, run_workflow_sync

__all__ = [
    "ExecutionHistory",
    "Simulation",
    "WorkflowStuck",
    "override",
    "run_workflow",
    "run_workflow_sync",
]
