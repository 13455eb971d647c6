"""Our branch beside the history of an app that has models, revisions and an Alembic of its own."""

from pathlib import Path

import pytest
from sqlalchemy import Engine, text

from tests.migrations.catalog import our_tables, tables
from tests.migrations.host_app import HostApp
from zart_sqla.migrations import downgrade, find_installation, upgrade
from zart_sqla.models import SCHEMA_REVISION
from zart_sqla.table_names import PREFIX_VARIABLE, SCHEMA_VARIABLE, TableNames

NAMES = TableNames()
NO_DIFFERENCE = "No new upgrade operations detected"
APP_TABLES = {"customers", "alembic_version"}


@pytest.mark.parametrize(
    ("way", "names", "driver"),
    [
        ("apart", NAMES, "psycopg"),
        ("apart", TableNames("svc_", "myschema"), "asyncpg"),
        ("beside", NAMES, "asyncpg"),
        ("beside", TableNames("svc_", "myschema"), "psycopg"),
        ("within", TableNames("myapp_"), "psycopg"),
        ("within", TableNames(schema="myschema"), "asyncpg"),
        ("both", NAMES, "psycopg"),
    ],
    ids=str,
)
def test_in_and_out(
    tmp_path: Path, database_url: str, engine: Engine, way: str, names: TableNames, driver: str
) -> None:
    """`upgrade heads` brings our tables in, `check` agrees, `downgrade zart@base` takes them out."""
    app = HostApp.create(tmp_path, database_url, APP_WAY=way, APP_DRIVER=driver, **variables(names))
    has_orders = way != "apart"
    if has_orders:
        app.add_revision("orders_own_branch")
    app.alembic("upgrade", "heads")
    assert NO_DIFFERENCE in app.alembic("check")
    with engine.connect() as connection:
        assert find_installation(connection, names).revision == SCHEMA_REVISION
        assert ("orders" in tables(connection)) is has_orders
    app.alembic("downgrade", "zart@base")
    with engine.connect() as connection:
        assert tables(connection) == APP_TABLES
        assert tables(connection, names.schema) <= APP_TABLES
        assert heads(engine) == {"app_0002"}


def test_rows_of_the_app_stay(tmp_path: Path, database_url: str, engine: Engine) -> None:
    """Taking our branch out does not so much as touch the app's tables."""
    app = HostApp.create(tmp_path, database_url)
    app.alembic("upgrade", "heads")
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO customers (name, email) VALUES ('Ada', 'ada@example.org')"))
    app.alembic("downgrade", "zart@base")
    with engine.begin() as connection:
        assert connection.scalar(text("SELECT email FROM customers")) == "ada@example.org"


def test_dependency_in_line_goes_with_us(tmp_path: Path, database_url: str, engine: Engine) -> None:
    """A revision in the app's own line that depends on ours is taken back with it: Alembic's rule."""
    app = HostApp.create(tmp_path, database_url, APP_WAY="within")
    app.add_revision("orders_in_line")
    app.alembic("upgrade", "heads")
    assert NO_DIFFERENCE in app.alembic("check")
    assert heads(engine) == {"app_0003"}
    app.alembic("downgrade", "zart@base")
    assert heads(engine) == {"app_0002"}


def test_autogenerate_sees_the_app(tmp_path: Path, database_url: str, engine: Engine) -> None:
    """A table that the app has given up is proposed to be dropped, and none of ours."""
    app = HostApp.create(tmp_path, database_url)
    app.alembic("upgrade", "heads")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE zart_retired (id int)"))
    versions = tmp_path / "migrations" / "versions"
    arguments = (
        "--autogenerate",
        "--head=app@head",
        "--rev-id=app_0003",
        "-m=retired",
        f"--version-path={versions}",
    )
    app.alembic("revision", *arguments)
    (draft,) = versions.glob("app_0003*.py")
    upgrade_text = draft.read_text().split("def downgrade")[0]
    assert [line for line in upgrade_text.splitlines() if "op." in line] == ["    op.drop_table('zart_retired')"]


def test_new_revisions(tmp_path: Path, database_url: str, engine: Engine) -> None:
    """The commands that the docs name write into the folder of the app."""
    app = HostApp.create(tmp_path, database_url)
    versions = tmp_path / "migrations" / "versions"
    app.alembic("revision", "-m=ordinary", "--head=app@head", "--rev-id=app_0003")
    assert "down_revision = 'app_0002'" in (versions / "app_0003_ordinary.py").read_text()
    branch = ("--head=base", "--branch-label=orders", "--version-path=migrations/versions")
    needs = ("--depends-on=app@head", "--depends-on=zart_0001")
    app.alembic("revision", "-m=orders", "--rev-id=orders_0001", *branch, *needs)
    written = (versions / "orders_0001_orders.py").read_text()
    assert "down_revision = None" in written
    assert "depends_on = ['app_0003', 'zart_0001']" in written
    assert "Multiple heads are present" in app.alembic("revision", "-m=ambiguous", fails=True)
    assert "Multiple head revisions are present" in app.alembic("upgrade", "head", fails=True)
    app.alembic("upgrade", "heads")
    app.alembic("downgrade", "orders@base")
    app.alembic("downgrade", "app@-1")
    assert heads(engine) == {"app_0002", "zart_0001"}


def test_second_instance_in_a_revision_of_the_app(tmp_path: Path, database_url: str, engine: Engine) -> None:
    """A revision of the app's own can call `upgrade` and `downgrade` for another instance."""
    app = HostApp.create(tmp_path, database_url, APP_WAY="several")
    app.add_revision("second_instance")
    app.alembic("upgrade", "heads")
    assert NO_DIFFERENCE in app.alembic("check")
    with engine.connect() as connection:
        assert our_tables(NAMES) | our_tables(TableNames("two_")) <= tables(connection)
    app.alembic("downgrade", "app@app_0002")
    with engine.connect() as connection:
        assert tables(connection) == APP_TABLES | our_tables(NAMES)


@pytest.mark.parametrize(
    ("attribute", "arguments", "expected"),
    [
        ("of_attribute_", ("-x", "zart_prefix=of_x_"), TableNames("of_attribute_")),
        ("", ("-x", "zart_prefix=of_x_", "-x", "zart_schema=of_x"), TableNames("of_x_", "of_x")),
        ("", (), TableNames("of_env_", "of_env")),
    ],
    ids=["attribute", "arguments", "environment"],
)
def test_where_names_come_from(
    tmp_path: Path,
    database_url: str,
    engine: Engine,
    attribute: str,
    arguments: tuple[str, ...],
    expected: TableNames,
) -> None:
    """The attribute of the configuration wins over `-x`, which wins over the environment."""
    environment = {"APP_ATTRIBUTE": attribute, **variables(TableNames("of_env_", "of_env"))}
    app = HostApp.create(tmp_path, database_url, **environment)
    app.alembic(*arguments, "upgrade", "heads")
    with engine.connect() as connection:
        assert our_tables(expected) <= tables(connection, expected.schema)
    assert NO_DIFFERENCE in app.alembic(*arguments, "check")


def test_offline(tmp_path: Path, database_url: str, engine: Engine) -> None:
    """The whole history can be written as SQL and run by hand; Alembic goes on from there."""
    app = HostApp.create(tmp_path, database_url)
    arguments = ("-x", "zart_schema=offline")
    script = app.alembic(*arguments, "upgrade", "heads", "--sql")
    with engine.connect() as connection:
        connection.exec_driver_sql(script)
        assert our_tables(NAMES) == tables(connection, "offline")
    assert NO_DIFFERENCE in app.alembic(*arguments, "check")


def test_adopting_tables_of_zart_migrate(tmp_path: Path, database_url: str, engine: Engine) -> None:
    """Tables that `zart migrate` made are refused with the way to adopt them, and that way works."""
    app = HostApp.create(tmp_path, database_url)
    with engine.begin() as connection:
        upgrade(connection, NAMES)
    advice = f"'alembic stamp {SCHEMA_REVISION}' and drop zart_alembic_version"
    assert advice in app.alembic("upgrade", "heads", fails=True)
    app.alembic("stamp", SCHEMA_REVISION)
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE zart_alembic_version"))
    app.alembic("upgrade", "heads")
    assert NO_DIFFERENCE in app.alembic("check")
    with engine.begin() as connection:
        assert upgrade(connection, NAMES).is_app_managed


def test_our_own_history_beside_the_apps(tmp_path: Path, database_url: str, engine: Engine) -> None:
    """An app may leave the tables to `zart migrate`: its autogenerate drops nothing of ours."""
    app = HostApp.create(tmp_path, database_url)
    ini = tmp_path / "alembic.ini"
    ini.write_text(ini.read_text().replace(" zart_sqla:migrations/versions", ""))
    app.alembic("upgrade", "heads")
    with engine.begin() as connection:
        upgrade(connection, NAMES)
    assert NO_DIFFERENCE in app.alembic("check")
    with engine.begin() as connection:
        downgrade(connection, NAMES)
        assert tables(connection) == APP_TABLES


def test_second_instance(tmp_path: Path, database_url: str, engine: Engine) -> None:
    """The app's history has one instance, our own history a second one; autogenerate drops neither."""
    app = HostApp.create(tmp_path, database_url, APP_WAY="several")
    app.alembic("upgrade", "heads")
    with engine.begin() as connection:
        assert upgrade(connection, TableNames("two_")).has_changed
    assert NO_DIFFERENCE in app.alembic("check")
    app.alembic("downgrade", "zart@base")
    with engine.begin() as connection:
        assert our_tables(TableNames("two_")) <= tables(connection)
        assert not our_tables(NAMES) & tables(connection)


def test_schema_per_tenant(tmp_path: Path, database_url: str, engine: Engine) -> None:
    """With a version table in each tenant's schema, `-x zart_schema` migrates them one by one."""
    app = HostApp.create(tmp_path, database_url, APP_WAY="tenants")
    tenants = ("tenant_a", "tenant_b")
    for tenant in tenants:
        with engine.begin() as connection:
            connection.execute(text(f"CREATE SCHEMA {tenant}"))
        app.alembic("-x", f"zart_schema={tenant}", "upgrade", "zart@head")
    app.alembic("-x", "zart_schema=tenant_a", "downgrade", "zart@base")
    with engine.connect() as connection:
        assert tables(connection, "tenant_a") == {"alembic_version"}
        assert our_tables(NAMES) <= tables(connection, "tenant_b")


def variables(names: TableNames) -> dict[str, str]:
    """Return the environment variables that ask for these names."""
    return {PREFIX_VARIABLE: names.prefix, **({SCHEMA_VARIABLE: names.schema} if names.schema else {})}


def heads(engine: Engine) -> set[str]:
    """Return the revisions that the app's version table has."""
    with engine.connect() as connection:
        return set(connection.scalars(text("SELECT version_num FROM alembic_version")))
