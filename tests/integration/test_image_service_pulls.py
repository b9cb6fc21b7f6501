"""The image service on a node: all four ways of a pull, and what the kubelet sees of the images."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from nixery_snap.image_service.generated import cri_pb2 as cri
from tests.integration.caches import CacheDirectory, Served, nginx
from tests.integration.image_archives import docker_archive, oci_archive, on_top_of, with_annotations
from tests.integration.images import image_paths
from tests.integration.kubelet import Kubelet, Node, new_node
from tests.integration.nixtools import EXAMPLES, ChrootStore
from tests.integration.processes import free_port, wait_until
from tests.integration.server import Registry, Substituter, digest_of, request


@dataclass
class World:
    """A node, the kubelet on it, and the place where archives get into a binary cache that it knows."""

    node: Node
    kubelet: Kubelet
    registry: Registry
    builder: ChrootStore
    cache: CacheDirectory

    def publish(self, archive: Path) -> str:
        """The archive as a store path that the node can fetch."""
        path = self.builder.run("nix-store", "--add", archive).strip()
        self.cache.publish(self.builder, [path])
        return path

    def has(self, path: str) -> bool:
        return self.node.store.physical(path).exists()

    def roots(self) -> set[str]:
        return set(os.listdir(self.node.roots)) if self.node.roots.exists() else set()

    def prefetched(self, digest: str) -> int:
        """How many paths were fetched at once for the image with this manifest."""
        key = digest.removeprefix("sha256:")
        return sum(event["paths"] for event in self.node.events("prefetched") if event["key"] == key)


@pytest.fixture(scope="module")
def own_cache(full_cache: CacheDirectory, scratch: Path) -> Iterator[Served]:
    """A copy of the full cache for archives to be added to."""
    copy = full_cache.copy(scratch / "image-service-cache")
    with nginx(copy, scratch / "image-service-nginx") as served:
        yield served


@pytest.fixture(scope="module", params=["1.7", "2"])
def world(
    request: pytest.FixtureRequest,
    scratch: Path,
    registry: Registry,
    prepared_store: ChrootStore,
    own_cache: Served,
) -> Iterator[World]:
    release: str = request.param
    builder = prepared_store.copy(scratch / f"archives-{release}")
    substituters = [own_cache.substituter(), Substituter(registry.cache_url, [registry.public_key])]
    with new_node(scratch / f"node-{release}", release, substituters, source=EXAMPLES) as node:
        node.registries = [registry.host]
        node.metrics_port = free_port()
        node.start()
        node.load_pause()
        with node.kubelet() as kubelet:
            yield World(node, kubelet, registry, builder, own_cache.cache)


@pytest.mark.parametrize("compress", [False, True], ids=["tar", "gzip"])
@pytest.mark.parametrize("exported", [False, True], ids=["plain", "exported"])
@pytest.mark.parametrize(
    ("form", "name", "output"),
    [("legacy", "hello", "Hello, world!\n"), ("closure", "curl", "curl 8.8.0 (tiny)\n")],
    ids=["legacy", "closure"],
)
def test_archive_in_the_nix_store(
    world: World, directory: Path, name: str, form: str, output: str, *, exported: bool, compress: bool
) -> None:
    image = with_annotations(world.registry.pull(f"nix-snapshotter/{name}"), form)
    path = world.publish(oci_archive(image, directory / "image.tar", compress=compress, exported=exported))
    reference = f"nix:0{path}"
    before = len(world.node.realised())
    paths = image_paths(world.registry, name)
    missing = [one for one in paths if not world.has(one)]

    assert world.kubelet.pull(reference) == image.manifest["config"]["digest"]

    assert all(world.has(one) for one in paths)
    assert not missing or world.prefetched(image.digest)
    # containerd does not ask again for layers that it has unpacked, under whichever name, and not yet cleaned up.
    asked = 1 if form == "closure" else len(paths)
    assert len(world.node.realised()) - before in ({asked} if missing else {0, asked})
    status = world.kubelet.status(reference)
    assert status
    assert list(status.repo_tags) == [f"{reference}:latest"]
    assert list(status.repo_digests) == [f"{reference}@{image.digest}"]
    assert world.kubelet.run_pod(f"{reference}:latest") == (0, output)
    world.kubelet.remove(status.id)


def test_archive_for_several_platforms(world: World, directory: Path) -> None:
    image = with_annotations(world.registry.pull("nix-snapshotter/shell/hello"), "legacy")
    path = world.publish(oci_archive(image, directory / "nested.tar", compress=True, nested=True))
    assert world.kubelet.pull(f"nix:0{path}") == image.manifest["config"]["digest"]
    assert world.kubelet.run_pod(f"nix:0{path}", "bash", "-c", "hello; exit 3") == (3, "Hello, world!\n")


def test_dockers_form_of_an_archive(world: World, directory: Path) -> None:
    image = world.registry.pull("classic/hello")
    path = world.publish(docker_archive(image, directory / "docker.tar"))
    assert world.kubelet.pull(f"nix:0{path}:latest") == image.manifest["config"]["digest"]
    assert world.kubelet.run_pod(f"nix:0{path}") == (0, "Hello, world!\n")


def test_assembled_on_the_node_by_name(world: World) -> None:
    asked = world.registry.manifest("nix-snapshotter/which").json()
    image_id = world.kubelet.pull("nix:0/which")
    assert image_id == asked["config"]["digest"], "the same image as a registry makes"
    for reference in ("nix:0/which", "nix:0/which:latest", image_id):
        status = world.kubelet.status(reference)
        assert status, reference
        assert status.id == image_id
        assert list(status.repo_tags) == ["nix:0/which:latest"]
    [digest] = status.repo_digests
    assert world.kubelet.pull(digest) == image_id
    status = world.kubelet.status(digest)
    assert status
    assert status.id == image_id
    code, log = world.kubelet.run_pod("nix:0/which:latest", "/bin/which", "which")
    assert (code, log.strip()) == (0, "/bin/which")


def test_classic_on_the_node_by_name(world: World) -> None:
    world.kubelet.pull("nix:0/classic/hello")
    assert world.kubelet.run_pod("nix:0/classic/hello") == (0, "Hello, world!\n")


def test_from_our_registry_with_all_paths_at_once(world: World) -> None:
    """121 paths: the snapshotter asks for each, and finds it there."""
    name = f"{world.registry.host}/nix-snapshotter/shell/wide:latest"
    paths = image_paths(world.registry, "shell/wide")
    manifest = world.registry.manifest("nix-snapshotter/shell/wide")
    missing = [path for path in paths if not world.has(path)]
    assert len(missing) > 100

    image_id = world.kubelet.pull(name)

    assert world.prefetched(digest_of(manifest.body)) >= len(missing)
    status = world.kubelet.status(name)
    assert status
    assert status.id == image_id
    command = "for path in $(cat /needs); do last=$path; done; cat $last/id"
    assert world.kubelet.run_pod(name, "bash", "-c", command) == (0, "119\n")


def test_classic_images_of_registries_are_passed_on(world: World) -> None:
    name = f"{world.registry.host}/classic/curl:latest"
    world.kubelet.pull(name)
    assert world.kubelet.run_pod(name) == (0, "curl 8.8.0 (tiny)\n")


def test_snapshotter_layer_on_top_of_a_classic_image(world: World, directory: Path) -> None:
    base = world.registry.pull("classic/shell/hello")
    image = on_top_of(base, with_annotations(world.registry.pull("nix-snapshotter/curl"), "legacy"))
    path = world.publish(oci_archive(image, directory / "mixed.tar"))
    world.kubelet.pull(f"nix:0{path}")
    command = ("/bin/bash", "-c", "/bin/hello; /bin/curl")
    assert world.kubelet.run_pod(f"nix:0{path}", *command) == (0, "Hello, world!\ncurl 8.8.0 (tiny)\n")


def test_garbage_collection_takes_nothing_of_an_image(world: World) -> None:
    world.kubelet.pull("nix:0/nano")
    paths = image_paths(world.registry, "nano")
    world.node.store.run("nix-store", "--gc")
    assert all(world.has(path) for path in paths)


@pytest.mark.parametrize("by_id", [False, True], ids=["by name", "by id"])
def test_removed(world: World, *, by_id: bool) -> None:
    reference = "nix:0/moreutils"
    before = world.roots()
    image_id = world.kubelet.pull(reference)
    made = world.roots() - before
    assert len(made) == 1
    assert any(image.id == image_id for image in world.kubelet.images())

    for _ in range(2):  # who removes it twice is told the same
        world.kubelet.remove(image_id if by_id else reference)

    assert world.kubelet.status(reference) is None
    assert all(image.id != image_id for image in world.kubelet.images())
    wait_until(lambda: not made & world.roots(), seconds=60, what="its paths may be collected")


def test_one_image_of_two_names(world: World) -> None:
    """containerd removes an image with all its names."""
    names = ["nix:0/cacert", "nix:0/nix-snapshotter/cacert"]
    before = world.roots()
    [image_id] = {world.kubelet.pull(name) for name in names}
    [image] = [image for image in world.kubelet.images() if image.id == image_id]
    assert sorted(image.repo_tags) == [f"{name}:latest" for name in names]
    assert [digest.partition("@")[0] for digest in sorted(image.repo_digests)] == names
    world.kubelet.remove(f"{names[0]}:latest")
    assert [world.kubelet.status(name) for name in (*names, *image.repo_digests, image_id)] == [None] * 5
    wait_until(lambda: world.roots() <= before, seconds=60, what="its paths may be collected")


def test_pinned_images_stay_pinned(world: World) -> None:
    pinned = [image for image in world.kubelet.images() if image.pinned]
    assert [list(image.repo_tags) for image in pinned] == [["localhost/pause:test"]]


def test_the_nix_store_counts_as_image_file_system(world: World) -> None:
    """To the byte: with the closure of what images keep, each path once."""
    world.kubelet.pull("nix:0/curl")
    store = world.node.store
    sizes: list[int] = []
    alone = Kubelet(world.node.containerd.socket, world.node.containerd.socket, world.node.directory)
    seen: list[cri.FilesystemUsage] = []

    def is_quiet() -> bool:
        """containerd counts its own now and then, and links of images that have gone are swept."""
        roots = world.roots()
        try:
            links = [str(link) for root in roots for link in (world.node.roots / root).iterdir()]
        except FileNotFoundError:
            return False
        closure = store.run("nix-store", "--query", "--requisites", *links).split()
        sizes[:] = [int(size) for size in store.run("nix-store", "--query", "--size", *closure).split()]
        seen[:] = [one.image_file_system() for one in (alone, world.kubelet, alone)]
        is_same = seen[0].used_bytes == seen[2].used_bytes and seen[0].inodes_used == seen[2].inodes_used
        return is_same and roots == world.roots()

    try:
        wait_until(is_quiet, seconds=60, what="containerd says the same twice")
    finally:
        alone.close()
    without, with_paths, _ = seen
    assert with_paths.fs_id == without.fs_id
    assert with_paths.used_bytes.value - without.used_bytes.value == sum(sizes)
    assert with_paths.inodes_used.value - without.inodes_used.value == len(sizes)


def test_every_rpc_answers_as_containerd_does(world: World) -> None:
    alone = Kubelet(world.node.containerd.socket, world.node.containerd.socket, world.node.directory)
    try:
        assert sorted(i.id for i in alone.images()) == sorted(i.id for i in world.kubelet.images())
        assert alone.status("nix:0/curl") == world.kubelet.status("nix:0/curl")
        for kubelet in (alone, world.kubelet):
            with pytest.raises(grpc.RpcError) as raised:
                kubelet.call("/runtime.v1.ImageService/Unheard", cri.ImageSpec(), cri.ImageSpec)
            assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
            assert "unknown method Unheard" in raised.value.details()
        with pytest.raises(grpc.RpcError) as raised:
            world.kubelet.call(
                "/runtime.v1.ImageService/../RuntimeService/Version", cri.ImageSpec(), cri.ImageSpec
            )
        assert raised.value.code() is grpc.StatusCode.UNIMPLEMENTED
    finally:
        alone.close()


def test_what_is_wrong_is_said(world: World, directory: Path) -> None:
    code, message = world.kubelet.refused("nix:0/helo")
    assert code is grpc.StatusCode.NOT_FOUND
    assert "did you mean hello" in message

    code, message = world.kubelet.refused("nix:0/failstobuild")
    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert "configure: error: no acceptable C compiler" in message

    missing = "/nix/store/00000000000000000000000000000000-missing.tar"
    code, message = world.kubelet.refused(f"nix:0{missing}")
    assert code is grpc.StatusCode.NOT_FOUND
    assert missing in message
    assert all(one.url in message for one in world.node.substituters)

    broken = world.publish(directory / write(directory / "broken.tar", b"no archive"))
    code, message = world.kubelet.refused(f"nix:0{broken}")
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "not an image archive" in message

    code, message = world.kubelet.refused("nix:0/nix/store/short.tar")
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert not [one for one in world.roots() if len(one) != 64]


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_a_call_has_an_id_in_the_log(world: World) -> None:
    begun = len(world.node.events("request-refused"))
    for name in ("nix:0/helo", "nix:0/helo"):
        world.kubelet.refused(name)
    world.kubelet.pull("nix:0/busybox")
    ids = [event["request_id"] for event in world.node.events("request-refused")[begun:]]
    imported = world.node.events("imported")[-1]
    assert len({*ids, imported["request_id"]}) == 3
    made = [event for event in world.node.events("prefetched") if event["key"] in imported["digest"]]
    assert {event["request_id"] for event in made} <= {imported["request_id"]}


def test_a_prefetch_that_fails_fails_no_pull(world: World) -> None:
    """What containerd says counts, also where the registry had already told us no."""
    name = f"{world.registry.host}/nix-snapshotter/no-such-package:latest"
    _, message = world.kubelet.refused(name)
    assert world.node.events("prefetch-failed")[-1]["image"] == name
    assert "failed to resolve" in message or "failed to pull" in message


def test_all_this_was_counted(world: World) -> None:
    """Runs last: what the metrics say is what the log says."""
    for reference in ("nix:0/hello", f"{world.registry.host}/nix-snapshotter/hello:latest"):
        world.kubelet.pull(reference)
    archive = "/nix/store/00000000000000000000000000000000-missing.tar"
    world.kubelet.refused(f"nix:0{archive}")
    shown = metrics(world.node.metrics_port)
    pulls = {
        labels: value for (name, labels), value in shown.items() if name == "nixery_snap_pull_seconds_count"
    }
    for route, result in (("name", "ok"), ("registry", "ok"), ("archive", "failed")):
        assert pulls[("result", result), ("route", route)] >= 1
    prefetched = world.node.events("prefetched")
    assert shown["nixery_snap_prefetch_seconds_count", (("result", "ok"),)] == len(prefetched)
    paths = sum(event["paths"] for event in prefetched)
    assert shown["nixery_snap_prefetched_paths_total", ()] == paths
    assert shown["nixery_snap_prefetched_bytes_total", ()] >= paths
    failures = world.node.events("prefetch-failed")
    assert shown["nixery_snap_prefetch_failures_total", ()] == len(failures)
    assert shown["nixery_snap_prefetches_in_flight", ()] == 0


def metrics(port: int) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    content = request(port, "GET", "/metrics").body.decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(content)
        for sample in family.samples
    }
