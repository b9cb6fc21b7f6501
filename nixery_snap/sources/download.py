"""Fetches what sources have on web servers: with bounds, and credentials for the source's own host alone."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from yarl import URL

from nixery_snap.errors import SourceError
from nixery_snap.sources.credentials import basic, from_netrc, from_token_file

_CHUNK_BYTES: Final = 256 * 1024
_CONNECT_SECONDS: Final = 10.0
_SILENCE_SECONDS: Final = 30.0
_MAX_REDIRECTS: Final = 5
_SMALL_BYTES: Final = 64 * 1024
_ABSENT: Final = frozenset({404, 410})


@dataclass(frozen=True, slots=True)
class WebUrl:
    """`text` holds no secret. `authorization` is of user and password that stood in the URL."""

    text: str
    authorization: str | None = field(default=None, repr=False)

    @classmethod
    def parse(cls, text: str) -> Self:
        """Raises ValueError with a reason that holds nothing of the URL."""
        parts = urlsplit(text)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.fragment:
            raise ValueError("it must be an http:// or https:// URL without a # part")
        if parts.port == 0:  # which raises ValueError for what is no port
            raise ValueError("the port is no number from 1 to 65535")
        login, _, host = parts.netloc.rpartition("@")
        user, _, password = map(unquote, login.partition(":"))
        plain = urlunsplit((parts.scheme, host, parts.path, parts.query, ""))
        return cls(plain, basic(user, password) if login else None)

    @property
    def shown(self) -> str:
        """For people: queries can hold secrets, as signed URLs do."""
        return self.text.partition("?")[0]

    @property
    def name(self) -> str:
        """As shown, and another one for another query."""
        query = self.text.partition("?")[2]
        return self.shown + (f"?{hashlib.sha256(query.encode()).hexdigest()[:12]}" if query else "")


@dataclass(frozen=True, slots=True)
class WebAccess:
    """Files are read when they are needed, so that they can be replaced."""

    token_file: Path | None = None
    """See `credentials.from_token_file`."""
    netrc_file: Path | None = None
    timeout_seconds: float = 600
    max_bytes: int = 1024**3


class NotThere(Exception):
    """The server says that there is nothing of that name."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """`url` is where redirects led; `validators` are headers to ask with whether there is something new."""

    url: str
    sha256: str
    validators: Mapping[str, str]


class Downloads:
    """From the host of `base`, and wherever it redirects to."""

    def __init__(self, base: WebUrl, access: WebAccess) -> None:
        self._base = base
        self._access = access

    async def small(self, url: str) -> tuple[bytes, str]:
        """The content and where redirects led. Raises NotThere, SourceError."""
        async with self._response(url) as response:
            content = b""
            async for piece in self._pieces(response, _SMALL_BYTES):
                content += piece
            return content, str(response.url)

    async def file(
        self, url: str, target: Path, validators: Mapping[str, str] | None = None
    ) -> Fetched | None:
        """Into `target`; None for what has not changed since the answer that `validators` are from.

        Raises NotThere, SourceError, OSError.
        """
        async with self._response(url, validators) as response:
            if response.status == 304:
                return None
            digest = hashlib.sha256()
            with target.open("wb") as file:
                async for piece in self._pieces(response, self._access.max_bytes):
                    await asyncio.to_thread(file.write, piece)
                    await asyncio.to_thread(digest.update, piece)
            found = {
                asked: response.headers[given]
                for given, asked in (("ETag", "If-None-Match"), ("Last-Modified", "If-Modified-Since"))
                if given in response.headers
            }
            return Fetched(str(response.url), digest.hexdigest(), found)

    @asynccontextmanager
    async def _response(
        self, url: str, validators: Mapping[str, str] | None = None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        shown = WebUrl(url).shown
        timeout = aiohttp.ClientTimeout(
            total=self._access.timeout_seconds, sock_connect=_CONNECT_SECONDS, sock_read=_SILENCE_SECONDS
        )
        headers = {"Accept-Encoding": "identity", "User-Agent": "nixery-snap", **(validators or {})}
        asked = URL(url, encoded=True)
        if (secret := self._authorization(asked)) is not None:
            headers["Authorization"] = secret  # aiohttp leaves it out where a redirect leads to another host
        try:
            async with (
                aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False) as session,
                session.get(
                    asked, headers=headers, timeout=timeout, max_redirects=_MAX_REDIRECTS, proxy=_proxy(asked)
                ) as response,
            ):
                if asked.scheme == "https" and any(
                    one.url.scheme != "https" for one in (*response.history, response)
                ):
                    raise SourceError(f"{shown} redirects from https to http, where anybody could change it")
                if response.status in _ABSENT:
                    raise NotThere
                if response.status != 200 and not (validators and response.status == 304):
                    hint = (
                        "; see token_file and netrc_file of its settings"
                        if response.status in {401, 403}
                        else ""
                    )
                    raise SourceError(f"{shown} answers with status {response.status}{hint}")
                yield response
        except TimeoutError:
            raise SourceError(f"{shown} does not answer in time") from None
        except (aiohttp.ClientError, ValueError) as error:
            # Their messages hold whole URLs.
            reason = getattr(error, "strerror", None) or type(error).__name__
            raise SourceError(f"{shown} cannot be fetched: {reason}") from None

    def _authorization(self, url: URL) -> str | None:
        if url.origin() != URL(self._base.text).origin():
            return None
        if self._access.token_file is not None:
            return from_token_file(self._access.token_file)
        if self._base.authorization is None and self._access.netrc_file is not None:
            return from_netrc(self._access.netrc_file, url.host or "")
        return self._base.authorization

    async def _pieces(self, response: aiohttp.ClientResponse, max_bytes: int) -> AsyncIterator[bytes]:
        left = max_bytes
        async for piece in response.content.iter_chunked(_CHUNK_BYTES):
            left -= len(piece)
            if left < 0:
                raise SourceError(f"{self._base.shown} sends more than {max_bytes} bytes")
            yield piece


def _proxy(url: URL) -> str | None:
    return None if url.host is None or proxy_bypass(url.host) else getproxies().get(url.scheme)
