import os
import random
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web

from nixery_snap.web.connections import LIMITS, ConnectionLimits
from nixery_snap.web.file_response import FileRangeResponse, is_cached
from nixery_snap.web.hot_answers import HotAnswers
from tests.unit.web.servers import LOOPS, Server, request, serving

SIZE = 12_000_000  # larger than the buffers of a loopback connection


@pytest.fixture(scope="module")
def content() -> bytes:
    return random.Random(1).randbytes(SIZE)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> Path:
    path = tmp_path_factory.mktemp("files") / "file"
    path.write_bytes(content)
    with path.open("rb") as written:
        os.fsync(written)
    return path


@pytest.fixture
def stall_seconds() -> float:
    """So long may a client of a test be held up."""
    return 60


@pytest.fixture(params=LOOPS)
def server(request: pytest.FixtureRequest, file: Path, stall_seconds: float) -> Iterator[Server]:
    async def get(asked: web.Request) -> web.StreamResponse:
        start, end = int(asked.query.get("start", 0)), int(asked.query.get("end", SIZE))
        path = asked.query.get("file", str(file))
        return FileRangeResponse(path, start, end - start, headers={"Content-Type": "x/y"})

    async def small(_asked: web.Request) -> web.Response:
        return web.Response(text="small")

    app = web.Application()
    app[LIMITS] = ConnectionLimits(stall_seconds=stall_seconds)
    app.router.add_get("/file", get)
    app.router.add_get("/small", small)
    with serving(request.param, app, HotAnswers()) as running:
        yield running


def test_the_whole_file(server: Server, content: bytes) -> None:
    with server.connect() as client:
        for _ in range(2):
            response = client.get("/file")
            assert response.body == content
            assert response.headers["content-type"] == "x/y"
            assert client.get("/small").body == b"small"
        assert client.rest == b""


@pytest.mark.parametrize(
    ("start", "end"),
    [
        (0, 1),
        (SIZE - 1, SIZE),
        (1, SIZE),
        (0, 2**20),
        (2**20 - 1, 2**20 + 1),
        (12345, 2**21 + 17),
        (7, 7),
        (0, 0),
    ],
)
def test_ranges(server: Server, content: bytes, start: int, end: int) -> None:
    with server.connect() as client:
        assert client.get(f"/file?start={start}&end={end}").body == content[start:end]
        assert client.get("/small").body == b"small"


def test_head(server: Server) -> None:
    with server.connect() as client:
        assert client.get("/file", method="HEAD").headers["content-length"] == str(SIZE)
        assert client.get("/file?end=5", method="HEAD").headers["content-length"] == "5"
        assert client.get("/small").body == b"small"
        assert client.rest == b""


def test_pipelining(server: Server, content: bytes) -> None:
    paths = ["/file?end=3000000", "/small", "/file?start=5&end=9", "/file", "/small"]
    with server.connect() as client:
        client.send(b"".join(map(request, paths)))
        found = [client.receive().body for _ in paths]
    assert found == [content[:3_000_000], b"small", content[5:9], content, b"small"]


def test_a_file_that_the_page_cache_does_not_hold(server: Server, file: Path, content: bytes) -> None:
    handle = os.open(file, os.O_RDONLY)
    try:
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        with server.connect() as client:
            assert client.get("/file").body == content
        assert os.pread(handle, 1, 0)
        assert not is_cached(handle, SIZE, SIZE + 1) or is_cached(handle, 0, 1)
    finally:
        os.close(handle)


def test_many_at_once(server: Server, content: bytes) -> None:
    wrong: list[int] = []

    def fetch(number: int) -> None:
        start = number * 100_003
        with server.connect() as client:
            bodies = [client.get(f"/file?start={start}").body for _ in range(2)]
        if bodies != [content[start:]] * 2:
            wrong.append(number)

    threads = [threading.Thread(target=fetch, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_slow_reader_gets_everything(server: Server, content: bytes) -> None:
    with server.connect(receive_buffer_bytes=4096) as client, server.connect() as other:
        client.send(request("/file?end=3000000"))
        time.sleep(0.1)  # until nothing more goes into the buffers
        assert other.get("/small").body == b"small"
        assert client.receive().body == content[:3_000_000]


def handles() -> int:
    return len(os.listdir("/proc/self/fd"))


def settled(expected: int) -> bool:
    """Whether so few descriptors are open, now or soon."""
    deadline = time.monotonic() + 60
    while handles() > expected:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_clients_that_leave(server: Server) -> None:
    with server.connect() as other:
        assert other.get("/small").body == b"small"
        before = handles()
        for number in range(10):
            with server.connect(receive_buffer_bytes=4096) as client:
                client.send(request("/file"))
                client.sock.recv(number * 1000 or 1)
                if number % 2:  # a reset instead of a farewell
                    client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        assert settled(before), "descriptors are left open"
        assert other.get("/small").body == b"small"


@pytest.mark.parametrize("stall_seconds", [0.5])
def test_a_client_that_stops_reading_is_given_up(server: Server) -> None:
    with server.connect() as other:
        other.get("/small")
        before = handles()
        with server.connect(receive_buffer_bytes=4096) as client:
            client.send(request("/file"))
            client.rest += client.sock.recv(1)  # it has begun
            assert settled(before + 1), "the server still holds the connection"
            with pytest.raises(ConnectionError):
                client.receive()
        assert other.get("/small").body == b"small"


def test_a_file_that_is_shorter_than_it_was(server: Server, tmp_path: Path) -> None:
    short = tmp_path / "short"
    short.write_bytes(b"x" * 1000)
    with server.connect() as client:
        client.send(request(f"/file?file={short}&end=2000"))
        with pytest.raises(ConnectionError):
            client.receive()
    with server.connect() as client:
        assert client.get("/small").body == b"small"


def test_a_file_that_is_not_there(server: Server, tmp_path: Path) -> None:
    with server.connect() as client:
        client.send(request(f"/file?file={tmp_path}/absent"))
        assert client.closed()
    with server.connect() as client:
        assert client.get("/small").body == b"small"
