import asyncio
import base64
import gzip
import threading
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from nixery_snap.errors import InvalidFormat, SettingsError
from nixery_snap.nix_stores import cache_transport
from nixery_snap.nix_stores.cache_transport import (
    CacheTransport,
    HttpTransport,
    ObjectTransport,
    TransportFailed,
    open_transport,
    shown_url,
)
from nixery_snap.nix_stores.decompression import sniffed
from tests.unit.nix_stores.caches import begun, body, cached, reset, serving, slow_headers, status

HELLO = cached("hello")
CONTENT = bytes(range(256)) * 8000


async def streamed(transport: CacheTransport, name: str, first_bytes: int | None = None) -> bytes:
    async with transport.stream(name, first_bytes) as chunks:
        return b"".join([chunk async for chunk in chunks])


@pytest.fixture(params=["http", "file", "s3"])
async def transport(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[CacheTransport]:
    """Of a cache with one small and one large file, below a prefix with a blank in it."""
    files = {"small.narinfo": b"small", "empty": b"", "nar/large.nar.xz": CONTENT}
    for name, content in files.items():
        (tmp_path / "a b" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "a b" / name).write_bytes(content)
    async with serving() as cache:
        prefix = "bucket/a b/" if request.param == "s3" else "a b/"
        cache.files = {prefix + name: content for name, content in files.items()}
        host = cache.url.removeprefix("http://")
        url = {
            "http": f"http://user:secret@{host}/a%20b/",
            "file": (tmp_path / "a b").as_uri(),
            "s3": f"s3://bucket/a%20b?endpoint={host}&scheme=http&region=eu-west-1&skip_signature=true",
        }[request.param]
        found = open_transport(url, request_timeout=60)
        yield found
        await found.close()


async def test_files(transport: CacheTransport) -> None:
    assert await transport.get("small.narinfo", 100) == b"small"
    assert await transport.get("small.narinfo", 5) == b"small"
    assert await transport.get("empty", 5) == b""
    assert await transport.get("absent.narinfo", 100) is None
    assert await streamed(transport, "nar/large.nar.xz") == CONTENT
    assert CONTENT.startswith(await streamed(transport, "nar/large.nar.xz", 1000))
    with pytest.raises(FileNotFoundError):
        await streamed(transport, "nar/absent.nar.xz")
    for name, limit in (("small.narinfo", 4), ("nar/large.nar.xz", 1_000_000)):
        with pytest.raises(InvalidFormat, match="larger than"):
            await transport.get(name, limit)
    assert "secret" not in transport.url


async def test_what_is_unpacked_uncalled_for_does_not_hold_up_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads: list[threading.Thread] = []

    def noted(content: bytes, max_bytes: int) -> bytes:
        threads.append(threading.current_thread())
        return sniffed(content, max_bytes)

    monkeypatch.setattr(cache_transport, "sniffed", noted)
    async with serving() as cache:
        transport = HttpTransport(cache.url)
        for content in (b"small", bytes(10_000_000)):
            cache.faults["x"] = body(gzip.compress(content), Content_Encoding="gzip")
            assert await transport.get("x", 10_000_000) == content
        await transport.close()
    assert len(threads) == 2
    assert threading.main_thread() not in threads


async def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    try:
        transport = open_transport((tmp_path / "absent").as_uri())
    except SettingsError:
        return
    assert await transport.get("nix-cache-info", 100) is None


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("https://cache.example", HttpTransport),
        ("http://cache.example:8080/below?token=x", HttpTransport),
        ("s3://bucket", ObjectTransport),
        ("s3://bucket/prefix?region=eu-west-1&endpoint=minio.example:9000&scheme=http", ObjectTransport),
        ("gs://bucket?skip_signature=1", ObjectTransport),
    ],
)
async def test_urls(url: str, kind: type[CacheTransport]) -> None:
    transport = open_transport(url)
    assert isinstance(transport, kind)
    await transport.close()


@pytest.mark.parametrize(
    "url",
    [
        "ftp://cache.example",
        "ssh://cache.example",
        "file://host/cache",
        "file:cache",
        "/cache",
        "s3://",
        "s3://bucket?profile=x",
        "s3://bucket?secret-key=hidden",
        "s3://bucket?endpoint=x&scheme=gopher",
        "gs://bucket?region=x",
        "",
    ],
)
def test_urls_of_something_else(url: str) -> None:
    with pytest.raises(SettingsError) as caught:
        open_transport(url)
    assert "hidden" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://cache.example/", "https://cache.example"),
        ("https://user:pass@cache.example/a?token=secret#x", "https://cache.example/a"),
        ("file:///cache", "file:///cache"),
        ("s3://bucket?region=r&endpoint=e&secret-key=s", "s3://bucket?region=r&endpoint=e"),
        ("own", "own"),
    ],
)
def test_urls_for_people(url: str, shown: str) -> None:
    assert shown_url(url) == shown
    assert shown_url(shown) == shown


async def test_credentials_and_queries_are_sent_and_not_shown() -> None:
    seen: list[web.Request] = []

    async def remember(request: web.Request) -> web.StreamResponse:
        seen.append(request)
        return web.Response(status=500)

    async with serving() as cache:
        cache.faults["*"] = remember
        transport = HttpTransport(cache.url.replace("//", "//me:secret@") + "?token=secret")
        with pytest.raises(TransportFailed, match="500") as caught:
            await transport.get("nar/x?hash=y", 10)
        assert "secret" not in f"{caught.value}{transport.url}"
        assert seen[0].headers["Authorization"] == "Basic " + base64.b64encode(b"me:secret").decode()
        assert seen[0].headers["Accept-Encoding"] == "identity"
        assert seen[0].path_qs == "/nar/x?hash=y&token=secret"
        await transport.close()


async def test_names_stay_below_the_prefix() -> None:
    async with serving(HELLO) as cache:
        cache.files = {f"prefix/{name}": content for name, content in cache.files.items()}
        transport = HttpTransport(f"{cache.url}/prefix/")
        assert await transport.get(HELLO.narinfo_name, 10_000) == bytes(HELLO.narinfo)
        await transport.close()


async def test_redirects() -> None:
    async with serving(HELLO) as elsewhere, serving() as cache:

        async def moved(request: web.Request) -> web.StreamResponse:
            raise web.HTTPFound(elsewhere.url + request.path)

        cache.faults["*"] = moved
        transport = HttpTransport(cache.url)
        assert await transport.get(HELLO.narinfo_name, 10_000) == bytes(HELLO.narinfo)
        assert await streamed(transport, HELLO.narinfo.url) == HELLO.packed
        await transport.close()


async def test_a_cache_that_redirects_is_asked_once_for_each_file() -> None:
    async with serving(HELLO) as elsewhere, serving() as cache:

        async def moved(request: web.Request) -> web.StreamResponse:
            raise web.HTTPFound(elsewhere.url + request.path)

        cache.faults["*"] = moved
        transport = HttpTransport(cache.url)
        for _ in range(5):
            assert await transport.get(HELLO.narinfo_name, 10_000) == bytes(HELLO.narinfo)
        assert cache.asked[HELLO.narinfo_name] == 6, "but for the first"
        assert elsewhere.asked[HELLO.narinfo_name] == 5
        await transport.close()


@pytest.mark.parametrize(
    ("code", "retry", "seconds"),
    [
        (500, True, None),
        (503, True, 7),
        (429, True, 7),
        (401, False, None),
        (400, False, None),
        (304, False, None),
    ],
)
async def test_statuses_that_say_nothing(code: int, retry: bool, seconds: int | None) -> None:
    async with serving() as cache:
        cache.faults["*"] = status(code, **({} if seconds is None else {"Retry_After": str(seconds)}))
        transport = HttpTransport(cache.url)
        for ask in (lambda: transport.get("x", 10), lambda: streamed(transport, "x")):
            with pytest.raises(TransportFailed, match=str(code)) as caught:
                await ask()  # type: ignore[no-untyped-call] # a lambda
            assert (caught.value.retry, caught.value.retry_after_seconds) == (retry, seconds)
        cache.faults["*"] = status(503, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT")
        with pytest.raises(TransportFailed) as caught:
            await transport.get("x", 10)
        assert caught.value.retry_after_seconds is None
        await transport.close()


async def endless(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(bytes(100_000))


async def test_bodies_without_end() -> None:
    async with serving() as cache:
        cache.faults["*"] = endless
        transport = HttpTransport(cache.url)
        with pytest.raises(InvalidFormat, match="larger than 1000000"):
            await transport.get("x", 1_000_000)
        await transport.close()


async def test_a_session_of_the_caller_stays_open() -> None:
    async with serving(HELLO) as cache, aiohttp.ClientSession(auto_decompress=False) as session:
        transport = HttpTransport(cache.url, session)
        assert await transport.get(HELLO.narinfo_name, 10_000)
        await transport.close()
        assert not session.closed


async def test_time_limits() -> None:
    async with serving() as cache:
        transport = HttpTransport(cache.url, request_timeout=0.2, nar_timeout=1)
        cache.faults["slow"] = slow_headers
        cache.faults["stalled"] = begun(b"x", 100, slow_headers)

        async def trickle(request: web.Request) -> web.StreamResponse:
            response = web.StreamResponse(headers={"Content-Length": "100"})
            await response.prepare(request)
            for _ in range(50):
                await asyncio.sleep(0.05)
                await response.write(b"x")
            return response

        cache.faults["trickle"] = trickle
        for name in ("slow", "stalled", "trickle"):
            with pytest.raises(TransportFailed, match="in time"):
                await transport.get(name, 1000)
            with pytest.raises(TransportFailed, match="in time"):
                await streamed(transport, name)
        await transport.close()


async def test_broken_connections() -> None:
    async with serving() as cache:
        url = cache.url
        transport = HttpTransport(url)
        cache.faults["*"] = reset
        with pytest.raises(TransportFailed) as caught:
            await transport.get("x", 10)
        assert caught.value.retry
        cache.faults["*"] = body(b"not gzip", Content_Encoding="br, gzip")
        assert await transport.get("x", 10) == b"not gzip"
    with pytest.raises(TransportFailed, match="onnect") as caught:
        await transport.get("x", 10)
    assert caught.value.retry
    await transport.close()
