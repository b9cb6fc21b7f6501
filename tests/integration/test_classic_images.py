"""Classic images run in every container engine as any other image does."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.need import need
from tests.integration.nixtools import EXAMPLES, ChrootStore, add_package
from tests.integration.processes import run
from tests.integration.runtimes.base import Runtime
from tests.integration.runtimes.docker import Docker
from tests.integration.server import DOCKER_MANIFEST, OCI_MANIFEST, PROGRAM, Registry, serving

OCI_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
OCI_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"
# The last of 121 paths, by way of the package that refers to them all.
READ_LAST_LEAF = "for path in $(cat /needs); do last=$path; done; cat $last/id"


def test_hello_with_a_shell(registry: Registry, runtime: Runtime) -> None:
    reference = f"{registry.host}/shell/hello:latest"
    runtime.pull(reference)
    assert runtime.run(reference, "hello") == "Hello, world!\n"
    listed = runtime.run(reference, "bash", "-c", "ls /bin /etc").split()
    assert {"/bin:", "bash", "hello", "ls", "/etc:", "ssl", "passwd", "services"} <= set(listed)


def test_curl_finds_its_whole_chain_and_is_the_default_command(registry: Registry, runtime: Runtime) -> None:
    reference = f"{registry.host}/curl:latest"
    runtime.pull(reference)
    assert runtime.run(reference) == "curl 8.8.0 (tiny)\n"


def test_121_paths(registry: Registry, runtime: Runtime) -> None:
    reference = f"{registry.host}/shell/wide:latest"
    runtime.pull(reference)
    assert runtime.run(reference, "bash", "-c", READ_LAST_LEAF) == "119\n"
    assert len(runtime.run(reference, "ls", "/nix/store").split()) >= 121


@pytest.fixture(scope="module")
def many_packages(scratch: Path, prepared_store: ChrootStore) -> Iterator[Registry]:
    """A registry whose meta-package `many` stands for more packages than an image may have layers."""
    source = Path(shutil.copytree(EXAMPLES, scratch / "many-packages"))
    names = [f"part{number}" for number in range(120)]
    for name in names:
        add_package(source, name, f"mkdir -p $out/share/parts; echo {name} > $out/share/parts/{name}")
    home = scratch / "many"
    store = prepared_store.copy(home / "store")
    settings = f"[meta_packages]\nmany = {names}\n"
    with serving(Registry(home / "state", store.root, source, config=settings)) as running:
        yield running


def test_as_many_layers_as_allowed(many_packages: Registry, runtime: Runtime) -> None:
    """Engines stack them all: overlayfs has a limit, and so have mount options."""
    assert len(many_packages.pull("many/shell").layers) == 100
    reference = f"{many_packages.host}/many/shell:latest"
    runtime.pull(reference)
    assert runtime.run(reference, "bash", "-c", "cat /share/parts/* | sort | uniq | wc -l").strip() == "120"


def test_rootfs_extras(registry: Registry, docker_engine: Docker) -> None:
    """What programs expect of any Linux system: users, a place for temporary files, env, certificates."""
    reference = f"{registry.host}/shell/hello:latest"
    docker_engine.pull(reference)
    script = (
        "stat -c '%a %U' /tmp; echo x >/tmp/x && cat /tmp/x; /usr/bin/env sh -c 'echo env';"
        " cat $SSL_CERT_FILE; whoami; cat /etc/passwd /etc/group"
    )
    answer = docker_engine.run(reference, "bash", "-c", script).splitlines()
    assert answer[:4] == ["1777 root", "x", "env", "-----BEGIN CERTIFICATE-----"]
    assert "root" in answer
    assert any(line.startswith("nobody:") for line in answer)


def test_the_image_says_where_it_comes_from(registry: Registry) -> None:
    annotations = registry.pull("shell/hello").manifest["annotations"]
    prefix = "org.opencontainers.image."
    assert annotations[f"{prefix}revision"]
    assert "hello" in annotations[f"{prefix}title"]
    assert "GPL-3.0" in annotations[f"{prefix}licenses"]


@pytest.mark.parametrize("target", ["dir", "oci"])
def test_skopeo_copies_the_very_bytes(registry: Registry, directory: Path, target: str) -> None:
    need("skopeo")
    copied = directory / target
    image = registry.pull("shell/hello")
    source = f"docker://{registry.host}/shell/hello"
    run("skopeo", "--insecure-policy", "copy", "--src-tls-verify=false", source, f"{target}:{copied}")
    if target == "dir":
        assert (copied / "manifest.json").read_bytes() == image.manifest_bytes
        files = {path.name for path in copied.iterdir()} - {"manifest.json", "version"}
        assert files == {digest.removeprefix("sha256:") for digest in image.blobs}
    else:
        index = json.loads((copied / "index.json").read_text())
        assert [manifest["digest"] for manifest in index["manifests"]] == [image.digest]


def test_clients_that_know_no_oci_media_types(registry: Registry) -> None:
    """Same layers, same config, Docker's names for them: what Docker before 1.10's successors ask for."""
    oci = registry.pull("shell/hello")
    docker = registry.pull("shell/hello", accept=DOCKER_MANIFEST)
    assert docker.manifest["mediaType"] == DOCKER_MANIFEST
    assert docker.manifest["config"]["mediaType"] == "application/vnd.docker.container.image.v1+json"
    media_types = {layer["mediaType"] for layer in docker.layers}
    assert media_types == {"application/vnd.docker.image.rootfs.diff.tar.gzip"}
    assert docker.blobs == oci.blobs
    by_digest = registry.manifest("shell/hello", docker.digest, accept=DOCKER_MANIFEST)
    assert by_digest.body == docker.manifest_bytes
    assert by_digest.headers["content-type"] == DOCKER_MANIFEST


def test_both_media_types_accepted_means_oci(registry: Registry) -> None:
    answer = registry.manifest("shell/hello", accept=f"{DOCKER_MANIFEST}, {OCI_MANIFEST}")
    assert answer.headers["content-type"] == OCI_MANIFEST
    assert answer.json()["mediaType"] == OCI_MANIFEST


def test_layers_stay_below_what_overlayfs_takes(registry: Registry) -> None:
    layers = registry.pull("shell/wide").layers
    assert 2 <= len(layers) <= 100
    assert len({layer["digest"] for layer in layers}) == len(layers)


def test_images_share_the_layers_of_what_they_have_in_common(registry: Registry) -> None:
    hello = {layer["digest"] for layer in registry.pull("shell/hello").layers}
    git = {layer["digest"] for layer in registry.pull("shell/git").layers}
    assert hello & git


def test_arm64_is_another_image(registry: Registry) -> None:
    native, arm = registry.pull("hello"), registry.pull("arm64/hello")
    assert (native.config["architecture"], arm.config["architecture"]) == ("amd64", "arm64")
    assert native.digest != arm.digest
    assert registry.pull("amd64/hello").digest == native.digest


@pytest.fixture(scope="module")
def zstd(scratch: Path, prepared_store: ChrootStore) -> Iterator[Registry]:
    """A registry that packs layers with zstd."""
    settings = Registry(scratch / "zstd", prepared_store.root, config='compression = "zstd"')
    with serving(settings) as running:
        yield running


def layer_types(registry: Registry, name: str, accept: str = OCI_MANIFEST) -> set[str]:
    return {layer["mediaType"] for layer in registry.manifest(name, accept=accept).json()["layers"]}


def test_zstd_layers_run(zstd: Registry, runtime: Runtime) -> None:
    """But in Docker before version 23, whose requests look like those of newer ones."""
    # No engine that knows the image's config already, from a pull with gzip, asks for its layers again.
    assert layer_types(zstd, "shell/hello/which") == {OCI_ZSTD}
    reference = f"{zstd.host}/shell/hello/which:latest"
    if isinstance(runtime, Docker) and int(runtime.engine_version.partition(".")[0]) < 23:
        runtime.command(
            "image", "prune", "--all", "--force"
        )  # it fetches no layer that it has in another packing
        refused = runtime.pull(reference, check=False)
        assert refused.returncode != 0
        assert "archive/tar: invalid tar header" in refused.stdout + refused.stderr
        return
    runtime.pull(reference)
    assert runtime.run(reference, "hello") == "Hello, world!\n"


def test_who_gets_zstd_layers(zstd: Registry) -> None:
    """The same files for everybody; each manifest stays what it was for its digest."""
    name = "shell/hello"
    assert (
        layer_types(zstd, name) == layer_types(zstd, name, f"{OCI_MANIFEST}, {DOCKER_MANIFEST}") == {OCI_ZSTD}
    )
    for accept in ("", "*/*", f"{OCI_MANIFEST}, {OCI_ZSTD};q=0", "text/html"):
        assert layer_types(zstd, name, accept) == {OCI_GZIP}, accept
    (docker_type,) = layer_types(zstd, name, DOCKER_MANIFEST)
    assert docker_type.endswith(".tar.gzip")
    assert layer_types(zstd, f"nix-snapshotter/{name}") == {OCI_GZIP}, "small, and the surest bytes"
    configs = [zstd.pull(name, accept=accept).config for accept in (OCI_MANIFEST, "*/*")]
    assert configs[0] == configs[1], "with the diff_ids of the same tars"


def test_a_lost_zstd_layer_is_made_again(zstd: Registry) -> None:
    """With the codec of its recipe, to the byte."""
    image = zstd.pull("shell/curl")
    digest = max(image.layers, key=lambda layer: int(layer["size"]))["digest"]
    (blob,) = zstd.storage_directory.glob(f"blobs/*/*/{digest.removeprefix('sha256:')}")
    blob.unlink()
    assert zstd.get(f"/v2/shell/curl/blobs/{digest}").body == image.blobs[digest]
    assert [event["digest"] for event in zstd.events("layer-made-again")] == [digest]


def test_zstd_images_in_files(zstd: Registry, directory: Path) -> None:
    """Verified; and as gzip in the form that has no word for it."""
    env = {**zstd.program_env, "NIXERY_SNAP_COMPRESSION": "zstd"}
    run(*PROGRAM, "inspect", "--verify", *zstd.options, "shell/hello", env=env)
    for transport in ("oci-archive", "docker-archive"):
        file = directory / transport
        run(*PROGRAM, "build", *zstd.options, "shell/hello", "--output", f"{transport}:{file}", env=env)
        need("skopeo")
        run("skopeo", "copy", "-q", f"{transport}:{file}", f"dir:{directory / 'copy'}")
        manifest = json.loads((directory / "copy/manifest.json").read_text())
        kinds = {layer["mediaType"] for layer in manifest["layers"]}
        assert (kinds == {OCI_ZSTD}) == (transport == "oci-archive"), kinds
