import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import pytest
from yarl import URL

from nixery_snap.errors import InvalidFormat
from nixery_snap.nix_stores import small_http
from nixery_snap.nix_stores.cache_transport import HttpTransport, TransportFailed
from nixery_snap.nix_stores.small_http import Answer, Said, SmallHttp, Unusual
from tests.support.certificates import self_signed
from tests.support.waiting import until

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


class RawServer:
    """Answers each request with the next of `answers`, piece by piece; None hangs up, as it does after the last."""

    def __init__(self) -> None:
        self.url = ""
        self.answers: list[Sequence[bytes] | None] = []
        self.requests: list[bytes] = []
        self.connections = 0
        self.tasks: set[asyncio.Task[None]] = set()

    def accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.tasks.add(asyncio.ensure_future(self.serve(reader, writer)))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                self.requests.append(await reader.readuntil(b"\r\n\r\n"))
                answer = self.answers.pop(0) if self.answers else None
                if answer is None:
                    break
                for piece in answer:
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0.002)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def raw_server(
    tls: ssl.SSLContext | None = None, raw: RawServer | None = None
) -> AsyncIterator[RawServer]:
    raw = raw or RawServer()
    server = await asyncio.start_server(raw.accept, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    raw.url = f"https://localhost:{port}" if tls else f"http://127.0.0.1:{port}"
    async with server:
        yield raw
    if raw.tasks:
        await asyncio.wait(raw.tasks)


@contextlib.asynccontextmanager
async def client_of(raw: RawServer) -> AsyncIterator[SmallHttp]:
    client = SmallHttp(URL(raw.url), timeout=60, connect_timeout=60)
    yield client
    await client.close()


def bytewise(content: bytes) -> list[bytes]:
    return [content[place : place + 1] for place in range(len(content))]


CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTRANSFER-encoding:  Chunked \r\n\r\n2;name=value\r\nhe\r\n0003\r\nllo\r\n0\r\n\r\n"
)


@pytest.mark.parametrize("pieces", [lambda content: [content], bytewise])
@pytest.mark.parametrize(
    ("answer", "stays"),
    [
        (OK, True),
        (CHUNKED, True),
        (OK.replace(b"OK", b"").replace(b"h: 5", b"h:5  "), True),
        (OK.replace(b"OK\r\n", b"OK\r\nconnection: Close\r\n"), False),
        (OK.replace(b"1.1", b"1.0"), False),
        (OK.replace(b"1.1 200 OK\r\n", b"1.0 200 OK\r\nConnection: keep-alive\r\n"), True),
    ],
)
async def test_answers(answer: bytes, stays: bool, pieces: Callable[[bytes], list[bytes]]) -> None:
    async with raw_server() as raw, client_of(raw) as client:
        raw.answers = [pieces(answer), pieces(answer)]
        for _ in range(2):
            found = await client.get("/x", 5)
            assert (found.status, found.body) == (200, b"hello")
        assert raw.connections == (1 if stays else 2)


async def test_an_answer_that_ends_with_its_connection() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for piece in (b"HTTP/1.1 200 OK\r\n\r\nhel", b"lo"):
            writer.write(piece)
            await asyncio.sleep(0.01)
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        client = SmallHttp(URL(f"http://127.0.0.1:{port}"), timeout=60, connect_timeout=60)
        assert (await client.get("/x", 5)).body == b"hello"


async def test_what_is_sent() -> None:
    async with raw_server() as raw, client_of(raw) as client:
        raw.answers = [[OK]]
        await client.get("/a%20b?c=d", 5)
        lines = raw.requests[0].decode().split("\r\n")
        assert lines[0] == "GET /a%20b?c=d HTTP/1.1"
        assert f"Host: {raw.url.removeprefix('http://')}" in lines
        for target in ("/a b", "/a\r\nX: y", "/ä", ""):
            with pytest.raises(Unusual):
                await client.get(target, 5)
        assert len(raw.requests) == 1


@pytest.mark.parametrize(
    "head",
    [
        b"HTTP/1.1 302 Found\r\nLocation: /y\r\nContent-Length: 0",
        b"HTTP/1.1 100 Continue",
        b"HTTP/2 200 OK",
        b"SSH-2.0-OpenSSH_9.2",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5",
        b"HTTP/1.1 200 OK\r\nContent-Length: +5",
        b"HTTP/1.1 200 OK\r\nContent-Length: \xb2",
        b"HTTP/1.1 200 OK\r\nContent-Length : 5",
        b"HTTP/1.1 200 OK\r\nX: y\r\n folded: 5",
        b"HTTP/1.1 200 OK\r\nX: y\nContent-Length: 5",
        b"HTTP/1.1 200 OK\r\nnonsense",
        b"HTTP/1.1 200 OK\r\nX: " + bytes(40_000).replace(b"\0", b"x"),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloX",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nTrailer: x",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"0" * 2000,
    ],
)
async def test_unusual_answers_and_their_connections_are_left(head: bytes) -> None:
    async with raw_server() as raw, client_of(raw) as client:
        raw.answers = [[head + b"\r\n\r\n"], [OK]]
        with pytest.raises(Unusual) as caught:
            await client.get("/x", 1000)
        assert caught.value.stays is (b" 302 " in head)
        assert (await client.get("/x", 5)).body == b"hello"
        assert raw.connections == 2


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n123456",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n1\r\n",
    ],
)
async def test_too_large(answer: bytes) -> None:
    async with raw_server() as raw, client_of(raw) as client:
        raw.answers = [[answer]]
        with pytest.raises(InvalidFormat, match="larger than 5 bytes"):
            await client.get("/x", 5)


@pytest.mark.parametrize("length", [b"Content-Length: 9999999", b"Transfer-Encoding: chunked"])
async def test_large_pages_that_say_no_are_not_read(length: bytes) -> None:
    async with raw_server() as raw, client_of(raw) as client:
        raw.answers = [[b"HTTP/1.1 404 Not Found\r\n" + length + b"\r\n\r\n98967f\r\n"], [OK]]
        assert (await client.get("/x", 5)).status == 404
        assert (await client.get("/x", 5)).status == 200
        assert raw.connections == 2


async def test_small_pages_that_say_no_keep_the_connection() -> None:
    async with raw_server() as raw, client_of(raw) as client:
        page = b"HTTP/1.1 404 Not Found\r\nTransfer-Encoding: chunked\r\n\r\n9\r\nnot found\r\n0\r\n\r\n"
        raw.answers = [[page], [b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\n\r\n"], [OK]]
        assert [(await client.get("/x", 5)).status for _ in range(3)] == [404, 304, 200]
        assert raw.connections == 1


async def test_what_nobody_asked_for_is_no_answer() -> None:
    async with raw_server() as raw, client_of(raw) as client:
        raw.answers = [
            [OK + OK.replace(b"hello", b"wrong")],
            [OK],
            [OK, OK.replace(b"hello", b"wrong")],
            [OK],
        ]

        def is_open() -> bool:
            return any(kept.is_open for kept in client._idle)

        for stays in (False, True, False):
            assert (await client.get("/x", 5)).body == b"hello"
            await until(is_open if stays else lambda: not is_open())
        assert (await client.get("/x", 5)).body == b"hello"
        assert raw.connections == 3


async def test_a_connection_that_was_given_up_meanwhile() -> None:
    async with raw_server() as raw, client_of(raw) as client:
        raw.answers = [[OK], None, [OK]]
        assert (await client.get("/x", 5)).body == b"hello"
        assert (await client.get("/x", 5)).body == b"hello"
        assert (raw.connections, len(raw.requests)) == (2, 3)
        # A new one that is given up at once is a failure, and so is one that had begun to answer.
        raw.answers = [None, None]
        with pytest.raises(ConnectionError):
            await client.get("/x", 5)
        raw.answers = [[OK], [b"HTTP/1.1 200"], None]
        await client.get("/x", 5)
        asked = asyncio.ensure_future(client.get("/x", 5))
        await until(lambda: any(connection.has_answered for connection in client._under_way))
        let_time_pass(client)
        with pytest.raises(TimeoutError):
            await asked


def let_time_pass(client: SmallHttp) -> None:
    """As much as what is under way has."""
    client._under_way = dict.fromkeys(client._under_way, asyncio.get_running_loop().time())
    client._expire()


async def test_old_connections_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_http, "_IDLE_SECONDS", 0.01)
    async with raw_server() as raw, client_of(raw) as client:
        raw.answers = [[OK], [OK]]
        await client.get("/x", 5)
        await asyncio.sleep(0.02)
        await client.get("/x", 5)
        assert raw.connections == 2


async def test_a_server_that_has_moved(closed_port: int) -> None:
    """Its address is looked up again once nothing answers at the one that is known."""
    async with raw_server() as raw, client_of(raw) as client:
        raw.answers = [[OK], [OK]]
        await client.get("/x", 5)
        client._addresses = [(*client._addresses[0][:4], ("127.0.0.1", closed_port))]
        client._idle.pop().close()
        with pytest.raises(OSError, match="Connect call failed"):
            await client.get("/x", 5)
        assert (await client.get("/x", 5)).body == b"hello"


async def test_each_request_has_its_own_time() -> None:
    async with raw_server() as raw:
        client, loop = SmallHttp(URL(raw.url), timeout=60, connect_timeout=60), asyncio.get_running_loop()
        raw.answers = [[OK], [b""]]
        assert (await client.get("/x", 5)).body == b"hello"
        # As if the first one's time ended so soon.
        assert client._watch is not None
        client._watch.cancel()
        client._watch, client.timeout = loop.call_later(0.1, client._expire), 0.3
        begin = loop.time()
        with pytest.raises(TimeoutError):
            await client.get("/x", 5)
        assert loop.time() - begin > 0.28
        raw.answers, client.timeout = [[OK]], 60
        assert (await client.get("/x", 5)).body == b"hello"
        await client.close()


async def test_giving_up_gives_the_connection_up() -> None:
    async with raw_server() as raw, client_of(raw) as client:
        raw.answers = [[b"HTTP/1.1 200"], [OK]]
        asked = asyncio.ensure_future(client.get("/x", 5))
        await until(lambda: any(connection.has_answered for connection in client._under_way))
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert (await client.get("/x", 5)).body == b"hello"
        assert raw.connections == 2


async def test_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key, certificate = tmp_path / "key", tmp_path / "certificate"
    self_signed(certificate, key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    async with raw_server(context) as raw:
        small_http._tls.cache_clear()
        stranger = HttpTransport(raw.url)
        with pytest.raises(TransportFailed, match=r"(?i)certificate"):
            await stranger.get("x", 5)
        await stranger.close()
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        small_http._tls.cache_clear()
        raw.answers = [bytewise(OK), [OK]]
        transport = HttpTransport(raw.url)
        assert [await transport.get("x", 5) for _ in range(2)] == [b"hello"] * 2
        assert len(raw.requests) == 2
        await transport.close()
    small_http._tls.cache_clear()


# --- many ---------------------------------------------------------------------------------------------


class TargetServer(RawServer):
    """Answers with the target; `asked` has those of all requests."""

    def __init__(self, asked: list[str], *, close: bool) -> None:
        super().__init__()
        self.asked, self.close = asked, close

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            while True:
                target = (await reader.readuntil(b"\r\n\r\n")).split(b" ")[1]
                self.asked.append(target.decode())
                if target.startswith(b"/reset"):
                    break
                if target.startswith(b"/slow"):
                    await reader.read()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(target), target))
                if self.close:
                    break
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@contextlib.asynccontextmanager
async def many(asked: list[str], *, close: bool = False) -> AsyncIterator[SmallHttp]:
    async with raw_server(raw=TargetServer(asked, close=close)) as raw:
        client = SmallHttp(URL(raw.url), timeout=60, connect_timeout=60)
        yield client
        await client.close()


class Heard(dict[str, Said]):
    def __call__(self, target: str, said: Said, seconds: float) -> None:
        assert target not in self
        assert 0 <= seconds < 90
        self[target] = said


async def test_many_over_few_connections() -> None:
    asked: list[str] = []
    targets = [f"/{number}" for number in range(40)]
    async with many(asked) as client:
        for _ in range(2):
            heard = Heard()
            await client.get_many(iter(targets), 100, 8, heard)
            assert {
                target: said.body.decode() for target, said in heard.items() if isinstance(said, Answer)
            } == {target: target for target in targets}
            assert len(client._idle) <= 8
        assert sorted(asked) == sorted(targets * 2)
        assert (await client.get("/x", 5)).body == b"/x"
        empty = Heard()
        await client.get_many(iter([]), 100, 8, empty)
        assert not empty


async def test_what_goes_wrong_with_some_of_many() -> None:
    asked: list[str] = []
    async with many(asked) as client:
        heard = Heard()
        targets = [
            "/reset",
            "/slow",
            "/with blank",
            f"/{'large' * 30}",
            *(f"/{number}" for number in range(40)),
        ]
        asking = asyncio.ensure_future(client.get_many(iter(targets), 100, 8, heard))
        await until(lambda: len(heard) == len(targets) - 3)
        let_time_pass(client)
        await asking
        assert heard.keys() == {*targets} - {"/reset", "/with blank"}, "these are left to get"
        assert isinstance(heard.pop("/slow"), TimeoutError)
        assert isinstance(heard.pop(f"/{'large' * 30}"), InvalidFormat)
        assert all(isinstance(said, Answer) for said in heard.values())
        assert len(asked) == len(targets) - 1


async def test_each_of_many_closes_its_connection() -> None:
    async with many([], close=True) as client:
        heard = Heard()
        await client.get_many(iter([f"/{number}" for number in range(40)]), 100, 8, heard)
        assert len(heard) == 8, "the others are left to get"


async def test_nobody_answers_many(closed_port: int) -> None:
    client = SmallHttp(URL(f"http://127.0.0.1:{closed_port}"), timeout=60, connect_timeout=60)
    heard = Heard()
    await client.get_many(iter(["/1", "/2"]), 100, 8, heard)
    assert not heard
    await client.close()


async def test_giving_up_many() -> None:
    asked: list[str] = []
    async with many(asked) as client:
        heard = Heard()
        targets = iter([f"/slow-{number}" for number in range(40)])
        asking = asyncio.ensure_future(client.get_many(targets, 100, 8, heard))
        while len(asked) < 8:
            await asyncio.sleep(0.01)
            assert not asking.done()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        await asyncio.sleep(0.05)
        assert (len(asked), len(heard), client._idle) == (8, 0, [])


async def test_a_listener_that_fails() -> None:
    def fail(*_: object) -> None:
        raise ZeroDivisionError

    async with many([]) as client:
        with pytest.raises(ZeroDivisionError):
            await client.get_many(iter([f"/{number}" for number in range(40)]), 100, 8, fail)
        assert (await client.get("/x", 5)).body == b"/x"


async def test_connections_that_came_too_late_serve_the_next_ones() -> None:
    async with raw_server(raw=TargetServer([], close=False)) as raw, client_of(raw) as client:
        await client.get_many(iter(["/1"]), 100, 6, Heard())
        await until(lambda: len(client._idle) == 6)
        await client.get_many(iter([f"/{number}" for number in range(40)]), 100, 6, Heard())
        assert raw.connections == 6


async def test_closed_before_anything_began(closed_port: int) -> None:
    client = SmallHttp(URL(f"http://127.0.0.1:{closed_port}"), timeout=60, connect_timeout=60)
    asking = asyncio.ensure_future(client.get_many(iter(["/1"]), 100, 6, Heard()))
    await asyncio.sleep(0)
    await client.close()
    await asyncio.wait_for(asking, 30)


async def test_giving_up_what_has_been_answered() -> None:
    """The connection is somebody else's by then."""
    async with raw_server() as raw, client_of(raw) as client:
        raw.answers = [[OK], [OK]]
        asked = asyncio.ensure_future(client.get("/x", 5))
        while not client._idle:
            await asyncio.sleep(0)
            assert not asked.done()
        other = asyncio.ensure_future(client.get("/y", 5))
        asked.cancel()
        assert (await other).body == b"hello"
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert raw.connections == 1
