"""Content by digest over an object store."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from nixery_snap.errors import BlobNotFound, StorageError
from nixery_snap.object_store import keys
from nixery_snap.object_store.store import ObjectStore, Staged
from nixery_snap.oci.digest import Digest
from nixery_snap.ports import Location

log = structlog.get_logger()


class Blobs:
    """Implements the port BlobStore."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._closed = threading.Event()

    def close(self) -> None:
        """Stop what is being written: a thread cannot be cancelled, but its next write fails."""
        self._closed.set()

    async def put(self, content: bytes) -> Digest:
        digest = Digest.of(content)
        await self._store.put_content(keys.blob(digest), content)
        return digest

    async def get(self, digest: Digest) -> bytes:
        content = await self._store.get(keys.blob(digest))
        if content is None:
            raise BlobNotFound(str(digest))
        # Small, and read once: a disk that lies is found out here rather than by a client. Without the blob,
        # the image is assembled again.
        if digest.algorithm != "sha256" or Digest.of(content) != digest:
            log.warning("blob-damaged", digest=str(digest))
            await self._store.delete(keys.blob(digest))
            raise BlobNotFound(str(digest))
        return content

    async def locate(self, digest: Digest) -> Location:
        location = await self._store.locate(keys.blob(digest))
        if location is None:
            raise BlobNotFound(str(digest))
        return location

    async def has(self, digest: Digest) -> bool:
        return await self._store.exists(keys.blob(digest))

    @contextmanager
    def writer(self) -> Iterator[Writer]:
        with self._store.stage() as staged:
            yield Writer(staged, self._closed)

    def read(self, digest: Digest, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        try:
            yield from self._store.read(keys.blob(digest), start, length)
        except FileNotFoundError:
            raise BlobNotFound(str(digest)) from None


class Writer:
    """Implements the port BlobWriter."""

    def __init__(self, staged: Staged, closed: threading.Event) -> None:
        self._staged = staged
        self._closed = closed
        self._hash = hashlib.sha256()
        self._size_bytes = 0

    @property
    def size_bytes(self) -> int:
        return self._size_bytes

    def write(self, chunk: bytes) -> None:
        if self._closed.is_set():
            raise StorageError("the program is ending")
        self._staged.write(chunk)
        self._hash.update(chunk)
        self._size_bytes += len(chunk)

    def commit(self) -> Digest:
        digest = Digest("sha256", self._hash.hexdigest())
        self._staged.publish(keys.blob(digest))
        return digest
