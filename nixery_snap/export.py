"""Writes an image to files that other tools load: OCI layouts and archives, Docker archives."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

import click

from nixery_snap.errors import SettingsError
from nixery_snap.imaging.oci_layout import ImageFile, archived, image_blobs, layout_files
from nixery_snap.oci import canonical_json
from nixery_snap.oci.digest import Digest
from nixery_snap.oci.manifest import Manifest
from nixery_snap.ports import BlobStore

_TRANSPORTS: Final = ("oci", "oci-archive", "docker-archive")


@dataclass(frozen=True, slots=True)
class Output:
    """Where to and in which form, in skopeo's notation `<transport>:<path>`."""

    transport: str
    path: Path

    @classmethod
    def parse(cls, text: str) -> Self:
        transport, _, path = text.partition(":")
        if transport not in _TRANSPORTS or not path:
            raise click.BadParameter(f"{text!r} is not one of {', '.join(f'{t}:PATH' for t in _TRANSPORTS)}")
        return cls(transport, Path(path))

    def __str__(self) -> str:
        return f"{self.transport}:{self.path}"


async def export(blobs: BlobStore, digest: Digest, output: Output, name: str, tag: str) -> Output:
    """Write the image `digest`, named `name:tag`; all of it or nothing. Raises SettingsError."""
    content = await blobs.get(digest)
    manifest = Manifest.parse(content)
    if output.transport == "docker-archive":
        files = _docker_archive(blobs, manifest, f"{name}:{tag}")
    else:
        files = layout_files(blobs, content, tag)
    write = _write_directory if output.transport == "oci" else _write_archive
    try:
        await asyncio.to_thread(write, output.path, files)
    except OSError as error:
        raise SettingsError(
            "output", f"{output.path} cannot be written: {error.strerror or error}"
        ) from error
    return output


def _docker_archive(blobs: BlobStore, manifest: Manifest, name: str) -> Iterator[ImageFile]:
    """What `docker load` reads (moby, image/spec/v1.2.md); it takes compressed layers as well."""
    names = {
        descriptor.digest: f"{descriptor.digest.hex}.{'json' if descriptor is manifest.config else 'tar.gz'}"
        for descriptor in (*manifest.layers, manifest.config)
    }
    entry = {
        "Config": names[manifest.config.digest],
        "RepoTags": [name],
        "Layers": [names[layer.digest] for layer in manifest.layers],
    }
    data = canonical_json.encode([entry])
    yield "manifest.json", len(data), iter((data,))
    for descriptor, chunks in image_blobs(blobs, manifest):
        yield names[descriptor.digest], descriptor.size_bytes, chunks


def _write_directory(path: Path, files: Iterator[ImageFile]) -> None:
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise SettingsError("output", f"{path} is there already; name a directory that is new or empty")
    with tempfile.TemporaryDirectory(prefix=".nixery-snap-", dir=path.absolute().parent) as temporary:
        layout = Path(temporary) / "layout"
        for name, _, chunks in files:
            target = layout / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("wb") as file:
                file.writelines(chunks)
        layout.rename(path)


def _write_archive(path: Path, files: Iterator[ImageFile]) -> None:
    handle, temporary = tempfile.mkstemp(prefix=".nixery-snap-", dir=path.absolute().parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.writelines(archived(files))
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)
