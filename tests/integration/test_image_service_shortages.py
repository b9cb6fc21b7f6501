"""The image service when a node runs short of time, of space, of its Nix daemon, or of a path."""

import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from tests.integration.caches import CacheDirectory
from tests.integration.image_archives import oci_archive
from tests.integration.images import CLOSURE
from tests.integration.kubelet import Kubelet, Node, new_node
from tests.integration.misbehaving import Kind, Misbehaving, held, misbehaving
from tests.integration.nixtools import EXAMPLES
from tests.integration.node_state import nothing_left
from tests.integration.processes import run, wait_until
from tests.integration.server import Registry


@pytest.fixture
def slow_cache(full_cache: CacheDirectory) -> Iterator[Misbehaving]:
    with misbehaving(full_cache) as running:
        yield running


@pytest.fixture
def node(request: pytest.FixtureRequest, directory: Path, slow_cache: Misbehaving) -> Iterator[Node]:
    """With containerd 2 unless the test says otherwise."""
    release, caches = getattr(request, "param", "2"), [slow_cache.substituter()]
    with new_node(directory / "node", release, caches, source=EXAMPLES) as made:
        yield made


@pytest.fixture
def release(slow_cache: Misbehaving) -> threading.Event:
    """The cache holds all NARs back until this is set."""
    event = threading.Event()
    slow_cache.faults[Kind.NAR] = held(event)
    return event


def held_pull(kubelet: Kubelet, cache: Misbehaving, image: str = "nix:0/hello") -> grpc.Future:
    pull = kubelet.pulling(image)
    wait_until(
        lambda: any(Kind.of(path) is Kind.NAR for path in cache.requests), seconds=60, what="it fetches"
    )
    return pull


@pytest.mark.parametrize(("node", "end"), [("1.7", "cancelled"), ("2", "deadline")], indirect=["node"])
def test_who_gives_up_ends_the_wait_and_not_the_work(
    node: Node, slow_cache: Misbehaving, release: threading.Event, end: str
) -> None:
    node.start()
    with node.kubelet() as kubelet:
        if end == "deadline":
            assert kubelet.refused("nix:0/hello", seconds=1)[0] is grpc.StatusCode.DEADLINE_EXCEEDED
        else:
            assert held_pull(kubelet, slow_cache).cancel()
        assert kubelet.status("nix:0/hello") is None
        again = kubelet.pulling("nix:0/hello")  # joins what goes on
        release.set()
        image_id = again.result().image_ref
        status = kubelet.status("nix:0/hello")
        assert status
        assert status.id == image_id
        assert len(node.events("imported")) == 1
    nothing_left(node)


def test_a_stop_waits_for_pulls(node: Node, slow_cache: Misbehaving, release: threading.Event) -> None:
    node.start()
    with node.kubelet() as kubelet:
        pull = held_pull(kubelet, slow_cache)
        service = node.running.pop("service")
        service.process.terminate()
        wait_until(lambda: bool(node.events("stopping")), seconds=60, what="it was told")
        release.set()
        image_id = pull.result().image_ref
        assert service.process.wait(100) == 0
        [stopped] = node.events("stopped")
        assert stopped["pulls_given_up"] == 0
        node.start("service")
        status = kubelet.status("nix:0/hello")
        assert status
        assert status.id == image_id
    nothing_left(node)


def test_a_stop_gives_up_what_takes_too_long(
    node: Node, slow_cache: Misbehaving, release: threading.Event
) -> None:
    node.shutdown_timeout = 1
    node.start()
    with node.kubelet() as kubelet:
        pull = held_pull(kubelet, slow_cache)
        assert node.running.pop("service").stop() == 0
        assert isinstance(pull.exception(), grpc.RpcError)
        [stopped] = node.events("stopped")
        assert stopped["pulls_given_up"] > 0
        release.set()
        node.start("service")
        kubelet.pull("nix:0/hello")
    nothing_left(node)


@pytest.mark.parametrize(
    ("node", "full"),
    [("1.7", "containerd"), ("2", "containerd"), ("2", "nix store"), ("2", "storage")],
    indirect=["node"],
)
def test_disk_full(node: Node, full_cache: CacheDirectory, full: str) -> None:
    """It is said which disk; nothing half is left, and once there is space the same pull succeeds."""
    place = {
        "nix store": node.store.root / "nix/store",
        "containerd": node.directory / "root",
        "storage": node.directory / "storage",
    }[full]
    place.mkdir(exist_ok=True)
    run("mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", place)
    node.start()
    with node.kubelet() as kubelet:
        filler = place / "filler"
        fill(filler)
        code, message = kubelet.refused("nix:0/shell/hello")
        assert "no space left on device" in message.lower()
        if full != "containerd":  # which knows no status for it
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
        if full == "nix store":
            code, message = kubelet.refused(f"nix:0{some_path(full_cache)}")
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "nix-collect-garbage" in message
        assert kubelet.images() == []
        filler.unlink()
        kubelet.pull("nix:0/shell/hello")
        node.load_pause()
        assert kubelet.run_pod("nix:0/shell/hello", "bash", "-c", "hello") == (0, "Hello, world!\n")
    nothing_left(node)


def fill(file: Path) -> None:
    with file.open("wb", buffering=0) as sink:
        for size in (1024 * 1024, 4096, 1):
            while True:
                try:
                    sink.write(bytes(size))
                except OSError:
                    break


def some_path(cache: CacheDirectory) -> str:
    """That it is no archive is not seen before it is fetched."""
    narinfo = next(cache.root.glob("*.narinfo")).read_text()
    return next(line.split()[1] for line in narinfo.splitlines() if line.startswith("StorePath:"))


def test_nix_daemon_killed_during_a_prefetch(
    node: Node, slow_cache: Misbehaving, release: threading.Event
) -> None:
    node.with_nix_daemon = True
    node.start("nix-daemon", "snapshotter", "containerd", "service")
    with node.kubelet() as kubelet:
        pull = held_pull(kubelet, slow_cache, "nix:0/shell/hello")
        node.kill_nix_daemon()
        error = pull.exception()
        assert isinstance(error, grpc.RpcError)
        assert error.code() is grpc.StatusCode.UNAVAILABLE, error
        assert "daemon" in error.details()
        assert kubelet.images() == []

        release.set()
        node.start("nix-daemon")
        kubelet.pull("nix:0/shell/hello")
        node.load_pause()
        assert kubelet.run_pod("nix:0/shell/hello", "bash", "-c", "hello") == (0, "Hello, world!\n")
    nothing_left(node)


@pytest.mark.parametrize(("node", "legacy"), [("1.7", True), ("2", False)], indirect=["node"])
def test_closure_info_in_no_cache(node: Node, registry: Registry, directory: Path, *, legacy: bool) -> None:
    """A snapshotter that looks at single paths does without; one that wants the closure-info says which."""
    node.legacy = legacy
    image = registry.pull("nix-snapshotter/hello")
    archive = oci_archive(image, directory / "image.tar")
    reference = f"nix:0{node.store.run('nix-store', '--add', archive).strip()}"
    closure_info = image.layers[0]["annotations"][CLOSURE]
    node.start()
    with node.kubelet() as kubelet:
        if legacy:
            kubelet.pull(reference)
            node.load_pause()
            assert kubelet.run_pod(reference) == (0, "Hello, world!\n")
        else:
            assert closure_info in kubelet.refused(reference)[1]
        [event] = node.events("closure-info-not-fetched")
        assert closure_info in event["reason"]
    nothing_left(node)
