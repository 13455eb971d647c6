"""The plan of faults."""

from itertools import pairwise

from tests.chaos import faults
from tests.chaos.plan import LONGEST, MOMENTS, OF_THE_SERVER, QUIET, QUIET_AFTER_SECONDS, plan


def test_follows_from_the_seed() -> None:
    """The same seed means the same faults at the same times, and another seed others."""
    assert plan(1, 600, owns_server=True) == plan(1, 600, owns_server=True)
    assert plan(1, 600, owns_server=True) != plan(2, 600, owns_server=True)


def test_does_all() -> None:
    """Each kind of fault comes before any comes again; a server that is not our own is spared."""
    kinds = [fault.kind for fault in plan(1, 600, owns_server=True)]
    assert set(kinds[: len(LONGEST)]) == set(LONGEST)
    assert {fault.kind for fault in plan(1, 600, owns_server=False)} == LONGEST.keys() - OF_THE_SERVER


def test_can_be_done() -> None:
    """There is something to do for each kind of fault, and something to look for at each moment."""
    assert faults.FAULTS.keys() == LONGEST.keys()
    assert faults.MOMENTS.keys() == set(MOMENTS)


def test_keeps_quiet() -> None:
    """After a fault that takes everybody's connections nothing else begins for a while, and all ends in time."""
    done = plan(3, 600, owns_server=True)
    for fault, following in pairwise(done):
        pause = following.at - fault.at
        assert pause > (fault.seconds + QUIET_AFTER_SECONDS if fault.kind in QUIET else 0)
    assert max(fault.at + fault.seconds for fault in done) <= 600
