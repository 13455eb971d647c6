"""The journal: the place of each call, and the refusal of code that no longer fits what is recorded."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zart_sqla.errors import InvalidNameError, NonDeterminismError
from zart_sqla.records import ErrorRecord, RecordedStep, RunHistory, StepKind
from zart_sqla.runtime.journal import Journal, Place

# Few different ones, among them those that look like numbered ones.
names = st.sampled_from(["a", "b", "a#2", "a#2#2", "b#3", "%", "\N{GRINNING FACE}"])
kinds = st.sampled_from([StepKind.STEP, StepKind.SLEEP, StepKind.CAPTURE])
calls = st.lists(st.tuples(names, kinds), max_size=12)


def checkpoint(place: Place) -> RecordedStep:
    """Return what is recorded for a place."""
    return RecordedStep(name=place.name, kind=place.kind, position=place.position, result="1")


def play(journal: Journal, called: Sequence[tuple[str, StepKind]]) -> list[Place]:
    """Return the places of the calls."""
    return [journal.enter(name, kind) for name, kind in called]


def history_of(*called: str) -> RunHistory:
    """Return what a run has recorded that called these steps."""
    return RunHistory(steps=[checkpoint(place) for place in play(fresh(), [(name, StepKind.STEP) for name in called])])


def fresh(history: RunHistory | None = None) -> Journal:
    """Return the journal of a turn."""
    return Journal(history or RunHistory())


def test_first_time() -> None:
    """Nothing is recorded; the places are counted from 0."""
    assert fresh().enter("a", StepKind.STEP) == Place("a", StepKind.STEP, 0, None, 0)


def test_same_name_again() -> None:
    """The same name becomes `name#2`, `name#3`, in the order of the calls."""
    places = play(fresh(), [(name, StepKind.STEP) for name in ("a", "b", "a", "a", "b")])
    assert [place.name for place in places] == ["a", "b", "a#2", "a#3", "b#2"]
    assert [place.position for place in places] == [0, 1, 2, 3, 4]


def test_names_that_look_numbered() -> None:
    """A name that is given as `a#2` is not taken for the second `a`."""
    places = play(fresh(), [(name, StepKind.STEP) for name in ("a#2", "a", "a", "a#2")])
    assert [place.name for place in places] == ["a#2", "a", "a#3", "a#2#2"]


@given(calls)
def test_names_are_unique(called: list[tuple[str, StepKind]]) -> None:
    """However the calls are named, no two places have the same name."""
    places = play(fresh(), called)
    assert len({place.name for place in places}) == len(places)


@given(calls, st.randoms())
def test_replay_adopts_all(called: list[tuple[str, StepKind]], chance: "st.random.Random") -> None:  # type: ignore[name-defined]
    """A replay of the same calls finds every record, in whatever order they were read."""
    steps = [checkpoint(place) for place in play(fresh(), called)]
    chance.shuffle(steps)
    journal = fresh(RunHistory(steps=steps))
    assert [place.recorded for place in play(journal, called)] == sorted(steps, key=lambda step: step.position or 0)
    journal.check_end()


@given(calls, st.data())
def test_replay_after_a_crash(called: list[tuple[str, StepKind]], data: st.DataObject) -> None:
    """A replay finds what is recorded, and makes the other calls now, under the same names."""
    places = play(fresh(), called)
    kept = data.draw(st.lists(st.booleans(), min_size=len(places), max_size=len(places)))
    steps = [checkpoint(place) for place, is_kept in zip(places, kept, strict=True) if is_kept]
    again = play(fresh(RunHistory(steps=steps)), called)
    assert [place.name for place in again] == [place.name for place in places]
    assert [place.recorded is not None for place in again] == kept


@given(calls.filter(bool), st.data())
def test_any_other_call_is_refused(called: list[tuple[str, StepKind]], data: st.DataObject) -> None:
    """A replay that calls something else in one place is refused there."""
    steps = [checkpoint(place) for place in play(fresh(), called)]
    changed = data.draw(st.integers(0, len(called) - 1))
    journal = fresh(RunHistory(steps=steps))
    play(journal, called[:changed])
    with pytest.raises(NonDeterminismError) as caught:
        journal.enter("new", called[changed][1])
    assert (caught.value.position, caught.value.recorded) == (changed, steps[changed].name)


def test_renamed() -> None:
    """Another step than the recorded one is refused; the error names both, and where."""
    journal = fresh(history_of("a", "b"))
    journal.enter("a", StepKind.STEP)
    with pytest.raises(NonDeterminismError) as caught:
        journal.enter("c", StepKind.STEP)
    error = caught.value
    assert (error.position, error.recorded, error.called) == (1, "b", "c")
    assert "at position 1 of this run step 'b' is recorded, but the code called 'c'" in str(error)
    assert "bring the old code back and resume the run, or start it anew" in str(error)


def test_reordered() -> None:
    """Steps in another order are refused at the first of them."""
    with pytest.raises(NonDeterminismError) as caught:
        fresh(history_of("a", "b")).enter("b", StepKind.STEP)
    assert (caught.value.position, caught.value.recorded, caught.value.called) == (0, "a", "b")


def test_removed_from_the_middle() -> None:
    """A step that is not called any more is refused at its place."""
    journal = fresh(history_of("a", "b", "c"))
    journal.enter("a", StepKind.STEP)
    with pytest.raises(NonDeterminismError) as caught:
        journal.enter("c", StepKind.STEP)
    assert (caught.value.position, caught.value.recorded, caught.value.called) == (1, "b", "c")


def test_removed_from_the_end() -> None:
    """A step that is not called any more is missed at the end."""
    journal = fresh(history_of("a", "b", "c"))
    journal.enter("a", StepKind.STEP)
    with pytest.raises(NonDeterminismError, match="step 'b' is recorded, but the code ended without calling it"):
        journal.check_end()


def test_inserted() -> None:
    """A new step before a recorded one is refused."""
    with pytest.raises(NonDeterminismError) as caught:
        fresh(history_of("a")).enter("new", StepKind.STEP)
    assert (caught.value.recorded, caught.value.called) == ("a", "new")


def test_moved_into_a_gap() -> None:
    """A recorded step is refused at a place where nothing is recorded yet."""
    steps = history_of("a", "b", "c").steps
    journal = fresh(RunHistory(steps=[steps[0], steps[2]]))
    journal.enter("a", StepKind.STEP)
    with pytest.raises(NonDeterminismError) as caught:
        journal.enter("c", StepKind.STEP)
    assert (caught.value.position, caught.value.recorded) == (1, None)
    assert "no step is recorded" in str(caught.value)


def test_another_kind() -> None:
    """A sleep is not the step of the same name."""
    with pytest.raises(NonDeterminismError) as caught:
        fresh(history_of("a")).enter("a", StepKind.SLEEP)
    assert (caught.value.recorded, caught.value.called) == ("a", "a (sleep)")


def test_appended() -> None:
    """New steps behind the recorded ones are fine."""
    journal = fresh(history_of("a"))
    journal.enter("a", StepKind.STEP)
    assert journal.enter("b", StepKind.STEP).recorded is None
    journal.check_end()


def test_unordered() -> None:
    """Calls whose order is not fixed are found by their names alone, and take no place."""
    first = fresh()
    places = [first.enter(name, StepKind.STEP, branch="1", is_own=True) for name in ("a", "b")]
    last = first.enter("c", StepKind.STEP)
    assert ([place.position for place in places], last.position) == ([None, None], 0)
    journal = fresh(RunHistory(steps=[checkpoint(place) for place in (*places, last)]))
    for name in ("b", "a"):
        assert journal.enter(name, StepKind.STEP, branch="2", is_own=True).recorded is not None
    assert journal.enter("c", StepKind.STEP).recorded is not None
    journal.check_end()


def test_branches() -> None:
    """What is named as all calls of its kind are is told apart by the branches that call, whichever comes first."""
    first = fresh()
    places = [first.enter("a", StepKind.STEP, branch=branch) for branch in ("2", "1", "2", "1.1")]
    assert [place.name for place in places] == ["a@2", "a@1", "a@2#2", "a@1.1"]
    journal = fresh(RunHistory(steps=[checkpoint(place) for place in places]))
    again = [journal.enter("a", StepKind.STEP, branch=branch) for branch in ("1.1", "1", "2", "2")]
    assert [place.name for place in again] == ["a@1.1", "a@1", "a@2", "a@2#2"]
    journal.check_end()


@pytest.mark.parametrize("branches", [("1", "2"), ("1.1", "1.2"), ("1", "12"), ("2.1", "1")])
def test_a_name_of_its_own_in_two_branches(branches: tuple[str, str]) -> None:
    """It is refused: a replay could take one for the other."""
    journal = fresh()
    journal.enter("a", StepKind.STEP, branch=branches[0], is_own=True)
    with pytest.raises(NonDeterminismError, match=r"'a' is called by two tasks of the body.* names of their own"):
        journal.enter("a", StepKind.STEP, branch=branches[1], is_own=True)


@pytest.mark.parametrize("branches", [("", "1"), ("1", ""), ("1", "1"), ("1", "1.2"), ("1.2", "1")])
def test_a_name_of_its_own_again(branches: tuple[str, str]) -> None:
    """One branch can use it again, and so can those that it has made, or that have made it."""
    journal = fresh()
    names = [journal.enter("a", StepKind.STEP, branch=branch, is_own=True).name for branch in branches]
    assert names == ["a", "a#2"]


def test_ordered_and_unordered_are_not_mixed_up() -> None:
    """A step that was called in order is refused out of it, and the other way round."""
    unordered = checkpoint(fresh().enter("a", StepKind.STEP, branch="1", is_own=True))
    with pytest.raises(NonDeterminismError):
        fresh(RunHistory(steps=[unordered])).enter("a", StepKind.STEP)
    with pytest.raises(NonDeterminismError):
        fresh(history_of("a")).enter("a", StepKind.STEP, branch="1", is_own=True)


def test_failed_attempts() -> None:
    """A place knows how many attempts have failed in earlier turns."""
    journal = fresh(RunHistory(attempts={"a": 2}))
    assert journal.enter("a", StepKind.STEP).failed_attempts == 2
    assert journal.enter("a", StepKind.STEP).failed_attempts == 0


@pytest.mark.parametrize("name", ["", "\x00", "\ud800", "x" * 2001])
def test_bad_name(name: str) -> None:
    """A name that cannot be stored is refused, and takes no place."""
    journal = fresh()
    with pytest.raises(InvalidNameError, match=r"^step name "):
        journal.enter(name, StepKind.STEP)
    assert journal.enter("a", StepKind.STEP).position == 0


def test_skip_to_a_marker() -> None:
    """Behind the place where the body failed, nothing before it has to be called, and names go on."""
    before = fresh()
    steps = [checkpoint(place) for place in play(before, [("a", StepKind.STEP), ("b", StepKind.STEP)])]
    marker = before.mark("on_failure", StepKind.FAILURE, ErrorRecord(error_type="ValueError", message="no"))
    journal = fresh(RunHistory(steps=[*steps, marker]))
    assert journal.failure == marker
    journal.skip_to(marker)
    assert journal.enter("a", StepKind.STEP) == Place("a#2", StepKind.STEP, 3, None, 0)
    journal.check_end()


def test_skip_to_a_marker_still_checks_what_follows() -> None:
    """What was recorded behind that place has to be called."""
    journal = fresh()
    marker = journal.mark("on_failure", StepKind.FAILURE)
    after = checkpoint(journal.enter("a", StepKind.STEP))
    again = fresh(RunHistory(steps=[marker, after]))
    again.skip_to(marker)
    with pytest.raises(NonDeterminismError) as caught:
        again.check_end()
    assert caught.value.recorded == "a"


def test_skip_to_end() -> None:
    """Behind all that is recorded, nothing has to be called, and no name is given again."""
    history = history_of("a", "b", "a")
    journal = fresh(RunHistory(steps=history.steps, attempts={"c": 1}))
    journal.enter("a", StepKind.STEP)
    journal.skip_to_end()
    places = play(journal, [(name, StepKind.STEP) for name in ("a", "b", "c")])
    assert [(place.name, place.position) for place in places] == [("a#3", 3), ("b#2", 4), ("c#2", 5)]
    journal.check_end()


def test_skip_to_end_of_nothing() -> None:
    """Where nothing is recorded the first place is the next one."""
    journal = fresh()
    journal.skip_to_end()
    assert journal.enter("a", StepKind.STEP).position == 0


def test_no_failure() -> None:
    """Without a marker the body has not failed."""
    assert fresh(history_of("a")).failure is None
