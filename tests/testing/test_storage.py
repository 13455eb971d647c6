"""What a simulated run has recorded."""

from datetime import timedelta

from zart_sqla.records import Child, ErrorRecord, FailedAttempt, RecordedStep, StepKind
from zart_sqla.testing.clock import START, VirtualClock
from zart_sqla.testing.storage import Storage

DONE = RecordedStep(name="a", kind=StepKind.STEP, position=0, result="1")
WAIT = RecordedStep(name="paid", kind=StepKind.EVENT, position=1)


def test_first_counts() -> None:
    """A checkpoint that is there stays, and is what a second one is answered with."""
    storage = Storage(VirtualClock())
    other = RecordedStep(name="a", kind=StepKind.STEP, position=0, result="2")
    assert storage.keep(DONE) is DONE
    assert storage.keep(other) == DONE
    assert storage.steps["a"].result == "1"


def test_repeated() -> None:
    """The call of a step that is recorded is noted as one that should not be."""
    storage = Storage(VirtualClock())
    storage.note_call("a")
    storage.keep(DONE)
    assert storage.repeated == []
    storage.note_call("a")
    assert (storage.repeated, storage.calls["a"]) == (["a"], 2)


def test_times() -> None:
    """What is recorded one after the other has times in that order, though the clock stands."""
    clock = VirtualClock()
    storage = Storage(clock)
    storage.keep(DONE)
    storage.keep(RecordedStep(name="b", kind=StepKind.STEP, position=1, result="2"))
    clock.move_to(START + timedelta(days=1))
    clock.move_to(START)
    storage.keep(RecordedStep(name="c", kind=StepKind.STEP, position=2, result="3"))
    times = [step.completed_at for step in storage.steps.values()]
    assert times == sorted(set(times), key=str)
    assert times[2] == START + timedelta(days=1)


def test_events() -> None:
    """A wait takes the first event of its name, once; an open wait that is kept is completed by it."""
    storage = Storage(VirtualClock())
    storage.keep(WAIT)
    assert storage.take(WAIT, "paid").is_open
    storage.events += [("other", "0"), ("paid", "1"), ("paid", "2")]
    assert storage.take(WAIT, "paid").result == "1"
    assert storage.take(WAIT, "paid").result == "1"
    assert storage.events == [("other", "0"), ("paid", "2")]


def test_children() -> None:
    """A child is added once, ends with its checkpoint, and can be given up until then."""
    storage = Storage(VirtualClock())
    one, two = (Child(name=name, position=None, call="{}") for name in ("one", "two"))
    storage.add([one, two, one])
    error = ErrorRecord(error_type="KeyError", message="x")
    storage.attempts.append(FailedAttempt(step="two", attempt=2, error=error, started_at=START))
    assert storage.history_of("two").attempts == {"two": 2}
    storage.keep(RecordedStep(name="one", kind=StepKind.CHILD, position=None, result="1"))
    storage.add([one])
    storage.give_up(["one", "two", "three"])
    assert storage.children == {}
    assert storage.steps["one"].result == "1"
    assert storage.steps["two"].error is not None
    assert storage.history_of("two").attempts == {}
