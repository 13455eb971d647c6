# ruff: noqa: INP001 - an app's own files, loaded by path
"""Create the orders, which have a foreign key to our executions, in the line of the app."""

import sqlalchemy as sa
from alembic import context, op

from zart_sqla.migrations import table_names

revision = "app_0003"
down_revision = "app_0002"
depends_on = "zart_0001"


def upgrade() -> None:
    """Create the table."""
    names = table_names(context.config)
    op.create_table(
        "orders",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("execution_id", sa.Text),
    )
    op.create_foreign_key(
        None,
        "orders",
        names.executions,
        ["execution_id"],
        ["execution_id"],
        referent_schema=names.schema,
    )


def downgrade() -> None:
    """Drop the table."""
    op.drop_table("orders")
