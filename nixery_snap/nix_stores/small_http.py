"""GET of small files over HTTP/1.1 with few wasted motions (RFC 9112).

A closure takes thousands of narinfos, and a general client takes longer for each than checking its signature does.
What is out of the ordinary, such as a redirect, is left to one: it raises Unusual.
"""

from __future__ import annotations

import asyncio
import base64
import re
import socket
import ssl
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any, Final, NamedTuple

import aiohappyeyeballs
from yarl import URL

from nixery_snap import tracing
from nixery_snap.errors import InvalidFormat

_MAX_HEAD_BYTES: Final = 32 * 1024
_MAX_LINE_BYTES: Final = 1024  # before a chunk
_MAX_REFUSAL_BYTES: Final = 64 * 1024  # of what comes with a status other than 200; more is not waited for
_IDLE_SECONDS: Final = 30.0
_ADDRESS_SECONDS: Final = 60.0
_NEXT_ADDRESS_SECONDS: Final = 0.25
_LENGTH: Final = re.compile("[0-9]{1,15}")
# A blank before the colon or at the begin of a line has meant different things to different programs.
_HEAD: Final = re.compile(r"http/1\.([01]) ([2-5][0-9]{2})(?: [^\r\n]*)?((?:\r\n[!-9;-~]+:[^\r\n]*)*)")
_TELLING: Final = re.compile(
    r"\n(connection|content-length|transfer-encoding|content-encoding|retry-after):([^\r]*)"
)
_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;.*)?")
_TARGET: Final = re.compile(r"[!-~]+")
_WANTED: Final = frozenset({200, 206})
_REDIRECTS: Final = frozenset({300, 301, 302, 303, 305, 307, 308})
_WITHOUT_BODY: Final = frozenset({204, 304})


class Unusual(Exception):
    """Nothing is wrong; this client just is not made for it. `stays`: nor will it be for the next file."""

    def __init__(self, *, stays: bool = False) -> None:
        self.stays = stays
        super().__init__()


class Answer(NamedTuple):
    """`headers` are those that matter here, in lower case. Without status 200 the body may lack."""

    status: int
    headers: dict[str, str]
    body: bytes


Said = Answer | Exception
Told = Callable[[str, Said, float], object]


class SmallHttp:
    """Asks the server of `base`, whose user and password are sent along; connections are kept for a while.

    The caller bounds how many requests there are at a time. All of one takes at most `timeout`, connecting at most
    `connect_timeout`, in seconds.
    """

    def __init__(self, base: URL, *, timeout: float, connect_timeout: float) -> None:
        self._host, self._port = base.raw_host or "", base.port or 0
        self._tls = _tls() if base.scheme == "https" else None
        self.timeout, self._connect_timeout = timeout, connect_timeout
        lines = [f"Host: {base.host_port_subcomponent}", "User-Agent: nixery-snap", "Accept: */*"]
        lines.append("Accept-Encoding: identity")
        if base.user is not None or base.password is not None:
            secret = f"{base.user or ''}:{base.password or ''}".encode("latin-1", "replace")
            lines.append(f"Authorization: Basic {base64.b64encode(secret).decode()}")
        self._rest = "".join(f"{line}\r\n" for line in (*lines, ""))
        self._idle: list[_Connection] = []
        self._under_way: dict[_Connection, float] = {}  # until when
        self._opening: set[asyncio.Task[None]] = set()
        self._watch: asyncio.TimerHandle | None = None
        self._addresses: Sequence[Any] = ()
        self._addresses_until = 0.0

    async def get(self, target: str, max_bytes: int) -> Answer:
        """`target` is the path and query. Raises OSError, TimeoutError, Unusual, and InvalidFormat over `max_bytes`."""
        if not _TARGET.fullmatch(target):
            raise Unusual
        request = self.requests()(target)
        loop = asyncio.get_running_loop()
        end = loop.time() + self.timeout
        if kept := self._kept(loop.time()):
            try:
                return await self._exchange(kept, request, max_bytes, end)
            except ConnectionError:
                # The server may just have had enough of that connection.
                if kept.has_answered:
                    raise
        async with asyncio.timeout_at(end):
            connection = await self.connected(loop)
        return await self._exchange(connection, request, max_bytes, end)

    async def get_many(self, targets: Iterator[str], max_bytes: int, at_most: int, told: Told) -> None:
        """Those of `targets` that can be had without ado, `at_most` at a time, and without a task for each.

        `told` hears of a target what `get` would return or raise, and after how many seconds. A connection that fails
        is not replaced, so there may be targets that it does not hear of.
        """
        several = _Several(self, targets, max_bytes, told)
        now = asyncio.get_running_loop().time()
        for _ in range(at_most):
            if kept := self._kept(now):
                several.go_on(kept)
            else:
                task = several.go_on_another()
                self._opening.add(task)
                task.add_done_callback(self._opening.discard)
        await several.end()

    async def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        for task in self._opening:
            task.cancel()
        while self._idle:
            self._idle.pop().close()

    def keep(self, connection: _Connection) -> None:
        """For another time."""
        if connection.is_open:
            self._idle.append(connection)

    def _kept(self, now: float) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open and now - connection.idle_since < _IDLE_SECONDS:
                return connection
            connection.close()
        return None

    def requests(self) -> Callable[[str], bytes]:
        """What to send for a target."""
        parent = tracing.traceparent()
        trace = f"{tracing.TRACEPARENT}: {parent}\r\n" if parent else ""
        rest = f" HTTP/1.1\r\n{trace}{self._rest}"

        def request(target: str) -> bytes:
            return f"GET {target}{rest}".encode("latin-1")

        return request

    async def _exchange(self, connection: _Connection, request: bytes, max_bytes: int, end: float) -> Answer:
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

        def answered(connection: _Connection, said: Said, _: float) -> None:
            self.keep(connection)
            if answer.done():
                return
            if isinstance(said, Exception):
                answer.set_exception(said)
            else:
                answer.set_result(said)

        self.ask(connection, request, max_bytes, end, answered)
        try:
            return await answer
        except asyncio.CancelledError:
            # What has been answered already may have left its connection to somebody else.
            if answer.cancelled():
                connection.fail(ConnectionAbortedError())
            raise

    def ask(
        self,
        connection: _Connection,
        request: bytes,
        max_bytes: int,
        end: float,
        told: Callable[[_Connection, Said, float], None],
    ) -> None:
        self._under_way[connection] = end
        if self._watch is None:
            self._watch = asyncio.get_running_loop().call_at(end, self._expire)
        connection.ask(
            request, max_bytes, lambda said: told(connection, said, self._under_way.pop(connection))
        )

    def _expire(self) -> None:
        """One timer for all: nearly all requests are answered, and each of their own would have to be taken back."""
        loop = asyncio.get_running_loop()
        now, self._watch = loop.time(), None
        for connection, end in [*self._under_way.items()]:
            if end <= now:
                connection.fail(TimeoutError())
        if self._under_way and self._watch is None:
            self._watch = loop.call_at(min(self._under_way.values()), self._expire)

    async def connected(self, loop: asyncio.AbstractEventLoop) -> _Connection:
        if self._addresses_until < loop.time():
            found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
            self._addresses, self._addresses_until = found, loop.time() + _ADDRESS_SECONDS
        try:
            async with asyncio.timeout(self._connect_timeout):
                taken = await aiohappyeyeballs.start_connection(
                    self._addresses, happy_eyeballs_delay=_NEXT_ADDRESS_SECONDS, interleave=1, loop=loop
                )
        except OSError:
            self._addresses_until = 0.0  # it may have moved
            raise
        try:
            _, connection = await loop.create_connection(
                lambda: _Connection(loop),
                sock=taken,
                ssl=self._tls,
                server_hostname=self._host if self._tls else None,
            )
        except BaseException:
            taken.close()
            raise
        return connection


class _Several:
    """GETs over a few connections, each of which goes on with the next target when it has one."""

    def __init__(self, http: SmallHttp, targets: Iterator[str], max_bytes: int, told: Told) -> None:
        self._http, self._max_bytes, self._told = http, max_bytes, told
        self._targets: Iterator[str] = filter(_TARGET.fullmatch, targets)
        self._request = http.requests()
        self._loop = asyncio.get_running_loop()
        self._under_way: dict[_Connection, str] = {}
        self._opening = 0
        self._done: asyncio.Future[None] = self._loop.create_future()

    def go_on_another(self) -> asyncio.Task[None]:
        """On a connection that is opened for it."""
        self._opening += 1
        task = asyncio.ensure_future(self._connect())
        task.add_done_callback(self._opened)  # called even if it is cancelled before it begins
        return task

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(self._http.timeout):
                connection = await self._http.connected(self._loop)
        except (OSError, TimeoutError):
            pass  # who asks for one file will be told
        else:
            self.go_on(connection)

    def _opened(self, _: asyncio.Task[None]) -> None:
        self._opening -= 1
        self._finish()

    def go_on(self, connection: _Connection) -> None:
        for target in self._targets:
            self._under_way[connection] = target
            end = self._loop.time() + self._http.timeout
            self._http.ask(connection, self._request(target), self._max_bytes, end, self._answered)
            return
        self._opening = 0  # nobody waits for more of them
        self._http.keep(connection)

    def _answered(self, connection: _Connection, said: Said, end: float) -> None:
        target = self._under_way.pop(connection)
        if self._done.done():
            self._http.keep(connection)
            return
        try:
            # The next question first: the server can think about it meanwhile.
            if connection.is_open:
                self.go_on(connection)
            if connection.has_answered or not isinstance(said, ConnectionError):
                self._told(target, said, self._loop.time() - end + self._http.timeout)
            self._finish()
        except Exception as error:
            self._done.set_exception(error)

    def _finish(self) -> None:
        if not (self._under_way or self._opening > 0 or self._done.done()):
            self._done.set_result(None)

    async def end(self) -> None:
        self._finish()
        try:
            await self._done
        finally:
            self._targets = iter(())
            for connection in [*self._under_way]:
                connection.fail(ConnectionAbortedError())


@lru_cache(1)
def _tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


class _Connection(asyncio.Protocol):
    """One exchange at a time. It closes itself when the next one could not be understood."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._told: Callable[[Said], None] | None = None  # nobody has asked
        self._max_bytes = 0
        self._head: _Head | None = None
        self._received: bytes | bytearray = b""
        self._chunks = bytearray()
        self.has_answered = False
        self.idle_since = 0.0

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def ask(self, request: bytes, max_bytes: int, told: Callable[[Said], None]) -> None:
        """`told` is called once."""
        self._told = told
        self._max_bytes, self.has_answered = max_bytes, False
        if self._transport is None or self._transport.is_closing():
            self.fail(ConnectionResetError("Connection lost"))
        else:
            self._transport.write(request)

    def fail(self, error: Exception) -> None:
        self.close()
        self._tell(error)

    def _tell(self, said: Said) -> None:
        if told := self._told:
            self._told = None
            told(said)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment] # of a stream it is a Transport
        self.idle_since = self._loop.time()

    def data_received(self, data: bytes) -> None:
        if self._told is None:  # nobody has asked
            self.close()
            return
        self.has_answered = True
        if not self._received:
            self._received = data  # all of a small file, mostly
        elif isinstance(self._received, bytearray):
            self._received += data
        else:
            self._received = bytearray(self._received + data)
        try:
            head = self._head = self._head or self._take_head()
            if head is None:
                return
            content = self._take_chunks(head) if head.is_chunked else self._take_content(head)
        except (Unusual, InvalidFormat) as error:
            self.fail(error)
        else:
            if content is not None:
                self._finish(head, content)

    def eof_received(self) -> None:
        if self._head is not None and self._head.size is None and not self._head.is_chunked:
            content, self._received = bytes(self._received), b""
            self._finish(self._head, content)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        if self._head is None:
            self.fail(ConnectionResetError("Connection reset" if error else "Connection closed by the cache"))
        else:
            self.fail(ConnectionResetError("the answer was not completed"))

    # --- parsing ------------------------------------------------------------------------------------

    def _take_head(self) -> _Head | None:
        """None as long as there is more to come. Raises Unusual."""
        end = self._received.find(b"\r\n\r\n", 0, _MAX_HEAD_BYTES)
        if end < 0:
            if len(self._received) >= _MAX_HEAD_BYTES:
                raise Unusual
            return None
        head = _Head(self._received[:end].decode("latin-1"))
        self._received = self._received[end + 4 :]
        return head

    def _take_content(self, head: _Head) -> bytes | None:
        """All of it, None as long as there is more to come. Raises InvalidFormat if it is too large."""
        received = self._received
        if self._is_too_large(head, head.size or len(received)):
            return b""
        if head.size is None or len(received) < head.size:
            return None
        self._received = received[head.size :]
        return bytes(received[: head.size])

    def _take_chunks(self, head: _Head) -> bytes | None:
        """Likewise. Raises Unusual, too."""
        received, begin = self._received, 0
        while (end := received.find(b"\r\n", begin, begin + _MAX_LINE_BYTES)) >= 0:
            line = _CHUNK.fullmatch(received, begin, end)
            if line is None:
                raise Unusual
            size = int(line[1], 16)
            if self._is_too_large(head, len(self._chunks) + size):
                return b""
            whole = end + 2 + size + 2
            if len(received) < whole:
                break
            if received[whole - 2 : whole] != b"\r\n":  # a trailer
                raise Unusual
            self._chunks += received[end + 2 : whole - 2]
            begin = whole
            if size == 0:
                self._received = received[begin:]
                return bytes(self._chunks)
        else:
            if len(received) - begin >= _MAX_LINE_BYTES:
                raise Unusual
        if begin:
            self._received = received[begin:]
        return None

    def _is_too_large(self, head: _Head, size_bytes: int) -> bool:
        """Whether the rest is not waited for. Raises InvalidFormat if it is wanted."""
        if head.status in _WANTED:
            if size_bytes > self._max_bytes:
                raise InvalidFormat("body", "…", f"it is larger than {self._max_bytes} bytes")
            return False
        if size_bytes <= _MAX_REFUSAL_BYTES:
            return False
        head.keeps_connection = False
        return True

    def _finish(self, head: _Head, content: bytes) -> None:
        if self._received or not head.keeps_connection:
            self.close()
        self._head = None
        self._chunks.clear()
        self.idle_since = self._loop.time()
        self._tell(Answer(head.status, head.headers, content))


class _Head:
    """Status and headers. `size` of the content is None where it has chunks or ends with the connection.

    Raises Unusual for what is out of the ordinary.
    """

    def __init__(self, text: str) -> None:
        head = _HEAD.fullmatch(text.lower())
        if head is None:
            raise Unusual
        minor_version, status, lines = head.groups()
        self.status = int(status)
        if self.status in _REDIRECTS:
            raise Unusual(stays=True)
        told = _TELLING.findall(lines)
        self.headers: dict[str, str] = {name: value.strip(" \t") for name, value in told}
        if len(self.headers) != len(told):  # one of them is there twice
            raise Unusual
        connection = self.headers.get("connection", "")
        self.keeps_connection = (
            "close" not in connection if minor_version == "1" else "keep-alive" in connection
        )
        encoding, length = self.headers.get("transfer-encoding"), self.headers.get("content-length")
        self.size: int | None = None
        self.is_chunked = False
        if self.status in _WITHOUT_BODY:
            self.size = 0
        elif encoding is not None:
            # With both, somebody is trying something.
            if encoding != "chunked" or length is not None:
                raise Unusual
            self.is_chunked = True
        elif length is not None:
            if not _LENGTH.fullmatch(length):
                raise Unusual
            self.size = int(length)
        else:
            self.keeps_connection = False
