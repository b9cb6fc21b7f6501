"""One name for several architectures: an image index, where the client takes one."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.integration.need import need
from tests.integration.nixtools import EXAMPLES, ChrootStore
from tests.integration.server import OCI_MANIFEST, Registry, Start

OCI_INDEX = "application/vnd.oci.image.index.v1+json"
BOTH = f"{OCI_MANIFEST}, {OCI_INDEX}"

# Without a builder for the other system: one package that has the same output everywhere, one that has not.
PACKAGES = """
{ system, ... }:
let
  shell = "${(import ./examples { }).busybox}/bin/busybox";
  make = name: system: derivation { inherit name system; builder = shell; args = [ "sh" "-c" "echo > $out" ]; };
in {
  everywhere = make "everywhere" builtins.currentSystem;
  built = make "built" system;
  x86only = if system == builtins.currentSystem then make "x86only" system
    else throw "x86only is not available on the requested hostPlatform";
}
"""


@pytest.fixture
def registry(directory: Path, own_store: ChrootStore, start: Start) -> Registry:
    shutil.copytree(EXAMPLES, directory / "set/examples")
    (directory / "set/default.nix").write_text(PACKAGES)
    config = 'index = "all"'
    return start(Registry(directory / "state", own_store.root, directory / "set", config=config))


def manifests(registry: Registry, name: str) -> dict[str, str]:
    answer = registry.manifest(name, accept=BOTH)
    assert answer.status == 200, answer
    assert answer.headers["content-type"] == OCI_INDEX
    assert answer.headers["vary"] == "Accept"
    by_digest = registry.get(f"/v2/{name}/manifests/{answer.headers['docker-content-digest']}", Accept=BOTH)
    assert by_digest.body == answer.body
    assert by_digest.headers["content-type"] == OCI_INDEX
    for entry in answer.json()["manifests"]:
        manifest = registry.manifest(name, entry["digest"])
        assert manifest.status == 200
        assert len(manifest.body) == entry["size"]
    return {entry["platform"]["architecture"]: entry["digest"] for entry in answer.json()["manifests"]}


@pytest.mark.parametrize("prefix", ["", "nix-snapshotter/"])
def test_every_system_for_which_there_is_an_image(registry: Registry, prefix: str) -> None:
    found = manifests(registry, f"{prefix}everywhere")
    assert found == {
        architecture: registry.pull(f"{prefix}{architecture}/everywhere").digest
        for architecture in ("amd64", "arm64")
    }
    assert set(manifests(registry, f"{prefix}x86only")) == {"amd64"}, "where it does not evaluate"
    assert set(manifests(registry, f"{prefix}built")) == {"amd64"}, "where nobody can build it"


def test_a_set_for_one_system_alone(directory: Path, own_store: ChrootStore, start: Start) -> None:
    shutil.copytree(EXAMPLES, directory / "set/examples")
    (directory / "set/default.nix").write_text(
        'args@{ system, ... }: if system == "x86_64-linux" then import ./examples args else throw "not for ${system}"'
    )
    registry = start(Registry(directory / "one", own_store.root, directory / "set"))
    assert set(manifests(registry, "nix-snapshotter/hello")) == {"amd64"}
    assert "not for aarch64-linux" in registry.manifest("arm64/hello").error["message"]


def test_only_where_it_is_asked_for(registry: Registry) -> None:
    for accept in (OCI_MANIFEST, "*/*", ""):
        assert registry.manifest("everywhere", accept=accept).headers["content-type"] == OCI_MANIFEST
    for name in ("amd64/everywhere", "arm64/everywhere"):
        assert registry.manifest(name, accept=BOTH).headers["content-type"] == OCI_MANIFEST


def test_what_is_nowhere(registry: Registry) -> None:
    answer = registry.manifest("everywere", accept=BOTH)
    assert answer.status == 404
    assert "did you mean everywhere" in answer.error["message"]


def test_skopeo_chooses(registry: Registry, directory: Path) -> None:
    need("skopeo")
    for architecture in ("amd64", "arm64"):
        target = directory / architecture
        subprocess.run(
            [
                *("skopeo", "--override-arch", architecture, "copy", "--src-tls-verify=false", "-q"),
                *(f"docker://{registry.host}/everywhere", f"dir:{target}"),
            ],
            check=True,
        )
        manifest = json.loads((target / "manifest.json").read_text())
        digest = manifest["config"]["digest"].removeprefix("sha256:")
        assert json.loads((target / digest).read_text())["architecture"] == architecture


def test_setting(directory: Path, own_store: ChrootStore, start: Start) -> None:
    """As it comes, for snapshotter images only: they cost little."""
    registry = start(Registry(directory / "other", own_store.root))
    assert registry.manifest("hello", accept=BOTH).headers["content-type"] == OCI_MANIFEST
    name = "nix-snapshotter/hello"
    assert registry.manifest(name, accept=BOTH).headers["content-type"] == OCI_INDEX
