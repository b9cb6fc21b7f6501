"""What clients do to connections: keep, split, pipeline, abandon. Answers stay whole and in order."""

import contextlib
import http.client
import socket
import struct
import time
from collections.abc import Iterator

import pytest

from tests.integration.server import DOCKER_MANIFEST, OCI_MANIFEST, Image, Registry, digest_of

NAME = "shell/hello"


@pytest.fixture(scope="module")
def image(registry: Registry) -> Image:
    return registry.pull(NAME)


@contextlib.contextmanager
def connected(registry: Registry) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", registry.port), timeout=120) as connection:
        yield connection


def head_of(target: str, accept: str = OCI_MANIFEST, version: str = "1.1") -> bytes:
    return f"GET {target} HTTP/{version}\r\nHost: x\r\nAccept: {accept}\r\n\r\n".encode()


def answers(connection: socket.socket, count: int) -> list[tuple[int, bytes]]:
    """So many answers, read off one connection."""
    found: list[tuple[int, bytes]] = []
    with connection.makefile("rb") as stream:
        for _ in range(count):
            status = int(stream.readline().split()[1])
            headers = http.client.parse_headers(stream)
            found.append((status, stream.read(int(headers["Content-Length"]))))
    return found


def requests_and_bodies(image: Image) -> list[tuple[bytes, bytes]]:
    """Requests of all kinds, with what each must be answered."""
    blobs = [(head_of(f"/v2/{NAME}/blobs/{digest}"), content) for digest, content in image.blobs.items()]
    manifest = (head_of(f"/v2/{NAME}/manifests/latest"), image.manifest_bytes)
    by_digest = (head_of(f"/v2/{NAME}/manifests/{image.digest}"), image.manifest_bytes)
    return [manifest, *blobs, by_digest, manifest, *blobs, by_digest]


def test_one_after_the_other_on_one_connection(registry: Registry, image: Image) -> None:
    with connected(registry) as connection:
        for sent, expected in requests_and_bodies(image) * 2:
            connection.sendall(sent)
            assert answers(connection, 1) == [(200, expected)]


def test_all_at_once_on_one_connection(registry: Registry, image: Image) -> None:
    """Pipelined (RFC 9112, section 9.3.2): the answers come in the order of the requests."""
    pairs = requests_and_bodies(image)
    with connected(registry) as connection:
        connection.sendall(b"".join(sent for sent, _ in pairs))
        assert answers(connection, len(pairs)) == [(200, body) for _, body in pairs]


@pytest.mark.parametrize("size", [1, 7, 60])
def test_in_small_pieces(registry: Registry, image: Image, size: int) -> None:
    sent = head_of(f"/v2/{NAME}/manifests/latest")
    with connected(registry) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(sent)
        assert answers(connection, 1) == [(200, image.manifest_bytes)]
        for start in range(0, len(sent), size):
            connection.sendall(sent[start : start + size])
            time.sleep(0.001)
        assert answers(connection, 1) == [(200, image.manifest_bytes)]
        connection.sendall(sent)
        assert answers(connection, 1) == [(200, image.manifest_bytes)]


def test_one_and_a_half_requests_at_a_time(registry: Registry, image: Image) -> None:
    sent = head_of(f"/v2/{NAME}/manifests/latest")
    with connected(registry) as connection:
        connection.sendall(sent + sent[:20])
        assert answers(connection, 1) == [(200, image.manifest_bytes)]
        connection.sendall(sent[20:])
        assert answers(connection, 1) == [(200, image.manifest_bytes)]


def test_what_is_remembered_depends_on_all_of_the_request(registry: Registry) -> None:
    """Formats and media types in turn, twice: none gets the other's answer."""
    names = [NAME, f"nix-snapshotter/{NAME}"]
    wanted = [(name, accept) for name in names for accept in (OCI_MANIFEST, DOCKER_MANIFEST)]
    expected = {(name, accept): registry.manifest(name, accept=accept).body for name, accept in wanted}
    assert len(set(expected.values())) == 3  # a snapshotter image has OCI's media types only
    with connected(registry) as connection:
        for name, accept in wanted * 3:
            connection.sendall(head_of(f"/v2/{name}/manifests/latest", accept))
            assert answers(connection, 1) == [(200, expected[name, accept])]


def test_http_1_0_and_connections_to_be_closed(registry: Registry, image: Image) -> None:
    target = f"/v2/{NAME}/manifests/latest"
    old = head_of(target, version="1.0")
    closing = head_of(target).replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    for sent in (old, closing, old, closing):
        with connected(registry) as connection:
            connection.sendall(sent)
            assert answers(connection, 1) == [(200, image.manifest_bytes)]
            assert connection.recv(1) == b"", "the server closes"


def test_bodies_that_nobody_asked_for(registry: Registry, image: Image) -> None:
    """A GET may have a body; what follows it is the next request and not part of this one."""
    target = f"/v2/{NAME}/manifests/latest"
    bare = head_of(target)
    body = b"GET /evil HTTP/1.1\r\nHost: x\r\n\r\n"
    framed = bare.replace(b"\r\n\r\n", f"\r\nContent-Length: {len(body)}\r\n\r\n".encode()) + body
    chunked = bare.replace(
        b"\r\n\r\n", b"\r\nTransfer-Encoding: chunked\r\n\r\n"
    ) + b"%x\r\n%s\r\n0\r\n\r\n" % (
        len(body),
        body,
    )
    for sent in (framed, chunked):
        with connected(registry) as connection:
            connection.sendall(bare + sent + bare)
            assert answers(connection, 3) == [(200, image.manifest_bytes)] * 3


def test_connections_that_say_nothing_or_half(registry: Registry) -> None:
    """Many of them keep nobody else waiting."""
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(connected(registry)) for _ in range(200)]
        for connection in idle[::2]:
            connection.sendall(b"GET /v2/ HTTP/1.1\r\nHo")
        assert registry.manifest(NAME).status == 200
    assert registry.manifest(NAME).status == 200


@pytest.fixture(scope="module")
def big_blob(registry: Registry) -> tuple[str, int]:
    """Path and size in bytes of a blob of some 20 MiB."""
    layer = max(registry.manifest("bigblob").json()["layers"], key=lambda layer: int(layer["size"]))
    assert layer["size"] > 20 * 1024 * 1024
    return f"/v2/bigblob/blobs/{layer['digest']}", layer["size"]


def test_clients_that_hang_up_in_the_middle_of_a_blob(registry: Registry, big_blob: tuple[str, int]) -> None:
    """By a reset, at any point: nothing is said of it in the log, and nobody else notices."""
    before = len(registry.log_lines())
    for count in [0, 1, 1000, 100_000, 5_000_000] * 4:
        with connected(registry) as connection:
            connection.sendall(head_of(big_blob[0]))
            left = count
            while left:
                left -= len(connection.recv(min(left, 65536)))
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    answer = registry.get(big_blob[0])
    assert digest_of(answer.body) == big_blob[0].rpartition("/")[2]
    assert not [line for line in registry.log_lines()[before:] if line["level"] not in {"info", "debug"}]


def test_slow_readers_hold_up_nobody(registry: Registry, big_blob: tuple[str, int]) -> None:
    """Fifty clients that read nothing for a while, and then all of it."""
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connected(registry)) for _ in range(50)]
        for connection in slow:
            connection.sendall(head_of(big_blob[0]))
        begun = time.monotonic()
        assert registry.manifest(NAME).status == 200
        assert time.monotonic() - begun < 30, "who reads nothing is cut off after 60 s only"
        for connection in slow[:3]:
            (answer,) = answers(connection, 1)
            assert digest_of(answer[1]) == big_blob[0].rpartition("/")[2]


def test_downloads_are_resumed(registry: Registry, big_blob: tuple[str, int]) -> None:
    """Piece by piece, as a client does after each cut."""
    path, size = big_blob
    step = 4_000_001
    pieces = [
        registry.get(path, Range=f"bytes={start}-{start + step - 1}").body for start in range(0, size, step)
    ]
    assert digest_of(b"".join(pieces)) == path.rpartition("/")[2]
