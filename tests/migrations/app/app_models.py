# ruff: noqa: INP001 - an app's own files, loaded by path
"""The models of an app, in the three ways in which they can know of ours."""

from typing import Any

from sqlalchemy import ForeignKey, MetaData
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from zart_sqla.models import ZartModels, zart_models
from zart_sqla.table_names import TableNames


class Base(DeclarativeBase):
    """The base of the app's models."""


class Customer(Base):
    """A table that has nothing to do with us."""

    __tablename__ = "customers"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    email: Mapped[str | None]


def apart() -> MetaData:
    """Return the app's metadata, which does not have our tables."""
    return Base.metadata


def beside(names: TableNames) -> list[MetaData]:
    """Return the app's metadata and another with our tables, to which the app's have a foreign key."""
    ours = MetaData()
    add_order(zart_models(names, metadata=ours))
    return [Base.metadata, ours]


def within(names: TableNames) -> MetaData:
    """Return the app's metadata with our tables in it, to which the app's have a foreign key."""
    add_order(zart_models(names, metadata=Base.metadata))
    return Base.metadata


def add_order(zart: ZartModels) -> type[Any]:
    """Declare the model with the foreign key."""

    class Order(Base):
        """An order, and the execution that fulfils it."""

        __tablename__ = "orders"
        id: Mapped[int] = mapped_column(primary_key=True)
        execution_id: Mapped[str | None] = mapped_column(ForeignKey(zart.Execution.execution_id))
        execution = relationship(zart.Execution)

    return Order
