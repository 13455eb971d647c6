"""What the database's catalog says of our tables, and a revision from the future."""

import shutil
from pathlib import Path

from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text

from zart_sqla.migrations import known_revisions
from zart_sqla.migrations.locations import VERSIONS
from zart_sqla.table_names import TABLES, TableNames

LATER = "zart_9999"
_LATER_REVISION = """
from zart_sqla.migrations.environment import revision_scope

revision = {revision!r}
down_revision = {down_revision!r}


def upgrade(operations=None, **_):
    say(revision, operations)


def downgrade(operations=None, **_):
    say(down_revision, operations)


def say(reached, operations):
    op, names = revision_scope(operations)
    op.create_table_comment(names.executions, "zart_sqla schema revision " + reached, schema=names.schema)
"""
_QUERIES = (
    # columns
    """SELECT c.relname, a.attname, a.attnum::text, format_type(a.atttypid, a.atttypmod), a.attnotnull::text,
              a.attidentity::text, pg_get_expr(d.adbin, d.adrelid)
       FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_attribute a ON a.attrelid = c.oid
       LEFT JOIN pg_attrdef d ON (d.adrelid, d.adnum) = (c.oid, a.attnum)
       WHERE n.nspname = :schema AND c.relkind = 'r' AND a.attnum > 0 AND NOT a.attisdropped""",
    # constraints
    """SELECT c.relname, o.conname, o.contype::text, pg_get_constraintdef(o.oid)
       FROM pg_constraint o
       JOIN pg_class c ON c.oid = o.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
       WHERE n.nspname = :schema""",
    # indexes
    """SELECT tablename, indexname, indexdef FROM pg_indexes WHERE schemaname = :schema""",
    # comments
    """SELECT c.relname, obj_description(c.oid, 'pg_class')
       FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
       WHERE n.nspname = :schema AND c.relkind = 'r'""",
)


def add_later_revision(folder: Path) -> ScriptDirectory:
    """Make a script directory of our revisions and one more."""
    shutil.copytree(VERSIONS, folder / "versions", ignore=shutil.ignore_patterns("__pycache__"))
    source = _LATER_REVISION.format(revision=LATER, down_revision=known_revisions()[0])
    (folder / "versions" / f"{LATER}.py").write_text(source)
    return ScriptDirectory(folder)


def definitions(connection: Connection, schema: str, *, without: str = "") -> set[str]:
    """Return a line for each column, constraint, index and comment in a schema, leaving out one table."""
    lines: set[str] = set()
    for query in _QUERIES:
        rows = connection.execute(text(query), {"schema": schema})
        lines |= {" | ".join(map(str, row)).replace(f"{schema}.", "") for row in rows if row[0] != without}
    return lines


def tables(connection: Connection, schema: str | None = None) -> set[str]:
    """Return the names of the tables in a schema."""
    return set(inspect(connection).get_table_names(schema=schema))


def our_tables(names: TableNames) -> set[str]:
    """Return the names of the tables that the newest revision has."""
    kept_for_later = {"schedules", "pause_rules", "queues"}
    return {names.table(table) for table in set(TABLES) - kept_for_later}
