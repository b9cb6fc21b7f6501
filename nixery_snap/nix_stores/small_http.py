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
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

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
_STATUS: Final = re.compile(r"http/1\.([01]) ([2-5][0-9]{2})(?: .*)?")
_CHUNK: Final = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;.*)?")
_TARGET: Final = re.compile(r"[!-~]+")
_WANTED: Final = frozenset({200, 206})
_REDIRECTS: Final = frozenset({300, 301, 302, 303, 305, 307, 308})
_TELLING: Final = frozenset(
    {"connection", "content-length", "transfer-encoding", "content-encoding", "retry-after"}
)
_WITHOUT_BODY: Final = frozenset({204, 304})


class Unusual(Exception):
    """Nothing is wrong; this client just is not made for it. `stays`: nor will it be for the next file."""

    def __init__(self, *, stays: bool = False) -> None:
        self.stays = stays
        super().__init__()


@dataclass(frozen=True, slots=True)
class Answer:
    """`headers` are those that matter here, in lower case. Without status 200 the body may lack."""

    status: int
    headers: dict[str, str]
    body: bytes


class SmallHttp:
    """Asks the server of `base`, whose user and password are sent along; connections are kept for a while.

    The caller bounds how many requests there are at a time. All of one takes at most `timeout`, connecting at most
    `connect_timeout`, in seconds.
    """

    def __init__(self, base: URL, *, timeout: float, connect_timeout: float) -> None:
        self._host, self._port = base.raw_host or "", base.port or 0
        self._tls = _tls() if base.scheme == "https" else None
        self._timeout, self._connect_timeout = timeout, connect_timeout
        lines = [f"Host: {base.host_port_subcomponent}", "User-Agent: nixery-snap", "Accept: */*"]
        lines.append("Accept-Encoding: identity")
        if base.user is not None or base.password is not None:
            secret = f"{base.user or ''}:{base.password or ''}".encode("latin-1", "replace")
            lines.append(f"Authorization: Basic {base64.b64encode(secret).decode()}")
        self._rest = "".join(f"{line}\r\n" for line in (*lines, ""))
        self._idle: list[_Connection] = []
        self._under_way: dict[_Connection, float] = {}  # until when
        self._watch: asyncio.TimerHandle | None = None
        self._addresses: Sequence[Any] = ()
        self._addresses_until = 0.0

    async def get(self, target: str, max_bytes: int) -> Answer:
        """`target` is the path and query. Raises OSError, TimeoutError, Unusual, and InvalidFormat over `max_bytes`."""
        if not _TARGET.fullmatch(target):
            raise Unusual
        parent = tracing.traceparent()
        trace = f"{tracing.TRACEPARENT}: {parent}\r\n" if parent else ""
        request = f"GET {target} HTTP/1.1\r\n{trace}{self._rest}".encode("latin-1")
        loop = asyncio.get_running_loop()
        end = loop.time() + self._timeout
        if kept := self._kept(loop.time()):
            try:
                return await self._exchange(kept, request, max_bytes, end)
            except ConnectionError:
                # The server may just have had enough of that connection.
                if kept.has_answered:
                    raise
        async with asyncio.timeout_at(end):
            connection = await self._connected(loop)
        return await self._exchange(connection, request, max_bytes, end)

    async def close(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
        while self._idle:
            self._idle.pop().close()

    def _kept(self, now: float) -> _Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open and now - connection.idle_since < _IDLE_SECONDS:
                return connection
            connection.close()
        return None

    async def _exchange(self, connection: _Connection, request: bytes, max_bytes: int, end: float) -> Answer:
        self._under_way[connection] = end
        if self._watch is None:
            self._watch = asyncio.get_running_loop().call_at(end, self._expire)
        try:
            answer = await connection.ask(request, max_bytes)
        except BaseException:
            connection.close()
            raise
        finally:
            del self._under_way[connection]
        if connection.is_open:
            self._idle.append(connection)
        return answer

    def _expire(self) -> None:
        """One timer for all: nearly all requests are answered, and each of their own would have to be taken back."""
        loop = asyncio.get_running_loop()
        self._watch = None
        for connection, end in self._under_way.items():
            if end <= loop.time():
                connection.fail(TimeoutError())
        if later := [end for end in self._under_way.values() if end > loop.time()]:
            self._watch = loop.call_at(min(later), self._expire)

    async def _connected(self, loop: asyncio.AbstractEventLoop) -> _Connection:
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
        self._answer: asyncio.Future[Answer] = loop.create_future()
        self._answer.cancel()  # nobody has asked
        self._max_bytes = 0
        self._head: _Head | None = None
        self._received: bytes | bytearray = b""
        self._chunks = bytearray()
        self.has_answered = False
        self.idle_since = 0.0

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def ask(self, request: bytes, max_bytes: int) -> asyncio.Future[Answer]:
        self._answer = self._loop.create_future()
        self._max_bytes, self.has_answered = max_bytes, False
        if self._transport is None or self._transport.is_closing():
            self.fail(ConnectionResetError("Connection lost"))
        else:
            self._transport.write(request)
        return self._answer

    def fail(self, error: Exception) -> None:
        self.close()
        if not self._answer.done():
            self._answer.set_exception(error)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment] # of a stream it is a Transport

    def data_received(self, data: bytes) -> None:
        if self._answer.done():  # nobody has asked
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
        if not self._answer.done():
            self._answer.set_result(Answer(head.status, head.headers, content))


class _Head:
    """Status and headers. `size` of the content is None where it has chunks or ends with the connection.

    Raises Unusual for what is out of the ordinary.
    """

    def __init__(self, text: str) -> None:
        first, *lines = text.lower().split("\r\n")
        status = _STATUS.fullmatch(first)
        if status is None:
            raise Unusual
        self.status = int(status[2])
        if self.status in _REDIRECTS:
            raise Unusual(stays=True)
        self.headers: dict[str, str] = {}
        for line in lines:
            name, colon, value = line.partition(":")
            # A blank before the colon or at the begin of a line has meant different things to different programs.
            if not colon or " " in name or "\t" in name or "\n" in line:
                raise Unusual
            if name in _TELLING:
                if name in self.headers:
                    raise Unusual
                self.headers[name] = value.strip(" \t")
        connection = self.headers.get("connection", "")
        self.keeps_connection = "close" not in connection if status[1] == "1" else "keep-alive" in connection
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
