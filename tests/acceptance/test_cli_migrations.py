"""`zart migrate`: the tables, made and looked at."""

from tests.acceptance.command import Command
from zart_sqla.models import SCHEMA_REVISION


def test_migrate_twice(zart_on_empty: Command) -> None:
    """The first run makes the tables, the second finds nothing to do, and the check tells before and after."""
    zart = zart_on_empty
    assert zart("migrate", "--check").code == 1
    first = zart("migrate")
    assert (first.code, first.out) == (0, f'"zart_executions": migrated from nothing to {SCHEMA_REVISION}\n')
    assert "nothing to do" in zart("migrate").out
    assert "nothing to do" in zart("migrate", "--check").out
    assert zart("migrate", "--check", "--json").data == {
        "tables": '"zart_executions"',
        "revision": SCHEMA_REVISION,
    }


def test_migrate_json(zart_on_empty: Command) -> None:
    """With --json it says what it did as data."""
    answer = zart_on_empty("migrate", "--json", "--revision", SCHEMA_REVISION)
    assert answer.code == 0
    assert answer.data == {
        "tables": '"zart_executions"',
        "before": None,
        "after": SCHEMA_REVISION,
        "has_changed": True,
        "is_app_managed": False,
        "is_newer": False,
    }


def test_unknown_revision(zart_on_empty: Command) -> None:
    """A revision that there is not is an error, not a traceback."""
    answer = zart_on_empty("migrate", "--revision", "zart_9999")
    assert answer.code == 1
    assert "zart_9999" in answer.err
    assert "Traceback" not in answer.err


def test_names_of_the_tables(zart_on_empty: Command) -> None:
    """Prefix and schema come from the options, else from the environment, each for itself."""
    zart = zart_on_empty
    assert zart("migrate", "--prefix", "svc_", "--schema", "tenant").code == 0
    assert zart("list", "--json", "--prefix", "svc_", "--schema", "tenant").data["items"] == []
    assert zart("list", "--schema", "tenant", ZART_TABLE_PREFIX="svc_").code == 0
    assert zart("list", ZART_TABLE_PREFIX="svc_", ZART_SCHEMA="tenant").code == 0
    assert zart("list", "--prefix", "svc_").code == 1
