import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixery_snap.nix.log_events import LogReader

START, COPY, LOG_LINE = 105, 100, 101


def line(**event: object) -> bytes:
    return b"@nix " + json.dumps(event).encode()


def started(number: int, drv_path: str) -> bytes:
    return line(
        action="start", id=number, type=START, text=f"building '{drv_path}'", fields=[drv_path, "", 1, 1]
    )


def printed(number: int, text: str) -> bytes:
    return line(action="result", id=number, type=LOG_LINE, fields=[text])


def test_builds_that_run_at_the_same_time_keep_apart() -> None:
    log = LogReader(log_lines=3)
    assert log.feed(started(1, "a.drv")) == "building 'a.drv'"
    assert log.feed(started(2, "b.drv")) == "building 'b.drv'"
    for number in range(10):
        assert log.feed(printed(1, f"a{number}")) is None
        assert log.feed(printed(2, f"b{number}")) is None
    assert list(log.build_logs["a.drv"]) == ["a7", "a8", "a9"]
    assert list(log.build_logs["b.drv"]) == ["b7", "b8", "b9"]


def test_copying_is_progress() -> None:
    event = line(action="start", id=1, type=COPY, text="copying path '/nix/store/x'", fields=["x", "a", "b"])
    assert LogReader().feed(event) == "copying path '/nix/store/x'"


def test_passwords_of_caches_are_not_told() -> None:
    """Nix says them with each URL; progress and errors are shown to clients."""
    log = LogReader()
    text = "copying path '/nix/store/x' from 'https://me:secret@cache.example'"
    said = log.feed(line(action="start", id=1, type=COPY, text=text, fields=["x", "a", "b"]))
    assert said == "copying path '/nix/store/x' from 'https://cache.example'"
    log.feed(line(action="msg", level=0, msg="", raw_msg="unable to download 'http://se:cr@t@one:1/nar/x@y'"))
    log.feed(b"https://token@one/ and s3://bucket/me@x and https://one/ me@two")
    assert log.errors == ["unable to download 'http://one:1/nar/x@y'"]
    assert list(log.plain) == ["https://one/ and s3://bucket/me@x and https://one/ me@two"]


def test_errors_and_plain_lines() -> None:
    log = LogReader()
    log.feed(line(action="msg", level=0, msg="trace and all", raw_msg="\x1b[31;1mbad\x1b[0m thing"))
    log.feed(line(action="msg", level=1, msg="warning: x", raw_msg="x"))
    log.feed(line(action="msg", level=0, msg="\x1b[31;1merror:\x1b[0m goes on"))
    log.feed(b"nix: \xff segmentation fault\a")
    assert list(log.warnings) == ["x", "goes on"]
    assert log.errors == ["bad thing"]
    assert list(log.plain) == ["nix: \ufffd segmentation fault"]


def test_plain_lines_are_bounded() -> None:
    log = LogReader()
    for number in range(10_000):
        log.feed(b"line %d" % number)
    assert len(log.plain) <= 200
    assert log.plain[-1] == "line 9999"


def test_shown_text_holds_no_control_characters() -> None:
    log = LogReader()
    log.feed(started(1, "a.drv"))
    log.feed(printed(1, "\x1b]0;title\x07\x1b[2Jred\tblue\r\x00\x9b31m \ud800"))
    [shown] = log.build_logs["a.drv"]
    assert all(letter.isprintable() for letter in shown)
    assert "red" in shown
    assert "blue" in shown
    shown.encode()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)
events = st.fixed_dictionaries(
    {},
    optional={
        "action": st.sampled_from(["start", "stop", "result", "msg"]) | json_values,
        "type": st.sampled_from([START, COPY, LOG_LINE]) | json_values,
        "id": st.integers(0, 2) | json_values,
        "level": st.just(0) | json_values,
        "text": json_values,
        "fields": st.lists(json_values) | json_values,
        "raw_msg": json_values,
    },
)
hostile_lines = st.one_of(
    st.binary(),
    st.binary().map(lambda content: b"@nix " + content),
    (events | json_values).map(lambda event: b"@nix " + json.dumps(event).encode()),
)


@given(st.lists(hostile_lines))
def test_no_line_breaks_the_reader(lines: list[bytes]) -> None:
    log = LogReader()
    for hostile in lines:
        log.feed(hostile)
    log.feed(started(7, "a.drv"))
    log.feed(printed(7, "still reading"))
    assert log.build_logs["a.drv"][-1] == "still reading"
    for text in (*log.errors, *log.plain):
        assert all(letter.isprintable() or letter == "\n" for letter in text)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"[" * 200_000, id="arrays"),
        pytest.param(b'{"a":' * 200_000, id="objects"),
        pytest.param(b"9" * 10_000, id="digits"),
        pytest.param(b'{"action":"msg","level":0,"raw_msg":1e999}', id="infinity"),
    ],
)
def test_what_json_parsers_trip_over(content: bytes) -> None:
    log = LogReader()
    assert log.feed(b"@nix " + content) is None
    assert len(log.plain) == 1


def test_machines_that_take_no_build() -> None:
    """Without our name there, the places of keys and stores, and what ssh says at length."""
    log = LogReader()
    store = "ssh://me@one?remote-store=/srv/store"
    for said in (
        f"cannot build on '{store}': \x1b[31;1merror:\x1b[0m cannot connect to '\x1b[35;1mme@one\x1b[0m': refused",
        f"cannot build on '{store}': error: cannot connect to 'me@one': @@@\n@ WARNING @\nHost key failed.\n",
        f"cannot build on '{store}'",
    ):
        log.feed(line(action="msg", level=0, msg=said))
    log.feed(line(action="msg", level=0, msg="something else"))
    assert list(log.machines) == [
        "'ssh://one': cannot connect to 'one': refused",
        "'ssh://one': Host key failed.",
        "'ssh://one'",
    ]
    building = line(action="start", id=1, type=START, text=f"building 'a.drv' on '{store}'", fields=["a.drv"])
    assert log.feed(building) == "building 'a.drv' on 'ssh://one'"
