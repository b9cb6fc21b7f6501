"""Answers that cannot change, repeated without parsing the request again.

Nodes ask for the same manifest again and again with the very same bytes. aiohttp answers such a request in
some 30 µs, most of which goes into parsing, routing and building objects. Here the exact bytes of a request
that was answered once with an answer marked `hot` are the key under which the finished bytes are kept.

Only a connection on which nothing is in flight takes the short way, and only for one whole request that
arrives as one segment and has no body. Whatever else a client sends (a head in two segments, a body, several
requests at once, an upgrade) is aiohttp's, and so is the rest of that connection.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from email.utils import formatdate
from ssl import SSLContext
from typing import Any, Final

from aiohttp import hdrs, web
from aiohttp.http import HttpVersion11

from nixery_snap.web.connections import (
    BAD_REQUEST,
    DEFAULT_LIMITS,
    LIMITS,
    Connections,
    LimitedRequestHandler,
    plain_text,
)
from nixery_snap.web.forwarded import NO_PROXIES, PROXIES
from nixery_snap.web.request_metrics import HANDLER, MEMORY, Tally, body_bytes, saved_bytes, settle, tally_of

MAX_HEAD_BYTES: Final = 2048
MAX_BODY_BYTES: Final = 1024 * 1024
_OVERHEAD_BYTES: Final = 512  # objects around an entry, roughly

# Headers after which a request is more than its head, or the connection is not kept, or it comes only once.
_NOT_PLAIN: Final = (
    *(b"\ncontent-length", b"\ntransfer-encoding", b"\nupgrade", b"\nexpect", b"\nconnection"),
    b"\ntraceparent",
)
_PLAIN_CONNECTION: Final = b"\nconnection: keep-alive\r\n"


def always() -> bool:
    """Validity of what is named by digest."""
    return True


# A handler marks its answer with this: `response[HOT] = always`, or a function that says, without I/O, whether
# the answer still holds. The answer must not depend on anything but the bytes of the request head.
HOT: Final[web.ResponseKey[Callable[[], bool]]] = web.ResponseKey("hot")

# … and with the uses (ports.use) that each repetition is one of.
USES: Final[web.ResponseKey[tuple[str, ...]]] = web.ResponseKey("uses")


@dataclass(slots=True)
class _Answer:
    whole: bytes
    date: bytes  # the one in it
    date_at: int
    valid: Callable[[], bool]
    uses: tuple[str, ...]
    tally: Tally
    body_bytes: int
    saved_bytes: int
    given: int  # times not told to the tally yet: that would take a tenth of the time that the answer takes
    repeated: bool = False  # since its uses were taken

    @property
    def size_bytes(self) -> int:
        return len(self.whole) + _OVERHEAD_BYTES

    def renew(self, date: bytes) -> None:
        rest = memoryview(self.whole)[self.date_at + len(self.date) :]
        self.whole, self.date = b"".join((self.whole[: self.date_at], date, rest)), date

    def settle(self) -> None:
        if self.given:
            self.tally.add(self.given, self.body_bytes, self.saved_bytes)
            self.given = 0


# Given the bytes of what may be a request, its answer before and after the date, what that is a use of, its body's
# length and what counts it, if it holds for ever and can be made without waiting; None leaves it to aiohttp. Who makes
# one sees to it that the bytes are one plain request, and that it is what aiohttp would answer.
AtOnce = Callable[[bytes], tuple[bytes, bytes, tuple[str, ...], int, Tally] | None]


def never(head: bytes) -> None:
    """Nothing is answered at once."""


class HotAnswers:
    """What is remembered, of bounded size; first in, first out (one request brings an answer back)."""

    def __init__(
        self,
        max_bytes: int = 64 * 1024 * 1024,
        omit: frozenset[str] = frozenset(),
        at_once: AtOnce = never,
        trusted: Callable[[], bool] = always,
        notes_uses: bool = True,
    ) -> None:
        """`omit`: lower-cased names of headers that belong to one request only, such as its id.

        `at_once` is asked for what is not remembered. While the store is not `trusted`, nothing is answered here.
        `notes_uses`: somebody calls `take_uses` now and then; else what it returns would grow for ever.
        """
        self._answers: dict[bytes, _Answer] = {}
        self._at_once = at_once
        self._trusted = trusted
        self._notes_uses = notes_uses
        self._uses: set[str] = set()  # of answers that are no longer remembered
        self.size_bytes = 0  # of all that is remembered
        self._max_bytes = max_bytes
        self._omit = omit | {"date"}
        self._date = b""
        self._date_until = 0.0

    def find(self, head: bytes, now: float) -> bytes | None:
        """The whole answer to exactly this head, if there is one and it still holds. `now`: loop time."""
        if now >= self._date_until:
            self._renew_date(now)
        answer = self._answers.get(head)
        if answer is None:
            made = self._at_once(head) if len(head) <= MAX_HEAD_BYTES and self._trusted() else None
            if made is None:
                return None
            before_date, after_date, uses, length, tally = made
            self._note(uses)
            answer = _Answer(b"", self._date, len(before_date), always, uses, tally, length, 0, 1)
            return self._keep(head, answer, before_date, after_date)
        if not answer.valid():
            self._forget(head)
            return None
        if answer.date is not self._date:
            answer.renew(self._date)
        answer.repeated = True
        answer.given += 1
        return answer.whole

    def forget(self) -> None:
        """All answers."""
        for head in list(self._answers):
            self._forget(head)

    def take_uses(self) -> set[str]:
        """Of what was answered here since the last time."""
        uses, self._uses = self._uses, set()
        for answer in self._answers.values():
            if answer.repeated:
                answer.repeated = False
                uses.update(answer.uses)
        return uses

    def remember(self, head: bytes, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """Keep an answer that has just been sent, if it is marked and fit to be kept."""
        valid = response.get(HOT)
        if (
            valid is None
            or not isinstance(response, web.Response)
            or request.version != HttpVersion11
            or len(head) > MAX_HEAD_BYTES
        ):
            return
        body = b"" if request.method == hdrs.METH_HEAD else response.body
        if (
            not isinstance(body, bytes)
            or len(body) > MAX_BODY_BYTES
            or hdrs.TRANSFER_ENCODING in response.headers
        ):
            return
        before_date = f"HTTP/1.1 {response.status} {response.reason}\r\nDate: ".encode()
        rest = "".join(
            f"\r\n{name}: {value}"
            for name, value in response.headers.items()
            if name.lower() not in self._omit
        )
        self._forget(head)
        uses, tally, saved = (
            response.get(USES, ()),
            tally_of(request, response, MEMORY),
            saved_bytes(request, response),
        )
        answer = _Answer(b"", self._date, len(before_date), valid, uses, tally, len(body), saved, 0)
        self._keep(head, answer, before_date, rest.encode() + b"\r\n\r\n" + body)

    def settle(self) -> None:
        """Bring the metrics up to date."""
        for answer in self._answers.values():
            answer.settle()
        settle()

    def _keep(self, head: bytes, answer: _Answer, before_date: bytes, after_date: bytes) -> bytes:
        """The whole answer."""
        answer.whole = b"".join((before_date, answer.date, after_date))
        self._answers[head] = answer
        self.size_bytes += answer.size_bytes + len(head)
        while self.size_bytes > self._max_bytes:
            self._forget(next(iter(self._answers)))
        return answer.whole

    def _forget(self, head: bytes) -> None:
        if answer := self._answers.pop(head, None):
            answer.settle()
            self.size_bytes -= answer.size_bytes + len(head)
            if answer.repeated:
                self._note(answer.uses)

    def _note(self, uses: Iterable[str]) -> None:
        if self._notes_uses:
            self._uses.update(uses)

    def _renew_date(self, now: float) -> None:
        if not self._trusted():
            self.forget()
        wall = time.time()
        self._date = formatdate(wall, usegmt=True).encode()
        self._date_until = now + 1 - wall % 1


class HotRequestHandler(LimitedRequestHandler):
    """aiohttp's protocol, within limits, with a short way in front of it."""

    __slots__ = ("_answers", "_head", "_max_requests", "_ready", "_refresh_at")

    def __init__(
        self,
        manager: web.Server,
        answers: HotAnswers,
        connections: Connections,
        *,
        loop: asyncio.AbstractEventLoop,
        **options: Any,
    ) -> None:
        super().__init__(manager, connections, loop=loop, **options)
        self._answers = answers
        self._max_requests = connections.limits.requests
        # Nothing is in flight, and there were only whole, plain requests so far: one that is not makes this
        # false for the rest of the connection.
        self._ready = False
        self._head: bytes | None = None  # the one request in flight, if it is plain
        self._refresh_at = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._refresh_at = self._loop.time() + self.keepalive_timeout / 2
        self._ready = True

    def data_received(self, data: bytes) -> None:
        if self._ready and self.transport is not None and not self.writing_paused:
            now = self._loop.time()
            # Now and then a request goes the long way: aiohttp counts a connection's idle time from there. So does the
            # last one of a connection, which says so.
            if (
                now < self._refresh_at
                and self._request_count + 1 < self._max_requests
                and (answer := self._answers.find(data, now)) is not None
            ):
                self._request_count += 1
                self.transport.write(answer)
                return
        if data:  # aiohttp itself calls with nothing, to have its buffers looked at again
            self._head = data if self._ready and is_plain(data) else None
            self._ready = False
        super().data_received(data)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        resp, reset = await super().finish_response(request, resp, start_time)
        sent = 0 if reset else body_bytes(request, resp)
        tally_of(request, resp, HANDLER).add(1, sent, 0 if reset else saved_bytes(request, resp))
        head, self._head = self._head, None
        if head is not None and not reset and resp.keep_alive:
            self._answers.remember(head, request, resp)
            self._refresh_at = self._loop.time() + self.keepalive_timeout / 2
            self._ready = True
        return resp, reset

    def close(self) -> None:
        self._ready = False
        super().close()

    async def shutdown(self, timeout: float | None = 15.0) -> None:  # noqa: ASYNC109 (aiohttp's signature)
        self._ready = False
        await super().shutdown(timeout)


def is_plain(data: bytes) -> bool:
    """Whether this is one whole request that consists of its head alone and leaves the connection open."""
    if data.find(b"\r\n\r\n") != len(data) - 4 or not data.startswith((b"GET ", b"HEAD ")):
        return False
    lowered = data.lower()
    if _PLAIN_CONNECTION in lowered:
        lowered = lowered.replace(_PLAIN_CONNECTION, b"\n", 1)
    return not any(name in lowered for name in _NOT_PLAIN)


async def serve_hot(
    runner: web.AppRunner,
    answers: HotAnswers,
    *,
    sockets: list[Any],
    backlog: int = 1024,
    ssl: SSLContext | None = None,
    **options: Any,
) -> list[asyncio.Server]:
    """Listen on bound sockets in place of `web.TCPSite`; `runner` is set up. Close these before its clean-up."""
    loop = asyncio.get_running_loop()
    manager = runner.server
    if manager is None:
        raise RuntimeError("the runner is not set up")
    app = runner.app
    connections = Connections(
        app.get(LIMITS, DEFAULT_LIMITS), app.get(BAD_REQUEST, plain_text), app.get(PROXIES, NO_PROXIES)
    )
    connections.watch(loop)

    def protocol() -> HotRequestHandler:
        return HotRequestHandler(manager, answers, connections, loop=loop, **options)

    # Before its handshake is over a connection is not known here, and the loop would give it a minute.
    handshake_seconds = connections.limits.request_seconds if ssl else None
    return [
        await loop.create_server(
            protocol, sock=sock, backlog=backlog, ssl=ssl, ssl_handshake_timeout=handshake_seconds
        )
        for sock in sockets
    ]
