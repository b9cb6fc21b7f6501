"""The files of our own binary cache, at the root of the object store, so that the bucket itself is one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from nixery_snap.object_store import keys
from nixery_snap.object_store.store import ObjectStore, Staged
from nixery_snap.ports import Location


class StoredCacheFiles:
    """Implements the port CacheFiles."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    async def get(self, name: str) -> bytes | None:
        return await self._store.get(keys.cache_file(name))

    async def locate(self, name: str) -> Location | None:
        return await self._store.locate(keys.cache_file(name))

    async def put(self, name: str, content: bytes) -> None:
        await self._store.put(keys.cache_file(name), content)

    def read(self, name: str) -> Iterator[bytes]:
        return self._store.read(keys.cache_file(name), 0, None)

    @contextmanager
    def writer(self) -> Iterator[Writer]:
        with self._store.stage() as staged:
            yield Writer(staged)


class Writer:
    """Implements the port CacheFileWriter."""

    def __init__(self, staged: Staged) -> None:
        self._staged = staged

    def write(self, chunk: bytes) -> None:
        self._staged.write(chunk)

    def commit(self, name: str) -> None:
        self._staged.publish(keys.cache_file(name))
