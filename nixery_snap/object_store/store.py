"""Objects by key over obstore: get, put-if-absent, range, list, delete, locate. No more is asked of a backend."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Final, Literal, Protocol
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import AzureStore, LocalStore, MemoryStore

from nixery_snap.buckets import Bucket, open_bucket
from nixery_snap.errors import SettingsError, StorageError
from nixery_snap.object_store import keys
from nixery_snap.object_store.failures import translated
from nixery_snap.object_store.local_files import LocalFiles
from nixery_snap.object_store.multipart import staged_upload
from nixery_snap.ports import Location, SignedUrl, StoredBytes, StoredStream

_PIECE_BYTES: Final = 1024 * 1024
_TURNS: Final = 128  # of questions that are asked by the thousand: each is a connection
_RETRIES: Final = 4
_LISTED: Final = 1000  # objects at a time, as S3 has it
_STALE_STAGING_SECONDS: Final = 24 * 3600


class Staged(Protocol):
    """An object that is being written, in a worker thread; gone at the end of its context unless published."""

    def write(self, chunk: bytes) -> None: ...

    def publish(self, key: str) -> None:
        """Make it visible, all at once, under a key that tells its content; nothing may be written afterwards."""


class ObjectStore:
    """A store by URL: `file:///directory`, `memory://`, or a bucket.

    `root` is a local store's directory, None for others. What is in a bucket is located as a URL that is signed for
    `url_lifetime_seconds`, or with None as a stream. `timeout_seconds`: how long a bucket's server may be silent.
    All methods raise StorageError.
    """

    def __init__(
        self, url: str, *, url_lifetime_seconds: float | None = None, timeout_seconds: float = 30
    ) -> None:
        parts = urlsplit(url)
        self._lifetime = None if url_lifetime_seconds is None else timedelta(seconds=url_lifetime_seconds)
        self._turns = asyncio.Semaphore(_TURNS)
        self._files: LocalFiles | None = None
        self._bucket: Bucket | None = None
        self._store: LocalStore | MemoryStore | Bucket
        try:
            if parts.scheme == "memory":
                self._store = MemoryStore()
            elif parts.scheme == "file" and parts.path.startswith("/") and not set("?#") & set(url):
                if parts.netloc:
                    raise ValueError("it must be file:///DIRECTORY")
                self._files = LocalFiles(Path(unquote(parts.path)), keys.STAGING)
                self._store = LocalStore(self._files.root)
            else:
                self._store = self._bucket = open_bucket(
                    url, max_retries=_RETRIES, timeout_seconds=timeout_seconds
                )
        except (OSError, BaseError) as error:
            raise SettingsError("storage", f"{url} cannot be used: {error}") from error
        except ValueError as error:
            raise SettingsError(
                "storage",
                f"{url!r} is neither file:///DIRECTORY, where a ? or # in a name is %3F or %23, nor memory:// nor a"
                f" bucket: {error}",
            ) from None

    @property
    def root(self) -> Path | None:
        return None if self._files is None else self._files.root

    async def initialise(self) -> None:
        """See whether a bucket can do all that is asked of it, and clean up in it. Raises SettingsError."""
        if self._bucket is None:
            return
        try:
            # Two servers that both believe to have written first would serve different images under one name.
            await self.put_if_absent(keys.FORMAT, b"1")
            if await self.put_if_absent(keys.FORMAT, b"1"):
                raise SettingsError(
                    "storage",
                    "its server overwrites objects that it is told not to overwrite (If-None-Match: *): it cannot be"
                    " shared, and a newer release of it may be able to",
                )
        except StorageError as error:
            raise SettingsError("storage", str(error)) from error
        if self._lifetime is not None:
            try:
                await obstore.sign_async(self._bucket, "GET", keys.FORMAT, self._lifetime)
            except (BaseError, ValueError, OSError) as error:
                reason = str(error).partition("\n")[0]
                raise SettingsError(
                    "object_store.delivery",
                    f"these credentials cannot sign URLs ({reason}); set it to proxy",
                ) from None
        async for key, _, modified in self.list_modified(keys.STAGING):
            if modified < time.time() - _STALE_STAGING_SECONDS:
                await self.delete(key)

    async def get(self, key: str) -> bytes | None:
        with translated(key):
            if self._files is not None:
                return await self._files.get(key)
            try:
                async with self._turns:
                    result = await obstore.get_async(self._store, key)
                    return bytes(await result.bytes_async())
            except FileNotFoundError:
                return None

    async def get_many(self, keys: Sequence[str]) -> Mapping[str, bytes]:
        """Those that are there."""
        contents: Iterable[bytes | None]
        if self._files is None:
            contents = await asyncio.gather(*map(self.get, keys))
        else:
            with translated(f"{keys[0]} …" if keys else ""):
                contents = await self._files.get_many(keys)
        return {key: content for key, content in zip(keys, contents, strict=True) if content is not None}

    async def put_if_absent(self, key: str, content: bytes) -> bool:
        """Tells whether this call wrote it."""
        with translated(key):
            if self._files is not None:
                return await self._files.create(key, content)
            try:
                await obstore.put_async(self._store, key, content, mode="create", use_multipart=False)
            except AlreadyExistsError:
                return False
            return True

    async def put_content(self, key: str, content: bytes) -> None:
        """What the key itself tells: whoever writes it writes the same, so buckets' servers need not look."""
        if self._bucket is None:
            await self.put_if_absent(key, content)
        else:
            await self.put(key, content)

    async def put(self, key: str, content: bytes) -> None:
        """Replaces what is there, all at once."""
        with translated(key):
            if self._files is not None:
                await self._files.put(key, content)
            else:
                await obstore.put_async(self._store, key, content)

    async def exists(self, key: str) -> bool:
        with translated(key):
            try:
                async with self._turns:
                    await obstore.head_async(self._store, key)
            except FileNotFoundError:
                return False
            return True

    async def delete(self, key: str) -> None:
        with translated(key), contextlib.suppress(FileNotFoundError):
            await obstore.delete_async(self._store, key)

    async def list(self, prefix: str) -> AsyncIterator[tuple[str, int]]:
        """Keys below `prefix` with their sizes in bytes, in no particular order."""
        async for key, size_bytes, _ in self.list_modified(prefix):
            yield key, size_bytes

    async def list_modified(self, prefix: str) -> AsyncIterator[tuple[str, int, float]]:
        """Likewise, and when each was written, in seconds since the epoch by the backend's clock."""
        with translated(prefix):
            async for batch in obstore.list(self._store, prefix, chunk_size=_LISTED):
                for meta in batch:
                    yield meta["path"], meta["size"], meta["last_modified"].timestamp()

    async def head(self, key: str) -> tuple[int, float] | None:
        """Its size in bytes, and when it was written."""
        with translated(key):
            try:
                async with self._turns:
                    meta = await obstore.head_async(self._store, key)
            except FileNotFoundError:
                return None
            return meta["size"], meta["last_modified"].timestamp()

    async def delete_many(self, keys: Sequence[str]) -> None:
        """Those that are there, in few requests; in no particular order."""
        if keys and self._bucket is not None:
            with translated(f"{keys[0]} …"):
                try:
                    await obstore.delete_async(self._bucket, list(keys))
                    return
                except FileNotFoundError:  # where that is a request for each: the others may still be there
                    pass
        await asyncio.gather(*map(self.delete, keys))

    async def locate(self, key: str) -> Location | None:
        """How to serve an object: a local one as its file."""
        with translated(key):
            if self._files is not None:
                return await self._files.locate(key)
            bucket = self._bucket
            if bucket is None:
                content = await self.get(key)
                return None if content is None else StoredBytes(content)
            try:
                meta = await obstore.head_async(bucket, key)
            except FileNotFoundError:
                return None
            if self._lifetime is None:
                version = (meta["e_tag"] or str(meta["last_modified"].timestamp())).strip('"')
                return StoredStream(meta["size"], version, partial(self._pieces, key))
            url = await obstore.sign_async(bucket, "GET", key, self._lifetime)
            # Azure knows a right to read, and no methods.
            method: Literal["GET", "HEAD"] = "GET" if isinstance(bucket, AzureStore) else "HEAD"
            head_url = await obstore.sign_async(bucket, method, key, self._lifetime)
            return SignedUrl(url, head_url, meta["size"])

    async def _pieces(self, key: str, start: int, length: int) -> AsyncIterator[bytes]:
        if not length:
            return
        with translated(key):
            result = await obstore.get_async(self._store, key, options={"range": (start, start + length)})
            async for piece in result.stream(_PIECE_BYTES):
                yield bytes(piece)

    def read(self, key: str, start: int, length: int | None) -> Iterator[bytes]:
        """Blocking. Raises FileNotFoundError for an absent key."""
        with _translated_but_absence(key):
            if self._files is not None:
                yield from self._files.read(key, start, length)
                return
            size_bytes = obstore.head(self._store, key)["size"]
            end = size_bytes if length is None else start + length
            if end > size_bytes:
                raise StorageError(f"the object {key} is shorter than was recorded")
            if start >= end:
                return
            for piece in obstore.get(self._store, key, options={"range": (start, end)}).stream(_PIECE_BYTES):
                yield bytes(piece)

    def stage(self) -> AbstractContextManager[Staged]:
        """Blocking: to write an object before its key is known."""
        if self._files is not None:
            return self._files.stage()
        return staged_upload(self._store, keys.STAGING)


@contextlib.contextmanager
def _translated_but_absence(key: str) -> Iterator[None]:
    absent: FileNotFoundError | None = None
    with translated(key):
        try:
            yield
        except FileNotFoundError as error:
            absent = error
    if absent is not None:
        raise absent
