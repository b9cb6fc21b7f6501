"""Object stores filled by hand: images of both formats and a binary cache, all of it consistent."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from nixery_snap.nix import base32, nar
from nixery_snap.nix.closure_info import closure_info, closure_info_entries
from nixery_snap.nix.narinfo import NarInfo
from nixery_snap.nix.path_info import PathInfo
from nixery_snap.nix.store_path import StorePath
from nixery_snap.object_store import keys
from nixery_snap.object_store.store import ObjectStore
from nixery_snap.oci import canonical_json
from nixery_snap.oci.digest import Digest
from nixery_snap.oci.image_config import ImageConfig
from nixery_snap.oci.index import Index
from nixery_snap.oci.manifest import Descriptor, Manifest
from nixery_snap.oci.media_types import OCI_CONFIG, OCI_LAYER_GZIP, OCI_MANIFEST

NIX_STORE_PATH = "containerd.io/snapshot/nix-store-path."
NIX_CLOSURE = "containerd.io/snapshot/nix-closure"


def key_of(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def store_path(name: str) -> StorePath:
    return StorePath(base32.encode(hashlib.sha256(name.encode()).digest()[:20]), name)


@dataclass(frozen=True)
class StoredImage:
    """What was stored for one image."""

    key: str
    digest: Digest
    layers: tuple[Digest, ...]
    objects: tuple[str, ...]  # all of it, but for what other images share


@dataclass(frozen=True)
class Filler:
    """Writes through the store's own methods."""

    store: ObjectStore

    async def blob(self, content: bytes) -> Digest:
        digest = Digest.of(content)
        await self.store.put_if_absent(keys.blob(digest), content)
        return digest

    async def record(self, kind: str, key: str, value: Any) -> str:
        name = keys.record(kind, key)
        await self.store.put_if_absent(name, canonical_json.encode(value))
        return name

    async def path(self, name: str, *references: StorePath) -> PathInfo:
        """In the binary cache, with listing and log."""
        content = f"a NAR of {name}".encode()
        path, deriver = store_path(name), store_path(f"{name}.drv")
        info = PathInfo(path, _sha256(content), len(content), tuple(sorted(references)), deriver)
        await self._publish(info, content)
        await self.store.put(f"log/{deriver.base_name}", b"it was built\n")
        return info

    async def closure_info(self, paths: Iterable[StorePath]) -> StorePath:
        info, content = closure_info(paths)
        await self._publish(info, b"".join(nar.write(closure_info_entries(content))))
        return info.path

    async def _publish(self, info: PathInfo, content: bytes) -> None:
        file_hash = base32.encode(hashlib.sha256(content).digest())
        narinfo = NarInfo(info, f"nar/{file_hash}.nar", "none", f"sha256:{file_hash}", len(content))
        await self.store.put_if_absent(narinfo.url, content)
        await self.store.put(
            f"{info.path.hash_part}.ls", b'{"root":{"entries":{},"type":"directory"},"version":1}'
        )
        await self.store.put(f"{info.path.hash_part}.narinfo", bytes(narinfo))

    async def image(
        self,
        name: str,
        layers: Iterable[str] = (),
        closure: Iterable[StorePath] = (),
        *,
        snapshotter: bool = False,
    ) -> StoredImage:
        """`layers` are names: equal ones are the same layer, with records as for one store path."""
        contents = {text: _layer(text) for text in layers or [f"layer of {name}"]}
        digests, objects, paths = [], [], sorted(closure)
        for text, (content, diff_id) in contents.items():
            digest = await self.blob(content)
            value = {"digest": str(digest), "size": len(content), "diffId": str(diff_id)}
            await self.record("layer", key_of(text), value)
            member = {"blob": str(digest), "start": 3, "size": len(content) - 3}
            await self.record("member", key_of(text), member)
            recipe = {"layer": value, "codec": "none", "paths": [[store_path(text).base_name, _sha256(b"")]]}
            await self.record("recipe", digest.hex, recipe)
            digests.append(digest)
        config = bytes(
            ImageConfig(
                "amd64", (f"NAME={name}",), (), tuple(diff for _, diff in contents.values()), tuple(contents)
            )
        )
        annotations = {}
        if snapshotter:
            annotations = {f"{NIX_STORE_PATH}{number}": str(path) for number, path in enumerate(paths)}
            annotations[NIX_CLOSURE] = str(await self.closure_info(paths))
        manifest = bytes(
            Manifest(
                Descriptor.of(OCI_CONFIG, config),
                tuple(
                    Descriptor(OCI_LAYER_GZIP, digest, len(content), annotations)
                    for digest, (content, _) in zip(digests, contents.values(), strict=True)
                ),
            )
        )
        objects += [keys.blob(await self.blob(config)), keys.blob(digest := await self.blob(manifest))]
        resolution = await self.record("resolution", key_of(name), {"packages": [], "requested": []})
        record = {"manifest": str(digest), "resolution": {}, "closure": [[str(path), 1] for path in paths]}
        objects += [resolution, await self.record("image", key_of(name), record)]
        return StoredImage(key_of(name), digest, tuple(digests), tuple(objects))

    async def index_of(self, image: StoredImage) -> Digest:
        """An image index, which nothing names."""
        content = await self.store.get(keys.blob(image.digest))
        assert content is not None
        return await self.blob(bytes(Index({"amd64": Descriptor(OCI_MANIFEST, image.digest, len(content))})))

    async def attribute_index(self, name: str) -> str:
        """Its record's name."""
        part, catalogue = (
            await self.blob(f"part of {name}".encode()),
            await self.blob(f"all of {name}".encode()),
        )
        await self.record("index-part", key_of(name), {"blob": str(part)})
        levels = [[["a", str(part)]]]
        return await self.record(
            "index", key_of(name), {"levels": levels, "catalogue": str(catalogue), "counts": {}}
        )


def _layer(text: str) -> tuple[bytes, Digest]:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo(f"nix-{key_of(text)[:8]}"))
    tar = buffer.getvalue()
    return gzip.compress(tar, 1, mtime=0), Digest.of(tar)


def _sha256(content: bytes) -> str:
    return f"sha256:{base32.encode(hashlib.sha256(content).digest())}"


async def names(store: ObjectStore, prefix: str = "") -> set[str]:
    return {name async for name, _ in store.list(prefix)}


async def value_of(store: ObjectStore, name: str) -> Any:
    content = await store.get(name)
    assert content is not None, name
    return json.loads(content)
