"""The files of our own binary cache, at the root of the object store, so that the bucket itself is one."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from nixery_snap.object_store import keys
from nixery_snap.object_store.store import ObjectStore, Staged
from nixery_snap.ports import Location

_SMALL_BYTES: Final = 64 * 1024


class StoredCacheFiles:
    """Implements the port CacheFiles."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._directory = None if store.root is None else os.fspath(store.root)

    async def get(self, name: str) -> bytes | None:
        return await self._store.get(keys.cache_file(name))

    def get_at_once(self, name: str) -> bytes | None:
        """Of a local directory, what is in the page cache: three system calls, none of which waits for a disk."""
        if self._directory is None:
            return None
        try:
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            file = os.open(f"{self._directory}/{keys.cache_file(name)}", flags)
        except OSError:
            return None
        try:
            size = os.fstat(file).st_size
            if size > _SMALL_BYTES:
                return None
            content = bytearray(size)
            whole = os.preadv(file, [content], 0, os.RWF_NOWAIT) == size
        except OSError:  # EAGAIN: not in memory; EOPNOTSUPP: not known
            return None
        finally:
            os.close(file)
        return bytes(content) if whole else None

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
