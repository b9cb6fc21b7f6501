"""Image archives of every shape, made from what a registry serves."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from tests.integration.images import CLOSURE, LEGACY
from tests.integration.server import OCI_MANIFEST, Image, Json, digest_of


def with_annotations(image: Image, form: str) -> Image:
    """The same image with its store paths named in one `form` only: legacy or closure."""
    manifest = image.manifest
    for layer in manifest["layers"]:
        unwanted = CLOSURE if form == "legacy" else LEGACY
        kept = {key: value for key, value in layer["annotations"].items() if not key.startswith(unwanted)}
        assert len(kept) > 1, "nothing names the paths"
        layer["annotations"] = kept
    content = json.dumps(manifest).encode()
    return Image(digest_of(content), content, image.blobs)


def on_top_of(base: Image, top: Image) -> Image:
    """The layers of both, run as `top` is."""
    config, below = top.config, base.config
    config["rootfs"]["diff_ids"] = below["rootfs"]["diff_ids"] + config["rootfs"]["diff_ids"]
    config["history"] = below["history"] + config["history"]
    config_bytes = json.dumps(config).encode()
    manifest = top.manifest | {"layers": base.layers + top.layers}
    manifest["config"] = descriptor(config_bytes, manifest["config"]["mediaType"])
    content = json.dumps(manifest).encode()
    blobs = base.blobs | top.blobs | {digest_of(config_bytes): config_bytes}
    return Image(digest_of(content), content, blobs)


def oci_archive(image: Image, path: Path, *, compress: bool = False, nested: bool = False) -> Path:
    """An OCI layout; `nested` puts an index for two platforms between."""
    files = {blob_name(digest): content for digest, content in image.blobs.items()}
    entry = descriptor(image.manifest_bytes, OCI_MANIFEST)
    files[blob_name(image.digest)] = image.manifest_bytes
    if nested:
        others = entry | {"platform": {"os": "linux", "architecture": "s390x"}}
        index = index_of(others, entry | {"platform": {"os": "linux", "architecture": "amd64"}})
        files[blob_name(digest_of(index))] = index
        entry = descriptor(index, "application/vnd.oci.image.index.v1+json")
    files |= {"index.json": index_of(entry), "oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}
    return write_tar(path, files, compress=compress)


def descriptor(content: bytes, media_type: str) -> Json:
    return {"mediaType": media_type, "digest": digest_of(content), "size": len(content)}


def index_of(*entries: Json) -> bytes:
    media_type = "application/vnd.oci.image.index.v1+json"
    return json.dumps({"schemaVersion": 2, "mediaType": media_type, "manifests": entries}).encode()


def docker_archive(image: Image, path: Path) -> Path:
    """What `docker save` writes; it has no annotations."""
    files = {f"{digest_of(content)[7:]}.blob": content for content in image.blobs.values()}
    manifest = {
        "Config": f"{image.manifest['config']['digest'][7:]}.blob",
        "RepoTags": ["localhost/some:name"],
        "Layers": [f"{layer['digest'][7:]}.blob" for layer in image.layers],
    }
    return write_tar(path, files | {"manifest.json": json.dumps([manifest]).encode()})


def blob_name(digest: str) -> str:
    return f"blobs/sha256/{digest.removeprefix('sha256:')}"


def write_tar(
    path: Path, files: Mapping[str, bytes], more: Iterable[tarfile.TarInfo] = (), *, compress: bool = False
) -> Path:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for info in more:
            archive.addfile(info, io.BytesIO(bytes(info.size)))
    content = buffer.getvalue()
    path.write_bytes(gzip.compress(content, mtime=0) if compress else content)
    return path
