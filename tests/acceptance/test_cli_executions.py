"""The commands about executions, with a worker and without."""

import signal
from pathlib import Path

import pytest

from tests.acceptance.command import Command, until


def test_start_prints_the_id(zart: Command) -> None:
    """`start` prints the id alone, for scripts, and makes one up if none is given."""
    given, made = zart("start", "add", "1", "--id", "order-1"), zart("start", "add", "2")
    assert (given.code, given.out) == (0, "order-1\n")
    assert len(made.out.strip()) == 36


def test_start_reads_its_data(zart: Command) -> None:
    """The data is JSON: an argument, a file, the standard input, or nothing."""
    (zart.folder / "order.json").write_text('{"id": 42, "name": "Zoë"}')
    records = [
        zart("start", "shop", '["a", 1.5]', "--json").data,
        zart("start", "shop", "@order.json", "--json", "--queue", "slow").data,
        zart("start", "shop", "-", "--json", stdin="[1, 2]").data,
        zart("start", "shop", "--json").data,
    ]
    assert [record["payload"] for record in records] == [["a", 1.5], {"id": 42, "name": "Zoë"}, [1, 2], None]
    assert [record["queue"] for record in records] == ["default", "slow", "default", "default"]
    assert {record["status"] for record in records} == {"scheduled"}


def test_start_twice(zart: Command) -> None:
    """An id that is taken is an error, unless the one that exists will do."""
    zart("start", "add", "1", "--id", "order-1")
    again = zart("start", "add", "2", "--id", "order-1")
    assert again.code == 1
    assert "already exists" in again.err
    assert "--on-conflict return" in again.err
    other = zart("start", "add", "2", "--id", "order-1", "--on-conflict", "return", "--json")
    assert (other.code, other.data["payload"]) == (0, 1)


@pytest.mark.parametrize("command", ["status", "wait", "result", "cancel", "resume"])
def test_unknown_execution(zart: Command, command: str) -> None:
    """An id that there is not ends with 3."""
    answer = zart(command, "order-1")
    assert answer.code == 3
    assert "order-1" in answer.err
    assert "zart list" in answer.err
    assert answer.out == ""


def test_what_has_not_ended(zart: Command) -> None:
    """`wait` ends with 4 when its time is over; `result` and `resume` say that there is nothing yet."""
    zart("start", "add", "1", "--id", "order-1")
    wait, result, resume = (
        zart("wait", "order-1", "--timeout", "0.1"),
        zart("result", "order-1"),
        zart("resume", "order-1"),
    )
    assert (wait.code, result.code, resume.code) == (4, 1, 1)
    assert "zart wait order-1" in wait.err
    assert "zart wait order-1" in result.err
    assert "scheduled" in resume.err
    assert zart("start", "add", "1", "--wait", "--timeout", "100ms").code == 4


def test_cancel(zart: Command) -> None:
    """A cancelled execution stays so; to wait for it ends with 1."""
    zart("start", "add", "1", "--id", "order-1")
    assert zart("cancel", "order-1").out == "order-1 cancelled\n"
    assert zart("cancel", "order-1", "--json").data["status"] == "cancelled"
    wait, result = zart("wait", "order-1", "--json"), zart("result", "order-1")
    assert (wait.code, wait.data["status"]) == (1, "cancelled")
    assert "was cancelled" in wait.err
    assert (result.code, result.out) == (1, "")
    assert zart("resume", "order-1").code == 1


def test_a_run_that_completes(zart: Command) -> None:
    """A worker completes it: `start --wait`, `wait`, `result` and `status` tell its output."""
    with zart.worker():
        waited = zart("start", "add", "41", "--id", "order-1", "--wait")
        assert (waited.code, waited.out) == (0, "42\n")
        assert zart("start", "add", "1", "--wait", "--json").data["result"] == 2
    assert zart("wait", "order-1").out == "42\n"
    assert zart("wait", "order-1", "--json").data["status"] == "completed"
    assert zart("result", "order-1").out == "42\n"
    assert zart("result", "order-1", "--json").data == 42
    (step,) = zart("status", "order-1", "--json").data["steps"]
    assert (step["name"], step["status"], step["attempts"], step["result"]) == ("increase", "completed", 1, 42)
    shown = zart("status", "order-1").out
    assert all(word in shown for word in ("order-1", "add", "completed", "increase", "42"))
    assert zart("cancel", "order-1").code == 1


def test_a_run_that_fails_and_is_resumed(zart: Command, tmp_path: Path) -> None:
    """To wait for a failed run ends with 1 and names its error; resumed it goes on from its checkpoint."""
    path = tmp_path / "mended"
    with zart.worker():
        failed = zart("start", "fragile", f'"{path}"', "--id", "order-1", "--wait")
        assert (failed.code, failed.out) == (1, "")
        assert "ValueError: no such file" in failed.err
        assert "zart resume order-1" in failed.err
        record = zart("wait", "order-1", "--json")
        assert (record.code, record.data["status"], record.data["error"]["step"]) == (1, "failed", "check")
        assert "no such file" in zart("status", "order-1").out
        assert zart("result", "order-1").code == 1
        path.touch()
        assert zart("resume", "order-1").code == 0
        assert zart("wait", "order-1").out == '"mended"\n'
        assert zart("status", "order-1", "--json").data["run_index"] == 1


def test_list(zart: Command) -> None:
    """`list` filters, and goes on from a cursor."""
    for number in range(1, 4):
        zart("start", "add" if number < 3 else "other", "1", "--id", f"order-{number}")
    zart("cancel", "order-1")

    def ids(*options: str) -> list[str]:
        return [item["execution_id"] for item in zart("list", "--json", *options).data["items"]]

    assert ids() == ["order-3", "order-2", "order-1"]
    assert ids("--status", "cancelled") == ["order-1"]
    assert ids("--task", "other") == ["order-3"]
    assert ids("--search", "order-2") == ["order-2"]
    assert ids("--since", "1h") == ["order-3", "order-2", "order-1"]
    assert ids("--since", "2999-01-01") == []
    first = zart("list", "--json", "--limit", "2").data
    assert ids("--limit", "2", "--cursor", first["next_cursor"]) == ["order-1"]
    shown = zart("list", "--limit", "2")
    assert "order-3" in shown.out
    assert "zart list --cursor" in shown.err
    assert zart("list", "--cursor", "nonsense").code == 2
    assert zart("list", "--limit", "0").code == 2


def test_list_of_nothing(zart: Command) -> None:
    """A list without executions says so, on the standard error."""
    answer = zart("list")
    assert (answer.code, answer.out) == (0, "")
    assert "no executions" in answer.err


def test_event(zart: Command) -> None:
    """`event` offers an event of that value; with an id it counts once."""
    (zart.folder / "shipment.json").write_text('{"tracking_number": "Zoë-1"}')
    zart("start", "listen", "5", "--id", "order-1")
    answers = [
        zart("event", "order-1", "shipment_ready", '["a", 1.5]'),
        zart("event", "order-1", "shipment_ready", "@shipment.json", "--id", "e-1"),
        zart("event", "order-1", "shipment_ready", "2", "--id", "e-1"),
        zart("event", "order-1", "shipment_ready", "-", stdin="null"),
        zart("event", "order-1", "shipment_ready"),
    ]
    assert [(answer.code, answer.out) for answer in answers] == [
        (0, f"order-1 shipment_ready {told}\n")
        for told in ("offered", "offered", "was offered before", *["offered"] * 2)
    ]
    told = {"execution_id": "order-1", "name": "shipment_ready", "event_id": None, "is_new": True}
    assert zart("event", "order-1", "shipment_ready", "7", "--json").data == told
    again = zart("event", "order-1", "shipment_ready", "--id", "e-1", "--json").data
    assert again == {**told, "event_id": "e-1", "is_new": False}
    with zart.worker():
        waited = zart("wait", "order-1", "--json", "--timeout", "60").data
    assert waited["result"] == [["a", 1.5], {"tracking_number": "Zoë-1"}, None, None, 7]


def test_event_wakes_a_run(zart: Command) -> None:
    """A run that waits shows its wait, and goes on when the event comes; after its end it takes none."""
    zart("start", "listen", "1", "--id", "order-1")
    with zart.worker() as worker:
        until(lambda: zart("status", "order-1", "--json").data["status"] == "waiting", worker)
        (step,) = zart("status", "order-1", "--json").data["steps"]
        assert (step["name"], step["kind"], step["status"]) == ("shipment_ready", "event", "waiting")
        assert zart("event", "order-1", "shipment_ready", "7").code == 0
        assert zart("wait", "order-1", "--timeout", "60", "--json").data["result"] == [7]
    late = zart("event", "order-1", "shipment_ready", "8")
    assert (late.code, late.out) == (1, "")
    assert "order-1" in late.err
    assert "zart status order-1" in late.err


def test_event_that_is_refused(zart: Command) -> None:
    """An id that there is not ends with 3; data that is not JSON, and a name that cannot be stored, with 2."""
    unknown = zart("event", "order-1", "shipment_ready", "1")
    assert (unknown.code, unknown.out) == (3, "")
    assert "zart list" in unknown.err
    zart("start", "listen", "1", "--id", "order-1")
    for arguments in (
        ["shipment_ready", "{"],
        ["shipment_ready", "@nothing.json"],
        [""],
        ["shipment_ready", "--id", ""],
    ):
        assert zart("event", "order-1", *arguments).code == 2
    assert zart("event", "order-1").code == 2
    assert zart.sql("SELECT count(*) FROM zart_events") == [(0,)]


def test_stream(zart: Command) -> None:
    """`stream` prints a line of JSON for each value as it comes, and ends with the execution."""
    zart("start", "tell", '[{"done": 1}, "Zoë"]', "--id", "order-1")
    expected = [
        '{"offset": 0, "value": {"done": 1}}',
        '{"offset": 1, "value": "Zoë"}',
        '{"offset": 2, "value": [null]}',
    ]
    with zart.started("stream", "order-1", "progress") as following, zart.worker() as worker:
        until(lambda: following.text.splitlines() == expected[:2], worker)
        assert zart("event", "order-1", "more", "[null]").code == 0
        until(lambda: following.text.splitlines() == expected, worker)
        assert zart("event", "order-1", "more").code == 0
        assert following.end() == 0
        assert following.text.splitlines() == expected
        assert zart("wait", "order-1").code == 0
    again = zart("stream", "order-1", "progress")
    assert (again.code, again.out.splitlines(), again.err) == (0, expected, "")
    assert zart("stream", "order-1", "progress", "--offset", "2").out.splitlines() == expected[2:]
    assert zart("stream", "order-1", "nothing").out == ""


def test_stream_without_following(zart: Command) -> None:
    """`stream --no-follow` prints what is there, and ends before the execution does."""
    zart("start", "tell", "[7, 8]", "--id", "order-1")
    before = zart("stream", "order-1", "progress", "--no-follow")
    assert (before.code, before.out) == (0, "")
    with zart.worker() as worker:
        until(lambda: zart("status", "order-1", "--json").data["status"] == "waiting", worker)
    there = zart("stream", "order-1", "progress", "--no-follow", "--offset", "1")
    assert (there.code, there.out) == (0, '{"offset": 1, "value": 8}\n')
    assert zart("status", "order-1", "--json").data["status"] == "waiting"


def test_stream_that_is_refused(zart: Command) -> None:
    """An id that there is not ends with 3; an offset or a name that cannot be with 2; Ctrl-C with 130."""
    unknown = zart("stream", "order-1", "progress")
    assert (unknown.code, unknown.out) == (3, "")
    assert "zart list" in unknown.err
    zart("start", "tell", "[]", "--id", "order-1")
    for arguments in (["progress", "--offset", "-1"], ["progress", "--offset", "x"], [""], []):
        assert zart("stream", "order-1", *arguments).code == 2
    with zart.started("stream", "order-1", "progress") as following:
        until(lambda: zart.sql("SELECT followed_until IS NOT NULL FROM zart_execution_runs") == [(True,)], following)
        following.signal(signal.SIGINT)
        assert following.end() == 130
        assert following.text == ""


def test_wait_hears_of_the_end(zart: Command, tmp_path: Path) -> None:
    """`wait` ends when the run does, also if it was there before the worker."""
    path = tmp_path / "go"
    zart("start", "hold", f'"{path}"', "--id", "order-1")
    with zart.started("wait", "order-1") as waiting, zart.worker() as worker:
        pid = until(lambda: list(tmp_path.glob("go.*")), worker)[0].suffix[1:]
        path.touch()
        assert waiting.end() == 0
        assert waiting.text == f"{pid}\n"
