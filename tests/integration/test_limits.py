"""A server that many hold on to: slow ones, idle ones, greedy ones. The others are served, in bounded memory."""

import contextlib
import hashlib
import select
import selectors
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.nixtools import ChrootStore
from tests.integration.processes import wait_until
from tests.integration.server import OCI_MANIFEST, Registry, Start, digest_of, serving

NAME = "shell/hello"
MIB = 1024 * 1024
IDLE = 2000
DOWNLOADS = 1000
REQUEST_SECONDS = 5
STALL_SECONDS = 5
LIMITS = f"""
[limits]
request_timeout = {REQUEST_SECONDS}
client_connections = 2500
connection_requests = 50
header_bytes = 4096
url_bytes = 1000
body_bytes = 2000
"""


@pytest.fixture(scope="module")
def registry(scratch: Path, prepared_store: ChrootStore) -> Iterator[Registry]:
    with serving(Registry(scratch / "limits", prepared_store.root, config=LIMITS)) as running:
        running.pull(NAME)
        yield running


@pytest.fixture(scope="module")
def big_blob(registry: Registry) -> tuple[str, bytes]:
    return big_blob_of(registry)


def big_blob_of(registry: Registry) -> tuple[str, bytes]:
    layer = max(registry.manifest("bigblob").json()["layers"], key=lambda layer: int(layer["size"]))
    path = f"/v2/bigblob/blobs/{layer['digest']}"
    return path, registry.get(path).body


def connect(registry: Registry, receive_buffer_bytes: int = 0) -> socket.socket:
    sock = socket.socket()
    if receive_buffer_bytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
    sock.settimeout(120)
    sock.connect(("127.0.0.1", registry.port))
    return sock


def head(target: str, *lines: str, method: str = "GET") -> bytes:
    return "\r\n".join(
        [f"{method} {target} HTTP/1.1", "Host: x", f"Accept: {OCI_MANIFEST}", *lines, "", ""]
    ).encode()


def resident_bytes(registry: Registry) -> int:
    assert registry.daemon is not None
    status = Path(f"/proc/{registry.daemon.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


def status_of(registry: Registry, sent: bytes) -> int:
    """Of the answer to this, after which the connection must end."""
    with connect(registry) as sock:
        sock.sendall(sent)
        answer = b""
        with contextlib.suppress(ConnectionResetError):  # what it would not read makes it a reset
            while piece := sock.recv(65536):
                answer += piece
        assert answer.startswith(b"HTTP/1."), answer
        assert b'{"errors":[{"code":"' in answer
        return int(answer.split()[1])


def test_requests_that_are_too_long(registry: Registry) -> None:
    assert status_of(registry, head("/v2/" + "a" * 1500)) == 414
    assert status_of(registry, head("/v2/", *[f"X-{n}: {'y' * 80}" for n in range(60)])) == 431
    assert status_of(registry, head("/v2/", f"Authorization: Bearer {'y' * 5000}")) == 431
    assert (
        status_of(registry, head("/v2/x/blobs/uploads/", "Content-Length: 9999999999", method="POST")) == 413
    )


def test_slow_requests(registry: Registry) -> None:
    """Two hundred clients that send a byte now and then are cut off together; others notice nothing."""
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connect(registry)) for _ in range(200)]
        begun = time.monotonic()
        for sock in slow:
            sock.sendall(b"GET /v2/ HTTP/1.1\r\nHost: ")
        for _ in range(4):
            if time.monotonic() - begun > 1:  # what is sent after the end would be in the way of the answer
                break
            for sock in slow:
                sock.sendall(b"x")
            assert registry.manifest(NAME).status == 200
            time.sleep(0.2)
        for sock in slow:
            answer = sock.recv(1000)
            assert answer.startswith(b"HTTP/1.1 408 "), answer
            assert sock.recv(1) == b""
        assert 0.9 * REQUEST_SECONDS < time.monotonic() - begun < 20 * REQUEST_SECONDS


def test_idle_connections(registry: Registry) -> None:
    """Half of them have asked for something before. Each costs little."""
    before = resident_bytes(registry)
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(connect(registry)) for _ in range(IDLE)]
        for sock in idle[::2]:
            sock.sendall(head("/v2/"))
        for sock in idle[::2]:
            assert sock.recv(1000).startswith(b"HTTP/1.1 200 ")
        assert registry.pull(NAME).layers
        assert (resident_bytes(registry) - before) / IDLE < 32 * 1024
        for sock in idle:
            sock.sendall(head("/healthz"))
        assert all(sock.recv(1000).startswith(b"HTTP/1.1 200 ") for sock in idle)


def test_more_connections_than_one_client_may_have(registry: Registry) -> None:
    with contextlib.ExitStack() as stack:
        idle: list[socket.socket] = []
        while len(idle) < 2500:  # those of the tests before may be counted still
            some = [stack.enter_context(connect(registry)) for _ in range(2500 - len(idle))]
            for sock in some:
                with contextlib.suppress(ConnectionError):
                    sock.sendall(head("/healthz"))
            idle += filter(is_let_in, some)
        with connect(registry) as more:
            assert more.recv(100).startswith(b"HTTP/1.1 429 ")

    def is_served() -> bool:
        with contextlib.suppress(ConnectionError):
            return registry.get("/v2/").status == 200
        return False

    wait_until(is_served, seconds=60, what="it has seen them leave")


def is_let_in(sock: socket.socket) -> bool:
    """Whether what it asked is answered; else it is closed, as there is no room for it."""
    with contextlib.suppress(ConnectionError):
        answer = sock.recv(1000)
        if answer.startswith(b"HTTP/1.1 200 "):
            return True
        assert not answer or answer.startswith(b"HTTP/1.1 429 "), answer
    sock.close()
    return False


def test_requests_on_one_connection(registry: Registry) -> None:
    """Remembered answers count too."""
    with connect(registry) as sock:
        heads = b""
        for _ in range(50):
            sock.sendall(head(f"/v2/{NAME}/manifests/latest", method="HEAD"))
            heads += sock.recv(4096)
        while piece := sock.recv(4096):
            heads += piece
        assert heads.count(b"HTTP/1.1 200 OK\r\n") == 50
        assert heads.count(b"\r\nConnection: close\r\n") == 1


def is_cut_off(sock: socket.socket) -> bool:
    """Without taking anything."""
    poll = select.poll()
    poll.register(sock, 0)
    return bool(poll.poll(0))


def test_clients_that_read_slowly_or_not_at_all(
    directory: Path, prepared_store: ChrootStore, start: Start
) -> None:
    """What they do not take stays in the page cache; who takes nothing for long is cut off."""
    config = f"[limits]\nstall_timeout = {STALL_SECONDS}\n"  # too short for the other tests on a slow machine
    registry = start(Registry(directory / "state", prepared_store.root, config=config))
    big_blob = big_blob_of(registry)
    before = resident_bytes(registry)
    with contextlib.ExitStack() as stack:
        readers = [stack.enter_context(connect(registry, 4096)) for _ in range(40)]
        for sock in readers:
            sock.sendall(head(big_blob[0], "Connection: close"))
        slow, taken = readers[0], bytearray()
        deadline = time.monotonic() + 60
        while not all(map(is_cut_off, readers[1:])):
            assert time.monotonic() < deadline, "who reads nothing is cut off"
            taken += slow.recv(4096)
            assert resident_bytes(registry) - before < 16 * MIB
            time.sleep(0.2)
        for sock in readers[1:]:
            with pytest.raises(ConnectionResetError):
                _ = [0 for _ in iter(lambda sock=sock: sock.recv(MIB), b"")]
        while piece := slow.recv(MIB):
            taken += piece
        assert taken.endswith(b"\r\n\r\n" + big_blob[1])


def test_many_downloads_at_once(registry: Registry, big_blob: tuple[str, bytes]) -> None:
    """All have begun before one goes on."""
    before = resident_bytes(registry)
    path, content = big_blob
    wanted = hashlib.sha256(content[:MIB]).digest()
    with contextlib.ExitStack() as stack, selectors.DefaultSelector() as selector:
        got: dict[socket.socket, bytearray] = {}
        for _ in range(DOWNLOADS):
            sock = stack.enter_context(connect(registry, 65536))
            sock.sendall(head(path, f"Range: bytes=0-{MIB - 1}"))
            got[sock] = bytearray()
        for sock in got:
            got[sock] += sock.recv(1)
        peak = resident_bytes(registry)
        assert registry.manifest(NAME).status == 200
        for sock in got:
            selector.register(sock, selectors.EVENT_READ)
        while selector.get_map():
            for key, _ in selector.select(30):
                sock = key.fileobj
                assert isinstance(sock, socket.socket)
                answer = got[sock]
                answer += sock.recv(256 * 1024)
                if len(answer) > MIB and len(answer) - answer.index(b"\r\n\r\n") - 4 == MIB:
                    assert hashlib.sha256(memoryview(answer)[-MIB:]).digest() == wanted
                    selector.unregister(sock)
                    answer.clear()
        assert max(peak, resident_bytes(registry)) - before < 64 * MIB
    assert digest_of(registry.get(path).body) == path.rpartition("/")[2]
