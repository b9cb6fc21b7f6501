"""The limits of connections, on servers where one limit is small. tests/integration/test_limits.py has a real one."""

import asyncio
import contextlib
import select
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_network
from threading import Event
from typing import Any

import pytest
from aiohttp import web

from nixery_snap.web import connections
from nixery_snap.web.connections import (
    LIMITS,
    ConnectionLimits,
    LimitedRequestHandler,
    address_of,
    client_of,
)
from nixery_snap.web.forwarded import PROXIES, TrustedProxies
from nixery_snap.web.hot_answers import HOT, HotAnswers, always, serve_hot
from tests.support import waiting
from tests.unit.web.servers import Client, Server, request, serving, until

SMALL = ConnectionLimits(
    url_bytes=500,
    header_bytes=2000,
    body_bytes=1000,
    request_seconds=60,  # a test may be held up
    per_client=5,
    requests=10,
)
BEGUN = web.AppKey("begun", Event)  # what is slow, until GO
GO = web.AppKey("go", Event)


async def answer(asked: web.Request) -> web.Response:
    if asked.path == "/body":
        return web.Response(text=str(len(await asked.read())))
    if asked.path == "/slow":
        asked.app[BEGUN].set()
        await waiting.until(asked.app[GO].is_set)
    response = web.Response(body=b"x" * int(asked.query.get("size", 1)))
    response[HOT] = always
    return response


@contextlib.contextmanager
def limited(
    limits: ConnectionLimits, begun: Event | None = None, go: Event | None = None
) -> Iterator[Server]:
    app = web.Application(client_max_size=limits.body_bytes)
    app[LIMITS], app[BEGUN], app[GO] = limits, begun or Event(), go or Event()
    app.router.add_route("*", "/{tail:.*}", answer)
    with serving("uvloop", app, HotAnswers()) as running:
        yield running


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with limited(SMALL) as running:
        yield running


class Looks:
    """Looks at connections often, at the time that the test says it is, as seen by those who are looked at."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, time_of: Callable[[float], float]) -> None:
        self.seen: list[bool] = []  # whether a part of a head waited behind an answer in the making
        look: Any = LimitedRequestHandler.look

        def look_then(handler: Any, now: float) -> None:
            behind = handler._head_bytes > 0 and handler._waiter is None
            look(handler, time_of(now))
            self.seen.append(behind)

        monkeypatch.setattr(connections, "_LOOK_SECONDS", 0.02)
        monkeypatch.setattr(LimitedRequestHandler, "look", look_then)

    def wait(self) -> None:
        """For one that began after this."""
        before = len(self.seen)
        until(lambda: len(self.seen) >= before + 2)


def ended(client: Client) -> bool:
    """Whether the server closes the connection before long, by a reset or with no more to say."""
    try:
        while client.sock.recv(65536):
            pass
    except ConnectionResetError:
        pass
    return True


def refused(server: Server, *pieces: bytes) -> int:
    """The status with which the server answers this and closes."""
    with server.connect() as client:
        client.send(*pieces)
        response = client.receive()
        assert client.closed()
    return response.status


def test_long_urls(server: Server) -> None:
    with server.connect() as client:
        assert client.get("/" + "a" * 480).status == 200
    assert refused(server, request("/" + "a" * 600)) == 414


def test_long_heads(server: Server) -> None:
    lines = [f"X-{number}: {'y' * 90}" for number in range(25)]
    with server.connect() as client:
        assert client.get("/", *lines[:17]).status == 200
        assert client.get("/", f"X: {'y' * 1500}").status == 200
    whole = request("/", *lines)
    assert refused(server, whole) == 431
    assert refused(server, request("/", f"X: {'y' * 2100}")) == 431
    with server.connect() as client:
        with contextlib.suppress(ConnectionError):  # it is closed before all is sent
            for start in range(0, len(whole), 50):
                client.send(whole[start : start + 50])
                time.sleep(0.001)
        assert b" 431 " in client.sock.recv(100)


def test_heads_of_many_lines(server: Server) -> None:
    lines = ["X: y"] * 127
    with server.connect() as client:
        assert client.get("/", *lines).status == 200
    assert refused(server, request("/", *lines, "X: y")) == 431
    assert refused(server, request("/", *lines, "X: y", "X: y")[:-2]) == 431, "no need to wait for the rest"


def test_a_head_in_pieces_within_the_limits(server: Server) -> None:
    with server.connect() as client:
        for _ in range(3):
            head = request("/", f"X: {'y' * 1500}")
            for start in range(0, len(head), 400):
                client.send(head[start : start + 400])
                time.sleep(0.001)
            assert client.receive().status == 200


def test_a_body_that_is_too_long(server: Server) -> None:
    with server.connect() as client:
        client.send(request("/body", "Content-Length: 1000", method="POST"), b"x" * 1000)
        assert client.receive().body == b"1000"
        client.send(request("/body", "Transfer-Encoding: chunked", method="POST"))
        client.send(*[b"64\r\n" + b"x" * 100 + b"\r\n"] * 11, b"0\r\n\r\n")
        assert client.receive().status == 413


def test_heads_and_bodies_that_never_end() -> None:
    """A byte now and then does not help."""
    with limited(ConnectionLimits(request_seconds=0.3)) as server:
        check_that_requests_must_end(server)


def check_that_requests_must_end(server: Server) -> None:
    with server.connect() as client:
        client.send(request("/"))
        client.receive()
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                client.send(b"G" if _ == 0 else b"ET"[_ % 2 : _ % 2 + 1])
                time.sleep(0.05)
        assert ended(client)
    assert refused(server, b"GET / HT") == 408
    for method in ("GET", "POST"):
        with server.connect() as client:
            with contextlib.suppress(ConnectionError):  # it may be over before the body begins
                client.send(request("/body", "Content-Length: 900", method=method), b"x")
            assert ended(client)


def test_a_request_behind_a_slow_one_has_time(monkeypatch: pytest.MonkeyPatch) -> None:
    looks, head = Looks(monkeypatch, lambda now: now + 1000), request("/")
    begun, go = Event(), Event()
    with limited(ConnectionLimits(request_seconds=60), begun, go) as server, server.connect() as client:
        client.send(request("/slow"))
        assert begun.wait(60)
        client.send(head[:10])
        until(lambda: any(looks.seen))
        go.set()
        assert client.receive().status == 200
        client.send(head[10:])
        assert client.receive().status == 200


def test_idle_connections_are_closed() -> None:
    with limited(ConnectionLimits(idle_seconds=1)) as server:
        with server.connect() as new:
            assert ended(new)
        for _ in range(60):
            with server.connect() as used, contextlib.suppress(ConnectionError):  # held up, we ask too late
                used.get("/")
                assert ended(used)
                return
    raise AssertionError("a new connection is closed at once")


def test_clients_that_read_nothing() -> None:
    """Neither of an answer that is made now, nor of one that is remembered."""
    with limited(ConnectionLimits(stall_seconds=0.3)) as server:
        with server.connect() as client:
            client.get("/?size=1000000")
        for path, times in (("/?size=8000000", 1), ("/?size=1000000", 10)):
            with server.connect(receive_buffer_bytes=4096) as client:
                client.send(*[request(path)] * times)
                over = select.poll()
                over.register(client.sock, 0)  # which still tells of a reset
                assert over.poll(60_000)
                with pytest.raises(ConnectionError):
                    _ = [client.receive() for _ in range(times)]


def test_clients_that_read_slowly_are_served(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = 0.0
    looks = Looks(monkeypatch, lambda _: seconds)
    with (
        limited(ConnectionLimits(stall_seconds=10)) as server,
        server.connect(receive_buffer_bytes=4096) as client,
    ):
        client.send(request("/?size=6000000"))
        for part in range(1, 4):
            while len(client.rest) < part * 16384:  # more than the client's buffer holds
                client.rest += client.sock.recv(4096)
            looks.wait()
            seconds += 9
            looks.wait()
        assert len(client.receive().body) == 6_000_000


def test_connections_of_one_client() -> None:
    with limited(SMALL) as server, contextlib.ExitStack() as stack:
        clients = [stack.enter_context(server.connect()) for _ in range(5)]
        assert [client.get("/").status for client in clients] == [200] * 5
        for _ in range(2):
            with server.connect() as more:
                assert more.receive().status == 429
                assert more.closed()
        clients[0].sock.close()

        def is_served() -> bool:
            with server.connect() as again, contextlib.suppress(ConnectionError):
                return again.get("/").status == 200
            return False

        until(is_served)


def test_connections_of_a_trusted_proxy_are_those_of_many_clients() -> None:
    """The others are still counted, as they are where it is not trusted."""
    app = web.Application()
    app[LIMITS] = ConnectionLimits(per_client=2)
    app[PROXIES] = TrustedProxies([ip_network("127.0.0.9/32")])
    app.router.add_get("/", answer)
    with serving("uvloop", app, HotAnswers()) as server, contextlib.ExitStack() as stack:
        through = [stack.enter_context(server.connect(source="127.0.0.9")) for _ in range(6)]
        direct = [stack.enter_context(server.connect()) for _ in range(2)]
        assert [client.get("/").status for client in (*through, *direct)] == [200] * 8
        with server.connect() as more:
            assert more.receive().status == 429


@pytest.mark.parametrize("path", ["/", "/body"], ids=["remembered", "not remembered"])
def test_requests_on_one_connection(server: Server, path: str) -> None:
    """The last answer says that it is the last."""
    with server.connect() as client:
        answers = [client.get(path, "X: 1") for _ in range(10)]
        assert [answer.headers.get("connection") for answer in answers] == [None] * 9 + ["close"]
        assert client.closed()


@pytest.mark.parametrize(
    ("peer", "client"),
    [
        (("192.0.2.1", 80), "192.0.2.1"),
        (("2001:db8::1", 80, 0, 0), "2001:db8::/64"),
        (("2001:db8:1:2:3::5", 80, 0, 0), "2001:db8:1:2::/64"),
        (("::1", 80, 0, 0), "::/64"),
        (("fe80::1%eth0", 80, 0, 2), "fe80::/64"),
        (("::ffff:192.0.2.1", 80, 0, 0), "::ffff:192.0.2.1"),
        ("", ""),
        (None, ""),
    ],
)
def test_who_a_client_is(peer: object, client: str) -> None:
    assert client_of(address_of(asyncio.BaseTransport({"peername": peer}))) == client


async def test_tls_that_never_begins() -> None:
    """Nothing counts such connections, so they must not last."""
    runner = web.AppRunner(web.Application())
    runner.app[LIMITS] = ConnectionLimits(request_seconds=0.3)
    await runner.setup()
    sock = socket.create_server(("127.0.0.1", 0))
    sock.setblocking(False)
    [listener] = await serve_hot(
        runner, HotAnswers(), sockets=[sock], ssl=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    )
    try:
        reader, writer = await asyncio.open_connection(*sock.getsockname())
        async with asyncio.timeout(60):
            assert await reader.read() == b""
        writer.close()
    finally:
        listener.close()
        await runner.cleanup()
