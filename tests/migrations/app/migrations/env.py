# ruff: noqa: INP001 - an app's own files, loaded by path
"""The Alembic environment of an app, which a test sets by environment variables."""

import asyncio
import os
from typing import Any

import app_models  # type: ignore[import-not-found]
from alembic import context
from sqlalchemy import Connection, NullPool, create_engine, make_url
from sqlalchemy.ext.asyncio import create_async_engine

from zart_sqla.migrations import include_name, include_name_for, table_names
from zart_sqla.table_names import TableNames

URL = make_url(os.environ["DATABASE_URL"])


def options() -> dict[str, Any]:
    """Return what differs from test to test."""
    names = table_names(context.config)
    include_schemas = names.schema is not None
    match os.environ["APP_WAY"]:
        case "apart":
            return {"target_metadata": app_models.apart(), "include_name": include_name}
        case "beside":
            return {"target_metadata": app_models.beside(names), "include_schemas": include_schemas}
        case "within":
            return {"target_metadata": app_models.within(names), "include_schemas": include_schemas}
        case "both":
            return {"target_metadata": app_models.within(names), "include_name": include_name}
        case "several":
            include_all = include_name_for(names, TableNames("two_"))
            return {"target_metadata": app_models.apart(), "include_name": include_all}
        case "tenants":
            return {"target_metadata": app_models.apart(), "version_table_schema": names.schema}
        case way:
            raise ValueError(way)


def run(connection: Connection) -> None:
    """Do what Alembic was asked for."""
    context.configure(connection=connection, **options())
    with context.begin_transaction():
        context.run_migrations()


async def run_with_asyncpg() -> None:
    """Connect as Alembic's async template does."""
    engine = create_async_engine(URL.set(drivername="postgresql+asyncpg"), poolclass=NullPool)
    async with engine.connect() as connection:
        await connection.run_sync(run)


def run_with_psycopg() -> None:
    """Connect as Alembic's generic template does."""
    engine = create_engine(URL.set(drivername="postgresql+psycopg"), poolclass=NullPool)
    with engine.connect() as connection:
        run(connection)


if prefix := os.environ.get("APP_ATTRIBUTE"):
    context.config.attributes["zart_table_names"] = TableNames(prefix)

if context.is_offline_mode():
    context.configure(dialect_name="postgresql", literal_binds=True, **options())
    with context.begin_transaction():
        context.run_migrations()
elif os.environ.get("APP_DRIVER") == "asyncpg":
    asyncio.run(run_with_asyncpg())
else:
    run_with_psycopg()
