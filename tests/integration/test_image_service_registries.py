"""Pulls from registries through the image service: mirrors, cancelled pulls, big images, hostile archives."""

import json
import shutil
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest

from tests.integration.image_archives import descriptor, oci_archive, write_tar
from tests.integration.image_archives import directory as directory_entry
from tests.integration.images import image_paths
from tests.integration.kubelet import IMAGES, Kubelet, Node, new_node
from tests.integration.mirrors import WaitingMirror, tls_mirror
from tests.integration.nixtools import EXAMPLES, ChrootStore, add_package
from tests.integration.node_state import nothing_left
from tests.integration.server import Image, Registry, Substituter, digest_of, serving
from tests.support.generated import cri_runtime_pb2 as runtime

HOST = "registry.test"  # there is none: only hosts.toml tells where it is
MANY = """echo ${toString (builtins.genList (i: builtins.toFile "part-${toString i}" "${toString i}\\n") 500)} > $out"""


@dataclass
class World:
    node: Node
    kubelet: Kubelet
    registry: Registry

    def configure(self, text: str) -> None:
        """containerd's hosts.toml for HOST."""
        file = self.node.certs / HOST / "hosts.toml"
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)


@pytest.fixture(scope="module")
def own_registry(scratch: Path, prepared_store: ChrootStore) -> Iterator[Registry]:
    """One that has an image of 500 paths too."""
    directory = scratch / "image-service-registry"
    source = Path(shutil.copytree(EXAMPLES, directory / "packages"))
    add_package(source, "many", MANY)
    store = prepared_store.copy(directory / "store")
    with serving(Registry(directory / "state", store.root, source)) as running:
        yield running


@pytest.fixture(scope="module", params=["1.7", "2"])
def world(request: pytest.FixtureRequest, scratch: Path, own_registry: Registry) -> Iterator[World]:
    release: str = request.param
    caches = [Substituter(own_registry.cache_url, [own_registry.public_key])]
    with new_node(scratch / f"registries-{release}", release, caches) as node:
        node.registries = [own_registry.host, HOST]
        node.start()
        node.load_pause()
        with node.kubelet() as kubelet:
            yield World(node, kubelet, own_registry)


@pytest.mark.parametrize(
    ("trust", "own_path"), [("ca", True), ("skip_verify", False)], ids=["ca, override_path", "skip_verify"]
)
def test_mirror(world: World, directory: Path, trust: str, *, own_path: bool) -> None:
    """By one hosts.toml both go there: containerd, and who fetches ahead for it."""
    with tls_mirror(directory / "mirror", world.registry.host) as mirror:
        path = "/mirror/of/it" if own_path else ""
        lines = [
            f'server = "https://{HOST}"',
            f'[host."https://localhost:{mirror.port}{path}"]',
            'capabilities = ["pull", "resolve"]',
            f'ca = "{mirror.certificate}"' if trust == "ca" else "skip_verify = true",
            "override_path = true" if own_path else "",
            f'[host."https://localhost:{mirror.port}{path}".header]',
            'x-pass = "let me in"',
        ]
        world.configure("\n".join(lines))
        name = f"{HOST}/nix-snapshotter/which:latest"
        world.kubelet.pull(name)
        assert not world.node.events("prefetch-failed")
        asked = [line for line in mirror.asked() if "/manifests/" in line]
        assert {line.split()[0] for line in asked} == {"200"}
        assert any("containerd/" in line for line in asked)
        assert any("containerd/" not in line for line in asked), "nobody fetched ahead"
        assert all(f"{path or '/v2'}/nix-snapshotter" in line and f"ns={HOST}" in line for line in asked)
        assert world.kubelet.run_pod(name, "/bin/which", "which") == (0, "/bin/which\n")
    nothing_left(world.node)


def test_cancelled_while_containerd_pulls(world: World) -> None:
    """It is told, and stops."""
    with WaitingMirror(world.registry.port).running() as mirror:
        world.configure(
            f'[host."http://127.0.0.1:{mirror.server_port}"]\ncapabilities = ["pull", "resolve"]\n'
        )
        pull = world.kubelet.pulling(f"{HOST}/nix-snapshotter/hello:latest")
        assert mirror.asked.wait(60)
        assert pull.cancel()
        assert mirror.given_up.wait(60)
    nothing_left(world.node)


def test_streams_are_passed_on(world: World) -> None:
    """StreamImages is an error, or a stream, of containerd's: of 1.7 and 2.1 the former."""
    answers = []
    for socket in (world.node.containerd.socket, world.node.image_socket):
        kubelet = Kubelet(socket, socket, world.node.directory)
        stream = kubelet.channel(IMAGES).unary_stream(
            IMAGES + "StreamImages",
            request_serializer=runtime.ListImagesRequest.SerializeToString,
            response_deserializer=runtime.ListImagesResponse.FromString,
        )
        call = stream(runtime.ListImagesRequest(), timeout=60)
        try:
            images = [image for answer in call for image in answer.images]
            answers.append((call.code(), sorted(image.id for image in images)))
        except grpc.RpcError:
            answers.append((call.code(), call.details()))
        kubelet.close()
    assert answers[0] == answers[1]
    assert answers[0] == (grpc.StatusCode.UNIMPLEMENTED, answers[0][1]) or len(answers[0][1]) > 0


def test_an_image_of_500_paths(world: World) -> None:
    name = f"{world.registry.host}/nix-snapshotter/shell/many:latest"
    paths = image_paths(world.registry, "shell/many")
    assert len(paths) > 500
    world.kubelet.pull(name)
    [event] = [one for one in world.node.events("prefetched") if one["of"] > 500]
    assert 500 < event["paths"] <= event["of"] == len(paths) + 1
    parts = next(path for path in paths if path.endswith("-many-1.0"))
    command = f"for file in $(cat {parts}); do cat $file; done | sort -n | tail -n 1"
    assert world.kubelet.run_pod(name, "bash", "-c", command) == (0, "499\n")
    nothing_left(world.node)


def refused(world: World, archive: Path) -> tuple[grpc.StatusCode, str]:
    path = world.node.store.run("nix-store", "--add", archive).strip()
    answer = world.kubelet.refused(f"nix:0{path}")
    nothing_left(world.node)
    return answer


def test_archives_that_lead_out(world: World, directory: Path) -> None:
    outside = directory / "outside"
    link = tarfile.TarInfo("blobs/sha256/link")
    link.type, link.linkname = tarfile.SYMTYPE, str(directory)
    device = tarfile.TarInfo("blobs/sha256/device")
    device.type = tarfile.CHRTYPE
    for number, bad in enumerate(
        [directory_entry(str(outside)), directory_entry("../" * 9 + "x"), link, device]
    ):
        code, message = refused(world, write_tar(directory / f"{number}.tar", {"index.json": b"{}"}, [bad]))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert "not an image archive" in message
    assert not outside.exists()


@pytest.mark.parametrize("wrong", ["layer", "config"])
def test_archive_whose_digests_are_wrong(world: World, directory: Path, wrong: str) -> None:
    """Nothing is run of it: what is there is not what its manifest says."""
    image = world.registry.pull("classic/hello")
    manifest = image.manifest
    digest = manifest["config"]["digest"] if wrong == "config" else manifest["layers"][0]["digest"]
    blobs = image.blobs | {digest: image.blobs[digest][:-1] + b"x"}
    archive = oci_archive(Image(image.digest, image.manifest_bytes, blobs), directory / "wrong.tar")
    code, message = refused(world, archive)
    assert code is not grpc.StatusCode.OK
    assert digest in message


def test_a_layer_that_leads_out(world: World, directory: Path) -> None:
    """containerd unpacks it within its own directory, or not at all."""
    outside = directory / "outside"
    outside.mkdir()
    link = tarfile.TarInfo("way")
    link.type, link.linkname = tarfile.SYMTYPE, str(outside)
    files = {"way/through": b"x", "../../../../../../../../../../" + str(outside / "up"): b"x"}
    layer = write_tar(directory / "layer.tar", {}, [link]).read_bytes()[:512]
    layer += write_tar(directory / "layer.tar", files).read_bytes()
    config = json.dumps(
        {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": [digest_of(layer)]}}
    ).encode()
    manifest = {
        "schemaVersion": 2,
        "config": descriptor(config, "application/vnd.oci.image.config.v1+json"),
        "layers": [descriptor(layer, "application/vnd.oci.image.layer.v1.tar")],
    }
    content = json.dumps(manifest).encode()
    image = Image(digest_of(content), content, {digest_of(blob): blob for blob in (config, layer)})
    path = world.node.store.run("nix-store", "--add", oci_archive(image, directory / "image.tar")).strip()
    pull = world.kubelet.pulling(f"nix:0{path}")
    assert pull.code() is not grpc.StatusCode.UNAVAILABLE
    assert list(outside.iterdir()) == []
    nothing_left(world.node)
