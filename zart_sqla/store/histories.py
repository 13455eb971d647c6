"""What is recorded of runs, for those who replay them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from zart_sqla.histories import ExecutionHistory
from zart_sqla.records import ExecutionStatus
from zart_sqla.statements import executions, steps
from zart_sqla.store import tasks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import Connection

    from zart_sqla.table_names import TableNames


def histories(connection: Connection, names: TableNames, execution_ids: Sequence[str]) -> dict[str, ExecutionHistory]:
    """Return what is recorded of the current runs of those of the executions that exist, by their ids."""
    rows = connection.execute(executions.describe(names), {"given_execution_id": list(execution_ids)}).all()
    run_ids = [row.run_id for row in rows]
    recorded = tasks.journal(connection, names, run_ids)
    retries = {row.run_id: row.retries for row in connection.execute(steps.retries(names), {"run_ids": run_ids})}
    return {
        row.execution_id: ExecutionHistory(
            execution_id=row.execution_id,
            task_name=row.task_name,
            status=ExecutionStatus(row.status),
            run_id=row.run_id,
            payload=row.payload,
            retries=retries.get(row.run_id, 0),
            started_at=row.started_at or row.created_at,
            recorded=recorded[row.run_id],
        )
        for row in rows
    }
