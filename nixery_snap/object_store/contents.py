"""Reading what objects hold to the last byte, in pieces: their digests, and those of what is compressed in them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

from nixery_snap.errors import InvalidFormat
from nixery_snap.nix import base32
from nixery_snap.nix.narinfo import NarInfo
from nixery_snap.object_store import references
from nixery_snap.object_store.store import ObjectStore
from nixery_snap.object_store.walking import Stored
from nixery_snap.oci.digest import Digest
from nixery_snap.oci.manifest import MAX_MANIFEST_BYTES

Unpack = Callable[[Iterator[bytes], str], Iterator[bytes]]
"""The content of compressed chunks; takes a narinfo's word for the compression. Raises InvalidFormat."""

_GZIP: Final = b"\x1f\x8b"
_ZSTD: Final = b"\x28\xb5\x2f\xfd"
_NIX_BASE32_LENGTH: Final = 52


@dataclass(frozen=True, slots=True)
class BlobContent:
    """Of a blob whose digest is right. `diff_id` is of what is compressed in it, if anything.

    `named` is what a manifest or an index names.
    """

    size_bytes: int
    diff_id: str = ""
    named: references.Named | None = None


def blob_content(store: ObjectStore, name: str, digest: Digest, unpack: Unpack) -> BlobContent:
    """Blocking. Raises InvalidFormat for other bytes than `digest` says, FileNotFoundError, StorageError."""
    seen, size = hashlib.new(digest.algorithm), 0
    beginning, small = b"", bytearray()

    def hashed() -> Iterator[bytes]:
        nonlocal size, beginning
        for chunk in store.read(name, 0, None):
            beginning = beginning or chunk[:4]
            seen.update(chunk)
            size += len(chunk)
            if references.may_be_manifest(beginning) and size <= MAX_MANIFEST_BYTES:
                small.extend(chunk)
            yield chunk

    chunks, diff = _peeked(hashed()), hashlib.sha256()
    compression = "gzip" if beginning.startswith(_GZIP) else "zstd" if beginning == _ZSTD else ""
    defect = ""
    if compression:
        try:
            for piece in unpack(chunks, compression):
                diff.update(piece)
        except InvalidFormat as error:
            defect = error.reason
    for _ in chunks:  # what that left unread
        pass
    if seen.hexdigest() != digest.hex:
        raise InvalidFormat("blob", name, "its bytes have another digest")
    whole = references.may_be_manifest(beginning) and size == len(small)
    return BlobContent(
        size,
        f"sha256:{diff.hexdigest()}" if compression and not defect else "",
        references.of_manifest(bytes(small)) if whole else None,
    )


async def named_by(store: ObjectStore, one: Stored) -> references.Named | None:
    """What a blob names that is a manifest or an index; None for all others."""
    if one.size_bytes > MAX_MANIFEST_BYTES:
        return None
    if not references.may_be_manifest(await asyncio.to_thread(_beginning, store, one)):
        return None
    content = await store.get(one.key)
    return None if content is None else references.of_manifest(content)


def _beginning(store: ObjectStore, one: Stored) -> bytes:
    try:
        return b"".join(store.read(one.key, 0, min(1, one.size_bytes)))
    except FileNotFoundError:
        return b""


def check_nar(store: ObjectStore, narinfo: NarInfo, unpack: Unpack) -> None:
    """Blocking. Raises InvalidFormat when it is not what `narinfo` says, FileNotFoundError, StorageError."""
    file, size, content, length = hashlib.sha256(), 0, hashlib.sha256(), 0

    def hashed() -> Iterator[bytes]:
        nonlocal size
        for chunk in store.read(narinfo.url, 0, None):
            file.update(chunk)
            size += len(chunk)
            yield chunk

    chunks = hashed()
    for piece in unpack(chunks, narinfo.compression):
        content.update(piece)
        length += len(piece)
        if length > narinfo.info.nar_size:
            break
    for _ in chunks:
        pass
    wrong = [
        what
        for what, found, said in (
            ("file hash", f"sha256:{base32.encode(file.digest())}", narinfo.file_hash),
            ("file size", size, narinfo.file_size),
            ("NAR hash", f"sha256:{base32.encode(content.digest())}", narinfo.info.nar_hash),
            ("NAR size", length, narinfo.info.nar_size),
        )
        if said is not None and found != said
    ]
    if wrong:
        raise InvalidFormat("NAR", narinfo.url, f"it has another {' and '.join(wrong)} than its narinfo says")


def check_nar_file(store: ObjectStore, name: str) -> None:
    """Blocking: one that no narinfo names, by its own name. Raises like `check_nar`."""
    file_hash = name.removeprefix("nar/").partition(".")[0]
    if len(file_hash) != _NIX_BASE32_LENGTH:
        return
    seen = hashlib.sha256()
    for chunk in store.read(name, 0, None):
        seen.update(chunk)
    if base32.encode(seen.digest()) != file_hash:
        raise InvalidFormat("NAR", name, "its bytes have another hash than its name says")


def _peeked(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """The same, the first of them read already."""
    first = next(chunks, None)

    def again() -> Iterator[bytes]:
        if first is not None:
            yield first
            yield from chunks

    return again()
