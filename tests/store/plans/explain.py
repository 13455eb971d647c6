"""The plans by which PostgreSQL carries out the statements that an engine sends."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from psycopg import sql
from sqlalchemy import Connection, event
from sqlalchemy.ext.asyncio import AsyncEngine

MODES = ("force_custom_plan", "force_generic_plan")
"""A plan made for the values of the parameters, and one for any: a driver that prepares statements gets either."""


@dataclass(frozen=True)
class Plan:
    """How a statement was carried out.

    Attributes:
        statement: the statement as the driver gets it.
        root: the plan as EXPLAIN gives it, and what it came to where it was carried out.
    """

    statement: str
    root: dict[str, Any]

    def nodes(self) -> Iterator[dict[str, Any]]:
        """Yield all parts of the plan."""
        waiting = [self.root]
        while waiting:
            node = waiting.pop()
            yield node
            waiting += node.get("Plans", [])

    @property
    def scanned(self) -> set[str]:
        """The tables that are read from end to end, or would be."""
        return {node["Relation Name"] for node in self.nodes() if node["Node Type"] == "Seq Scan"}

    @property
    def pages(self) -> int:
        """How many pages it looked at, each as often as it did."""
        # What changes data and is not asked for rows is done after the rest, and not counted by what is above it.
        asked = {f"CTE {node['CTE Name']}" for node in self.nodes() if "CTE Name" in node}
        own = [node for node in self.nodes() if node.get("Parent Relationship") == "InitPlan"]
        late = [node for node in own if node.get("Subplan Name", "").startswith("CTE ")]
        return sum(map(_pages, (self.root, *(node for node in late if node["Subplan Name"] not in asked))))

    def __str__(self) -> str:
        return "\n".join(_lines(self.root, ""))


def _pages(node: dict[str, Any]) -> int:
    return int(node["Shared Hit Blocks"] + node["Shared Read Blocks"])


def _lines(node: dict[str, Any], indent: str) -> Iterator[str]:
    told = ("Subplan Name", "Node Type", "Relation Name", "Index Name", "CTE Name", "Index Cond", "Filter")
    words = [str(node[key]) for key in told if key in node]
    rows = f"rows={node['Plan Rows']}"
    if "Actual Rows" in node:
        rows += f"/{node['Actual Rows']} loops={node['Actual Loops']} pages={_pages(node)}"
    yield f"{indent}{' '.join(words)} {rows}"
    for part in node.get("Plans", []):
        yield from _lines(part, indent + "  ")


@contextmanager
def explained(engine: AsyncEngine, mode: str) -> Iterator[list[Plan]]:
    """Yield the list of the plans of what the engine sends from now on. For that, each statement runs once more.

    Args:
        engine: an engine of asyncpg.
        mode: one of `MODES`.
    """
    plans: list[Plan] = []

    def explain(connection: Connection, _cursor: Any, statement: str, parameters: Sequence[Any], *_: Any) -> None:
        driver: Any = connection.connection.dbapi_connection
        plans.append(Plan(statement, driver.run_async(lambda raw: _explain(raw, statement, parameters, mode))))

    event.listen(engine.sync_engine, "before_cursor_execute", explain)
    try:
        yield plans
    finally:
        event.remove(engine.sync_engine, "before_cursor_execute", explain)


async def _explain(driver: Any, statement: str, parameters: Sequence[Any], mode: str) -> dict[str, Any]:
    """Carry a statement out as a prepared one, roll it back, and return the plan."""
    await driver.execute(f"PREPARE explained AS {statement}")
    transaction = driver.transaction()
    await transaction.start()
    try:
        await driver.execute(f"SET LOCAL plan_cache_mode = {mode}")
        types = await _types(driver)
        given = ", ".join(
            f"CAST({sql.Literal(value).as_string()} AS {type_})" for value, type_ in zip(parameters, types, strict=True)
        )
        execution = f"EXECUTE explained({given})" if given else "EXECUTE explained"
        (found,) = await driver.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) {execution}")
        plan: dict[str, Any] = found["Plan"]
        return plan
    finally:
        await transaction.rollback()
        await driver.execute("DEALLOCATE explained")


async def planned(driver: Any, statement: str) -> Plan:
    """Return the plan that is made of a statement for any parameters; it is not carried out."""
    await driver.execute(f"PREPARE explained AS {statement}")
    try:
        await driver.execute("SET plan_cache_mode = force_generic_plan")
        given = ", ".join("NULL" for _ in await _types(driver))
        execution = f"EXECUTE explained({given})" if given else "EXECUTE explained"
        (found,) = json.loads(await driver.fetchval(f"EXPLAIN (FORMAT JSON) {execution}"))
        return Plan(statement, found["Plan"])
    finally:
        await driver.execute("DEALLOCATE explained")


async def _types(driver: Any) -> list[str]:
    query = "SELECT parameter_types::text[] FROM pg_prepared_statements WHERE name = 'explained'"
    types: list[str] = await driver.fetchval(query)
    return types
