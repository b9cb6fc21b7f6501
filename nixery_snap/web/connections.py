"""Limits of connections: how many a client has, how long it may take to say something, and to hear the answer.

aiohttp bounds single lines, and the time between requests. What else a client can do to hold on to memory or to a
connection is bounded here: by counting what arrives while no request is whole, and by one look a second at all
connections, so that requests that arrive whole cost nothing more.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import socket
import struct
import sys
import termios
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import IPv6Network
from typing import Any, Final

from aiohttp import web
from aiohttp.http_exceptions import BadHttpMessage, LineTooLong

from nixery_snap.web.forwarded import NO_PROXIES, TrustedProxies
from nixery_snap.web.request_metrics import HANDLER, tally

_LOOK_SECONDS: Final = 1.0
_REFUSED: Final = "HTTP/1.1 {} {}\r\nContent-Type: {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n"
_NETWORK_BITS: Final = 64  # of IPv6 addresses, which whoever has one has all of
_TOO_MANY_LINES: Final = "Too many headers received"  # all that aiohttp tells it by
_LINGER_SECONDS: Final = 2.0  # for a body that nobody wants, before the connection is closed

# What an application answers, given a status and a message, to what never becomes a request that it could see.
BadRequest = Callable[[int, str], web.Response]
BAD_REQUEST: Final[web.AppKey[BadRequest]] = web.AppKey("bad_request")


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """`request_seconds` are for a TLS handshake, for a request's head, and again for its body; `total` is of all
    clients together."""

    url_bytes: int = 8190
    header_bytes: int = 32 * 1024
    body_bytes: int = 64 * 1024
    request_seconds: float = 10
    idle_seconds: float = 300
    stall_seconds: float = 60
    per_client: int = 4096
    requests: int = 100_000
    total: int = 100_000


DEFAULT_LIMITS: Final = ConnectionLimits()
LIMITS: Final = web.AppKey("limits", ConnectionLimits)


def limits_of(request: web.BaseRequest) -> ConnectionLimits:
    return (
        request.config_dict.get(LIMITS, DEFAULT_LIMITS)
        if isinstance(request, web.Request)
        else DEFAULT_LIMITS
    )


def plain_text(status: int, message: str) -> web.Response:
    return web.Response(status=status, text=f"{message}\n")


class Connections:
    """All connections of one server."""

    def __init__(
        self, limits: ConnectionLimits, bad_request: BadRequest, proxies: TrustedProxies = NO_PROXIES
    ) -> None:
        self.limits = limits
        self.bad_request = bad_request
        self._proxies = proxies
        self._open: set[LimitedRequestHandler] = set()
        self._clients: Counter[str] = Counter()

    def client(self, transport: asyncio.BaseTransport) -> str:
        """Whom a connection is counted for: nobody where it is a proxy's, which brings the requests of many."""
        address = address_of(transport)
        return "" if self._proxies.trusts(address) else client_of(address)

    def begin(self, handler: LimitedRequestHandler, client: str) -> str:
        """Why it is too much; empty when it is not. `end` must follow in any case."""
        self._open.add(handler)
        if client:
            self._clients[client] += 1
            if self._clients[client] > self.limits.per_client:
                return f"more than {self.limits.per_client} connections of one client"
        return "this server has no connection left" if len(self._open) > self.limits.total else ""

    def end(self, handler: LimitedRequestHandler, client: str) -> None:
        self._open.discard(handler)
        if client:
            self._clients[client] -= 1
            if not self._clients[client]:
                del self._clients[client]

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close what is overdue, now and as long as the loop runs."""
        now = loop.time()
        for handler in tuple(self._open):
            handler.look(now)
        loop.call_later(_LOOK_SECONDS, self.watch, loop)


class LimitedRequestHandler(web.RequestHandler):
    """aiohttp's protocol within limits."""

    __slots__ = ("_begun", "_body", "_client", "_connections", "_head_bytes", "_unsent", "_unsent_since")

    def __init__(
        self,
        manager: web.Server,
        connections: Connections,
        *,
        loop: asyncio.AbstractEventLoop,
        **options: Any,
    ) -> None:
        limits = connections.limits
        super().__init__(
            manager,
            loop=loop,
            max_line_size=limits.url_bytes,
            max_field_size=limits.header_bytes,
            keepalive_timeout=limits.idle_seconds,
            lingering_time=_LINGER_SECONDS,
            auto_decompress=False,
            **options,
        )
        self._connections = connections
        self._client = ""
        self._head_bytes = 0  # of a head of which something, but not all, has come
        self._body: Any = None  # of the last request
        self._begun = 0.0  # when the first part came of what is not whole yet
        self._unsent = 0  # bytes that waited for the client when it was looked at
        self._unsent_since = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._client = self._connections.client(transport)
        if reason := self._connections.begin(self, self._client):
            self.refuse(429, f"{reason}; come back later")

    def connection_lost(self, exc: BaseException | None) -> None:
        self._connections.end(self, self._client)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        before = self._request_count
        is_head = self._body is None or self._body.is_eof()
        if is_head and self._is_too_long(data):
            self.refuse(431, f"the head of a request may have {self._connections.limits.header_bytes} bytes")
            return
        super().data_received(data)
        if self._request_count != before:
            self._head_bytes = 0
            self._body = self._messages[-1][1] if self._messages else None
            self._begun = self._loop.time()
        elif data and is_head:
            self._begun = self._begun if self._head_bytes else self._loop.time()
            self._head_bytes += len(data)

    def _is_too_long(self, data: bytes) -> bool:
        limit = self._connections.limits.header_bytes
        if self._head_bytes + len(data) <= limit:
            return False
        end = data.find(b"\r\n\r\n")
        return self._head_bytes + (end if end >= 0 else len(data)) > limit

    def look(self, now: float) -> None:
        """Close the connection if the client takes too long."""
        transport, limits = self.transport, self._connections.limits
        if transport is None:
            return
        if unsent := transport.get_write_buffer_size():
            unsent += unacknowledged(transport.get_extra_info("socket").fileno())
        if unsent != self._unsent or not unsent:
            self._unsent, self._unsent_since = unsent, now
        elif now - self._unsent_since > limits.stall_seconds:
            reset(transport)
            return
        if self._body is not None and not self._body.is_eof():
            if now - self._begun > limits.request_seconds:
                transport.abort()
        elif self._head_bytes and self._waiter is None:
            self._begun = now  # an answer is being made: what comes after it has time
        elif self._head_bytes and now - self._begun > limits.request_seconds:
            self.refuse(408, f"the head of a request must come within {limits.request_seconds:g} s")

    def refuse(self, status: int, message: str) -> None:
        """Answer, if nothing else is being said, and close."""
        if self.transport is not None and not self._request_in_progress and not self._messages:
            response = self._connections.bad_request(status, message)
            body = response.body if isinstance(response.body, bytes) else b""
            head = _REFUSED.format(status, response.reason, response.headers["Content-Type"], len(body))
            self.transport.write(head.encode() + body)
            tally("other", "", status, HANDLER).add(1, len(body), 0)
        self.force_close()

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        if self._request_count >= self._connections.limits.requests:
            resp.force_close()
        return await super().finish_response(request, resp, start_time)

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What is not HTTP, or has endless lines, is answered as any other bad request and logged nowhere."""
        if status >= 500 or request.writer.output_size > 0:
            return super().handle_error(request, status, exc, message)
        told = "this is not a valid HTTP request"
        if isinstance(exc, LineTooLong):
            status = 414 if exc.args[1] == self.max_line_size else 431
            told = f"a line of the request's head is longer than {exc.args[1]} bytes"
        elif isinstance(exc, BadHttpMessage) and exc.message == _TOO_MANY_LINES:
            status, told = 431, "the head of a request may have 128 lines"
        response = self._connections.bad_request(status, told)
        response.force_close()
        return response


def address_of(transport: asyncio.BaseTransport) -> str:
    """Of the other end; empty when it has gone already."""
    peer = transport.get_extra_info("peername")
    return str(peer[0]) if isinstance(peer, tuple) and peer else ""


def client_of(address: str) -> str:
    """As clients are counted: of IPv6 the network."""
    if ":" not in address or address.startswith("::ffff:"):
        return address
    return str(IPv6Network((address.partition("%")[0], _NETWORK_BITS), strict=False))


def reset(transport: asyncio.WriteTransport) -> None:
    """Close at once. The kernel would keep for minutes what the client has not taken: it forgets that too."""
    with suppress(OSError), socket.socket(fileno=os.dup(transport.get_extra_info("socket").fileno())) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()


def unacknowledged(descriptor: int) -> int:
    """Bytes that the kernel has to send, or that the other end has not said to have (tcp(7), SIOCOUTQ)."""
    return int.from_bytes(fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4)), sys.byteorder)
