"""The rates around a fault."""

from tests.chaos.injector import Done
from tests.chaos.rates import Rates


def test_around() -> None:
    """Runs are counted in the five seconds before a fault, and in each of three such windows after its end."""
    rates = Rates([*range(100, 110), 112, 117, 118, 122])
    fault = Done(kind="crash", began=105.0, ended=111.0, hit="away")
    assert rates.around(fault) == (1.0, [0.2, 0.4, 0.2])
    assert rates.told([fault], 100.0) == ["   5.0 s          crash: 1.0 before; 0.2, 0.4, 0.2 after"]


def test_leaves_out_what_was_not_done() -> None:
    """A fault that could not be done has no line."""
    assert Rates([]).told([Done(kind="cut", began=1.0, ended=2.0, hit=None, problem="x")], 0.0) == []
