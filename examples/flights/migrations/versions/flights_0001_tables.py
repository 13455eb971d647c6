"""Create the app's tables, one of which refers to the executions of zart_sqla."""

import sqlalchemy as sa
from alembic import context, op

from zart_sqla.migrations import table_names

revision = "flights_0001"
down_revision = None
branch_labels = ("flights",)
depends_on = "zart_0001"


def upgrade() -> None:
    """Create the tables."""
    zart = table_names(context.config)
    op.create_table(
        "flights",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("day", sa.Date, nullable=False, index=True),
        sa.Column("carrier", sa.String, nullable=False),
        sa.Column("flight", sa.Integer, nullable=False),
        sa.Column("tailnum", sa.String),
        sa.Column("origin", sa.String, nullable=False),
        sa.Column("dest", sa.String, nullable=False),
        sa.Column("distance", sa.Integer, nullable=False),
        sa.Column("air_time", sa.Integer),
        sa.Column("sched_dep_time", sa.Integer, nullable=False),
        sa.Column("dep_time", sa.Integer),
        sa.Column("dep_delay", sa.Integer),
        sa.Column("sched_arr_time", sa.Integer, nullable=False),
        sa.Column("arr_time", sa.Integer),
        sa.Column("arr_delay", sa.Integer),
    )
    op.create_table(
        "day_summaries",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("day", sa.Date, nullable=False),
        sa.Column("flights", sa.Integer, nullable=False),
        sa.Column(
            "execution_id", sa.Text, sa.ForeignKey(f"{zart.executions}.execution_id"), nullable=False, index=True
        ),
    )
    create_delays("carrier_delays")
    create_delays("airport_delays")


def downgrade() -> None:
    """Drop the tables."""
    for table in ("airport_delays", "carrier_delays", "day_summaries", "flights"):
        op.drop_table(table)


def create_delays(table: str) -> None:
    """Create one of the two tables of delays."""
    op.create_table(
        table,
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("summary_id", sa.Integer, sa.ForeignKey("day_summaries.id"), nullable=False, index=True),
        sa.Column("code", sa.String, nullable=False),
        sa.Column("flights", sa.Integer, nullable=False),
        sa.Column("cancelled", sa.Integer, nullable=False),
        sa.Column("departure_delay", sa.Integer, nullable=False),
        sa.Column("arrival_delay", sa.Integer, nullable=False),
    )
