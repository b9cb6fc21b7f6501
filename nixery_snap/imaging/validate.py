"""Checks every invariant of an image, of either format, on the bytes that would be served.

It shares no code with what writes layers: tars are read with the standard library.
"""

from __future__ import annotations

import hashlib
import io
import json
import posixpath
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from nixery_snap.errors import BlobNotFound, InvalidFormat, InvalidImage
from nixery_snap.imaging.assemble import NIX_CLOSURE, NIX_LAYER, NIX_STORE_PATH
from nixery_snap.nix.closure_info import closure_info
from nixery_snap.nix.store_path import STORE_DIR, StorePath
from nixery_snap.oci.digest import Digest
from nixery_snap.oci.manifest import MAX_MANIFEST_BYTES, Descriptor, Manifest
from nixery_snap.oci.media_types import (
    DOCKER_CONFIG,
    DOCKER_LAYER_GZIP,
    DOCKER_MANIFEST,
    OCI_CONFIG,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    OCI_MANIFEST,
)

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

ReadBlob = Callable[[Digest], Iterator[bytes]]
"""Yields a blob's bytes; raises BlobNotFound."""

_MAX_LAYERS: Final = 127  # overlayfs stops at 128 lower directories
_TAR_END_BYTES: Final = 1024
_MEDIA_TYPES: Final = {
    OCI_MANIFEST: (OCI_CONFIG, {OCI_LAYER_GZIP, OCI_LAYER_ZSTD}),
    DOCKER_MANIFEST: (DOCKER_CONFIG, {DOCKER_LAYER_GZIP}),
}
_MAX_LABEL_BYTES: Final = 4096  # of containerd, key and value together
_STORE: Final = STORE_DIR.strip("/")


def validate(digest: Digest, read: ReadBlob) -> Manifest:
    """Blocking. The manifest of a sound image; raises InvalidImage with every defect that was seen."""
    check = _Check(read)
    manifest = check.image(digest)
    if check.defects or manifest is None:
        raise InvalidImage(tuple(check.defects))
    return manifest


@dataclass(slots=True)
class _Layer:
    """What a layer's tar holds, by name without slash at the end."""

    diff_id: str
    members: dict[str, tarfile.TarInfo]

    def store_paths(self) -> set[str]:
        """Base names of the direct children of the store directory."""
        depth = _STORE.count("/") + 1
        return {name.split("/")[depth] for name in self.members if name.startswith(_STORE + "/")}


@dataclass(slots=True)
class _Check:
    read: ReadBlob
    defects: list[str] = field(default_factory=list)

    def expect(self, holds: bool, defect: str) -> None:
        if not holds:
            self.defects.append(defect)

    def image(self, digest: Digest) -> Manifest | None:
        content = b"".join(self._verified(Descriptor("", digest, -1)))
        try:
            manifest = Manifest.parse(content)
        except InvalidFormat as error:
            self.defects.append(str(error))
            return None
        self.expect(len(content) <= MAX_MANIFEST_BYTES, f"the manifest has {len(content)} bytes")
        self.expect(len(manifest.layers) <= _MAX_LAYERS, f"there are {len(manifest.layers)} layers")
        config_type, layer_types = _MEDIA_TYPES.get(manifest.media_type, ("", set()))
        self.expect(bool(config_type), f"the manifest has the media type {manifest.media_type}")
        self.expect(
            manifest.config.media_type == config_type,
            f"the config has the media type {manifest.config.media_type}",
        )
        for number, descriptor in enumerate(manifest.layers):
            kind = descriptor.media_type
            self.expect(kind in layer_types, f"layer {number} has the media type {kind}")
        layers = [self._layer(number, descriptor) for number, descriptor in enumerate(manifest.layers)]
        self._config(manifest, [layer.diff_id for layer in layers])
        if any(NIX_LAYER in descriptor.annotations for descriptor in manifest.layers):
            self._snapshotter(manifest, layers)
        else:
            self._classic(layers)
        return manifest

    def _verified(self, descriptor: Descriptor) -> Iterator[bytes]:
        """The blob's chunks; that it is what its descriptor says is noted at its end."""
        seen, size = hashlib.sha256(), 0
        try:
            for chunk in self.read(descriptor.digest):
                seen.update(chunk)
                size += len(chunk)
                yield chunk
        except BlobNotFound:
            self.defects.append(f"the blob {descriptor.digest} is missing")
            return
        self.expect(seen.hexdigest() == descriptor.digest.hex, f"{descriptor.digest} has another digest")
        self.expect(descriptor.size_bytes in {-1, size}, f"{descriptor.digest} has {size} bytes")

    def _config(self, manifest: Manifest, diff_ids: list[str]) -> None:
        try:
            config = json.loads(b"".join(self._verified(manifest.config)))
            self.expect(
                config["rootfs"]["diff_ids"] == diff_ids, "the config's diff_ids are not those of the layers"
            )
            self.expect(
                len(config["history"]) == len(diff_ids), "the history does not have one entry a layer"
            )
            self.expect(
                config["os"] == "linux" and config["architecture"] in {"amd64", "arm64"}, "unknown platform"
            )
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            self.defects.append(f"the config is malformed: {error!r}")

    def _layer(self, number: int, descriptor: Descriptor) -> _Layer:
        blob = self._verified(descriptor)
        unpack = _unzstd if descriptor.media_type == OCI_LAYER_ZSTD else _gunzip
        stream = _Hashing(unpack(blob))
        members: dict[str, tarfile.TarInfo] = {}
        order: list[bytes] = []
        try:
            with tarfile.open(fileobj=stream, mode="r|", errorlevel=2) as archive:
                for info in archive:
                    self._member(number, info, members)
                    members[info.name] = info
                    order.append(info.name.encode("utf-8", "surrogateescape"))
                end = archive.offset
            while stream.read(1024 * 1024):
                pass
            # tarfile takes anything that is no header for the end.
            rest = stream.size_bytes - end
            if rest < _TAR_END_BYTES:
                raise ValueError("its tar ends too early")
            if stream.trailing_zeros < rest:
                raise ValueError(f"something else stands behind the end of its tar, at byte {end}")
        except (tarfile.TarError, ValueError) as error:
            self.defects.append(f"layer {number} cannot be read: {error}")
        for _ in blob:  # what a broken layer left unread counts for its digest too
            pass
        in_order = sorted(order, key=lambda name: name.split(b"/"))
        self.expect(order == in_order, f"the entries of layer {number} are not sorted")
        return _Layer(f"sha256:{stream.digest.hexdigest()}", members)

    def _member(self, number: int, info: tarfile.TarInfo, before: dict[str, tarfile.TarInfo]) -> None:
        where = f"{info.name!r} in layer {number}"
        parts = info.name.split("/")
        self.expect(not {"", ".", ".."} & set(parts), f"{where} is not a plain relative name")
        self.expect(info.name not in before, f"{where} stands there twice")
        self.expect((info.uid, info.gid, info.uname, info.gname) == (0, 0, "", ""), f"{where} is not root's")
        self.expect(info.mtime == 1, f"{where} has the time {info.mtime}")
        self.expect(info.isreg() or info.isdir() or info.issym(), f"{where} is of type {info.type!r}")
        parent = posixpath.dirname(info.name)
        self.expect(
            not parent or (parent in before and before[parent].isdir()), f"{where} has no parent before it"
        )

    def _snapshotter(self, manifest: Manifest, layers: list[_Layer]) -> None:
        self.expect(len(layers) == 1, "a snapshotter image has exactly one layer")
        annotations = manifest.layers[0].annotations
        self.expect(annotations.get(NIX_LAYER) == "true", f"{NIX_LAYER} is not true")
        paths: list[str] = []
        while (value := annotations.get(f"{NIX_STORE_PATH}{len(paths)}")) is not None:
            paths.append(value)
        numbered = sum(key.startswith(NIX_STORE_PATH) for key in annotations)
        self.expect(len(paths) == numbered, "the annotated store paths are not numbered 0, 1, …")
        self.expect(len(set(paths)) == len(paths), "a store path is annotated twice")
        for key, value in annotations.items():
            self.expect(
                len(key) + len(value) <= _MAX_LABEL_BYTES, f"the annotation {key} is too long for containerd"
            )
        for path in paths:
            self.expect(_is_store_path(path), f"{path!r} is no store path")
        layer = layers[0]
        mounted = {f"{STORE_DIR}/{name}" for name in layer.store_paths()}
        listed = annotations.get(NIX_CLOSURE)
        if listed is not None and all(map(_is_store_path, mounted)):
            expected, _ = closure_info(map(StorePath.parse, mounted))
            self.expect(listed == str(expected.path), f"{NIX_CLOSURE} is not {expected.path}")
        if paths or listed is None:
            self.expect(
                mounted == set(paths), f"mountpoints and annotations differ: {sorted(mounted ^ set(paths))}"
            )
        for name, info in layer.members.items():
            if not name.startswith(_STORE + "/"):
                continue
            self.expect(posixpath.dirname(name) == _STORE, f"the mountpoint of {name} is not empty")
            empty_file = info.isreg() and info.size == 0 and info.mode == 0o555
            self.expect(empty_file or (info.isdir() and info.mode == 0o755), f"{name} is no mountpoint")
        self._forest(layer.members, mounted)

    def _classic(self, layers: list[_Layer]) -> None:
        owner: dict[str, int] = {}
        for number, layer in enumerate(layers):
            for name in layer.store_paths():
                self.expect(
                    _is_store_path(f"{STORE_DIR}/{name}"), f"{name} in layer {number} is no store path"
                )
                self.expect(name not in owner, f"{name} is in the layers {owner.get(name)} and {number}")
                owner[name] = number
        if layers:
            self.expect(not layers[-1].store_paths(), "the topmost layer is not the forest")
            self._forest(layers[-1].members, {f"{STORE_DIR}/{name}" for name in owner})

    def _forest(self, members: dict[str, tarfile.TarInfo], paths: set[str]) -> None:
        """Every link of the forest points into a store path that is there, or to another part of the forest."""
        for name, info in members.items():
            if not info.issym() or name.startswith(_STORE + "/"):
                continue
            target = info.linkname
            store_path = "/".join(target.split("/")[: STORE_DIR.count("/") + 2])
            inside = store_path in paths if target.startswith(STORE_DIR) else target.strip("/") in members
            self.expect(inside, f"the link {name} points out of the image, to {target}")
        for name in ("tmp", "etc"):
            self.expect(name in members and members[name].isdir(), f"there is no directory /{name}")


def _is_store_path(text: str) -> bool:
    try:
        StorePath.parse(text)
    except InvalidFormat:
        return False
    return True


def _gunzip(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """All gzip members, by the standard library's zlib."""
    codec = zlib.decompressobj(31)
    fed = False
    for chunk in chunks:
        rest = chunk
        while rest:
            fed = True
            yield codec.decompress(rest, 1024 * 1024)
            rest = codec.unconsumed_tail
            if codec.eof:
                rest, codec, fed = codec.unused_data, zlib.decompressobj(31), False
    if fed:
        raise ValueError("the gzip data ends too early")


def _unzstd(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """All zstd frames."""
    codec = zstd.ZstdDecompressor()
    fed = False
    for chunk in chunks:
        rest = chunk
        while rest or not (codec.needs_input or codec.eof):
            fed = True
            yield codec.decompress(rest, 1024 * 1024)
            rest = b""
            if codec.eof:
                rest, codec, fed = codec.unused_data, zstd.ZstdDecompressor(), False
    if fed:
        raise ValueError("the zstd data ends too early")


class _Hashing(io.RawIOBase):
    """A readable file over chunks that hashes what is read."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""
        self.digest = hashlib.sha256()
        self.size_bytes = 0
        self.trailing_zeros = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        while size < 0 or len(self._rest) < size:
            try:
                chunk = next(self._chunks, None)
            except (zlib.error, zstd.ZstdError) as error:
                raise ValueError(f"damaged compressed data: {error}") from error
            if chunk is None:
                break
            self._rest += chunk
        taken = self._rest if size < 0 else self._rest[:size]
        self._rest = self._rest[len(taken) :]
        self.digest.update(taken)
        self.size_bytes += len(taken)
        zeros = len(taken) - len(taken.rstrip(b"\0"))
        self.trailing_zeros = zeros if zeros < len(taken) else self.trailing_zeros + zeros
        return taken
