"""`nix:0/…` references as the kubelet writes them."""

import pytest

from nixery_snap.errors import InvalidFormat, InvalidName, NixerySnapError
from nixery_snap.image_service.references import NodeReference
from nixery_snap.image_service.registry_client import Reference
from nixery_snap.nix.store_path import StorePath
from nixery_snap.oci.digest import Digest

DIGEST = Digest.of(b"x")
TAR = "nix/store/0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c-image-hello.tar"


@pytest.mark.parametrize(
    ("text", "stored"),
    [
        ("nix:0/hello", "nix:0/hello:latest"),
        ("nix:0/hello:v1", "nix:0/hello:v1"),
        ("nix:0/nix-snapshotter/shell/git:latest", "nix:0/nix-snapshotter/shell/git:latest"),
        (f"nix:0/hello:v1@{DIGEST}", f"nix:0/hello@{DIGEST}"),
        (f"nix:0/{TAR}", f"nix:0/{TAR}:latest"),
        (f"nix:0/{TAR}:latest", f"nix:0/{TAR}:latest"),
    ],
)
def test_named_as_containerd_names_them(text: str, stored: str) -> None:
    reference = NodeReference.parse(text)
    assert reference
    assert reference.stored_name == stored
    assert reference.archive == (StorePath.parse(f"/{TAR}") if TAR in text else None)
    assert (
        reference.with_digest(DIGEST)
        == f"{stored.removesuffix(f'@{DIGEST}').removesuffix(':latest').removesuffix(':v1')}@{DIGEST}"
    )


@pytest.mark.parametrize(
    "text", ["hello", "nix/hello", "nix:1/hello", "nix.example:0/hello", "docker.io/nix:0", ""]
)
def test_others_are_not_ours(text: str) -> None:
    assert NodeReference.parse(text) is None


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("nix:0/", InvalidName),
        ("nix:0/Hello", InvalidName),
        ("nix:0/../etc", InvalidName),
        ("nix:0/hello:bad tag", InvalidFormat),
        ("nix:0/hello@sha256:12", InvalidFormat),
        ("nix:0/nix/store/short.tar", InvalidName),
        (f"nix:0/{TAR}/inside", InvalidName),
        (f"nix:0/{TAR}:v1", InvalidName),
    ],
)
def test_refused(text: str, kind: type[NixerySnapError]) -> None:
    with pytest.raises(kind):
        NodeReference.parse(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("busybox", Reference("docker.io", "library/busybox", "latest")),
        ("some/thing:1", Reference("docker.io", "some/thing", "1")),
        ("localhost/x", Reference("localhost", "x", "latest")),
        ("host:5000/a/b:v", Reference("host:5000", "a/b", "v")),
        (f"host.example/a:v@{DIGEST}", Reference("host.example", "a", str(DIGEST))),
    ],
)
def test_of_registries(text: str, expected: Reference) -> None:
    assert Reference.parse(text) == expected
