"""Image archives of every shape, made from what a registry serves."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from tests.integration.images import CLOSURE, LEGACY
from tests.integration.server import OCI_MANIFEST, Image, Json, digest_of

NAME = "localhost/some:name"


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


def oci_archive(
    image: Image, path: Path, *, compress: bool = False, nested: bool = False, exported: bool = False
) -> Path:
    """An OCI layout; `nested` puts an index for two platforms between.

    `exported`: as containerd exports images, which is how nix-snapshotter's buildImage makes its tarballs: named, with
    entries for directories, and with the list of Docker's form beside the index.
    """
    files = {blob_name(digest): content for digest, content in image.blobs.items()}
    entry = descriptor(image.manifest_bytes, OCI_MANIFEST)
    files[blob_name(image.digest)] = image.manifest_bytes
    if nested:
        others = entry | {"platform": {"os": "linux", "architecture": "s390x"}}
        index = index_of(others, entry | {"platform": {"os": "linux", "architecture": "amd64"}})
        files[blob_name(digest_of(index))] = index
        entry = descriptor(index, "application/vnd.oci.image.index.v1+json")
    if exported:
        entry |= {
            "annotations": {"io.containerd.image.name": NAME, "org.opencontainers.image.ref.name": "name"}
        }
        files["manifest.json"] = docker_list(image, blob_name)
    files |= {"index.json": index_of(entry), "oci-layout": b'{"imageLayoutVersion":"1.0.0"}'}
    directories = [directory("blobs/"), directory("blobs/sha256/")] if exported else []
    return write_tar(path, files, directories, compress=compress)


def docker_list(image: Image, name_of: Callable[[str], str]) -> bytes:
    """`manifest.json` of Docker's form."""
    manifest = {
        "Config": name_of(image.manifest["config"]["digest"]),
        "RepoTags": [NAME],
        "Layers": [name_of(layer["digest"]) for layer in image.layers],
    }
    return json.dumps([manifest]).encode()


def directory(name: str) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode = tarfile.DIRTYPE, 0o755
    return info


def descriptor(content: bytes, media_type: str) -> Json:
    return {"mediaType": media_type, "digest": digest_of(content), "size": len(content)}


def index_of(*entries: Json) -> bytes:
    media_type = "application/vnd.oci.image.index.v1+json"
    return json.dumps({"schemaVersion": 2, "mediaType": media_type, "manifests": entries}).encode()


def docker_archive(image: Image, path: Path) -> Path:
    """What `docker save` writes; it has no annotations."""

    def name_of(digest: str) -> str:
        return f"{digest.removeprefix('sha256:')}.blob"

    files = {name_of(digest): content for digest, content in image.blobs.items()}
    return write_tar(path, files | {"manifest.json": docker_list(image, name_of)})


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
