"""Real images of hand-made stores, and taking them apart."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nixery_snap.errors import BlobNotFound
from nixery_snap.imaging.assemble import Assembler
from nixery_snap.imaging.layers import LayerMaker
from nixery_snap.imaging.request import ImageFormat, NameGrammar
from nixery_snap.imaging.resolution import Resolution
from nixery_snap.nix.attribute_path import AttributePath
from nixery_snap.nix.store_path import StorePath
from nixery_snap.object_store.blobs import Blobs
from nixery_snap.object_store.records import StoredRecords
from nixery_snap.object_store.store import ObjectStore
from nixery_snap.oci.digest import Digest
from nixery_snap.oci.manifest import Manifest
from nixery_snap.ports import Package, Pin
from tests.unit.stores import FileStore, Run, To, reachable

PIN = Pin("0" * 64)


def package(path: StorePath, *, priority: int = 5, main_program: str | None = None) -> Package:
    attribute = AttributePath((path.name,))
    return Package(attribute, path.name, f"{path}.drv", {"out": path}, main_program, (), priority)


class ImageMaker:
    """Assembles into an object store in memory."""

    def __init__(self, store: FileStore, max_layers: int = 10, url: str = "memory://") -> None:
        self.store = store
        objects = ObjectStore(url)
        self.blobs = Blobs(objects)
        self.records = StoredRecords(objects, 1024)
        self.layers = LayerMaker(store.contents, self.blobs, self.records)
        self._assembler = Assembler(store.contents, self.blobs, self.layers, max_layers)

    async def __call__(self, image_format: ImageFormat, *packages: Package, name: str = "hello") -> Manifest:
        resolution = Resolution(packages, ())
        closure, unknown = reachable(resolution.outputs, self.store.closure)
        assert not unknown
        meta = {"shell": (AttributePath(("bash",)),)}
        request = NameGrammar(image_format, ("x86_64-linux",), meta).parse(name)
        manifest = await self._assembler.assemble(request, PIN, resolution, closure)
        await self.blobs.put(bytes(manifest))
        return manifest


Member = tuple[tarfile.TarInfo, bytes]


@dataclass
class Opened:
    """An image taken apart; `pack` puts it together so that everything that can agree does."""

    manifest: dict[str, Any]
    config: dict[str, Any]
    layers: list[list[Member]]
    # Last touches, when the digests are known.
    edit_tar: Callable[[bytes], bytes] = lambda content: content  # of the last layer
    edit_blob: Callable[[bytes], bytes] = lambda content: content  # of the last layer, compressed
    edit_config: Callable[[dict[str, Any]], object] = lambda config: None
    edit_manifest: Callable[[dict[str, Any]], object] = lambda manifest: None
    blobs: dict[str, bytes] = field(default_factory=dict)

    @classmethod
    def of(cls, manifest: Manifest, read: Callable[[Digest], Iterator[bytes]]) -> Opened:
        def members(layer: bytes) -> list[Member]:
            with tarfile.open(fileobj=io.BytesIO(gzip.decompress(layer))) as archive:
                return [(info, _content(archive, info)) for info in archive]

        layers = [members(b"".join(read(layer.digest))) for layer in manifest.layers]
        config = json.loads(b"".join(read(manifest.config.digest)))
        return cls(json.loads(bytes(manifest)), config, layers)

    @property
    def last(self) -> list[Member]:
        return self.layers[-1]

    @property
    def annotations(self) -> dict[str, str]:
        found: dict[str, str] = self.manifest["layers"][0]["annotations"]
        return found

    def find(self, name: str) -> tarfile.TarInfo:
        return next(info for layer in self.layers for info, _ in layer if info.name == name)

    def rename(self, old: str, new: str) -> None:
        """Of a member and of all below it."""
        for layer in self.layers:
            for info, _ in layer:
                if info.name == old or info.name.startswith(f"{old}/"):
                    info.name = new + info.name[len(old) :]

    def pack(self) -> Digest:
        tars = [_tar(layer) for layer in self.layers]
        tars[-1] = self.edit_tar(tars[-1])
        packed = [gzip.compress(tar, 1, mtime=0) for tar in tars]
        packed[-1] = self.edit_blob(packed[-1])
        self.config["rootfs"]["diff_ids"] = [f"sha256:{hashlib.sha256(tar).hexdigest()}" for tar in tars]
        self.edit_config(self.config)
        config = json.dumps(self.config).encode()
        for descriptor, content in zip(
            [self.manifest["config"], *self.manifest["layers"]], [config, *packed], strict=True
        ):
            descriptor |= {"digest": self._put(content), "size": len(content)}
        self.edit_manifest(self.manifest)
        return Digest.parse(self._put(json.dumps(self.manifest).encode()))

    def read(self, digest: Digest) -> Iterator[bytes]:
        content = self.blobs.get(str(digest))
        if content is None:
            raise BlobNotFound(str(digest))
        for start in range(0, len(content), 1000):
            yield content[start : start + 1000]

    def _put(self, content: bytes) -> str:
        digest = str(Digest.of(content))
        self.blobs[digest] = content
        return digest


def _content(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(info) if info.isreg() else None
    return file.read() if file else b""


def _tar(members: list[Member]) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content) if info.isreg() else None)
    return file.getvalue()


def sample_store(root: Path) -> tuple[FileStore, StorePath]:
    """One package that refers to a directory, a file and links; returned as the one to ask for."""
    store = FileStore(root)
    library = store.add("library", {"lib": {"l.so": b"library"}})
    script = store.add("script", b"a file")
    link = store.add("link", To(f"{library}/lib"), library)
    tool = store.add(
        "tool",
        {"bin": {"tool": Run()}, "share": {"x": {"y": b"z"}}, "etc": {"tool.conf": b""}},
        library,
        script,
        link,
    )
    return store, tool
