"""Our own binary cache as a substituter: the same checks and the same reading, without HTTP."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Collection, Iterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

from nixery_snap.nix_stores.cache_transport import Told
from nixery_snap.ports import CacheFiles

_URL: Final = re.compile(rb"^URL: (nar/[!-~]+)$", re.MULTILINE)  # of a narinfo


class OwnTransport:
    """Implements CacheTransport over the files of our cache."""

    def __init__(self, url: str, files: CacheFiles) -> None:
        self.url = url
        self._files = files

    async def get(self, name: str, max_bytes: int) -> bytes | None:
        content = await self._files.get(name)
        url = _URL.search(content) if content and name.endswith(".narinfo") else None
        if url and await self._files.locate(url[1].decode()) is None:
            return None  # removed while the narinfo was written: the path is published again
        return content

    async def get_many(self, names: Iterator[str], max_bytes: int, at_most: int, told: Told) -> None:
        """Has no connections."""

    @asynccontextmanager
    async def stream(self, name: str, first_bytes: int | None = None) -> AsyncIterator[AsyncIterator[bytes]]:
        if await self._files.locate(name) is None:
            raise FileNotFoundError(name)
        yield self._pieces(name)

    async def _pieces(self, name: str) -> AsyncIterator[bytes]:
        pieces = self._files.read(name)
        while (piece := await asyncio.to_thread(next, pieces, None)) is not None:
            yield piece

    async def close(self) -> None:
        """Nothing is open between requests."""


class Forgetful:
    """Implements the port Records for what changes under us: remembers nothing."""

    async def get(self, kind: str, key: str) -> Any | None:
        return None

    async def get_many(self, kind: str, keys: Collection[str]) -> Mapping[str, Any]:
        return {}

    async def put(self, kind: str, key: str, value: Any) -> Any:
        return value

    async def replace(self, kind: str, key: str, value: Any) -> None:
        return
