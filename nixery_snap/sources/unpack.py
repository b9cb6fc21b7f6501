"""Unpacks archives that may be hostile: bounded, nothing outside the directory, no links out of it, no devices."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import shutil
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

import structlog

from nixery_snap.errors import InvalidFormat
from nixery_snap.sources.checkouts import leaves
from nixery_snap.sources.tar_reader import Kind, Stream, TarEntry, TarReader

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

log = structlog.get_logger()

_XZ_MEMORY_BYTES: Final = 128 * 1024 * 1024  # xz -9 takes 65 MiB
_ZSTD_WINDOW_LOG: Final = 27  # 128 MiB, what zstd itself accepts without being asked
_FEED_BYTES: Final = 64 * 1024
_MAX_NAME_BYTES: Final = 255
_MAX_PATH_BYTES: Final = 2048  # Linux takes 4096, with what is in front; links are kept in memory to the end
_SHOWN_LINKS: Final = 5
_READ_ERRORS: Final = (lzma.LZMAError, zstd.ZstdError, zlib.error, EOFError, MemoryError, OSError)


@dataclass(frozen=True, slots=True)
class UnpackLimits:
    """Of what one archive may hold. `bytes` are those of the archive without its compression."""

    bytes: int = 4 * 1024**3
    entries: int = 500_000
    depth: int = 64


def decompressed(file: BinaryIO) -> Stream:
    """The content of a seekable file that is compressed by xz, gzip, zstd, bzip2 or not at all, told by its magic."""
    magic = file.read(6)
    file.seek(0)
    if magic.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=file)
    if magic.startswith(b"BZh"):
        return bz2.BZ2File(file)
    if magic.startswith(b"\x28\xb5\x2f\xfd"):
        return zstd.ZstdFile(file, options={zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG})
    return _Xz(file) if magic == b"\xfd7zXZ\0" else file


class _Xz:
    """Unlike the standard library's file, it bounds the memory that the archive asks for."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decoder = _xz_decoder()

    def read(self, size: int, /) -> bytes:
        while True:
            if self._decoder.eof:
                fed = self._decoder.unused_data or self._file.read(_FEED_BYTES)
                while fed and not (fed := fed.lstrip(b"\0")):  # padding between streams
                    fed = self._file.read(_FEED_BYTES)
                if not fed:
                    return b""
                self._decoder = _xz_decoder()
            else:
                fed = self._file.read(_FEED_BYTES) if self._decoder.needs_input else b""
                if self._decoder.needs_input and not fed:
                    raise EOFError("it ends too early")
            if piece := self._decoder.decompress(fed, size):
                return piece


def _xz_decoder() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES)


class _Bounded:
    """Translates what decoders raise, too."""

    def __init__(self, stream: Stream, limit: int) -> None:
        self._stream = stream
        self._limit = self._left = limit

    def read(self, size: int, /) -> bytes:
        try:
            piece = self._stream.read(size)
        except _READ_ERRORS as error:
            reason = str(error) or type(error).__name__
            raise InvalidFormat("archive", "…", f"it cannot be read: {reason}") from error
        self._left -= len(piece)
        if self._left < 0:
            raise InvalidFormat("archive", "…", f"it holds more than {self._limit} bytes")
        return piece


def unpack(stream: Stream, directory: Path, limits: UnpackLimits, label: str, *, strip: bool) -> None:
    """Blocking: the tar archive that `stream` holds, as files in the new `directory`.

    With `strip`, what lies in the archive's single directory, if it has but one. Links that may lead out are left
    out, and logged for the source `label`. Raises InvalidFormat; then what is there already is the caller's to
    remove. The caller's too is OSError, as for a full disk.
    """
    unpacking = _Unpacking(directory, limits)
    unpacking.run(TarReader(_Bounded(stream, limits.bytes)))
    root = ""
    if strip and (only := unpacking.single_directory()):
        root = f"{only}/"
    unpacking.make_links(root, label)
    if root:
        aside = directory.with_name(f"{directory.name}.all")
        directory.rename(aside)
        (aside / root).rename(directory)
        shutil.rmtree(aside)


class _Unpacking:
    """Links are made at the end: until then nothing can be written through one."""

    def __init__(self, root: Path, limits: UnpackLimits) -> None:
        root.mkdir()
        self._root = os.fspath(root)
        self._limits = limits
        self._entries = 0
        self._directories = {""}
        self._files: set[str] = set()
        self._links: dict[str, str] = {}

    def run(self, reader: TarReader) -> None:
        for entry in reader:
            name = self._checked(entry.name)
            self._count()
            if not name and entry.kind is not Kind.DIRECTORY:
                raise _invalid(entry.name, "it would replace the directory itself")
            if entry.kind is Kind.DIRECTORY:
                self._make_directory(name)
                continue
            self._make_directory(name.rpartition("/")[0])
            if name in self._files or name in self._links or name in self._directories:
                raise _invalid(name, "it is there twice")
            if entry.kind is Kind.LINK:
                self._links[name] = _short(entry.target)
            elif entry.kind is Kind.HARD_LINK:
                self._link_file(name, entry)
            else:
                self._write(name, entry, reader)

    def single_directory(self) -> str | None:
        tops = {name.partition("/")[0] for name in (*self._directories, *self._files, *self._links)} - {""}
        only = tops.pop() if len(tops) == 1 else None
        return only if only in self._directories else None

    def make_links(self, root: str, label: str) -> None:
        left_out = []
        for name, target in self._links.items():
            if not target or "\0" in target or leaves(name.removeprefix(root), target):
                left_out.append(name)
            else:
                os.symlink(target, self._path(name))  # noqa: PTH211 - may hold any bytes
        if left_out:
            log.warning(
                "source-link-ignored",
                source=label,
                links=sorted(left_out)[:_SHOWN_LINKS],
                count=len(left_out),
                reason="it may lead out of the tree",
            )

    def _checked(self, name: str) -> str:
        """The relative name, as short as it can be; raises InvalidFormat for one that leads anywhere else."""
        if name.startswith("/"):
            raise _invalid(name, "the name is absolute")
        parts = [part for part in name.split("/") if part not in {"", "."}]
        if ".." in parts:
            raise _invalid(name, "the name has '..' in it")
        if len(parts) > self._limits.depth:
            raise _invalid(name, f"it is deeper than {self._limits.depth} directories")
        if any(len(os.fsencode(part)) > _MAX_NAME_BYTES for part in parts):
            raise _invalid(name, f"a name is longer than {_MAX_NAME_BYTES} bytes")
        return _short("/".join(parts))

    def _count(self) -> None:
        self._entries += 1
        if self._entries > self._limits.entries:
            raise _invalid("…", f"it has more than {self._limits.entries} entries")

    def _make_directory(self, name: str) -> None:
        if name in self._directories:
            return
        if name in self._files or name in self._links:
            raise _invalid(name, "it is there twice")
        self._make_directory(name.rpartition("/")[0])
        self._count()  # archives need not name every directory
        self._directories.add(name)
        os.mkdir(self._path(name))  # noqa: PTH102 - the loop over a large archive is hot

    def _write(self, name: str, entry: TarEntry, reader: TarReader) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        handle = os.open(self._path(name), flags, 0o755 if entry.executable else 0o644)
        with io.FileIO(handle, "wb") as file:
            for piece in reader.content():
                view = memoryview(piece)
                while view:
                    view = view[file.write(view) :]
        self._files.add(name)

    def _link_file(self, name: str, entry: TarEntry) -> None:
        target = self._checked(entry.target)
        if target not in self._files:
            raise _invalid(name, f"a hard link to {target[:100]!r}, which is no file before it")
        os.link(self._path(target), self._path(name))
        self._files.add(name)

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


def _short(path: str) -> str:
    if len(os.fsencode(path)) > _MAX_PATH_BYTES:
        raise _invalid(path, f"a path is longer than {_MAX_PATH_BYTES} bytes")
    return path


def _invalid(name: str, reason: str) -> InvalidFormat:
    return InvalidFormat("archive", name, reason)
