"""Objects that are written to a bucket before their key is known.

Keys are digests of the content, so what outgrows the memory is sent to a key in `staging/` while it comes, part by
part, and copied by the server itself once it is whole. Nobody sees a multipart upload before its end.
"""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Iterator
from typing import Final

import obstore
import structlog
from obstore.exceptions import BaseError
from obstore.store import LocalStore, MemoryStore

from nixery_snap.buckets import Bucket
from nixery_snap.errors import StorageError
from nixery_snap.object_store.failures import translated

log = structlog.get_logger()

PART_BYTES: Final = 8 * 1024 * 1024  # 10,000 of them are as many as S3 takes: 80 GB
_PARTS_AT_A_TIME: Final = 4
COPY_BYTES: Final = 5 * 1024**3  # more than this no server of S3 copies in one request


class StagedUpload:
    """Implements Staged. Holds up to PART_BYTES in memory, and as much again for each part on its way."""

    def __init__(self, bucket: Bucket | MemoryStore | LocalStore, staging: str) -> None:
        self._bucket = bucket
        self._key = f"{staging}/{secrets.token_hex(16)}"
        self._first = bytearray()
        self._size_bytes = 0
        self._writer: obstore.WritableFile | None = None
        self._is_there = False

    def write(self, chunk: bytes) -> None:
        with translated(self._key):
            self._size_bytes += len(chunk)
            if self._writer is not None:
                self._writer.write(chunk)
                return
            self._first += chunk
            if len(self._first) > PART_BYTES and not isinstance(self._bucket, MemoryStore):
                self._writer = self._upload(self._key)
                self._writer.write(bytes(self._first))
                self._first.clear()

    def _upload(self, key: str) -> obstore.WritableFile:
        return obstore.open_writer(
            self._bucket, key, buffer_size=PART_BYTES, max_concurrency=_PARTS_AT_A_TIME
        )

    def publish(self, key: str) -> None:
        with translated(key):
            if self._writer is None:
                obstore.put(self._bucket, key, bytes(self._first), use_multipart=False)
                return
            writer, self._writer = self._writer, None
            writer.close()  # aborts by itself
            self._is_there = True
            with contextlib.suppress(FileNotFoundError):
                if obstore.head(self._bucket, key)["size"] == self._size_bytes:
                    return
            if self._size_bytes <= COPY_BYTES:
                obstore.copy(self._bucket, self._key, key)
            else:
                with self._upload(key) as copy:
                    for piece in obstore.get(self._bucket, self._key).stream(PART_BYTES):
                        copy.write(piece)

    def discard(self) -> None:
        """What is not published is given up, and nothing of it is left unless the server fails at that, too."""
        self._first.clear()
        try:
            if self._writer is not None:
                self._writer.__exit__(StorageError, StorageError("given up"), None)  # aborts the upload
            elif self._is_there:
                obstore.delete(self._bucket, self._key)
        except (OSError, BaseError) as error:
            reason = str(error).partition("\n")[0][:300]
            log.warning("staged-object-left", key=self._key, reason=reason)


@contextlib.contextmanager
def staged_upload(bucket: Bucket | MemoryStore | LocalStore, staging: str) -> Iterator[StagedUpload]:
    """Blocking."""
    staged = StagedUpload(bucket, staging)
    try:
        yield staged
    finally:
        staged.discard()
