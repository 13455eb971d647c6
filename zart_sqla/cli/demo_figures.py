"""What the database says about a demo: how far it is, and whether it kept its promises."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sqlalchemy import MetaData, distinct, func, select, tuple_

from zart_sqla.cli.demo_workflow import STEPS, demo_tables
from zart_sqla.models.mapping import ZartModels, zart_models
from zart_sqla.records import ExecutionStatus, StepKind

if TYPE_CHECKING:
    from sqlalchemy import Connection, Executable

    from zart_sqla.table_names import TableNames


@dataclass(frozen=True, kw_only=True)
class Figures:
    """The state of a demo at one moment.

    Attributes:
        orders: how many there will be.
        by_status: how many of them stand where.
        held: how many tasks each worker holds, by its process.
        charges: how many rows the table of charges has.
        charged: for how many different orders.
        begun: how many steps were begun, by the ledger.
        begun_once: how many different steps of orders these are.
        recorded: how many steps have their checkpoint.
        begun_after_checkpoint: how many were begun although their checkpoint was there.
    """

    orders: int
    by_status: dict[str, int] = field(default_factory=dict[str, int])
    held: dict[int, int] = field(default_factory=dict[int, int])
    charges: int = 0
    charged: int = 0
    begun: int = 0
    begun_once: int = 0
    recorded: int = 0
    begun_after_checkpoint: int = 0

    @property
    def steps(self) -> int:
        """How many steps there are in all."""
        return self.orders * len(STEPS)

    @property
    def progress(self) -> float:
        """What part of all steps is recorded."""
        return self.recorded / self.steps

    @property
    def completed(self) -> int:
        """How many orders are done."""
        return self.by_status.get(ExecutionStatus.COMPLETED, 0)

    @property
    def scheduled(self) -> int:
        """How many orders are there to be taken up."""
        return self.by_status.get(ExecutionStatus.SCHEDULED, 0)

    @property
    def ended(self) -> int:
        """How many orders have ended, one way or another."""
        return sum(count for status, count in self.by_status.items() if ExecutionStatus(status).is_terminal)

    @property
    def charged_twice(self) -> int:
        """How many charges there are beyond one for each order."""
        return self.charges - self.charged

    @property
    def run_again(self) -> int:
        """How many steps were begun anew, since a kill had interrupted them before their checkpoint."""
        return self.begun - self.begun_once

    def verdict(self) -> list[tuple[bool, str]]:
        """Return what was promised, each with whether it was kept."""
        completed = f"{self.completed} of {self.orders} orders completed"
        charged = f"{self.charges} charges for {self.charged} orders, {self.charged_twice} charged twice"
        recorded = f"{self.recorded} of {self.steps} steps have their checkpoint"
        again = f"{self.run_again} steps were interrupted by a kill and ran again"
        late = f"{self.begun_after_checkpoint} steps ran again after their checkpoint"
        return [
            (self.completed == self.orders, completed),
            (self.charges == self.charged == self.orders, f"{charged}, in a table without a unique constraint"),
            (self.recorded == self.begun_once == self.steps, f"{recorded}; {again}"),
            (self.begun_after_checkpoint == 0, late),
        ]


def read(connection: Connection, names: TableNames, orders: int) -> Figures:
    """Return the state of the demo."""
    zart = _models(names)
    app = demo_tables(names)
    entry = app.ledger.c
    same_step = (zart.Execution.execution_id == entry.order_id) & (zart.Step.name == entry.step)
    late = (
        select(func.count())
        .select_from(zart.Step)
        .join(zart.Execution, zart.Execution.run_id == zart.Step.run_id)
        .join(app.ledger, same_step)
        .where(entry.begun_at > zart.Step.completed_at)
    )
    held = (
        select(zart.Worker.pid, func.count(zart.Task.task_id))
        .outerjoin(zart.Task, zart.Task.worker_id == zart.Worker.worker_id)
        .group_by(zart.Worker.pid)
    )
    each = select(zart.Execution.status.label("status")).select_from(zart.Execution).subquery()
    steps = select(func.count()).select_from(zart.Step).where(zart.Step.kind == StepKind.STEP)
    charges = select(func.count(), func.count(distinct(app.charges.c.order_id))).select_from(app.charges)
    begun = select(func.count(), func.count(distinct(tuple_(entry.order_id, entry.step)))).select_from(app.ledger)

    charged = connection.execute(charges).one()
    entries = connection.execute(begun).one()
    return Figures(
        orders=orders,
        by_status=_pairs(connection, select(each.c.status, func.count()).group_by(each.c.status)),
        held=_pairs(connection, held),
        charges=charged[0],
        charged=charged[1],
        begun=entries[0],
        begun_once=entries[1],
        recorded=connection.execute(steps).scalar_one(),
        begun_after_checkpoint=connection.execute(late).scalar_one(),
    )


def _pairs(connection: Connection, statement: Executable) -> dict[Any, int]:
    return {row[0]: row[1] for row in connection.execute(statement)}


@functools.cache
def _models(names: TableNames) -> ZartModels:
    return zart_models(names, metadata=MetaData())
