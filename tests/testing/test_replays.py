"""`replay`: whether today's code fits a run that was recorded."""

from pathlib import Path

import pytest

from tests.testing import shop
from zart_sqla import ConfigError, NonDeterminismError, durable
from zart_sqla.testing import ExecutionHistory, Simulation, replay


async def history_of(order_id: str) -> ExecutionHistory:
    """Return the history of an order that waits to be paid."""
    run = Simulation(shop.order, order_id)
    await run.advance("2d")
    return run.history


async def test_from_a_file(tmp_path: Path) -> None:
    """A history that was kept in a file fits the code, and other code not."""
    file = tmp_path / "order.json"
    file.write_text((await history_of("42")).to_json())
    history = ExecutionHistory.from_json(file.read_text())
    await replay(shop.order, history)

    @durable("order")
    async def other(order_id: str) -> str:
        return await shop.pack.call(order_id)

    with pytest.raises(NonDeterminismError, match="'charge' is recorded, but the code called 'pack'"):
        await replay(other, history)


async def test_object() -> None:
    """An object with a method `run` can be replayed."""

    class Orders:
        async def run(self, data: str) -> str:
            return await shop.charge(data, 500)

    with pytest.raises(NonDeterminismError, match="'settle' is recorded"):
        await replay(Orders(), await history_of("42"))


async def test_refuses() -> None:
    """What is no workflow is refused."""
    with pytest.raises(ConfigError, match="workflow"):
        await replay(shop.pack, await history_of("42"))  # type: ignore[arg-type]
