"""Our own history, run over a connection: for databases that no Alembic of an app's own looks after."""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from alembic.config import Config
from alembic.operations import Operations
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationStep
from alembic.script import ScriptDirectory
from alembic.script.revision import RevisionError
from sqlalchemy import BigInteger, MetaData, Table, func, inspect, literal, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import CreateSchema, DropTable

from zart_sqla.migrations.environment import NAMES_ATTRIBUTE
from zart_sqla.migrations.errors import MigrationError
from zart_sqla.migrations.installed import find_installation
from zart_sqla.migrations.locations import VERSIONS

if TYPE_CHECKING:
    from alembic.runtime.migration import MigrationContext
    from sqlalchemy import Connection

    from zart_sqla.migrations.installed import Installation
    from zart_sqla.table_names import TableNames

Direction = Literal["upgrade", "downgrade"]


@dataclass(frozen=True, kw_only=True)
class Migration:
    """What an upgrade or a downgrade did.

    Attributes:
        names: the names of the tables.
        before: the revision that they were at, None if there were none.
        after: the revision that they are at now, None if there are none.
        is_app_managed: whether the history of an app's own Alembic made them.
        is_newer: whether they are at a revision that this release does not know.
    """

    names: TableNames
    before: str | None
    after: str | None
    is_app_managed: bool = False
    is_newer: bool = False

    @property
    def has_changed(self) -> bool:
        """Whether anything was done."""
        return self.before != self.after

    @property
    def summary(self) -> str:
        """What was done, or why nothing was, in one line."""
        tables = self.names.qualified("executions")
        if self.has_changed:
            return f"{tables}: migrated from {self.before or 'nothing'} to {self.after or 'nothing'}"
        found = f"at {self.after}" if self.after else "not there"
        remarks = [
            "which is newer than this release" if self.is_newer else "",
            "managed by the app's own Alembic" if self.is_app_managed else "",
        ]
        return ", ".join([f"{tables}: {found}", *filter(None, remarks), "nothing to do"])


def upgrade(connection: Connection, names: TableNames, revision: str = "head") -> Migration:
    """Bring the tables to a newer revision; create them, their schema and the version table if needed.

    It works in the connection's transaction, which it begins if there is none, and never commits. Until
    that transaction ends, a lock keeps others from migrating the same tables; who waited for it finds
    nothing left to do. (This takes the isolation level `READ COMMITTED`, PostgreSQL's default.) It uses no
    global state of Alembic's, so it can run in an app's own revision, in a thread, or with `await
    connection.run_sync(upgrade, names)`.

    Tables that the app's own Alembic made are left alone: nothing is done if they are new enough.

    Args:
        connection: to the database.
        names: the names of the tables.
        revision: one of our revisions, or `"head"`.

    Raises:
        MigrationError: the tables belong to an app's own Alembic and are too old, or they and the version
            table disagree.
    """
    _lock(connection, names)
    if names.schema is not None:
        _create_schema(connection, names.schema)
    return _History(connection, names).migrate("upgrade", revision)


def downgrade(connection: Connection, names: TableNames, revision: str = "base") -> Migration:
    """Bring the tables back to an older revision; `"base"` drops them, and the version table.

    The schema stays. Transaction, lock and state are as for `upgrade`.

    Raises:
        MigrationError: the tables belong to an app's own Alembic, or a newer release made them.
    """
    _lock(connection, names)
    return _History(connection, names).migrate("downgrade", revision)


def known_revisions() -> list[str]:
    """Return the revisions that this release has, the newest first."""
    return [script.revision for script in _script_directory().walk_revisions()]


class _History:
    """The revisions, the tables, and the version table of one migration."""

    def __init__(self, connection: Connection, names: TableNames) -> None:
        self._connection = connection
        self._names = names
        self._script = _script_directory()
        self._tables = find_installation(connection, names)
        self._steps: list[MigrationStep] = []
        self._context = self._configure()
        self._recorded = self._context.get_current_heads()

    def migrate(self, direction: Direction, revision: str) -> Migration:
        before = self._tables.revision
        if self._tables.exists and before is None:
            raise self._error("its comment does not say at which revision it is, so something else made it")
        if before is not None and before not in known_revisions():
            return self._leave_newer(direction, before)
        self._steps = self._plan(direction, revision)
        if self._steps:
            self._require_ownership(direction)
            self._context.run_migrations(operations=Operations(self._context))
        return self._conclude(direction)

    def _configure(self) -> MigrationContext:
        config = Config()
        config.attributes[NAMES_ATTRIBUTE] = self._names
        # Never entered: that would replace what `alembic.context` and `alembic.op` mean in the whole process.
        environment = EnvironmentContext(config, self._script, fn=self._planned_steps)
        environment.configure(
            connection=self._connection,
            version_table=self._names.version_table,
            version_table_schema=self._names.schema,
        )
        return environment.get_context()

    def _planned_steps(self, *_: object) -> list[MigrationStep]:
        return self._steps

    def _plan(self, direction: Direction, revision: str) -> list[MigrationStep]:
        current = self._tables.revision or ()
        revisions = self._script.revision_map
        try:
            if direction == "upgrade":
                scripts = list(self._script.iterate_revisions(revision, current, implicit_base=True))
                return [MigrationStep.upgrade_from_script(revisions, script) for script in reversed(scripts)]
            scripts = list(self._script.iterate_revisions(current, revision, select_for_downgrade=True))
            return [MigrationStep.downgrade_from_script(revisions, script) for script in scripts]
        except RevisionError as error:
            raise self._error(str(error)) from error

    def _leave_newer(self, direction: Direction, found: str) -> Migration:
        if direction == "downgrade":
            raise self._error(
                f"they are at revision {found!r}, newer than this release ({known_revisions()[0]!r}); "
                "downgrade with the release that made them"
            )
        return self._migration(self._tables, is_newer=True)

    def _require_ownership(self, direction: Direction) -> None:
        recorded = ", ".join(self._recorded)
        if not self._tables.exists:
            if recorded:
                raise self._error(
                    f"they are not there, but {self._names.version_table} says {recorded!r}; "
                    f"drop {self._names.version_table} to have them created"
                )
        elif recorded != self._tables.revision:
            target = "upgrade heads" if direction == "upgrade" else "downgrade zart@base"
            raise self._error(
                f"the history of an app's own Alembic brought them to revision {self._tables.revision!r}; "
                f"run 'alembic {target}' in that app"
            )

    def _conclude(self, direction: Direction) -> Migration:
        tables = find_installation(self._connection, self._names)
        if direction == "downgrade" and not tables.exists:
            version_table = Table(self._names.version_table, MetaData(), schema=self._names.schema)
            self._connection.execute(DropTable(version_table, if_exists=True))
        return self._migration(tables)

    def _migration(self, tables: Installation, *, is_newer: bool = False) -> Migration:
        recorded = self._context.get_current_heads()
        return Migration(
            names=self._names,
            before=self._tables.revision,
            after=tables.revision,
            is_app_managed=tables.exists and recorded != (tables.revision,),
            is_newer=is_newer,
        )

    def _error(self, problem: str) -> MigrationError:
        tables = self._names.qualified("executions")
        return MigrationError(tables, revision=self._tables.revision, problem=problem)


@functools.cache
def _script_directory() -> ScriptDirectory:
    return ScriptDirectory(VERSIONS.parent)


def _lock(connection: Connection, names: TableNames) -> None:
    schema = names.schema or connection.scalar(select(func.current_schema()))
    digest = hashlib.blake2s(f"zart_sqla migration of {schema}.{names.prefix}".encode(), digest_size=8).digest()
    key = literal(int.from_bytes(digest, signed=True), BigInteger)
    connection.execute(select(func.pg_advisory_xact_lock(key)))


def _create_schema(connection: Connection, schema: str) -> None:
    if inspect(connection).has_schema(schema):
        return  # creating it would take a privilege, even with IF NOT EXISTS
    try:
        with connection.begin_nested():
            connection.execute(CreateSchema(schema, if_not_exists=True))
    except DBAPIError:
        # The lock is for one prefix: tables of another one may have had the schema created in the meantime.
        if not inspect(connection).has_schema(schema):
            raise
