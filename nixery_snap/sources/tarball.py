"""The source `tarball:URL`: a package set in an archive on a web server. Its revision is the archive's SHA-256."""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from nixery_snap.errors import StorageError, TagNotFound
from nixery_snap.ports import PackageSet, Pin
from nixery_snap.sources.archives import Archives
from nixery_snap.sources.download import Downloads, NotThere, WebAccess, WebUrl
from nixery_snap.sources.unpack import UnpackLimits

_HEAD_TAG: Final = "latest"
_REVISION: Final = re.compile(r"[0-9a-f]{64}")
_SEEN: Final = "seen.json"


class TarballSource:
    """Implements the port PackageSource. Remembers no pin of `latest`: see `pinning`."""

    def __init__(self, url: WebUrl, access: WebAccess, directory: Path, limits: UnpackLimits) -> None:
        """`directory` is ours, for the checkouts."""
        self.name = f"tarball:{url.name}"
        self._url = url
        self._downloads = Downloads(url, access)
        self._archives = Archives(self.name, directory, limits)
        self._seen = directory / _SEEN

    async def pin(self, tag: str) -> Pin:
        if pin := self.current(tag):
            return pin
        if tag != _HEAD_TAG:
            raise TagNotFound(self.name, tag, "it has the tag latest, and the SHA-256 of what it was before")
        async with self._archives.once():
            return self._pin(await self._refresh())

    def current(self, tag: str) -> Pin | None:
        return self._pin(tag) if _REVISION.fullmatch(tag) else None

    async def checkout(self, pin: Pin) -> PackageSet:
        gone = TagNotFound(self.name, pin.revision, "that content is not there any more; use latest")
        if not _REVISION.fullmatch(pin.revision):
            raise gone
        found = await self._archives.find(pin.revision)
        if found is None:
            async with self._archives.once():
                if await self._refresh() == pin.revision:
                    found = await self._archives.find(pin.revision)
        if found is None:
            raise gone
        return PackageSet(found, pin=pin)

    async def tags(self) -> Sequence[str]:
        return [_HEAD_TAG]

    def close(self) -> None:
        pass

    async def _refresh(self) -> str:
        """The revision of what the server has now; it is checked out, too."""
        seen = await asyncio.to_thread(self._read_seen)
        validators: Mapping[str, str] = {}
        if seen is not None and await self._archives.find(seen["revision"]) is not None:
            validators = seen["validators"]

        async def fetch(target: Path) -> str | None:
            fetched = await self._downloads.file(self._url.text, target, validators)
            if fetched is None:
                return None
            await asyncio.to_thread(self._write_seen, fetched.sha256, fetched.validators)
            return fetched.sha256

        try:
            return await self._archives.make(fetch) or str(seen["revision"])
        except NotThere:
            raise TagNotFound(self.name, _HEAD_TAG, f"there is nothing at {self._url.shown}") from None

    def _pin(self, revision: str) -> Pin:
        return Pin(revision, self._url.shown)

    def _read_seen(self) -> Any:
        try:
            seen = json.loads(self._seen.read_bytes())
            return seen if seen["url"] == self._url.shown and _REVISION.fullmatch(seen["revision"]) else None
        except (FileNotFoundError, ValueError, LookupError, TypeError):
            return None
        except OSError as error:
            raise StorageError(f"the cache of {self.name} cannot be read: {error}") from error

    def _write_seen(self, revision: str, validators: Mapping[str, str]) -> None:
        value = {"url": self._url.shown, "revision": revision, "validators": dict(validators)}
        new = self._seen.with_name(f"{_SEEN}.{os.getpid()}")
        new.write_text(json.dumps(value))
        new.replace(self._seen)
