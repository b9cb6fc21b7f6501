"""The source `path:DIR`: a package set in a directory of this machine.

Its revision is a fingerprint of the content, and what is evaluated is a private copy under that revision:
an edit during an evaluation cannot make an image that no revision stands for.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final

import structlog

from nixery_snap.errors import SourceError, TagNotFound
from nixery_snap.ports import PackageSet, Pin
from nixery_snap.sources.checkouts import Checkouts, leaves
from nixery_snap.sources.watch import DirectoryWatch

log = structlog.get_logger()

_HEAD_TAG: Final = "latest"
_REVISION: Final = re.compile(r"[0-9a-f]{64}")
_IGNORED: Final = frozenset({".git"})
_ATTEMPTS: Final = 5
_RACY_NANOSECONDS: Final = 2_000_000_000

_File = tuple[str, os.stat_result]
"""A relative name and its lstat."""


class PathSource:
    """Implements the port PackageSource. `checkouts` is a directory of ours for the copies."""

    def __init__(self, directory: Path, checkouts: Path) -> None:
        self.name = f"path:{directory}"
        self._directory = directory
        self._checkouts = Checkouts(checkouts)
        self._lock = asyncio.Lock()
        self._current: tuple[Pin, DirectoryWatch] | None = None
        # Content digests by what a stat call tells, for systems where the directory cannot be watched.
        self._digests: dict[tuple[object, ...], bytes] = {}

    async def pin(self, tag: str) -> Pin:
        if tag != _HEAD_TAG and not _REVISION.fullmatch(tag):
            raise TagNotFound(self.name, tag, "it has the tag latest, and revisions that were served before")
        if pin := self.current(tag):
            return pin
        async with self._lock:
            return self.current(tag) or await self._renew()

    async def _renew(self) -> Pin:
        """Fingerprint and copy the directory anew; the lock is held."""
        self.close()  # nothing is current while the directory is read, nor after a failure
        pin, watch = await asyncio.to_thread(self._snapshot)
        self._current = (pin, watch) if watch else None
        return pin

    def current(self, tag: str) -> Pin | None:
        if _REVISION.fullmatch(tag):
            return Pin(tag)
        if tag != _HEAD_TAG or self._current is None:
            return None
        pin, watch = self._current
        return pin if watch.quiet() else None

    def close(self) -> None:
        """Stop watching; asked again, the source starts anew."""
        if self._current is not None:
            self._current[1].close()
            self._current = None

    async def checkout(self, pin: Pin) -> PackageSet:
        if not _REVISION.fullmatch(pin.revision):
            raise TagNotFound(self.name, pin.revision, "that is none of its revisions; use latest")
        async with self._lock:
            path = await asyncio.to_thread(self._checkouts.find, pin.revision)
            # Whoever removed the copies may do so: as long as the directory is what it was, there is a new one.
            if path is None and (await self._renew()).revision == pin.revision:
                path = await asyncio.to_thread(self._checkouts.find, pin.revision)
        if path is not None:
            return PackageSet(path, pin=pin)
        raise TagNotFound(self.name, pin.revision, "that revision is not kept here any more; use latest")

    async def tags(self) -> Sequence[str]:
        return [_HEAD_TAG]

    def _snapshot(self) -> tuple[Pin, DirectoryWatch | None]:
        """Fingerprint the directory and make sure that a copy of exactly this content exists.

        The watch, where there can be one, is older than the fingerprint: it tells of every later change.
        """
        for _ in range(_ATTEMPTS):
            watch = None
            try:
                directories = _directories(_walk(self._directory))
                watch = self._watch_directories(directories)
                files = list(_walk(self._directory, ignored=self._warn))
                if _directories(files) != directories:
                    continue  # one that came meanwhile is not watched
                revision = self._fingerprint(self._directory, files)
                if self._has_copy(revision, files):
                    kept, watch = watch, None
                    return Pin(revision), kept
            except FileNotFoundError as error:  # something was removed while it was read
                if not self._directory.is_dir():
                    raise SourceError(f"{self.name} cannot be read: {error}") from error
            except OSError as error:
                raise SourceError(f"{self.name} cannot be read: {error}") from error
            finally:
                if watch is not None:
                    watch.close()
        raise SourceError(f"{self.name} keeps changing while it is read; pull again when the edit is done")

    def _warn(self, link: str) -> None:
        log.warning("source-link-ignored", source=self.name, link=link, reason="it leaves the directory")

    def _watch_directories(self, directories: list[str]) -> DirectoryWatch | None:
        try:
            return DirectoryWatch(self._directory, directories)
        except FileNotFoundError:
            raise
        except OSError as error:
            log.warning("source-not-watched", source=self.name, reason=str(error))
            return None

    def _fingerprint(self, directory: Path, files: Iterable[_File]) -> str:
        """Hex SHA-256 over names, kinds, executable bits, link targets and contents."""
        begun = time.time_ns()
        whole = hashlib.sha256()
        seen: dict[tuple[object, ...], bytes] = {}
        for name, status in files:
            path = directory / name
            if stat.S_ISLNK(status.st_mode):
                kind, content = b"l", os.fsencode(os.readlink(path))
            elif stat.S_ISDIR(status.st_mode):
                kind, content = b"d", b""
            else:
                kind = b"x" if status.st_mode & stat.S_IXUSR else b"f"
                known = (path, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
                content = self._digests.get(known) or _digest(path)
                # A file system's clock ticks slowly: a file as young as this could change again unnoticed.
                if status.st_ctime_ns < begun - _RACY_NANOSECONDS:
                    seen[known] = content
            encoded = os.fsencode(name)
            whole.update(b"%s%d:%s%d:%s" % (kind, len(encoded), encoded, len(content), content))
        if directory == self._directory:
            self._digests = seen
        return whole.hexdigest()

    def _has_copy(self, revision: str, files: list[_File]) -> bool:
        """Whether there is a copy of `revision` now; it is not when the directory changed meanwhile."""
        if self._checkouts.find(revision):
            return True
        with self._checkouts.staging() as staged:
            copy = staged / "source"
            _copy(self._directory, copy, files)
            if self._fingerprint(copy, _walk(copy)) != revision:
                return False
            return self._checkouts.keep(staged, revision).is_dir()


def _walk(
    directory: Path, prefix: str = "", ignored: Callable[[str], object] = lambda _link: None
) -> Iterator[_File]:
    """What of `directory` counts, sorted, links not followed.

    A link that leaves it is left out and told to `ignored`: what it leads to is in no fingerprint and on no
    other replica. So are sockets and pipes, which Nix could not read either.
    """
    for name in sorted(os.listdir(directory / prefix)):
        path = f"{prefix}{name}"
        status = (directory / path).lstat()
        if name in _IGNORED:
            continue
        if stat.S_ISLNK(status.st_mode) and leaves(path, os.readlink(directory / path)):
            ignored(path)
        elif stat.S_ISDIR(status.st_mode):
            yield path, status
            yield from _walk(directory, f"{path}/", ignored)
        elif stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode):
            yield path, status


def _directories(files: Iterable[_File]) -> list[str]:
    return [name for name, status in files if stat.S_ISDIR(status.st_mode)]


def _copy(directory: Path, copy: Path, files: list[_File]) -> None:
    copy.mkdir()
    for name, status in files:
        if stat.S_ISDIR(status.st_mode):
            (copy / name).mkdir()
        elif stat.S_ISLNK(status.st_mode):
            (copy / name).symlink_to(os.readlink(directory / name))
        else:
            shutil.copy(directory / name, copy / name)


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
