"""${message}.

Revision ID: ${up_revision}
Revises: ${down_revision | comma,n}
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import sqlalchemy as sa

from zart_sqla.migrations.environment import revision_scope

if TYPE_CHECKING:
    from alembic.operations import Operations

revision = ${repr(up_revision)}
down_revision = ${repr(down_revision)}
branch_labels = ${repr(branch_labels)}
depends_on = ${repr(depends_on)}


def upgrade(operations: Operations | None = None, **_: object) -> None:
    op, names = revision_scope(operations)  # tables by names.tasks and so on, in names.schema
    ${upgrades if upgrades else "pass"}
    op.create_table_comment(names.executions, f"zart_sqla schema revision {revision}", schema=names.schema)


def downgrade(operations: Operations | None = None, **_: object) -> None:
    op, names = revision_scope(operations)
    ${downgrades if downgrades else "pass"}
    op.create_table_comment(names.executions, f"zart_sqla schema revision {down_revision}", schema=names.schema)
