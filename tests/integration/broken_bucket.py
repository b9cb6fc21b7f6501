"""A proxy in front of a bucket's server that spoils what it is told to."""

import contextlib
import http.client
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tests.integration.buckets import Buckets
from tests.support import servers


class Handler(servers.Handler):
    server: "Server"

    def handle_any(self) -> None:
        self.server.requests.append(f"{self.command} {self.path}")
        with contextlib.suppress(OSError):  # the client may have had enough
            self.content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fault = next((fault for meant, fault in self.server.faults if meant(self)), Handler.pass_on)
            fault(self)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_any

    def asked(self) -> tuple[http.client.HTTPResponse, bytes]:
        """What the server behind says; the headers are signed, and so left as they are."""
        connection = http.client.HTTPConnection("127.0.0.1", self.server.port_behind, timeout=60)
        with contextlib.closing(connection):
            connection.request(self.command, self.path, self.content, dict(self.headers))
            answer = connection.getresponse()
            return answer, answer.read()

    def pass_on(self) -> None:
        answer, content = self.asked()
        self.answer(answer.status, content, answer)

    def answer(self, status: int, content: bytes, behind: http.client.HTTPResponse | None = None) -> None:
        self.head(status, len(content), behind)
        if self.command != "HEAD":
            self.wfile.write(content)

    def head(self, status: int, size_bytes: int, behind: http.client.HTTPResponse | None = None) -> None:
        self.send_response(status)
        sizes = {"content-length", "transfer-encoding", "connection"}
        for name, value in behind.getheaders() if behind else ():
            if name.lower() not in sizes or (self.command == "HEAD" and name.lower() == "content-length"):
                self.send_header(name, value)
        if behind is None or self.command != "HEAD":
            self.send_header("Content-Length", str(size_bytes))
        self.end_headers()


Fault = Callable[[Handler], None]
Meant = Callable[[Handler], bool]


class Server(servers.Server):
    def __init__(self, port_behind: int) -> None:
        super().__init__(Handler)
        self.port_behind = port_behind
        self.faults: list[tuple[Meant, Fault]] = []
        self.requests: list[str] = []


@dataclass(frozen=True)
class BrokenBucket:
    """The same buckets by another address; without faults it passes everything on."""

    server: Server
    buckets: Buckets

    def url(self, bucket: str, prefix: str = "") -> str:
        own = Buckets(self.server.server_port, self.buckets.access_key, self.buckets.secret_key)
        return own.url(bucket, prefix)

    @contextlib.contextmanager
    def doing(self, fault: Fault, meant: Meant = lambda handler: True) -> Iterator[None]:
        """While this lasts, the requests that are `meant` go wrong."""
        self.server.faults.append((meant, fault))
        try:
            yield
        finally:
            self.server.faults.clear()


@contextlib.contextmanager
def broken_bucket(buckets: Buckets) -> Iterator[BrokenBucket]:
    with Server(buckets.port).running() as server:
        yield BrokenBucket(server, buckets)


# --- what is meant, and what goes wrong -------------------------------------------------------------


def part(number: int) -> Meant:
    return lambda handler: handler.command == "PUT" and f"partNumber={number}&" in handler.path


def completion(handler: Handler) -> bool:
    return handler.command == "POST" and "uploadId=" in handler.path


def beginning(handler: Handler) -> bool:
    return handler.command == "POST" and "uploads" in handler.path


def copying(handler: Handler) -> bool:
    return "x-amz-copy-source" in handler.headers


def reading(handler: Handler) -> bool:
    return handler.command == "GET" and "/blobs/" in handler.path


def status(code: int) -> Fault:
    return lambda handler: handler.answer(code, b"<Error><Code>InternalError</Code></Error>")


def reset(handler: Handler) -> None:
    handler.reset()


def silence(handler: Handler) -> None:
    handler.server.over.wait(60)


def late(seconds: float) -> Fault:
    def wait(handler: Handler) -> None:
        time.sleep(seconds)
        handler.pass_on()

    return wait


def no_end(handler: Handler) -> None:
    """Most of the body and then the end of the connection, and no other try succeeds."""
    if not handler.headers["range"].startswith("bytes=0-"):
        handler.reset()
        return
    answer, content = handler.asked()
    handler.head(answer.status, len(content), answer)
    handler.wfile.write(content[:-1000])
    handler.close_connection = True  # a reset would take away what has not been read yet


def overwriting(handler: Handler) -> None:
    """As servers do that are too old for conditions."""
    if "if-none-match" not in handler.headers:
        handler.pass_on()
        return
    handler.send_response(200)
    handler.send_header("ETag", '"x"')
    handler.send_header("Content-Length", "0")
    handler.end_headers()


def error_with_200(handler: Handler) -> None:
    """As S3 does when it finds out late."""
    handler.answer(200, b"<Error><Code>InternalError</Code><Message>try again</Message></Error>")
