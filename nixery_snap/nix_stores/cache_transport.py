"""How the files of a binary cache are fetched: over HTTP, or from a directory or bucket through obstore."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import lru_cache
from typing import Any, Final, Protocol
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import obstore
from obstore.exceptions import BaseError, PermissionDeniedError
from obstore.store import LocalStore
from yarl import URL

from nixery_snap import tracing
from nixery_snap.buckets import PARAMETERS, Bucket, open_bucket
from nixery_snap.errors import InvalidFormat, SettingsError
from nixery_snap.nix_stores.decompression import sniffed
from nixery_snap.nix_stores.small_http import Answer, SmallHttp, Unusual

_CHUNK_BYTES: Final = 256 * 1024
_CONNECT_SECONDS: Final = 5.0
_MAX_REDIRECTS: Final = 5
_ABSENT: Final = frozenset({403, 404, 410})  # buckets that may not be listed answer 403 for what is not there
_PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})


class TransportFailed(Exception):
    """No answer, or one that says nothing about what was asked for. `retry`: another try may help."""

    def __init__(self, reason: str, *, retry: bool, retry_after_seconds: float | None = None) -> None:
        self.reason, self.retry, self.retry_after_seconds = reason, retry, retry_after_seconds
        super().__init__(reason)


Fetched = bytes | TransportFailed | InvalidFormat | None
"""What `CacheTransport.get` returns or raises."""
Told = Callable[[str, Fetched, float], object]
"""Is told a name, what was fetched, and how many seconds that took."""


class CacheTransport(Protocol):
    """Fetches files by their names relative to a cache's URL. `get` and `stream` raise TransportFailed."""

    @property
    def url(self) -> str:
        """The cache's, without its secrets."""

    async def get(self, name: str, max_bytes: int) -> bytes | None:
        """All of a small file, None for one that is not there. Raises InvalidFormat over `max_bytes`."""

    async def get_many(self, names: Iterator[str], max_bytes: int, at_most: int, told: Told) -> None:
        """Fetch those of the small files that take nothing but an open connection, `at_most` at a time.

        `told` hears of each. Those that it does not hear of are left to `get`.
        """

    def stream(
        self, name: str, first_bytes: int | None = None
    ) -> AbstractAsyncContextManager[AsyncIterator[bytes]]:
        """A file piece by piece; no more than `first_bytes` need come. Entering raises FileNotFoundError."""

    async def close(self) -> None: ...


class HttpTransport:
    """HTTP/1.1 with connections kept open. `session` stays the caller's; without one its own is made.

    Small files come by SmallHttp, unless a proxy or the server's answers call for more; all else by the session.
    `request_timeout` is for all of a small file and between two pieces of a stream, `nar_timeout` for all
    of a stream, both in seconds.
    """

    def __init__(
        self,
        url: str,
        session: aiohttp.ClientSession | None = None,
        *,
        request_timeout: float = 15,
        nar_timeout: float = 3600,
    ) -> None:
        self.url: Final = shown_url(url)
        base = URL(url.partition("#")[0])
        self._base = str(base.with_query(None)).rstrip("/") + "/"
        self._query = base.raw_query_string
        self._session = session
        self._owned: aiohttp.ClientSession | None = None
        connect = min(_CONNECT_SECONDS, request_timeout)
        proxy = _proxy(base)
        self._options: dict[str, Any] = {"max_redirects": _MAX_REDIRECTS, "proxy": proxy}
        self._small = SmallHttp(base, timeout=request_timeout, connect_timeout=connect)
        self._is_ordinary = proxy is None
        self._is_encoded = False
        self._path = base.raw_path.rstrip("/") + "/"
        self._get_timeout = aiohttp.ClientTimeout(total=request_timeout, sock_connect=connect)
        self._stream_timeout = aiohttp.ClientTimeout(
            total=nar_timeout, sock_connect=connect, sock_read=request_timeout
        )

    async def get(self, name: str, max_bytes: int) -> bytes | None:
        with _translated:
            answer = await self._answer(name, max_bytes)
        if not _is_there(answer.status, answer.headers.get("retry-after", "")):
            return None
        if "content-encoding" in answer.headers:  # uncalled for, but it happens
            return await asyncio.to_thread(sniffed, answer.body, max_bytes)
        return answer.body

    async def get_many(self, names: Iterator[str], max_bytes: int, at_most: int, told: Told) -> None:
        if not self._is_ordinary or self._is_encoded:
            return
        by_target: dict[str, str] = {}

        def targets() -> Iterator[str]:
            for name in names:
                target = self._path + self._with_query(name)
                by_target[target] = name
                yield target

        def answered(target: str, said: Answer | Exception, seconds: float) -> None:
            fetched: Fetched
            try:
                with _translated:
                    if isinstance(said, Exception):
                        raise said
                if "content-encoding" in said.headers:
                    self._is_encoded = True  # and so would all the others be sent twice
                    return
                is_there = _is_there(said.status, said.headers.get("retry-after", ""))
                fetched = said.body if is_there else None
            except Unusual:
                return
            except (TransportFailed, InvalidFormat) as error:
                fetched = error
            told(by_target[target], fetched, seconds)

        await self._small.get_many(targets(), max_bytes, at_most, answered)

    async def _answer(self, name: str, max_bytes: int) -> Answer:
        if self._is_ordinary:
            try:
                return await self._small.get(self._path + self._with_query(name), max_bytes)
            except Unusual as unusual:
                self._is_ordinary = not unusual.stays
        async with self._request(name, self._get_timeout) as response:
            headers = {name.lower(): value for name, value in response.headers.items()}
            content = await _bounded(response, max_bytes) if response.status in {200, 206} else b""
            return Answer(response.status, headers, content)

    @asynccontextmanager
    async def stream(self, name: str, first_bytes: int | None = None) -> AsyncIterator[AsyncIterator[bytes]]:
        headers = None if first_bytes is None else {"Range": f"bytes=0-{first_bytes - 1}"}
        with _translated:
            async with self._request(name, self._stream_timeout, headers) as response:
                if not _is_there(response.status, response.headers.get("Retry-After", "")):
                    raise FileNotFoundError(name)
                if encoding := response.headers.get("Content-Encoding"):
                    raise TransportFailed(
                        f"it answers encoded as {encoding[:40]!r} uncalled for", retry=False
                    )
                yield response.content.iter_chunked(_CHUNK_BYTES)

    async def close(self) -> None:
        await self._small.close()
        if self._owned is not None:
            await self._owned.close()

    def _request(
        self, name: str, timeout: aiohttp.ClientTimeout, headers: dict[str, str] | None = None
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        if self._session is None:
            self._session = self._owned = _session()
        url = URL(self._base + self._with_query(name), encoded=True)
        if parent := tracing.traceparent():
            headers = {**(headers or {}), tracing.TRACEPARENT: parent}
        return self._session.get(url, timeout=timeout, headers=headers, **self._options)

    def _with_query(self, name: str) -> str:
        if not self._query:
            return name
        return f"{name}{'&' if '?' in name else '?'}{self._query}"


def _session() -> aiohttp.ClientSession:
    # Substituter bounds the number of requests.
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=30, ttl_dns_cache=60),
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        read_bufsize=_CHUNK_BYTES,
        headers={"Accept-Encoding": "identity", "User-Agent": "nixery-snap"},
    )


def _proxy(url: URL) -> str | None:
    """From the environment, once: looking for each request would take longer than the request."""
    return None if url.host is None or proxy_bypass(url.host) else getproxies().get(url.scheme)


def _is_there(status: int, retry_after: str) -> bool:
    """Raises TransportFailed for a status that is neither yes nor no."""
    # 416: an empty file has no first bytes.
    if status in {200, 206, 416}:
        return status != 416
    if status in _ABSENT:
        return False
    raise TransportFailed(
        f"it answers with status {status}",
        retry=status in _PASSING,
        # The other form, a date, is longer than anybody here would wait.
        retry_after_seconds=float(retry_after) if retry_after.isascii() and retry_after.isdigit() else None,
    )


async def _bounded(response: aiohttp.ClientResponse, max_bytes: int) -> bytes:
    pieces, size_bytes = [], 0
    if (response.content_length or 0) <= max_bytes:
        async for piece in response.content.iter_any():
            pieces.append(piece)
            size_bytes += len(piece)
            if size_bytes > max_bytes:
                break
        else:
            return pieces[0] if len(pieces) == 1 else b"".join(pieces)
    response.close()
    raise InvalidFormat("body", "…", f"it is larger than {max_bytes} bytes")


class _Translated:
    """What libraries raise becomes TransportFailed, without the URLs in their messages."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None:
            _translate(error)


_translated: Final = _Translated()


def _translate(error: BaseException) -> None:
    """Raises what it becomes, unless it stays."""
    if isinstance(error, aiohttp.TooManyRedirects):
        raise TransportFailed("it redirects too often", retry=False) from None
    if isinstance(error, aiohttp.InvalidURL | aiohttp.NonHttpUrlRedirectClientError):
        raise TransportFailed("it redirects to what is no HTTP URL", retry=False) from None
    if isinstance(error, TimeoutError):
        raise TransportFailed("it does not answer in time", retry=False) from error
    if isinstance(error, aiohttp.ClientResponseError):
        raise TransportFailed(f"it answers with no HTTP: {error.message[:200]}", retry=True) from None
    if isinstance(error, PermissionDeniedError):
        raise FileNotFoundError from None
    if isinstance(error, FileNotFoundError):
        return
    if isinstance(error, aiohttp.ClientError | OSError):
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise TransportFailed((reason or type(error).__name__)[:300], retry=True) from error
    if isinstance(error, BaseError):
        # The first line says it; the others hold whole requests.
        raise TransportFailed(str(error).partition("\n")[0][:300], retry=True) from None


class ObjectTransport:
    """A directory or a bucket in which a binary cache lies, read through obstore."""

    def __init__(
        self,
        url: str,
        store: LocalStore | Bucket,
        *,
        request_timeout: float = 15,
        nar_timeout: float = 3600,
    ) -> None:
        self.url: Final = shown_url(url)
        self._store = store
        self._request_timeout, self._nar_timeout = request_timeout, nar_timeout

    async def get(self, name: str, max_bytes: int) -> bytes | None:
        with _translated:
            try:
                async with asyncio.timeout(self._request_timeout):
                    result = await obstore.get_async(self._store, name)
                    if result.meta["size"] > max_bytes:
                        raise InvalidFormat("body", "…", f"it is larger than {max_bytes} bytes")
                    return bytes(await result.bytes_async())
            except (FileNotFoundError, PermissionDeniedError):
                return None

    async def get_many(self, names: Iterator[str], max_bytes: int, at_most: int, told: Told) -> None:
        """Has no connections of its own."""

    @asynccontextmanager
    async def stream(self, name: str, first_bytes: int | None = None) -> AsyncIterator[AsyncIterator[bytes]]:
        with _translated:
            async with asyncio.timeout(self._request_timeout):
                result = await obstore.get_async(self._store, name)
            yield self._pieces(result)

    async def _pieces(self, result: obstore.GetResult) -> AsyncIterator[bytes]:
        pieces = aiter(result.stream(_CHUNK_BYTES))
        loop = asyncio.get_running_loop()
        end = loop.time() + self._nar_timeout
        while True:
            async with asyncio.timeout_at(min(end, loop.time() + self._request_timeout)):
                piece = await anext(pieces, None)
            if piece is None:
                return
            yield bytes(piece)

    async def close(self) -> None:
        pass


def open_transport(
    url: str,
    session: aiohttp.ClientSession | None = None,
    *,
    request_timeout: float = 15,
    nar_timeout: float = 3600,
) -> CacheTransport:
    """For https, http, file and buckets. Raises SettingsError for a URL that is none of these."""
    scheme = urlsplit(url).scheme
    if scheme in {"http", "https"}:
        return HttpTransport(url, session, request_timeout=request_timeout, nar_timeout=nar_timeout)
    try:
        store = _object_store(url, request_timeout)
    except (BaseError, OSError, ValueError) as error:
        raise SettingsError("substituters", f"{shown_url(url)}: {error}") from None
    return ObjectTransport(url, store, request_timeout=request_timeout, nar_timeout=nar_timeout)


def _object_store(url: str, timeout_seconds: float) -> LocalStore | Bucket:
    """Raises ValueError."""
    parts = urlsplit(url)
    if parts.scheme == "file" and not parts.netloc and parts.path.startswith("/") and not parts.query:
        return LocalStore(unquote(parts.path))
    if parts.scheme not in PARAMETERS:
        raise ValueError(f"it must be https://…, http://…, file:///…, or {', '.join(PARAMETERS)} with ://…")
    # Substituter tries again by itself, and knows when to stop.
    return open_bucket(url, max_retries=0, timeout_seconds=timeout_seconds)


@lru_cache(1024)
def shown_url(url: str) -> str:
    """A cache's URL for people, records and path infos: without user, password and secrets in its query."""
    parts = urlsplit(url)
    query = ""
    if known := PARAMETERS.get(parts.scheme):
        query = urlencode([item for item in parse_qsl(parts.query) if item[0] in known])
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), query, ""))
