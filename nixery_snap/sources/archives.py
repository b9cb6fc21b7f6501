"""Checkouts of archives that are fetched from web servers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

from nixery_snap.errors import InvalidFormat, SourceError, StorageError
from nixery_snap.sources.checkouts import Checkouts
from nixery_snap.sources.unpack import UnpackLimits, decompressed, unpack


class Archives:
    """In `directory`; `label` is the source's name in messages. All methods raise SourceError and StorageError."""

    def __init__(self, label: str, directory: Path, limits: UnpackLimits) -> None:
        self._label = label
        self._limits = limits
        self._checkouts = Checkouts(directory / "checkouts")
        self._lock = asyncio.Lock()

    async def find(self, revision: str) -> Path | None:
        with self._translated():
            return await asyncio.to_thread(self._checkouts.find, revision)

    async def make(self, fetch: Callable[[Path], Awaitable[str | None]]) -> str | None:
        """The revision that `fetch` names of the archive that it wrote to a file; afterwards it is checked out.

        None, and nothing is made, where `fetch` says so; what else it raises is passed on.
        """
        async with self._staged() as staged:
            archive = staged / "archive"
            revision = await fetch(archive)
            if revision is not None and await self.find(revision) is None:
                await asyncio.to_thread(self._unpack, archive, staged / "source")
                archive.unlink()
                await asyncio.to_thread(self._checkouts.keep, staged, revision)
            return revision

    @contextlib.asynccontextmanager
    async def once(self) -> AsyncIterator[None]:
        """One at a time: what the first makes, the next finds."""
        async with self._lock:
            yield

    @contextlib.asynccontextmanager
    async def _staged(self) -> AsyncIterator[Path]:
        with self._translated():
            staged = await asyncio.to_thread(self._checkouts.stage)
            try:
                yield staged
            finally:
                await asyncio.to_thread(self._checkouts.discard, staged)

    def _unpack(self, archive: Path, target: Path) -> None:
        with archive.open("rb") as file:
            unpack(decompressed(file), target, self._limits, self._label, strip=True)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except InvalidFormat as error:
            raise SourceError(f"{self._label} cannot be unpacked: {error}") from error
        except OSError as error:
            raise StorageError(f"the checkouts of {self._label} cannot be used: {error}") from error
