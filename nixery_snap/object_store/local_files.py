"""The objects of a local directory as its files.

There are many small ones, so what is read and written most goes without obstore, for which each is a tour through its
own threads.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import IO, Final

from nixery_snap.errors import StorageError
from nixery_snap.in_batches import InBatches
from nixery_snap.object_store.failures import translated
from nixery_snap.ports import StoredFile

_READ_BYTES: Final = 1024 * 1024
_THREADS: Final = 4  # a disk may be slow
_AT_A_TIME: Final = 128  # small objects
_STALE_STAGING_SECONDS: Final = 24 * 3600


class LocalFiles:
    """Below `root`; what is being written lies in its folder `staging`."""

    def __init__(self, root: Path, staging: str) -> None:
        """Raises OSError."""
        self.root = root
        self._staging = root / staging
        # A disk that cannot be written still can be served from.
        if not self._staging.is_dir():
            self._staging.mkdir(parents=True, exist_ok=True)  # another worker may be making it
        _sweep(self._staging)
        self._batches = InBatches(_THREADS)
        self._unused_names = map(f"{secrets.token_hex(8)}-{{}}".format, count())

    async def get(self, key: str) -> bytes | None:
        path = _below(self.root, key)
        return await self._batches.run(lambda: _content(path))

    async def get_many(self, keys: Sequence[str]) -> Iterable[bytes | None]:
        paths = [_below(self.root, key) for key in keys]
        parts = [paths[begin : begin + _AT_A_TIME] for begin in range(0, len(paths), _AT_A_TIME)]
        reading = (self._batches.run(partial(_contents, part)) for part in parts)
        return chain.from_iterable(await asyncio.gather(*reading))

    async def create(self, key: str, content: bytes) -> bool:
        """Tells whether there was nothing yet."""
        path = _below(self.root, key)
        return await self._batches.run(lambda: self._put(path, content, _link))

    async def put(self, key: str, content: bytes) -> None:
        path = _below(self.root, key)
        await self._batches.run(lambda: self._put(path, content, _replace))

    def _put(self, path: str, content: bytes, place: Callable[[str, str], None]) -> bool:
        staged = f"{self._staging}/{next(self._unused_names)}"
        try:
            with open(staged, "xb") as file:  # noqa: PTH123 - a Path takes longer to make than the file
                file.write(content)
            try:
                place(staged, path)
            except FileNotFoundError:
                os.makedirs(os.path.dirname(path), exist_ok=True)  # noqa: PTH103, PTH120 - likewise
                place(staged, path)
        except FileExistsError:
            return False
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(staged)  # noqa: PTH108 - likewise
        return True

    async def locate(self, key: str) -> StoredFile | None:
        path = Path(_below(self.root, key))
        try:
            return StoredFile(path, (await asyncio.to_thread(path.stat)).st_size)
        except FileNotFoundError:
            return None

    def read(self, key: str, start: int, length: int | None) -> Iterator[bytes]:
        """Blocking. Raises FileNotFoundError."""
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
    def stage(self) -> Iterator[StagedFile]:
        with translated(self._staging.name):  # a disk can be full
            handle, name = tempfile.mkstemp(dir=self._staging)
            try:
                with os.fdopen(handle, "wb") as file:
                    yield StagedFile(self.root, Path(name), file)
            finally:
                Path(name).unlink(missing_ok=True)


class StagedFile:
    """Implements Staged: becomes visible as a hard link."""

    def __init__(self, root: Path, path: Path, file: IO[bytes]) -> None:
        self._root, self._path, self._file = root, path, file

    def write(self, chunk: bytes) -> None:
        with translated(self._path.parent.name):
            self._file.write(chunk)

    def publish(self, key: str) -> None:
        with translated(key):
            self._file.flush()
            os.fsync(self._file.fileno())  # a name must not outlive a power failure that its content does not
            self._file.close()
            target = self._root / key
            target.parent.mkdir(parents=True, exist_ok=True)
            self._path.chmod(0o644)
            with contextlib.suppress(FileExistsError):
                os.link(self._path, target)


def _link(staged: str, path: str) -> None:
    os.link(staged, path)


def _replace(staged: str, path: str) -> None:
    os.replace(staged, path)  # noqa: PTH105 - a Path takes longer to make


def _below(root: Path, key: str) -> str:
    """The file of an object. Raises OSError for a key that no object can have."""
    if "\0" in key or not {"", ".", ".."}.isdisjoint(key.split("/")):
        raise OSError(errno.EINVAL, "this cannot be a key")
    return f"{root}/{key}"


def _contents(paths: Iterable[str]) -> list[bytes | None]:
    return [_content(path) for path in paths]


def _content(path: str) -> bytes | None:
    try:
        with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - a Path takes longer to make than the file
            return file.read()
    except FileNotFoundError:
        return None


def _sweep(staging: Path) -> None:
    """Remove what killed processes left; what is young may belong to a replica that is at work."""
    for path in staging.iterdir():
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < time.time() - _STALE_STAGING_SECONDS:
                path.unlink()
