"""An image as files, and as an archive."""

import io
import json
import tarfile
from pathlib import Path

import pytest

from nixery_snap.imaging.oci_layout import archived, layout_files
from nixery_snap.imaging.request import ImageFormat
from nixery_snap.oci.digest import Digest
from tests.unit.images import ImageMaker, package
from tests.unit.stores import FileStore, Run


@pytest.mark.parametrize("tag", ["", "v1"])
async def test_all_of_an_image(tmp_path: Path, tag: str) -> None:
    store = FileStore(tmp_path / "store")
    maker = ImageMaker(store)
    manifest = await maker(ImageFormat.CLASSIC, package(store.add("hello", {"bin": {"hello": Run()}})))
    content = b"".join(archived(layout_files(maker.blobs, bytes(manifest), tag)))
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        files = {member.name: archive.extractfile(member) for member in archive}
    read = {name: file.read() for name, file in files.items() if file}

    assert json.loads(read.pop("oci-layout")) == {"imageLayoutVersion": "1.0.0"}
    [entry] = json.loads(read.pop("index.json"))["manifests"]
    assert entry.get("annotations", {}) == ({"org.opencontainers.image.ref.name": tag} if tag else {})
    named = {Digest.of(bytes(manifest)), manifest.config.digest, *(layer.digest for layer in manifest.layers)}
    assert entry["digest"] == str(Digest.of(bytes(manifest)))
    assert {f"blobs/sha256/{digest.hex}" for digest in named} == read.keys()
    assert all(name == f"blobs/sha256/{Digest.of(blob).hex}" for name, blob in read.items())


async def test_a_layer_that_an_image_has_twice_is_there_once(tmp_path: Path) -> None:
    store = FileStore(tmp_path / "store")
    maker = ImageMaker(store)
    manifest = await maker(ImageFormat.CLASSIC, package(store.add("hello", {"bin": {"hello": Run()}})))
    value = json.loads(bytes(manifest))
    value["layers"] *= 2
    names = [name for name, _, _ in layout_files(maker.blobs, json.dumps(value).encode())]
    assert len(names) == len(set(names))
