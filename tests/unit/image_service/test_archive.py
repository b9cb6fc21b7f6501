"""Image archives, honest and hostile."""

import json
import tarfile
from pathlib import Path
from typing import Any

import pytest

from nixery_snap.errors import InvalidArchive
from nixery_snap.image_service.annotations import NamedPaths
from nixery_snap.image_service.archive import look_into
from nixery_snap.nix.store_path import StorePath
from tests.integration.image_archives import blob_name, descriptor, index_of, oci_archive, write_tar
from tests.integration.server import OCI_MANIFEST, Image, digest_of

PATH = "/nix/store/0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c-hello"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"


def image(**annotations: str) -> Image:
    config, layer = b"{}", b"layer"
    manifest = {
        "schemaVersion": 2,
        "config": descriptor(config, OCI_CONFIG),
        "layers": [descriptor(layer, LAYER) | {"annotations": annotations}],
    }
    content = json.dumps(manifest).encode()
    return Image(digest_of(content), content, {digest_of(blob): blob for blob in (config, layer)})


def entry(name: str, kind: bytes = tarfile.REGTYPE, target: str = "", size: int = 0) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, target, size
    return info


def refused(path: Path) -> str:
    with pytest.raises(InvalidArchive) as raised:
        look_into(path, "/nix/store/shown.tar", "amd64")
    assert "/nix/store/shown.tar" in str(raised.value)
    return raised.value.reason


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_oci(tmp_path: Path, *, compress: bool, nested: bool) -> None:
    made = image(
        **{"containerd.io/snapshot/nix-store-path.0": PATH, "containerd.io/snapshot/nix-layer": "true"}
    )
    found = look_into(oci_archive(made, tmp_path / "a.tar", compress=compress, nested=nested), "x", "amd64")
    assert str(found.digest) == made.digest
    assert found.manifest
    assert NamedPaths.of(found.manifest) == NamedPaths(frozenset([StorePath.parse(PATH)]))


def test_docker(tmp_path: Path) -> None:
    manifest = json.dumps([{"Config": "c", "Layers": ["l"]}]).encode()
    links = [entry("a/layer.tar", tarfile.SYMTYPE, "../b/layer.tar")]
    found = look_into(write_tar(tmp_path / "a.tar", {"manifest.json": manifest}, links), "x", "amd64")
    assert found.digest is None
    assert found.manifest is None


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (entry("/etc/passwd"), "outside of itself"),
        (entry("../etc/passwd"), "outside of itself"),
        (entry("a/../../b"), "outside of itself"),
        (entry("x", tarfile.SYMTYPE, "/etc/passwd"), "leads out of it"),
        (entry("a/x", tarfile.SYMTYPE, "../../etc"), "leads out of it"),
        (entry("x", tarfile.LNKTYPE, "/etc/passwd"), "neither a file nor a directory"),
        (entry("x", tarfile.CHRTYPE), "neither a file nor a directory"),
        (entry("x", tarfile.BLKTYPE), "neither a file nor a directory"),
        (entry("x", tarfile.FIFOTYPE), "neither a file nor a directory"),
        (entry("x", tarfile.GNUTYPE_LONGNAME, size=200_000), "extended header"),
        (entry("x", tarfile.XHDTYPE, size=200_000), "extended header"),
    ],
)
@pytest.mark.parametrize("compress", [False, True])
def test_entries_that_no_honest_tool_makes(
    tmp_path: Path, bad: tarfile.TarInfo, reason: str, *, compress: bool
) -> None:
    assert reason in refused(write_tar(tmp_path / "a.tar", {"index.json": b"{}"}, [bad], compress=compress))


def test_too_many_entries(tmp_path: Path) -> None:
    many = [entry(f"blobs/sha256/{number}") for number in range(10_000)]
    assert "more than 4096 entries" in refused(write_tar(tmp_path / "a.tar", {}, many, compress=True))


def test_too_many_small_files(tmp_path: Path) -> None:
    files = {f"blobs/sha256/{number}": bytes(4 * 1024 * 1024) for number in range(17)}
    assert "too many small files" in refused(write_tar(tmp_path / "a.tar", files, compress=True))


def files_of(index: bytes, **blobs: bytes) -> dict[str, bytes]:
    return {"index.json": index} | {blob_name(digest_of(blob)): blob for blob in blobs.values()}


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "neither index.json"),
        ({"manifest.json": b"{}"}, "neither index.json"),
        ({"index.json": b"[1]"}, ""),
        ({"index.json": b"{"}, "Expecting"),
        ({"index.json": index_of()}, "no image for amd64"),
        ({"index.json": index_of(descriptor(b"x", OCI_MANIFEST))}, "does not have"),
        (
            {"index.json": index_of(descriptor(b"x", OCI_MANIFEST)), blob_name(digest_of(b"x")): b"y"},
            "is something else",
        ),
        (files_of(index_of(descriptor(b"x", "text/plain")), x=b"x"), "unknown type"),
        (files_of(index_of(descriptor(b"{}", OCI_MANIFEST)), x=b"{}"), "schemaVersion"),
        ({"index.json": b'{"manifests":[{"digest":"sha256:../../x"}]}'}, "lower-case hex"),
        (
            {
                "index.json": index_of(
                    descriptor(b"x", OCI_MANIFEST) | {"platform": {"architecture": "s390x"}}
                )
            },
            "no image for amd64",
        ),
    ],
)
def test_what_does_not_hang_together(tmp_path: Path, files: dict[str, bytes], reason: str) -> None:
    assert reason in refused(write_tar(tmp_path / "a.tar", files))


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x1f\x8b broken gzip", bytes(1024)])
def test_no_archive_at_all(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "a.tar"
    file.write_bytes(content)
    refused(file)


@pytest.mark.parametrize("compress", [False, True])
def test_cut_off_anywhere(tmp_path: Path, *, compress: bool) -> None:
    """Never anything but InvalidArchive or the whole image."""
    whole = oci_archive(image(), tmp_path / "whole.tar", compress=compress).read_bytes()
    cut = tmp_path / "cut.tar"
    results: set[Any] = set()
    for length in range(0, len(whole), max(1, len(whole) // 200)):
        cut.write_bytes(whole[:length])
        try:
            results.add(look_into(cut, "x", "amd64").digest)
        except InvalidArchive:
            results.add(None)
    assert {str(result) for result in results if result} <= {image().digest}
    assert None in results
