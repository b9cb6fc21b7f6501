"""Which paths an image's annotations name, and which of them it can do without."""

import json

import pytest

from nixery_snap.errors import InvalidFormat
from nixery_snap.image_service.annotations import NamedPaths
from nixery_snap.nix.store_path import StorePath
from nixery_snap.oci.manifest import Manifest
from tests.integration.image_archives import descriptor
from tests.unit.stores import store_path

HELLO, LIBC, INFO, OTHER_INFO = (store_path(name) for name in ("hello", "libc", "info", "other-info"))
CLOSURE = "containerd.io/snapshot/nix-closure"
LEGACY = "containerd.io/snapshot/nix-store-path."


def legacy(*paths: StorePath) -> dict[str, str]:
    return {f"{LEGACY}{number}": str(path) for number, path in enumerate(paths)}


def closure(path: StorePath) -> dict[str, str]:
    return {CLOSURE: str(path)}


def manifest(*layers: dict[str, str]) -> Manifest:
    """Of layers with these annotations."""
    value = {
        "schemaVersion": 2,
        "config": descriptor(b"{}", "application/vnd.oci.image.config.v1+json"),
        "layers": [
            descriptor(b"layer", "application/vnd.oci.image.layer.v1.tar+gzip") | {"annotations": annotations}
            for annotations in layers
        ],
    }
    return Manifest.parse(json.dumps(value).encode())


@pytest.mark.parametrize(
    ("layers", "paths", "spare"),
    [
        ([{"containerd.io/snapshot/nix-layer": "true"}], set(), set()),
        ([legacy(HELLO, LIBC)], {HELLO, LIBC}, set()),
        ([closure(INFO)], {INFO}, set()),
        ([legacy(HELLO, LIBC) | closure(INFO)], {HELLO, LIBC}, {INFO}),
        ([legacy(HELLO) | closure(INFO), closure(OTHER_INFO)], {HELLO, OTHER_INFO}, {INFO}),
        ([legacy(HELLO) | closure(INFO), closure(INFO)], {HELLO, INFO}, set()),
    ],
    ids=["none", "legacy", "closure", "both", "two layers", "two layers of one closure"],
)
def test_named(layers: list[dict[str, str]], paths: set[StorePath], spare: set[StorePath]) -> None:
    named = NamedPaths.of(manifest(*layers))
    assert named == NamedPaths(frozenset(paths), frozenset(spare))
    assert sorted(named) == sorted(paths | spare)
    assert len(named) == len(paths | spare)


@pytest.mark.parametrize("key", [CLOSURE, f"{LEGACY}0"])
@pytest.mark.parametrize("value", ["/etc/passwd", "/nix/store/../../etc/passwd", ""])
def test_hostile(key: str, value: str) -> None:
    with pytest.raises(InvalidFormat):
        NamedPaths.of(manifest({key: value}))
