"""The trap in Alembic's `version_locations`: a package resource that it skips without a word."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from alembic.util import coerce_resource_to_filename

if TYPE_CHECKING:
    from alembic.config import Config

VERSIONS: Final = Path(__file__).parent / "versions"
"""The folder of our revisions."""

_MENTION = re.compile(r"zart_sqla[:/\\]+migrations[^\s,;]*")


def find_ignored_version_location(config: Config) -> str | None:
    """Return the entry of `version_locations` that means our revisions but does not lead Alembic to them.

    Alembic skips a folder that does not exist, without a warning. With `path_separator = os`, which its own
    template writes, it splits `zart_sqla:migrations/versions` at the colon (not on Windows), and skips both
    halves.

    Returns:
        The entry as the configuration has it, such as `"zart_sqla:migrations/versions"`. None if Alembic
        finds our revisions, and also if no entry is meant to be ours: an app may leave the tables to `zart
        migrate`.
    """
    mention = _MENTION.search(_configured_text(config))
    if mention is None or VERSIONS.resolve() in _locations(config):
        return None
    return mention[0]


def _configured_text(config: Config) -> str:
    # Alembic's own look-up has the text of an ini file, before it is split, and the list of a pyproject.toml.
    configured: object = config.get_alembic_option("version_locations")
    return "\n".join(map(str, configured)) if isinstance(configured, list) else str(configured or "")


def _locations(config: Config) -> list[Path]:
    found: list[Path] = []
    for location in config.get_version_locations_list() or ():
        try:
            found.append(coerce_resource_to_filename(location).resolve())
        except (ImportError, ValueError):
            continue  # not silent: Alembic itself fails on such a package
    return found
