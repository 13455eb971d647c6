"""The tables' history as the Alembic branch `zart`: for an app's own Alembic, or to run without one."""

from zart_sqla.migrations.environment import include_name, include_name_for, table_names
from zart_sqla.migrations.errors import MigrationError
from zart_sqla.migrations.history import Migration, downgrade, known_revisions, upgrade
from zart_sqla.migrations.installed import Installation, find_installation
from zart_sqla.migrations.locations import find_ignored_version_location

__all__ = [
    "Installation",
    "Migration",
    "MigrationError",
    "downgrade",
    "find_ignored_version_location",
    "find_installation",
    "include_name",
    "include_name_for",
    "known_revisions",
    "table_names",
    "upgrade",
]
