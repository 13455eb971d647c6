"""The development environment: compares the models, under their default names, with a database.

DATABASE_URL names the database. Only for writing new revisions: applications run them in an environment of
their own, or by `zart migrate`.
"""

import asyncio
import os

from alembic import context
from alembic.util import CommandError
from sqlalchemy import Connection, MetaData, NullPool, make_url
from sqlalchemy.ext.asyncio import create_async_engine

from zart_sqla import TableNames, zart_models

target_metadata = MetaData()
zart_models(TableNames.default(), metadata=target_metadata)


def migrate(connection: Connection) -> None:
    """Run what Alembic was asked for on this connection, in one transaction."""
    context.configure(connection=connection, target_metadata=target_metadata)
    with context.begin_transaction():
        context.run_migrations()


async def connect_and_migrate(database_url: str) -> None:
    """Connect through asyncpg, which the package needs anyway."""
    url = make_url(database_url).set(drivername="postgresql+asyncpg")
    engine = create_async_engine(url, poolclass=NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(migrate)


if context.is_offline_mode():
    context.configure(dialect_name="postgresql", target_metadata=target_metadata, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()
elif "DATABASE_URL" in os.environ:
    asyncio.run(connect_and_migrate(os.environ["DATABASE_URL"]))
else:
    message = "set DATABASE_URL to an empty PostgreSQL database, such as postgresql://localhost/zart_dev"
    raise CommandError(message)
