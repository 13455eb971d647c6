# ruff: noqa: INP001 - an app's own files, loaded by path
"""Add the customers' addresses."""

import sqlalchemy as sa
from alembic import op

revision = "app_0002"
down_revision = "app_0001"


def upgrade() -> None:
    """Add the column."""
    op.add_column("customers", sa.Column("email", sa.String))


def downgrade() -> None:
    """Drop the column."""
    op.drop_column("customers", "email")
