import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from itertools import pairwise

import pytest
from aiohttp import web
from hypothesis import given, settings
from hypothesis import strategies as st

from nixery_snap.web.hot_answers import (
    HOT,
    MAX_BODY_BYTES,
    MAX_HEAD_BYTES,
    USES,
    HotAnswers,
    always,
    is_plain,
)
from nixery_snap.web.request_metrics import MEMORY, Tally, tally
from tests.unit.web.servers import LOOPS, Server, request, serving, until

Calls = Counter[str]
CALLS = web.AppKey("calls", Calls)
VALID = web.AppKey("valid", dict[str, bool])
LOOKS = web.AppKey("looks", Counter[str])  # how often a remembered answer was looked at


async def answer(request: web.Request) -> web.Response:
    """Tells what was asked; hot below /hot."""
    calls = request.app[CALLS]
    calls[f"{request.method} {request.path}"] += 1
    body = (await request.read()).decode()
    if "slow" in request.path:
        await asyncio.sleep(0.02)
    text = f"{request.path} {body}"
    if "size" in request.query:
        text = "x" * int(request.query["size"])
    response = web.Response(text=text, status=int(request.query.get("status", 200)))
    response.headers["X-Call"] = str(sum(calls.values()))
    if request.path.startswith("/hot"):
        valid, looks, path = request.app[VALID], request.app[LOOKS], request.path
        valid[path] = True

        def holds() -> bool:
            looks[path] += 1
            return valid[path]

        response[HOT] = holds
    elif request.path.startswith("/always"):
        response[HOT] = always
    return response


def make_app() -> web.Application:
    app = web.Application(client_max_size=2**20)
    app[CALLS] = Counter()
    app[VALID] = {}
    app[LOOKS] = Counter()
    app.router.add_route("*", "/{tail:.*}", answer)
    return app


@pytest.fixture
def app() -> web.Application:
    return make_app()


@pytest.fixture(params=LOOPS)
def server(request: pytest.FixtureRequest, app: web.Application) -> Iterator[Server]:
    with serving(request.param, app, HotAnswers()) as running:
        yield running


def test_the_second_time_nothing_is_computed(server: Server, app: web.Application) -> None:
    with server.connect() as client:
        first = client.get("/hot")
        again = [client.get("/hot") for _ in range(5)]
    assert {response.lasting for response in again} == {first.lasting}
    assert app[CALLS] == {"GET /hot": 1}
    assert app[LOOKS] == {"/hot": 5}
    for response in (first, *again):
        parsedate_to_datetime(response.headers["date"])


def test_another_connection_profits(server: Server, app: web.Application) -> None:
    for _ in range(3):
        with server.connect() as client:
            client.get("/hot")
            assert client.get("/hot").body == b"/hot "
    assert app[CALLS]["GET /hot"] == 1


def test_what_is_not_marked_is_computed(server: Server, app: web.Application) -> None:
    with server.connect() as client:
        for _ in range(3):
            assert client.get("/cold").body == b"/cold "
    assert app[CALLS] == {"GET /cold": 3}


def test_head_and_get_are_different_questions(server: Server, app: web.Application) -> None:
    with server.connect() as client:
        for _ in range(3):
            head, get = client.get("/hot", method="HEAD"), client.get("/hot")
            assert head.headers["content-length"] == get.headers["content-length"] == str(len(get.body))
            assert client.rest == b""
    assert app[CALLS] == {"GET /hot": 1, "HEAD /hot": 1}


def test_any_other_header_is_another_question(server: Server, app: web.Application) -> None:
    with server.connect() as client:
        for accept in ("a/b", "c/d", "a/b"):
            assert client.get("/hot", f"Accept: {accept}").status == 200
    assert app[CALLS]["GET /hot"] == 2


def test_an_answer_that_holds_no_more_is_computed_again(server: Server, app: web.Application) -> None:
    with server.connect() as client:
        first, again = client.get("/hot"), client.get("/hot")
        app[VALID]["/hot"] = False
        renewed, last = client.get("/hot"), client.get("/hot")
    assert first.headers["x-call"] == again.headers["x-call"] == "1"
    assert renewed.headers["x-call"] == last.headers["x-call"] == "2"


def test_pipelining(server: Server, app: web.Application) -> None:
    paths = ["/hot", "/cold", "/hot", "/slow", "/hot", "/always"]
    with server.connect() as client:
        client.get("/hot")
        client.send(b"".join(map(request, paths)))
        assert [client.receive().body.decode() for _ in paths] == [f"{path} " for path in paths]
        assert client.get("/hot").body == b"/hot "
        assert client.rest == b""


def test_a_hot_question_behind_a_slow_one(server: Server) -> None:
    with server.connect() as client:
        client.get("/hot")
        client.send(request("/slow"))
        client.send(request("/hot"))
        assert client.receive().body == b"/slow "
        assert client.receive().body == b"/hot "


@pytest.mark.parametrize("cut", [1, 3, 10, 18, -5, -3, -1])
def test_a_head_in_two_pieces(server: Server, cut: int) -> None:
    head = request("/hot")
    with server.connect() as client:
        client.get("/hot")
        client.send(head[:cut])
        client.send(head[cut:])
        assert client.receive().body == b"/hot "
        client.send(head + head[:cut])
        assert client.receive().body == b"/hot "
        client.send(head[cut:])
        assert client.receive().body == b"/hot "


def test_a_body_that_looks_like_a_hot_question(server: Server, app: web.Application) -> None:
    hot = request("/hot")
    with server.connect() as client:
        client.get("/hot")
        for method in ("POST", "GET"):
            client.send(request("/echo", f"Content-Length: {len(hot)}", method=method))
            client.send(hot)
            assert client.receive().body == b"/echo " + hot
        chunked = request("/echo", "Transfer-Encoding: chunked", method="POST")
        client.send(chunked + b"%x\r\n" % len(hot), hot, b"\r\n0\r\n\r\n")
        assert client.receive().body == b"/echo " + hot
    assert app[CALLS]["GET /hot"] == 1


def test_a_body_is_never_the_name_of_an_answer(server: Server, app: web.Application) -> None:
    """Else whoever posts could decide what others are told."""
    victim = request("/hot-victim")
    with server.connect() as client:
        client.get("/hot")
        client.send(request("/hot-slow", f"Content-Length: {len(victim)}", method="POST"))
        until(lambda: app[CALLS]["POST /hot-slow"])  # the body is a segment of its own
        client.send(victim)
        assert client.receive().body == b"/hot-slow " + victim
    with server.connect() as client:
        for _ in range(2):
            assert client.get("/hot-victim").body == b"/hot-victim "


def test_the_same_question_on_two_connections(server: Server) -> None:
    with server.connect() as one, server.connect() as two:
        for client in (one, two):
            client.send(request("/hot-slow"))
        assert one.receive().body == two.receive().body == b"/hot-slow "
        one.get("/hot")
    assert server.kept_bytes()


def test_closing_is_honoured(server: Server) -> None:
    for head in (
        request("/hot", "Connection: close"),
        request("/hot", "connection:close"),
        request("/hot", version="HTTP/1.0"),
        request("/hot", "Connection: keep-alive", "Connection: close"),
    ):
        for _ in range(2):
            with server.connect() as client:
                client.get("/hot")
                client.send(head)
                assert client.receive().body == b"/hot "
                assert client.closed()


def test_what_belongs_to_a_trace_is_of_no_use_to_others(server: Server, app: web.Application) -> None:
    with server.connect() as client:
        for _ in range(3):
            client.get("/hot", f"Traceparent: 00-{'a' * 32}-{'b' * 16}-01")
    assert app[CALLS] == {"GET /hot": 3}
    assert not server.answers._answers


def test_keep_alive_in_words_is_plain(server: Server, app: web.Application) -> None:
    with server.connect() as client:
        for _ in range(3):
            assert client.get("/hot", "Connection: keep-alive").status == 200
    assert app[CALLS]["GET /hot"] == 1


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        (f"/hot?size={MAX_BODY_BYTES + 1}", ()),
        ("/hot", (f"X-Long: {'x' * MAX_HEAD_BYTES}",)),
    ],
)
def test_what_is_too_large_is_not_kept(
    server: Server, app: web.Application, path: str, headers: tuple[str, ...]
) -> None:
    with server.connect() as client:
        responses = [client.get(path, *headers) for _ in range(3)]
    assert app[CALLS]["GET /hot"] == 3
    assert len({response.body for response in responses}) == 1


@pytest.mark.parametrize("loop", LOOPS)
def test_headers_of_one_request_are_left_out(loop: str, app: web.Application) -> None:
    with serving(loop, app, HotAnswers(omit=frozenset({"x-call"}))) as server, server.connect() as client:
        assert "x-call" in client.get("/hot").headers
        again = client.get("/hot")
        assert "x-call" not in again.headers
        assert again.body == b"/hot "


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("limit", [0, 5_000, 50_000])
def test_memory_is_bounded(loop: str, limit: int, app: web.Application) -> None:
    with serving(loop, app, HotAnswers(limit)) as server, server.connect() as client:
        for number in range(100):
            for _ in range(2):
                assert client.get(f"/hot{number}?size=700").body == b"x" * 700
            assert bool(limit) <= server.kept_bytes() <= limit
    assert app[CALLS].total() == (100 if limit else 200)


def test_a_client_that_does_not_read(server: Server, app: web.Application) -> None:
    """Hot answers wait in the server only until its buffer is full."""
    path = "/hot?size=60000"
    with server.connect(receive_buffer_bytes=4096) as greedy, server.connect() as other:
        assert greedy.get(path).status == 200
        greedy.send(request(path))
        until(lambda: app[LOOKS]["/hot"])  # two that arrive together are not looked for
        for _ in range(400):
            greedy.send(request(path))
            time.sleep(0.001)  # each a segment of its own
        assert other.get("/hot").body == b"/hot "
    assert 0 < app[LOOKS]["/hot"] < 300


def test_nonsense_is_a_bad_request(server: Server) -> None:
    for nonsense, statuses in (
        (b"\0\1\2\r\n\r\n", {400}),
        (b"GET /hot HTTP/x\r\n\r\n", {400}),
        (b"A" * 100_000, {400, 431}),  # 431 if so much of it comes at once
    ):
        with server.connect() as client:
            client.get("/hot")
            with contextlib.suppress(ConnectionError):  # it is closed before all is sent
                client.send(nonsense)
            assert client.receive().status in statuses


def test_a_client_that_leaves_in_the_middle(server: Server) -> None:
    for head in (request("/slow"), request("/hot")[:10], request("/hot")):
        with server.connect() as client:
            client.get("/hot")
            client.send(head)
    with server.connect() as client:
        assert client.get("/hot").body == b"/hot "


def made_at_once(head: bytes) -> tuple[bytes, bytes, tuple[str, ...], int, Tally] | None:
    """What `answer` would say of /made, before it is asked."""
    if head != MADE:
        return None
    rest = b"\r\nContent-Length: 6\r\nX-Call: none\r\n\r\n/made "
    return b"HTTP/1.1 200 OK\r\nDate: ", rest, ("made",), 6, tally("made", "", 200, MEMORY)


MADE = request("/made")


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("max_bytes", [0, 2**20])
def test_what_can_be_made_at_once(loop: str, max_bytes: int, app: web.Application) -> None:
    with serving(loop, app, HotAnswers(max_bytes, at_once=made_at_once)) as server:
        with server.connect() as client:
            for _ in range(3):
                made = client.get("/made")
                assert (made.body, made.headers["x-call"]) == (b"/made ", "none")
                age = time.time() - parsedate_to_datetime(made.headers["date"]).timestamp()
                assert -2 < age < 60
            assert client.get("/made", "X: y").headers["x-call"] == "1"
            assert client.get("/made").headers["x-call"] == "none"
            client.send(MADE + MADE)  # two at once are not one plain request
            assert [client.receive().headers["x-call"] for _ in range(2)] == ["2", "3"]
        assert bool(max_bytes) <= server.kept_bytes() <= max_bytes


def test_the_date_of_an_answer_is_renewed() -> None:
    answers = HotAnswers(at_once=made_at_once)
    first = answers.find(MADE, 0.0)
    assert first is not None
    again = answers.find(MADE, 0.0)
    assert again is first
    answers._date, answers._date_until = b"later and longer than it was before", 10.0
    renewed = answers.find(MADE, 1.0)
    assert renewed == b"".join(
        [b"HTTP/1.1 200 OK\r\nDate: ", answers._date, first[first.index(b"\r\nContent-Length") :]]
    )
    answers._date = b"short"
    assert answers.find(MADE, 2.0) == renewed.replace(b"later and longer than it was before", b"short")


questions = st.tuples(
    st.sampled_from(["/hot", "/hot2", "/cold", "/slow", "/always", "/made"]),
    st.sampled_from(["GET", "HEAD", "POST"]),
    st.sampled_from(["", "body", "GET /hot HTTP/1.1\r\nHost: test\r\n\r\n"]),
)


@pytest.fixture(scope="module", params=LOOPS)
def shared_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with serving(request.param, make_app(), HotAnswers(at_once=made_at_once)) as running:
        yield running


@settings(max_examples=60)
@given(st.lists(questions, min_size=1, max_size=12), st.lists(st.integers(0, 10_000), max_size=8))
def test_whatever_is_sent_in_whatever_pieces(
    shared_server: Server, asked: list[tuple[str, str, str]], cuts: list[int]
) -> None:
    stream = b""
    for path, method, body in asked:
        wanted = body if method == "POST" else ""
        length = [f"Content-Length: {len(wanted)}"] if method == "POST" else []
        stream += request(path, *length, method=method) + wanted.encode()
    edges = [0, *sorted(cut % len(stream) for cut in cuts), len(stream)]
    with shared_server.connect() as client:
        for start, end in pairwise(edges):
            client.send(stream[start:end])
        for path, method, body in asked:
            response = client.receive(method)
            expected = f"{path} {body if method == 'POST' else ''}"
            assert response.headers["content-length"] == str(len(expected))
            assert response.body.decode() == ("" if method == "HEAD" else expected)
        assert client.rest == b""


PLAIN = request("/x")


@pytest.mark.parametrize(
    ("data", "plain"),
    [
        (PLAIN, True),
        (request("/x", method="HEAD"), True),
        (request("/x", "Connection: keep-alive"), True),
        (request("/x", "connection: Keep-Alive"), True),
        (request("/x", method="POST"), False),
        (request("/x", method="GETX"), False),
        (request("/x", "Connection: close"), False),
        (request("/x", "Connection: keep-alive, upgrade"), False),
        (request("/x", "Connection: keep-alive", "Connection: close"), False),
        (request("/x", "Connection:close"), False),
        (request("/x", "Content-Length: 0"), False),
        (request("/x", "CONTENT-LENGTH: 5"), False),
        (request("/x", "Transfer-Encoding: chunked"), False),
        (request("/x", "Expect: 100-continue"), False),
        (request("/x", "Upgrade: websocket"), False),
        (PLAIN[:-1], False),
        (PLAIN[:-2], False),
        (PLAIN + PLAIN, False),
        (PLAIN + b"x", False),
        (b"", False),
        (b"\r\n\r\n", False),
        (b"\r\n" + PLAIN, False),
    ],
)
def test_is_plain(data: bytes, plain: bool) -> None:
    assert is_plain(data) is plain


def test_uses_of_repeated_answers(app: web.Application) -> None:
    """Those of answers that were dropped in the meantime too."""
    answers = HotAnswers(at_once=made_at_once)
    assert answers.take_uses() == set()
    answers.find(MADE, 0.0)
    assert answers.take_uses() == {"made"}
    assert answers.take_uses() == set()
    answers.find(MADE, 0.0)
    assert answers.take_uses() == {"made"}
    answers.find(MADE, 0.0)
    answers.forget()
    assert answers.take_uses() == {"made"}
    unasked = HotAnswers(at_once=made_at_once, notes_uses=False)
    for _ in range(2):
        unasked.find(MADE, 0.0)
    unasked.forget()
    assert unasked.take_uses() == set(), "nobody would ever take them"
    assert (answers._answers, answers.size_bytes) == ({}, 0)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_use_is_one_only_when_it_is_repeated(loop: str) -> None:
    async def used(request: web.Request) -> web.Response:
        response = web.Response(text="here")
        response[HOT] = always
        response[USES] = ("one", "two")
        return response

    app = web.Application()
    app.router.add_get("/used", used)
    with serving(loop, app, HotAnswers()) as server, server.connect() as client:
        client.get("/used")
        assert server.answers.take_uses() == set()  # the handler has noted it
        client.get("/used")
        assert server.answers.take_uses() == {"one", "two"}


def test_nothing_is_answered_from_a_store_that_is_not_trusted() -> None:
    trusted = [True]
    answers = HotAnswers(at_once=made_at_once, trusted=lambda: trusted[0])
    assert answers.find(MADE, 0.0)
    trusted[0] = False
    assert not answers.find(request("/other"), 0.0)
    assert answers.find(MADE, 2.0) is None  # a second later at the latest
    trusted[0] = True
    assert answers.find(MADE, 2.0)
