import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixery_snap.errors import InvalidFormat
from nixery_snap.oci.digest import Digest
from nixery_snap.oci.manifest import Descriptor, Manifest
from nixery_snap.oci.media_types import DOCKER_EQUIVALENT, DOCKER_MANIFEST, OCI_CONFIG, OCI_LAYER_GZIP
from tests.unit.oci.test_digest import digests

texts = st.text(st.characters(exclude_categories=["Cs"]))
annotations = st.dictionaries(texts, texts, max_size=4)


def descriptors(media_type: st.SearchStrategy[str] = texts) -> st.SearchStrategy[Descriptor]:
    return st.builds(Descriptor, media_type, digests, st.integers(0, 2**63), annotations)


manifests = st.builds(
    Manifest,
    descriptors(st.just(OCI_CONFIG)),
    st.lists(descriptors(st.just(OCI_LAYER_GZIP)), max_size=4).map(tuple),
    annotations,
)


@given(descriptors())
def test_descriptor_survives_json(descriptor: Descriptor) -> None:
    assert Descriptor.from_json(json.loads(json.dumps(descriptor.to_json()))) == descriptor


@given(manifests)
def test_manifest_survives_bytes(manifest: Manifest) -> None:
    assert Manifest.parse(bytes(manifest)) == manifest
    assert bytes(Manifest.parse(bytes(manifest))) == bytes(manifest)


@given(manifests)
def test_docker_form_names_the_same_blobs(manifest: Manifest) -> None:
    docker = json.loads(bytes(manifest.to_docker()))
    oci = json.loads(bytes(manifest))
    assert docker["mediaType"] == DOCKER_MANIFEST
    assert "annotations" not in docker
    for ours, theirs in zip(
        [oci["config"], *oci["layers"]], [docker["config"], *docker["layers"]], strict=True
    ):
        assert (theirs["digest"], theirs["size"]) == (ours["digest"], ours["size"])
        assert theirs["mediaType"] == DOCKER_EQUIVALENT[ours["mediaType"]]


def test_descriptor_of_content() -> None:
    assert Descriptor.of("x/y", b"content") == Descriptor("x/y", Digest.of(b"content"), 7)


def sound() -> dict[str, Any]:
    blob = {"mediaType": "x/y", "digest": str(Digest.of(b"")), "size": 0}
    return {"schemaVersion": 2, "config": dict(blob), "layers": [dict(blob)]}


def test_media_type_may_be_absent() -> None:
    assert Manifest.parse(json.dumps(sound()).encode()).layers[0].size_bytes == 0


@pytest.mark.parametrize("size", [-1, 1.0, "0", None, True, [], "absent"])
def test_sizes_that_are_none(size: object) -> None:
    value = sound()
    value["layers"][0]["size"] = size
    if size == "absent":
        del value["layers"][0]["size"]
    with pytest.raises(InvalidFormat):
        Manifest.parse(json.dumps(value).encode())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("schemaVersion", 1),
        ("schemaVersion", None),
        ("config", None),
        ("config", []),
        ("config", {"mediaType": "x", "digest": "sha256:x", "size": 1}),
        ("config", {"mediaType": "x", "digest": 5, "size": 1}),
        ("layers", None),
        ("layers", 5),
        ("layers", [None]),
        ("layers", {"a": 1}),
        ("annotations", ["a"]),
    ],
)
def test_malformed(key: str, value: object) -> None:
    with pytest.raises(InvalidFormat):
        Manifest.parse(json.dumps(sound() | {key: value}).encode())


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=6,
)


@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_anything_else_is_refused(content: bytes) -> None:
    with pytest.raises(InvalidFormat):
        Manifest.parse(content)


@given(
    st.dictionaries(
        st.sampled_from(["schemaVersion", "config", "layers", "annotations", "mediaType"]), json_values
    )
)
def test_a_manifest_or_refused(replaced: dict[str, Any]) -> None:
    content = json.dumps(sound() | replaced).encode()
    try:
        manifest = Manifest.parse(content)
    except InvalidFormat:
        return
    assert Manifest.parse(bytes(manifest)) == manifest
