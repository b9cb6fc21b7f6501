"""The source `path:DIR`: a package set in a directory of this machine.

Its revision is a fingerprint of the content, and what is evaluated is a private copy under that revision:
an edit during an evaluation cannot make an image that no revision stands for.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import structlog

from nixery_snap.errors import SourceError, TagNotFound
from nixery_snap.ports import Pin
from nixery_snap.sources.watch import DirectoryWatch

log = structlog.get_logger()

_HEAD_TAG: Final = "latest"
_IGNORED: Final = frozenset({".git"})
_KEPT_CHECKOUTS: Final = 8
_ATTEMPTS: Final = 5
_RACY_NANOSECONDS: Final = 2_000_000_000


class PathSource:
    """Implements the port PackageSource. `checkouts` is a directory of ours for the copies."""

    def __init__(self, directory: Path, checkouts: Path) -> None:
        self.name = f"path:{directory}"
        self._directory = directory
        self._checkouts = checkouts
        self._lock = asyncio.Lock()
        self._current: tuple[Pin, DirectoryWatch] | None = None
        # Content digests by what a stat call tells, for systems where the directory cannot be watched.
        self._digests: dict[tuple[object, ...], bytes] = {}

    async def pin(self, tag: str) -> Pin:
        if tag != _HEAD_TAG:
            if (self._checkouts / tag).is_dir():
                return Pin(tag)
            raise TagNotFound(
                self.name, tag, "a path source has the tag latest and revisions it served lately"
            )
        if pin := self.current(tag):
            return pin
        async with self._lock:
            if pin := self.current(tag):
                return pin
            if self._current is not None:
                self._current[1].close()
            # Nothing is current while the directory is read, nor after a failure.
            self._current = None
            found, watch = await asyncio.to_thread(self._snapshot)
            self._current = (found, watch) if watch else None
            return found

    def current(self, tag: str) -> Pin | None:
        if tag != _HEAD_TAG or self._current is None:
            return None
        pin, watch = self._current
        return pin if watch.quiet() else None

    async def checkout(self, pin: Pin) -> Path:
        path = self._checkouts / pin.revision / "source"
        if not path.is_dir():
            raise SourceError(f"the revision {pin.revision} of {self.name} is no longer here; pull again")
        return path

    def _snapshot(self) -> tuple[Pin, DirectoryWatch | None]:
        """Fingerprint the directory and make sure that a copy of exactly this content exists.

        The watch, where there can be one, is older than the fingerprint: it tells of every later change.
        """
        for _ in range(_ATTEMPTS):
            watch = None
            try:
                directories = _directories(_walk(self._directory))
                watch = self._watch_directories(directories)
                files = list(_walk(self._directory))
                if _directories(files) != directories:
                    continue  # one that came meanwhile is not watched
                revision = self._fingerprint(self._directory, files)
                if self._has_copy(revision):
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

    def _watch_directories(self, directories: list[str]) -> DirectoryWatch | None:
        try:
            return DirectoryWatch([self._directory, *(self._directory / name for name in directories)])
        except FileNotFoundError:
            raise
        except OSError as error:
            log.warning("source-not-watched", source=self.name, reason=str(error))
            return None

    def _fingerprint(self, directory: Path, files: Iterable[tuple[str, os.stat_result]]) -> str:
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
            elif stat.S_ISREG(status.st_mode):
                kind = b"x" if status.st_mode & stat.S_IXUSR else b"f"
                known = (path, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
                content = self._digests.get(known) or _digest(path)
                # A file system's clock ticks slowly: a file as young as this could change again unnoticed.
                if status.st_ctime_ns < begun - _RACY_NANOSECONDS:
                    seen[known] = content
            else:
                continue  # a socket or a pipe; Nix could not read it either
            encoded = os.fsencode(name)
            whole.update(b"%s%d:%s%d:%s" % (kind, len(encoded), encoded, len(content), content))
        if directory == self._directory:
            self._digests = seen
        return whole.hexdigest()

    def _has_copy(self, revision: str) -> bool:
        """Whether there is a copy of `revision` now; it is not when the directory changed meanwhile."""
        final = self._checkouts / revision
        if final.is_dir():
            os.utime(final)
            return True
        self._checkouts.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=self._checkouts) as temporary:
            copy = Path(temporary) / revision / "source"
            shutil.copytree(self._directory, copy, symlinks=True, ignore=shutil.ignore_patterns(*_IGNORED))
            if self._fingerprint(copy, _walk(copy)) != revision:
                return False
            with contextlib.suppress(OSError):  # another process was faster, with the same content
                copy.parent.rename(final)
        self._prune()
        return final.is_dir()

    def _prune(self) -> None:
        """Keep the youngest copies; images of older revisions are served from the records."""
        copies = sorted(
            self._checkouts.glob("[0-9a-f]*"), key=lambda path: path.stat().st_mtime, reverse=True
        )
        for old in copies[_KEPT_CHECKOUTS:]:
            shutil.rmtree(old, ignore_errors=True)


def _walk(directory: Path, prefix: str = "") -> Iterator[tuple[str, os.stat_result]]:
    """Relative names and stats of everything below, sorted, links not followed."""
    for name in sorted(os.listdir(directory / prefix)):
        if name in _IGNORED:
            continue
        status = (directory / prefix / name).lstat()
        yield prefix + name, status
        if stat.S_ISDIR(status.st_mode):
            yield from _walk(directory, f"{prefix}{name}/")


def _directories(files: Iterable[tuple[str, os.stat_result]]) -> list[str]:
    return [name for name, status in files if stat.S_ISDIR(status.st_mode)]


def _digest(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()
