"""Many rows as one parameter for each column, so that a statement has the same text for one row and for a thousand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Boolean, Integer, Text, Uuid, bindparam, column, func
from sqlalchemy.dialects.postgresql import ARRAY, TIMESTAMP

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy import BindParameter, TableValuedAlias
    from sqlalchemy.types import TypeEngine

TEXT = Text()
UUID = Uuid()
INTEGER = Integer()
BOOLEAN = Boolean()
TIMESTAMP_TZ = TIMESTAMP(timezone=True)


def array_of(name: str, type_: TypeEngine[Any]) -> BindParameter[Any]:
    """Return the parameter that takes a list of such values."""
    return bindparam(name, type_=ARRAY(type_, dimensions=1))


def rows_of(alias: str, **columns: TypeEngine[Any]) -> TableValuedAlias:
    """Return a row source with these columns, each filled from the list parameter that `parameters_of` makes for it."""
    arrays = (array_of(f"{alias}_{name}", type_) for name, type_ in columns.items())
    return (
        func.unnest(*arrays)
        .table_valued(*(column(name, type_) for name, type_ in columns.items()), name=alias)
        .render_derived()
    )


def parameters_of(alias: str, names: Sequence[str], rows: Iterable[Sequence[Any]]) -> dict[str, list[Any]]:
    """Return the parameters for `rows_of(alias)`: the rows turned into one list for each column.

    Their names differ from those of all columns, since SQLAlchemy takes a parameter with a column's name as a value
    that an INSERT or UPDATE should set.
    """
    turned = [list(values) for values in zip(*rows, strict=True)]
    return {f"{alias}_{name}": values for name, values in zip(names, turned or [[] for _ in names], strict=True)}
