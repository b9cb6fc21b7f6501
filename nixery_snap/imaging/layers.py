"""Makes layers: small ones in one go, classic ones packed path by path from the store."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from nixery_snap import metrics
from nixery_snap.errors import BlobNotFound, StorageError
from nixery_snap.imaging.coalesce import Coalescer
from nixery_snap.imaging.read_ahead import read_ahead
from nixery_snap.imaging.request import cache_key
from nixery_snap.nix.file_tree import Directory, FileEntry, Node, Regular, Symlink
from nixery_snap.nix.path_info import PathInfo
from nixery_snap.nix.store_path import StorePath
from nixery_snap.oci import compression as codecs
from nixery_snap.oci import tar
from nixery_snap.oci.compression import Compression
from nixery_snap.oci.digest import Digest
from nixery_snap.oci.manifest import Descriptor
from nixery_snap.oci.media_types import OCI_LAYER_GZIP, OCI_LAYER_ZSTD
from nixery_snap.oci.tar import EntryType, TarEntry
from nixery_snap.ports import BlobStore, BlobWriter, Records, StoreContents
from nixery_snap.steps import step

if TYPE_CHECKING:
    from hashlib import _Hash

_READ_AHEAD_BYTES: Final = 4 * 1024 * 1024  # below, a thread costs more than it gains
STORE_PARENTS: Final = (TarEntry.directory(b"nix"), TarEntry.directory(b"nix/store"))


@dataclass(frozen=True, slots=True)
class Layer:
    """A stored layer: `digest` and `size_bytes` compressed, `diff_id` of the uncompressed tar."""

    digest: Digest
    size_bytes: int
    diff_id: Digest
    compression: Compression = Compression.GZIP

    @classmethod
    def from_json(cls, value: Any, compression: Compression) -> Layer:
        """The key of the record tells the compression."""
        return cls(Digest.parse(value["digest"]), value["size"], Digest.parse(value["diffId"]), compression)

    def to_json(self) -> dict[str, Any]:
        return {"digest": str(self.digest), "size": self.size_bytes, "diffId": str(self.diff_id)}

    def descriptor(self, annotations: dict[str, str] | None = None) -> Descriptor:
        media_type = OCI_LAYER_GZIP if self.compression is Compression.GZIP else OCI_LAYER_ZSTD
        return Descriptor(media_type, self.digest, self.size_bytes, annotations or {})


@dataclass(frozen=True, slots=True)
class Member:
    """Where one store path's gzip member stands inside a stored layer."""

    blob: Digest
    start: int
    size_bytes: int

    @classmethod
    def from_json(cls, value: Any) -> Member:
        return cls(Digest.parse(value["blob"]), value["start"], value["size"])

    def to_json(self) -> dict[str, Any]:
        return {"blob": str(self.blob), "start": self.start, "size": self.size_bytes}


@dataclass(frozen=True, slots=True)
class Recipe:
    """What a layer of store paths was made of: paths with their NAR hashes, in their order, and the codec."""

    layer: Layer
    codec: str
    paths: tuple[tuple[StorePath, str], ...]

    @classmethod
    def of(cls, layer: Layer, infos: Iterable[PathInfo]) -> Recipe:
        return cls(layer, layer.compression.codec, tuple((info.path, info.nar_hash) for info in infos))

    @classmethod
    def from_json(cls, value: Any) -> Recipe:
        paths = tuple((StorePath.from_base_name(name), nar_hash) for name, nar_hash in value["paths"])
        kind = Compression(value["codec"].partition("-")[0])  # as all of their names begin
        return cls(Layer.from_json(value["layer"], kind), value["codec"], paths)

    def to_json(self) -> dict[str, Any]:
        paths = [[path.base_name, nar_hash] for path, nar_hash in self.paths]
        return {"layer": self.layer.to_json(), "codec": self.codec, "paths": paths}


class LayerMaker:
    """Packs layers into `blobs`, in worker threads, and remembers what it packed in `records`."""

    def __init__(self, contents: StoreContents, blobs: BlobStore, records: Records) -> None:
        self._contents = contents
        self._blobs = blobs
        self._records = records
        self._packing: Coalescer[Layer] = Coalescer()
        self._threads = asyncio.Semaphore(os.cpu_count() or 1)

    async def from_entries(
        self,
        entries: Iterable[tuple[TarEntry, Iterable[bytes]]],
        compression: Compression = Compression.GZIP,
    ) -> Layer:
        """A layer of entries that are at hand, as one member."""

        def fill(writer: BlobWriter, diff: _Hash) -> None:
            _pack(_with_end(tar.archive(entries)), writer, diff, compression)

        return await asyncio.to_thread(self._write, fill, compression)

    async def from_store(
        self, infos: tuple[PathInfo, ...], compression: Compression = Compression.GZIP
    ) -> Layer:
        """A layer of whole store paths. Equal layers are packed once, equal paths compressed once."""
        recipe = cache_key(compression.codec, [[info.path.base_name, info.nar_hash] for info in infos])
        return await self._packing.run(recipe, lambda: self._remembered_or_packed(recipe, infos, compression))

    async def _remembered_or_packed(
        self, recipe: str, infos: tuple[PathInfo, ...], compression: Compression
    ) -> Layer:
        if record := await self._records.get("layer", recipe):
            layer = Layer.from_json(record, compression)
            if await self._blobs.has(layer.digest):
                return layer
        layer = await self._packed(infos, compression)
        made_of = Recipe.of(layer, infos).to_json()
        if await self._records.put("recipe", layer.digest.hex, made_of) != made_of:
            await self._records.replace("recipe", layer.digest.hex, made_of)
        recorded = Layer.from_json(await self._records.put("layer", recipe, layer.to_json()), compression)
        if recorded == layer or await self._blobs.has(recorded.digest):
            return recorded
        await self._records.replace("layer", recipe, layer.to_json())
        return layer

    async def again(self, recipe: Recipe, infos: tuple[PathInfo, ...]) -> bool:
        """Pack a layer that is gone; tells whether it came out as it was."""
        kind = recipe.layer.compression
        return recipe.codec == kind.codec and await self._packed(infos, kind) == recipe.layer

    async def _packed(self, infos: tuple[PathInfo, ...], compression: Compression) -> Layer:
        known = await asyncio.gather(*(self._member(info, compression) for info in infos))
        members = dict(zip(infos, known, strict=True))
        async with self._threads:
            with step("pack", paths=len(infos)):
                try:
                    layer, packed = await asyncio.to_thread(self._pack_paths, members, compression)
                except BlobNotFound:  # removed just now
                    layer, packed = await asyncio.to_thread(
                        self._pack_paths, dict.fromkeys(infos), compression
                    )
        metrics.PACKED_BYTES.inc(sum(info.nar_size for info in packed))
        for info, member in packed.items():
            key, value = _member_key(info, compression), member.to_json()
            recorded = await self._records.put("member", key, value)
            if recorded != value and not await self._blobs.has(Member.from_json(recorded).blob):
                await self._records.replace("member", key, value)
        return layer

    async def _member(self, info: PathInfo, compression: Compression) -> Member | None:
        record = await self._records.get("member", _member_key(info, compression))
        if record is None:
            return None
        member = Member.from_json(record)
        return member if await self._blobs.has(member.blob) else None

    def _pack_paths(
        self, members: dict[PathInfo, Member | None], compression: Compression
    ) -> tuple[Layer, dict[PathInfo, Member]]:
        """Copies the members that exist, packs the others; returns where these then stand."""
        spans: dict[PathInfo, tuple[int, int]] = {}

        def fill(writer: BlobWriter, diff: _Hash) -> None:
            _pack(tar.archive((entry, ()) for entry in STORE_PARENTS), writer, diff, compression)
            for info, member in members.items():
                start = writer.size_bytes
                if member is None:
                    entries = _tar_entries(info.path, self._contents.entries(info))
                    ahead = info.nar_size >= _READ_AHEAD_BYTES
                    _pack(tar.archive(entries), writer, diff, compression, ahead=ahead)
                    spans[info] = start, writer.size_bytes - start
                else:
                    stored = self._blobs.read(member.blob, member.start, member.size_bytes)
                    for piece in codecs.decompress(_tee(stored, writer), compression):
                        diff.update(piece)
            _pack((tar.END,), writer, diff, compression)

        layer = self._write(fill, compression)
        return layer, {info: Member(layer.digest, *span) for info, span in spans.items()}

    def _write(self, fill: Callable[[BlobWriter, _Hash], None], compression: Compression) -> Layer:
        diff = hashlib.sha256()
        with self._blobs.writer() as writer:
            try:
                fill(writer, diff)
            except (OSError, ValueError) as error:
                raise StorageError(f"a layer could not be packed: {error}") from error
            diff_id = Digest("sha256", diff.hexdigest())
            return Layer(writer.commit(), writer.size_bytes, diff_id, compression)


def _member_key(info: PathInfo, compression: Compression) -> str:
    return cache_key(compression.codec, info.path.base_name, info.nar_hash)


def _with_end(chunks: Iterable[bytes]) -> Iterator[bytes]:
    yield from chunks
    yield tar.END


def _pack(
    chunks: Iterable[bytes],
    writer: BlobWriter,
    diff: _Hash,
    compression: Compression,
    *,
    ahead: bool = False,
) -> None:
    """Compress `chunks` into one member while hashing what goes in; `ahead`: by two threads."""

    def hashed() -> Iterator[bytes | memoryview]:
        for piece in codecs.pieces(chunks):  # the digest of many small chunks takes longer
            diff.update(piece)
            yield piece

    for piece in codecs.compress(read_ahead(hashed()) if ahead else hashed(), compression):
        writer.write(piece)


def _tee(chunks: Iterable[bytes], writer: BlobWriter) -> Iterator[bytes]:
    for chunk in chunks:
        writer.write(chunk)
        yield chunk


def _tar_entries(path: StorePath, entries: Iterator[FileEntry]) -> Iterator[tuple[TarEntry, Iterator[bytes]]]:
    """A store path's file system objects as members below nix/store, with the modes that Nix gives them."""
    root = str(path).strip("/").encode()
    for entry in entries:
        name = root + b"/" + entry.name if entry.name else root
        yield _tar_entry(name, entry.node), entry.content


def _tar_entry(name: bytes, node: Node) -> TarEntry:
    match node:
        case Directory():
            return TarEntry.directory(name, 0o555)
        case Symlink(target):
            return TarEntry.symlink(name, os.fsencode(target))
        case Regular(size_bytes, executable):
            return TarEntry(name, EntryType.REGULAR, 0o555 if executable else 0o444, size_bytes)
