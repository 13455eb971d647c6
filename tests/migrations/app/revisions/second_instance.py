# ruff: noqa: INP001 - an app's own files, loaded by path
"""Add a second instance of our tables."""

from alembic import op

from zart_sqla import migrations
from zart_sqla.table_names import TableNames

revision = "app_0003"
down_revision = "app_0002"


def upgrade() -> None:
    """Bring the tables in."""
    migrations.upgrade(op.get_bind(), TableNames("two_"), "zart_0001")


def downgrade() -> None:
    """Take the tables out."""
    migrations.downgrade(op.get_bind(), TableNames("two_"))
