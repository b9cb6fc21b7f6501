"""Objects by key over obstore: get, put-if-absent, range, list, delete, locate. No more is asked of a backend."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import IO, Final
from urllib.parse import unquote, urlsplit

import obstore
from obstore.exceptions import AlreadyExistsError, BaseError
from obstore.store import LocalStore, MemoryStore

from nixery_snap import metrics
from nixery_snap.errors import SettingsError, StorageError
from nixery_snap.in_batches import InBatches
from nixery_snap.object_store import keys
from nixery_snap.ports import Location, StoredBytes, StoredFile

_READ_BYTES: Final = 1024 * 1024
_THREADS: Final = 4  # a disk may be slow
_AT_A_TIME: Final = 128  # small objects
_STALE_STAGING_SECONDS: Final = 24 * 3600


class ObjectStore:
    """A store by URL: `file:///directory` or `memory://`.

    `root` is a local store's directory, None for others. There are many small objects in it, so what is read and
    written most goes without obstore, for which each is a tour through its own threads.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self.root: Path | None = None
        self._store: LocalStore | MemoryStore
        if parts.scheme == "memory":
            self._store = MemoryStore()
            return
        known = parts.scheme == "file" and parts.path.startswith("/")
        if not known or parts.netloc or set("?#") & set(url):
            raise SettingsError(
                "storage", f"{url!r} is not file:///DIRECTORY or memory://; a ? or # in a name is %3F or %23"
            )
        self.root = Path(unquote(parts.path))
        try:
            self._staging = self.root / keys.STAGING
            self._staging.mkdir(parents=True, exist_ok=True)
            _sweep(self._staging)
            self._batches = InBatches(_THREADS)
            self._unused_names = map(f"{secrets.token_hex(8)}-{{}}".format, count())
            self._store = LocalStore(self.root)
        except (OSError, BaseError) as error:
            raise SettingsError("storage", f"{self.root} cannot be used: {error}") from error

    async def get(self, key: str) -> bytes | None:
        with _translated(key):
            if self.root is not None:
                path = _below(self.root, key)
                return await self._batches.run(lambda: _content(path))
            try:
                result = await obstore.get_async(self._store, key)
                return bytes(await result.bytes_async())
            except FileNotFoundError:
                return None

    async def get_many(self, keys: Sequence[str]) -> Mapping[str, bytes]:
        """Those that are there."""
        contents: Iterable[bytes | None]
        if (root := self.root) is None:
            contents = await asyncio.gather(*map(self.get, keys))
        else:
            with _translated(f"{keys[0]} …" if keys else ""):
                paths = [_below(root, key) for key in keys]
                parts = [paths[begin : begin + _AT_A_TIME] for begin in range(0, len(paths), _AT_A_TIME)]
                reading = (self._batches.run(partial(_contents, part)) for part in parts)
                contents = chain.from_iterable(await asyncio.gather(*reading))
        return {key: content for key, content in zip(keys, contents, strict=True) if content is not None}

    async def put_if_absent(self, key: str, content: bytes) -> bool:
        """Tells whether this call wrote it."""
        with _translated(key):
            if self.root is not None:
                path = _below(self.root, key)
                return await self._batches.run(lambda: self._create(path, content))
            try:
                await obstore.put_async(self._store, key, content, mode="create")
            except AlreadyExistsError:
                return False
            return True

    def _create(self, path: str, content: bytes) -> bool:
        staged = f"{self._staging}/{next(self._unused_names)}"
        try:
            with open(staged, "xb") as file:  # noqa: PTH123 - a Path takes longer to make than the file
                file.write(content)
            try:
                os.link(staged, path)
            except FileNotFoundError:
                os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120 - likewise
                os.link(staged, path)
        except FileExistsError:
            return False
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(staged)  # noqa: PTH108 - likewise
        return True

    async def put(self, key: str, content: bytes) -> None:
        """Replaces what is there, all at once."""
        with _translated(key):
            await obstore.put_async(self._store, key, content)

    async def exists(self, key: str) -> bool:
        with _translated(key):
            try:
                await obstore.head_async(self._store, key)
            except FileNotFoundError:
                return False
            return True

    async def delete(self, key: str) -> None:
        with _translated(key), contextlib.suppress(FileNotFoundError):
            await obstore.delete_async(self._store, key)

    async def list(self, prefix: str) -> AsyncIterator[tuple[str, int]]:
        """Keys below `prefix` with their sizes in bytes, in no particular order."""
        with _translated(prefix):
            async for batch in obstore.list(self._store, prefix):
                for meta in batch:
                    yield meta["path"], meta["size"]

    async def locate(self, key: str) -> Location | None:
        """How to serve an object: a local one as its file."""
        if self.root is None:
            content = await self.get(key)
            return None if content is None else StoredBytes(content)
        path = self.root / key
        with _translated(key):
            try:
                return StoredFile(path, (await asyncio.to_thread(path.stat)).st_size)
            except FileNotFoundError:
                return None

    def read(self, key: str, start: int, length: int | None) -> Iterator[bytes]:
        """Blocking. Raises FileNotFoundError for an absent key."""
        if self.root is None:
            content = bytes(obstore.get(self._store, key).bytes())
            part = content[start : None if length is None else start + length]
            if len(part) < (length or 0):
                raise StorageError(f"the object {key} is shorter than was recorded")
            yield part
            return
        with (self.root / key).open("rb") as file:
            file.seek(start)
            left = length
            while left is None or left > 0:
                chunk = file.read(_READ_BYTES if left is None else min(_READ_BYTES, left))
                if not chunk:
                    break
                if left is not None:
                    left -= len(chunk)
                yield chunk
            if left:
                raise StorageError(f"the object {key} is shorter than was recorded")

    @contextlib.contextmanager
    def stage(self) -> Iterator[Staged]:
        """Blocking: a file to write an object to before its key is known; gone afterwards in any case."""
        with _translated(keys.STAGING):  # a disk can be full
            handle, name = tempfile.mkstemp(dir=None if self.root is None else self._staging)
            path = Path(name)
            try:
                with os.fdopen(handle, "wb") as file:
                    yield Staged(self, path, file)
            finally:
                path.unlink(missing_ok=True)

    def publish(self, staged: Path, key: str) -> None:
        """Blocking: put a finished staged file under `key`, unless something is there."""
        if self.root is None:
            with contextlib.suppress(AlreadyExistsError):
                obstore.put(self._store, key, staged.read_bytes(), mode="create")
            return
        target = self.root / key
        target.parent.mkdir(parents=True, exist_ok=True)
        staged.chmod(0o644)
        with contextlib.suppress(FileExistsError):
            os.link(staged, target)


class Staged:
    """A staged object, open for writing."""

    def __init__(self, store: ObjectStore, path: Path, file: IO[bytes]) -> None:
        self._store, self._path, self._file = store, path, file

    def write(self, chunk: bytes) -> None:
        self._file.write(chunk)

    def publish(self, key: str) -> None:
        """Make it visible under `key`, all at once; nothing may be written afterwards."""
        with _translated(key):
            self._file.flush()
            os.fsync(self._file.fileno())  # a name must not outlive a power failure that its content does not
            self._file.close()
            self._store.publish(self._path, key)


def _below(root: Path, key: str) -> str:
    """The file of an object. Raises OSError for a key that no object can have."""
    if "\0" in key or not {"", ".", ".."}.isdisjoint(key.split("/")):
        raise OSError("this cannot be a key")
    return f"{root}/{key}"


def _contents(paths: Iterable[str]) -> list[bytes | None]:
    return [_content(path) for path in paths]


def _content(path: str) -> bytes | None:
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - a Path takes longer to make than the file
            return file.read()
    except FileNotFoundError:
        return None


@contextlib.contextmanager
def _translated(key: str) -> Iterator[None]:
    """Vendor and operating system errors become ours."""
    try:
        yield
    except (OSError, BaseError) as error:
        metrics.STORAGE_ERRORS.inc()
        raise StorageError(f"the object store failed at {key}: {error}") from error


def _sweep(staging: Path) -> None:
    """Remove what killed processes left; what is young may belong to a replica that is at work."""
    for path in staging.iterdir():
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_mtime < time.time() - _STALE_STAGING_SECONDS:
                path.unlink()
