import json

import pytest

from nixery_snap.errors import InvalidFormat
from nixery_snap.oci.index import Index
from nixery_snap.oci.manifest import Descriptor
from nixery_snap.oci.media_types import OCI_INDEX, OCI_MANIFEST

INDEX = Index(
    {"amd64": Descriptor.of(OCI_MANIFEST, b"one"), "arm64": Descriptor.of(OCI_MANIFEST, b"two")},
    {"org.opencontainers.image.revision": "abc"},
)


def test_what_it_says() -> None:
    value = json.loads(bytes(INDEX))
    assert value["schemaVersion"] == 2
    assert value["mediaType"] == OCI_INDEX
    assert [entry["platform"] for entry in value["manifests"]] == [
        {"architecture": "amd64", "os": "linux"},
        {"architecture": "arm64", "os": "linux"},
    ]
    assert [entry["size"] for entry in value["manifests"]] == [3, 3]
    assert "annotations" not in json.loads(bytes(Index(INDEX.manifests)))


def test_it_is_read_back() -> None:
    assert Index.parse(bytes(INDEX)) == INDEX


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{}",
        bytes(INDEX).replace(b'"schemaVersion":2', b'"schemaVersion":1'),
        bytes(INDEX).replace(OCI_INDEX.encode(), OCI_MANIFEST.encode()),
        bytes(INDEX).replace(b'"architecture"', b'"other"'),
    ],
)
def test_what_is_none(content: bytes) -> None:
    with pytest.raises(InvalidFormat):
        Index.parse(content)
