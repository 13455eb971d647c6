"""What type checkers make of the models in an app's own."""

from typing import assert_type

from sqlalchemy import ForeignKey, select
from sqlalchemy.orm import DeclarativeBase, InstrumentedAttribute, Mapped, Session, mapped_column

from zart_sqla import TableNames, ZartModels, zart_models


class Base(DeclarativeBase):
    """The app's own models."""


zart = zart_models(TableNames.default(), metadata=Base.metadata)


class Order(Base):
    """One of them, which knows its execution."""

    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    execution_id: Mapped[str | None] = mapped_column(ForeignKey(zart.Execution.execution_id))


def queries(session: Session) -> None:
    """The models can be selected, filtered and read as the app's own."""
    assert_type(zart, ZartModels)
    assert_type(zart.Execution.execution_id, InstrumentedAttribute[str])
    stuck = session.scalars(select(zart.Execution).where(zart.Execution.status == "failed")).all()
    assert_type([one.task_name for one in stuck], list[str])
    found = session.execute(select(zart.Step.name, zart.Step.position)).one()
    name, position = found
    assert_type(name, str)
    assert_type(position, int | None)
