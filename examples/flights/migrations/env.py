"""Runs revisions, the app's and those of zart_sqla, on the database that DATABASE_URL names."""

import asyncio
import os

from alembic import context
from sqlalchemy import Connection

from examples.flights.database import connect
from examples.flights.models import Base, zart


def migrate(connection: Connection) -> None:
    """Do what Alembic was asked for, in one transaction."""
    context.config.attributes["zart_table_names"] = zart.names
    context.configure(connection=connection, target_metadata=Base.metadata)
    with context.begin_transaction():
        context.run_migrations()


async def main() -> None:
    """Connect as the app does."""
    engine = connect(os.environ["DATABASE_URL"], pool_size=1)
    async with engine.connect() as connection:
        await connection.run_sync(migrate)
    await engine.dispose()


asyncio.run(main())
