"""A binary cache that goes wrong as it is told to, kind of request by kind of request."""

import contextlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import Enum

from tests.integration.caches import CacheDirectory
from tests.integration.server import Substituter
from tests.support import servers


class Kind(Enum):
    """What a request is for."""

    INFO = "nix-cache-info"
    NARINFO = "narinfo"
    LISTING = "ls"
    NAR = "nar"
    OTHER = "other"

    @classmethod
    def of(cls, path: str) -> "Kind":
        if path.startswith("/nar/"):
            return cls.NAR
        return next((kind for kind in cls if path.endswith(kind.value)), cls.OTHER)


class Handler(servers.Handler):
    server: "Server"

    def do_GET(self) -> None:
        self.server.requests.append(self.path)
        with contextlib.suppress(OSError):  # the client may have had enough
            fault = self.server.faults.get(Kind.of(self.path))
            if fault is None or self.content is None:
                self.whole()
            else:
                fault(self)

    do_HEAD = do_GET

    @property
    def content(self) -> bytes | None:
        """What a well-behaved cache would answer."""
        file = self.server.cache.root / self.path.lstrip("/")
        return file.read_bytes() if file.is_file() else None

    def whole(self) -> None:
        content = self.content
        self.answer(404 if content is None else 200, content or b"")

    def answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        self.head(status, len(content), **headers)
        if self.command != "HEAD":
            self.wfile.write(content)

    def head(self, status: int, size_bytes: int, **headers: str) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(size_bytes))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()


Fault = Callable[[Handler], None]


class Server(servers.Server):
    def __init__(self, cache: CacheDirectory) -> None:
        super().__init__(Handler)
        self.cache = cache
        self.faults: dict[Kind, Fault] = {}
        self.requests: list[str] = []


@dataclass(frozen=True)
class Misbehaving:
    """`faults` may be changed at any time; a kind without one is served as it should be, and what is not there too."""

    server: Server = field(repr=False)

    @property
    def url(self) -> str:
        return self.server.url

    @property
    def faults(self) -> dict[Kind, Fault]:
        return self.server.faults

    @property
    def requests(self) -> list[str]:
        """The paths asked for so far."""
        return self.server.requests

    def substituter(self, priority: int | None = None) -> Substituter:
        return Substituter(self.url, [self.server.cache.key.public], priority)


@contextlib.contextmanager
def misbehaving(cache: CacheDirectory, **faults: Fault) -> Iterator[Misbehaving]:
    """Faults by the name of their kind."""
    server = Server(cache)
    server.faults.update({Kind[kind]: fault for kind, fault in faults.items()})
    with server.running():
        yield Misbehaving(server)


# --- faults -----------------------------------------------------------------------------------------


def status(code: int, **headers: str) -> Fault:
    return lambda handler: handler.answer(code, b"no", **headers)


def slow_headers(handler: Handler) -> None:
    handler.server.over.wait(60)


def held(release: threading.Event) -> Fault:
    """Nothing is answered before `release`."""

    def fault(handler: Handler) -> None:
        release.wait(120)
        handler.whole()

    return fault


def slow_body(handler: Handler) -> None:
    """It begins well, and then there is a byte now and then, for longer than anybody should wait."""
    content = handler.content or b""
    handler.head(200, len(content))
    for position in range(len(content)):
        handler.wfile.write(content[position : position + 1])
        if handler.server.over.wait(0.3):
            return


def stalled_body(handler: Handler) -> None:
    """Half of it, and then nothing more."""
    content = handler.content or b""
    handler.head(200, len(content))
    handler.wfile.write(content[: len(content) // 2])
    handler.wfile.flush()
    handler.server.over.wait(60)


def truncated(handler: Handler) -> None:
    """Less than its length says, and a regular end of the connection."""
    content = handler.content or b""
    handler.head(200, len(content))
    handler.wfile.write(content[: len(content) // 2])
    handler.close_connection = True


def shortened(handler: Handler) -> None:
    """Half of it as if that were all."""
    content = handler.content or b""
    handler.answer(200, content[: len(content) // 2])


def reset_at_once(handler: Handler) -> None:
    handler.reset()


def reset_in_body(handler: Handler) -> None:
    content = handler.content or b""
    handler.head(200, len(content))
    handler.wfile.write(content[: len(content) // 2])
    time.sleep(0.05)
    handler.reset()


def redirect_loop(handler: Handler) -> None:
    handler.answer(302, Location=handler.path)


def instead(content: bytes) -> Fault:
    return lambda handler: handler.answer(200, content)


def altered(change: Callable[[bytes], bytes]) -> Fault:
    """What a cache would answer, changed."""
    return lambda handler: handler.answer(200, change(handler.content or b""))


def line(key: str, value: str | None) -> Callable[[bytes], bytes]:
    """Changes the value of every `key` line of a narinfo; None takes the line away."""
    new = b"" if value is None else f"{key}: {value}\n".encode()
    return lambda content: re.sub(rf"(?m)^{key}: .*\n".encode(), lambda _: new, content)


def flipped(content: bytes) -> bytes:
    """One bit in the middle is another."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
