"""Real HTTP servers on loopback, in a thread with the event loop that is asked for; and a client of bytes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import uvloop
from aiohttp import web

from nixery_snap.web.hot_answers import HotAnswers, serve_hot

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "uvloop": uvloop.new_event_loop,
    "asyncio": asyncio.new_event_loop,
}


@dataclass
class Server:
    address: tuple[str, int]
    answers: HotAnswers
    loop: asyncio.AbstractEventLoop

    def kept_bytes(self) -> int:
        """Of all answers, as they are between two things that happen in the loop, counted twice."""

        async def count() -> int:
            kept = sum(found.size_bytes + len(head) for head, found in self.answers._answers.items())
            assert self.answers.size_bytes == kept
            return kept

        return asyncio.run_coroutine_threadsafe(count(), self.loop).result(30)

    def connect(self, receive_buffer_bytes: int | None = None, source: str = "") -> Client:
        """`source` is the client's address."""
        sock = socket.socket()
        if source:
            sock.bind((source, 0))
        if receive_buffer_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        sock.settimeout(30)
        sock.connect(self.address)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return Client(sock)


@contextlib.contextmanager
def serving(loop_name: str, app: web.Application, answers: HotAnswers) -> Iterator[Server]:
    sock = socket.create_server(("127.0.0.1", 0))
    sock.setblocking(False)
    loop = LOOPS[loop_name]()
    started, stop = threading.Event(), asyncio.Event()

    async def main() -> None:
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1)
        await runner.setup()
        listeners = await serve_hot(runner, answers, sockets=[sock])
        started.set()
        await stop.wait()
        for listener in listeners:
            listener.close()
        await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(main(),))
    thread.start()
    try:
        assert started.wait(30)
        yield Server(sock.getsockname(), answers, loop)
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        loop.close()
        sock.close()


@dataclass
class Response:
    status: int
    headers: dict[str, str]
    body: bytes
    head: bytes

    @property
    def lasting(self) -> tuple[bytes, bytes]:
        """All of it but the date."""
        return b"\r\n".join(
            line for line in self.head.split(b"\r\n") if not line.startswith(b"Date:")
        ), self.body


@dataclass
class Client:
    sock: socket.socket
    rest: bytes = field(default=b"")

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.sock.sendall(piece)

    def get(self, path: str, *headers: str, method: str = "GET") -> Response:
        self.send(request(path, *headers, method=method))
        return self.receive(method)

    def receive(self, method: str = "GET") -> Response:
        """One response with a Content-Length. Raises ConnectionError when it is cut short."""
        while (end := self.rest.find(b"\r\n\r\n")) < 0:
            self._more()
        head, self.rest = self.rest[: end + 4], self.rest[end + 4 :]
        first, *lines = head.decode().split("\r\n")[:-2]
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        assert len(headers) == len(lines), "a header twice"
        status = int(first.split(" ")[1])
        size = 0 if method == "HEAD" or status in {204, 304} else int(headers["content-length"])
        while len(self.rest) < size:
            self._more()
        body, self.rest = self.rest[:size], self.rest[size:]
        return Response(status, headers, body, head)

    def closed(self) -> bool:
        """Whether the server closes now and has nothing more to say."""
        return self.rest + self.sock.recv(1) == b""

    def _more(self) -> None:
        data = self.sock.recv(256 * 1024)
        if not data:
            raise ConnectionError("the server has closed the connection")
        self.rest += data


def request(path: str, *headers: str, method: str = "GET", version: str = "HTTP/1.1") -> bytes:
    lines = [f"{method} {path} {version}", "Host: test", *headers, "", ""]
    return "\r\n".join(lines).encode()


def until(happened: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.005)
