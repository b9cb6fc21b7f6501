"""NARs as they come from a binary cache, compared with what their path info says while they are read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from nixery_snap.errors import InvalidFormat
from nixery_snap.nix import base32, nar
from nixery_snap.nix.content_address import flat_hash
from nixery_snap.nix.file_tree import FileEntry, Node, Regular, tree_of
from nixery_snap.nix.narinfo import NarInfo
from nixery_snap.nix.path_info import PathInfo
from nixery_snap.nix_stores.decompression import decompress

_MOST_OVERHEAD_BYTES: Final = 1024 * 1024  # of a compressed NAR, beside twice the NAR's size


def verified_entries(chunks: Iterator[bytes], narinfo: NarInfo) -> Iterator[FileEntry]:
    """Blocking. Raises InvalidFormat, at the latest at the end."""
    checked = _Checked(narinfo.info)
    pieces = checked.passing(_decompressed(chunks, narinfo))
    for entry in nar.read(pieces):
        shown = entry if entry.name else checked.root(entry)
        yield shown
        if not entry.name:
            for _ in shown.content:  # what the reader left
                pass
    for _ in pieces:
        pass


def verified_tree(chunks: Iterator[bytes], narinfo: NarInfo) -> Node:
    return tree_of((entry.name, entry.node) for entry in verified_entries(chunks, narinfo))


def unverified_root(chunks: Iterator[bytes], narinfo: NarInfo) -> Node:
    return nar.root(_decompressed(chunks, narinfo))


def _decompressed(chunks: Iterator[bytes], narinfo: NarInfo) -> Iterator[bytes]:
    return decompress(_bounded(chunks, narinfo.info), narinfo.compression)


def _bounded(chunks: Iterator[bytes], info: PathInfo) -> Iterator[bytes]:
    """What unpacks to nothing could go on for ever, and is kept by who copies the file."""
    left = most = 2 * info.nar_size + _MOST_OVERHEAD_BYTES
    for chunk in chunks:
        left -= len(chunk)
        if left < 0:
            raise InvalidFormat("NAR", most - left, f"compressed it has more than {most} bytes")
        yield chunk


class _Checked:
    """The bytes of a NAR on their way, compared at the end with what its path info says."""

    def __init__(self, info: PathInfo) -> None:
        self._info = info
        self._hash, self._size_bytes = hashlib.sha256(), 0

    def passing(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        """Raises InvalidFormat as soon as there is too much, or at the end."""
        for piece in pieces:
            self._size_bytes += len(piece)
            if self._size_bytes > self._info.nar_size:
                break
            self._hash.update(piece)
            yield piece
        if self._size_bytes != self._info.nar_size:
            raise InvalidFormat("NAR", self._size_bytes, f"it must have {self._info.nar_size} bytes")
        found = f"sha256:{base32.encode(self._hash.digest())}"
        if found != self._info.nar_hash:
            raise InvalidFormat("NAR", found, f"its hash must be {self._info.nar_hash}")

    def root(self, entry: FileEntry) -> FileEntry:
        """The root, its content compared too where the path info is believed for that content's address."""
        expected = flat_hash(self._info)
        if expected is None:
            return entry
        if not isinstance(entry.node, Regular) or entry.node.executable:
            raise InvalidFormat("NAR", entry.node, "by its content address it must be a file")
        return replace(entry, content=self._flat(entry.content, expected))

    def _flat(self, content: Iterator[bytes], expected: bytes) -> Iterator[bytes]:
        found = hashlib.sha256()
        for piece in content:
            found.update(piece)
            yield piece
        if found.digest() != expected:
            address = self._info.content_address
            raise InvalidFormat("NAR", found.hexdigest(), f"its content address must be {address}")
