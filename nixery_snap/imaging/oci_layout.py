"""An image as the files of an OCI layout (image-spec, image-layout.md), which an archive can be made of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from nixery_snap.oci import canonical_json, tar
from nixery_snap.oci.digest import Digest
from nixery_snap.oci.manifest import Descriptor, Manifest
from nixery_snap.oci.media_types import OCI_INDEX
from nixery_snap.oci.tar import TarEntry
from nixery_snap.ports import BlobStore

# Name, size in bytes, content; reading it blocks.
ImageFile = tuple[str, int, Iterator[bytes]]


def layout_files(blobs: BlobStore, content: bytes, tag: str = "") -> Iterator[ImageFile]:
    """Of the one image whose manifest is `content`."""
    manifest = Manifest.parse(content)
    described = Descriptor.of(manifest.media_type, content).to_json()
    if tag:
        described["annotations"] = {"org.opencontainers.image.ref.name": tag}
    index = {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [described]}
    for name, small in (("oci-layout", {"imageLayoutVersion": "1.0.0"}), ("index.json", index)):
        data = canonical_json.encode(small)
        yield name, len(data), iter((data,))
    yield f"blobs/sha256/{Digest.of(content).hex}", len(content), iter((content,))
    for descriptor, chunks in image_blobs(blobs, manifest):
        yield f"blobs/sha256/{descriptor.digest.hex}", descriptor.size_bytes, chunks


def image_blobs(blobs: BlobStore, manifest: Manifest) -> Iterator[tuple[Descriptor, Iterator[bytes]]]:
    """Each blob once, also where an image has one layer twice."""
    for digest, descriptor in {part.digest: part for part in (*manifest.layers, manifest.config)}.items():
        yield descriptor, blobs.read(digest)


def archived(files: Iterable[ImageFile]) -> Iterator[bytes]:
    """The files as a tar archive. Blocking."""
    yield from tar.archive((TarEntry.regular(name.encode(), size), chunks) for name, size, chunks in files)
    yield tar.END
