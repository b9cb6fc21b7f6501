"""When something was last asked for: each process writes journals of the uses that are new to it.

An hour's journal is one small object, however many images there are; the time of a use is when its journal was
written. What was written down once is not again for `noted_seconds`.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Final

import structlog

from nixery_snap.errors import StorageError
from nixery_snap.object_store import keys
from nixery_snap.object_store.store import ObjectStore
from nixery_snap.object_store.sweeps import Sweeps

log = structlog.get_logger()

_MOST_WRITTEN: Final = 500_000  # remembered; what is forgotten is written again


class StoredUses:
    """Implements the port Uses."""

    def __init__(
        self, store: ObjectStore, sweeps: Sweeps, noted_seconds: float, flush_seconds: float
    ) -> None:
        self._store = store
        self._sweeps = sweeps
        self._noted_seconds = noted_seconds
        self._flush_seconds = flush_seconds
        self._unwritten: set[str] = set()
        self._written: set[str] = set()
        self._written_until = 0.0
        self._flush_at = time.monotonic() + flush_seconds
        self._flushing = asyncio.Lock()
        self._names = map(f"{secrets.token_hex(8)}-{{}}".format, itertools.count())
        self._sources: list[Callable[[], Iterable[str]]] = []

    def trusted(self) -> bool:
        return self._sweeps.trusted()

    def seen(self, uses: Iterable[str]) -> None:
        if time.monotonic() >= self._written_until:
            self._written.clear()
            self._written_until = time.monotonic() + self._noted_seconds
        self._unwritten.update(use for use in uses if use not in self._written)

    async def note(self, *uses: str) -> bool:
        self.seen(uses)
        if self._sweeps.trusted() or self._written.issuperset(uses):
            return True
        await self.flush(uses)
        await self._sweeps.settled()
        return False

    def remembers(
        self, *forget: Callable[[], None], take_uses: Callable[[], Iterable[str]] | None = None
    ) -> None:
        self._sweeps.forget.extend(forget)
        if take_uses is not None:
            self._sources.append(take_uses)

    async def settled(self) -> str:
        return await self._sweeps.settled()

    async def flush(self, uses: Iterable[str] = ()) -> None:
        """Write down what is not yet, and `uses`. Raises StorageError."""
        async with self._flushing:
            for source in self._sources:
                self.seen(source())
            self.seen(uses)
            self._flush_at = time.monotonic() + self._flush_seconds
            taken, self._unwritten = self._unwritten, set()
            if not taken:
                return
            # The store's clock says when; this one only makes names that tell people something.
            key = f"{keys.USAGE}/{int(time.time())}-{next(self._names)}"
            try:
                await self._store.put_if_absent(key, "\n".join(sorted(taken)).encode())
            except BaseException:
                self._unwritten |= taken
                raise
            if len(self._written) > _MOST_WRITTEN:
                self._written.clear()
            self._written |= taken

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Meanwhile sweeps are looked for and journals written. Raises StorageError."""
        # Of what was not used since then nobody knows whether it was used before.
        if not await self._store.exists(keys.USAGE_BEGIN):  # a disk that cannot be written can be served from
            await self._store.put_if_absent(keys.USAGE_BEGIN, b"")
        wanted = asyncio.Event()

        def look() -> None:
            if not self._sweeps.trusted() or time.monotonic() >= self._flush_at:
                wanted.set()

        async def write() -> None:
            while True:
                await wanted.wait()
                wanted.clear()
                await self._try_to_flush()

        tasks = [asyncio.ensure_future(self._sweeps.watch(look)), asyncio.ensure_future(write())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._try_to_flush()

    @staticmethod
    async def end(store: ObjectStore) -> None:
        """From now on uses are not written down: what is known of them is no longer all."""
        await store.delete(keys.USAGE_BEGIN)

    async def _try_to_flush(self) -> None:
        try:
            await self.flush()
        except StorageError as error:
            log.warning("uses-not-written", reason=str(error))
