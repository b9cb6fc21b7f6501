from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web

from nixery_snap.errors import StorageUnavailable
from nixery_snap.ports import Location, SignedUrl, StoredBytes, StoredFile, StoredStream
from nixery_snap.web.hot_answers import HotAnswers
from nixery_snap.web.located import IN_MEMORY_BYTES, answer, etag_of, in_memory
from tests.unit.web.servers import Response, serving

CONTENT = b"0123456789"
ETAG = '"abc"'


def refuse(status: int, message: str, headers: dict[str, str]) -> web.Response:
    return web.Response(status=status, text=f"REFUSED {message}", headers=headers)


def ask(location: Location, *headers: str, method: str = "GET", hot: bool = True) -> list[Response]:
    """Twice the same request; the second answer's X-Calls tells whether the handler was called again."""
    calls = 0

    async def get(request: web.Request) -> web.StreamResponse:
        nonlocal calls
        calls += 1
        told = {"Content-Type": "a/b", "X-Calls": str(calls)}
        return answer(request, location, told, etag=ETAG, refuse=refuse, hot=hot)

    app = web.Application()
    app.router.add_get("/", get)
    with serving("uvloop", app, HotAnswers()) as server, server.connect() as client:
        return [client.get("/", *headers, method=method) for _ in range(2)]


def streamed(content: bytes, breaks_at: int | None = None) -> StoredStream:
    """Piece by piece; `breaks_at`: how many bytes of it can be had."""

    async def pieces(start: int, length: int) -> AsyncIterator[bytes]:
        for position in range(start, start + length, 3):
            if breaks_at is not None and position >= breaks_at:
                raise StorageUnavailable("secret reason")
            yield content[position : min(position + 3, start + length)]

    return StoredStream(len(content), "version", pieces)


@pytest.fixture(params=["bytes", "file", "stream"])
def stored(request: pytest.FixtureRequest, tmp_path: Path) -> Location:
    if request.param == "bytes":
        return StoredBytes(CONTENT)
    if request.param == "stream":
        return streamed(CONTENT)
    (tmp_path / "file").write_bytes(CONTENT)
    return StoredFile(tmp_path / "file", len(CONTENT))


def test_the_whole_and_a_part(stored: Location) -> None:
    whole, again = ask(stored)
    assert (whole.status, whole.body, whole.headers["etag"]) == (200, CONTENT, ETAG)
    assert again.headers["x-calls"] == ("1" if isinstance(stored, StoredBytes) else "2")
    for part in ask(stored, "Range: bytes=2-4"):
        assert (part.status, part.body) == (206, b"234")
    for head in ask(stored, "Range: bytes=2-4", method="HEAD"):
        assert (head.status, head.headers["content-length"]) == (200, "10")


def test_what_may_change_is_not_hot() -> None:
    assert [response.headers["x-calls"] for response in ask(StoredBytes(CONTENT), hot=False)] == ["1", "2"]


def test_refusals_are_in_the_callers_words(stored: Location) -> None:
    for response in ask(stored, "Range: bytes=10-"):
        assert (response.status, response.body[:7]) == (416, b"REFUSED")
        assert response.headers["content-range"] == "bytes */10"


def test_conditions(stored: Location) -> None:
    for response in ask(stored, f"If-None-Match: {ETAG}"):
        assert (response.status, response.body, response.headers["etag"]) == (304, b"", ETAG)
    assert ask(stored, "Range: bytes=2-4", 'If-Range: "x"')[0].body == CONTENT


def test_a_signed_url_is_for_its_method() -> None:
    location = SignedUrl("https://x.example/?a=%2F", "https://x.example/?head", 10)
    for method, url in (("GET", location.url), ("HEAD", location.head_url)):
        for answered in ask(location, method=method):
            assert (answered.status, answered.headers["location"]) == (307, url)
            assert answered.headers["cache-control"] == "no-store"


def test_a_stream_that_cannot_begin() -> None:
    for response in ask(streamed(CONTENT, breaks_at=0)):
        assert (response.status, response.body[:7]) == (503, b"REFUSED")
        assert b"secret" not in response.body
    for head in ask(streamed(CONTENT, breaks_at=0), method="HEAD"):
        assert (head.status, head.headers["content-length"]) == (200, "10")


@pytest.mark.parametrize(
    "location", [streamed(CONTENT, breaks_at=4), StoredStream(99, "x", streamed(CONTENT).pieces)]
)
def test_a_stream_that_breaks_off(location: StoredStream) -> None:
    """With an error, or because there is less than was said."""
    with pytest.raises((ConnectionError, AssertionError, EOFError)):
        ask(location)


async def test_small_streams_are_read() -> None:
    assert await in_memory(streamed(CONTENT)) == StoredBytes(CONTENT)
    large = streamed(bytes(IN_MEMORY_BYTES + 1))
    assert await in_memory(large) is large
    assert await etag_of(large) == '"version"'


async def test_small_files_are_read(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(bytes(IN_MEMORY_BYTES + 1))
    large = StoredFile(file, IN_MEMORY_BYTES + 1)
    assert await in_memory(large) is large
    file.write_bytes(bytes(IN_MEMORY_BYTES))
    assert await in_memory(StoredFile(file, IN_MEMORY_BYTES)) == StoredBytes(bytes(IN_MEMORY_BYTES))


async def test_etags(stored: Location) -> None:
    etag = await etag_of(stored)
    assert etag[0] == etag[-1] == '"'
    assert etag == await etag_of(stored)
    if isinstance(stored, StoredFile):
        stored.path.write_bytes(CONTENT[::-1])
    else:
        stored = StoredBytes(CONTENT[::-1])
    assert await etag_of(stored) != etag
