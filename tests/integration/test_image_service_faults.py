"""The image service when things go wrong on the node: restarts, deadlines, crowds, old containerd, missing settings."""

from __future__ import annotations

import grp
import os
import random
import shutil
import socket
import stat
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from pathlib import Path

import grpc
import pytest

from tests.integration.caches import CacheDirectory, KeyPair, Served
from tests.integration.images import image_paths
from tests.integration.kubelet import Kubelet, Node, new_node
from tests.integration.nixtools import EXAMPLES
from tests.integration.node_state import nothing_left
from tests.integration.processes import wait_until
from tests.integration.server import Registry, Substituter

RELEASES = ["1.7", "2"]
PARTS = ("snapshotter", "containerd", "service")
NAMES = [
    "hello",
    "which",
    "nano",
    "curl",
    "moreutils",
    "coreutils",
    "bash",
    "shell/hello",
    "cacert",
    "busybox",
]


@pytest.fixture(params=RELEASES)
def node(request: pytest.FixtureRequest, directory: Path, served: Served) -> Iterator[Node]:
    with new_node(directory / "node", request.param, [served.substituter()], source=EXAMPLES) as made:
        yield made


def test_many_at_once_share_the_work(node: Node, served: Served) -> None:
    node.start()
    with node.kubelet() as kubelet, ThreadPoolExecutor(50) as pool:
        pulls = [pool.submit(kubelet.pull, f"nix:0/{NAMES[number % 10]}") for number in range(50)]
        ids = [pull.result() for pull in pulls]
    assert len(set(ids)) == len(NAMES)
    nars = [one.path for one in served.nars()]
    assert len(nars) == len(set(nars)), "a path was fetched twice"
    nothing_left(node)


@pytest.mark.parametrize(
    ("node", "order"),
    [(RELEASES[number % 2], order) for number, order in enumerate(permutations(PARTS))],
    indirect=["node"],
    ids=map("-".join, permutations(PARTS)),
)
def test_restarts_during_pulls(node: Node, order: tuple[str, ...]) -> None:
    node.start()
    with node.kubelet() as kubelet:
        outcome: list[str] = []

        def pull() -> None:
            try:
                outcome.append(kubelet.pull("nix:0/shell/wide"))
            except grpc.RpcError as error:
                outcome.append(str(error.details()))

        for part in order:
            pulling = threading.Thread(target=pull)
            pulling.start()
            time.sleep(random.uniform(0.1, 1.5))
            node.running[part].kill()
            node.running.pop(part)
            node.start(part)
            pulling.join(150)  # longer than its own deadline
            assert not pulling.is_alive()

        def pulled() -> bool:  # containerd takes its time to look for the snapshotter again
            pull()
            status = kubelet.status("nix:0/shell/wide")
            return status is not None and status.id == outcome[-1]

        wait_until(lambda: answered(kubelet), seconds=60, what="the service reaches containerd again")
        wait_until(pulled, seconds=60, what="the image is pulled")
        node.load_pause()
        assert kubelet.run_pod("nix:0/shell/wide", "bash", "-c", "cat /needs | wc -l")[0] == 0
    nothing_left(node, killed=True)


def test_it_starts_before_containerd_and_outlives_it(node: Node) -> None:
    node.start("snapshotter", "service")
    with node.kubelet() as kubelet:
        for reference in ("nix:0/hello", "registry.invalid/hello"):
            code, message = kubelet.refused(reference)
            assert code is grpc.StatusCode.UNAVAILABLE
            assert "containerd does not answer" in message
        for _ in range(2):
            node.start("containerd")
            wait_until(lambda: answered(kubelet), seconds=60, what="containerd is reached")
            kubelet.pull("nix:0/hello")
            node.stop("containerd")
        with pytest.raises(grpc.RpcError) as raised:
            kubelet.images()
        assert raised.value.code() is grpc.StatusCode.UNAVAILABLE


def answered(kubelet: Kubelet) -> bool:
    try:
        kubelet.images()
    except grpc.RpcError:
        return False
    return True


def test_links_of_images_that_went_while_it_was_down_are_swept(node: Node) -> None:
    node.start()
    with node.kubelet() as kubelet:
        kubelet.pull("nix:0/hello")
        kubelet.pull("nix:0/which")
        before = set(os.listdir(node.roots))
        node.stop("service")
        (node.roots / "no-digest").mkdir()
        alone = Kubelet(node.containerd.socket, node.containerd.socket, node.directory)
        alone.remove("nix:0/hello")
        alone.close()
        node.start("service")
        wait_until(lambda: len(os.listdir(node.roots)) == 1, seconds=60, what="orphans are gone")
        assert set(os.listdir(node.roots)) < before


def test_the_socket_is_for_its_group_only(node: Node) -> None:
    group = grp.getgrgid(1)
    node.group = group.gr_name
    node.start("service")
    assert node.image_socket.stat().st_gid == group.gr_gid
    mode = node.image_socket.stat().st_mode
    assert stat.S_ISSOCK(mode)
    assert stat.S_IMODE(mode) == 0o660
    assert node.running.pop("service").stop() == 0
    assert not node.image_socket.exists()
    assert [event for event in node.events("stopped") if event["pulls_given_up"] == 0]


def test_systemd_hears_of_it(directory: Path, served: Served) -> None:
    """Ready without containerd, alive meanwhile, and when it ends."""
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard,
        new_node(directory / "node", "2", []) as node,
    ):
        heard.bind(str(directory / "notify"))
        heard.settimeout(120)
        messages: list[bytes] = []

        def listen() -> None:  # at once: what finds the socket full is lost
            while not messages or messages[-1] != b"STOPPING=1":
                messages.append(heard.recv(100))

        with ThreadPoolExecutor(1) as pool:
            listening = pool.submit(listen)
            node.start_service(NOTIFY_SOCKET=str(directory / "notify"), WATCHDOG_USEC="200000")
            wait_until(lambda: len(messages) >= 4, seconds=60, what="it is alive")
            assert messages[:4] == [b"READY=1", *[b"WATCHDOG=1"] * 3]
            assert node.running.pop("service").stop() == 0
            listening.result()


def test_a_group_that_there_is_not(node: Node) -> None:
    node.group = "no-such-group"
    with pytest.raises(AssertionError, match="there is no group no-such-group"):
        node.start("service")


def test_bad_signatures_and_dead_caches(directory: Path, served: Served) -> None:
    other = KeyPair.generate(directory / "other-key", "other-1")
    dead = Substituter("http://127.0.0.1:9", [other.public])
    wrong = Substituter(served.url, [other.public])
    with new_node(directory / "node", "2", [wrong, dead], source=EXAMPLES) as node:
        node.start()
        path = image_path(served.cache)
        with node.kubelet() as kubelet:
            code, message = kubelet.refused(f"nix:0{path}")
            assert code is grpc.StatusCode.NOT_FOUND
            assert served.url in message
            assert "not signed by any of the keys" in message
            assert dead.url in message


def image_path(cache: CacheDirectory) -> str:
    """Some path of the cache; that it is no archive is not seen before it is fetched."""
    narinfo = next(cache.root.glob("*.narinfo")).read_text()
    return next(line.split()[1] for line in narinfo.splitlines() if line.startswith("StorePath:"))


def test_containerd_that_is_too_old(directory: Path, served: Served, registry: Registry) -> None:
    with new_node(directory / "node", "1.6", [served.substituter()], source=EXAMPLES) as node:
        node.start()
        node.load_pause()
        with node.kubelet() as kubelet:
            code, message = kubelet.refused("nix:0/hello")
            assert code is grpc.StatusCode.FAILED_PRECONDITION
            assert "1.6.20" in message
            assert "1.7 or later" in message
            name = f"{registry.host}/classic/hello:latest"
            kubelet.pull(name)
            assert kubelet.run_pod(name) == (0, "Hello, world!\n")


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("lack", ["snapshotter", "unpacking"])
def test_containerd_without_the_settings(directory: Path, served: Served, release: str, lack: str) -> None:
    with new_node(directory / "node", release, [served.substituter()], source=EXAMPLES, lack=lack) as node:
        node.start()
        with node.kubelet() as kubelet:
            code, message = kubelet.refused("nix:0/hello")
            assert code is grpc.StatusCode.FAILED_PRECONDITION
            assert "[proxy_plugins.nix]" in message
            assert 'unpack_config]]\nplatform = "linux/amd64"\nsnapshotter = "nix"' in message
            assert not kubelet.images()


def test_registries_by_the_transfer_service(directory: Path, registry: Registry) -> None:
    """containerd 2 pulls so unless it is told otherwise."""
    caches = [Substituter(registry.cache_url, [registry.public_key])]
    with new_node(directory / "node", "2", caches, lack="local pulls") as node:
        node.start()
        node.load_pause()
        name = f"{registry.host}/nix-snapshotter/hello:latest"
        with node.kubelet() as kubelet:
            kubelet.pull(name)
            assert len(node.events("prefetched")) == 1
            assert kubelet.run_pod(name) == (0, "Hello, world!\n")


@pytest.mark.parametrize("service", [True, False], ids=["with the service", "without it"])
def test_external_builder(node: Node, service: bool, registry: Registry) -> None:
    """containerd pulls by itself; the snapshotter has its paths realised by the image service, or by Nix."""
    node.use_external_builder()
    node.substituters.append(Substituter(registry.cache_url, [registry.public_key]))
    node.start("snapshotter", "containerd", *(["service"] if service else []))
    name = f"{registry.host}/nix-snapshotter/wide:latest"
    paths = image_paths(registry, "wide")
    pull_directly(node, name)
    assert all(node.store.physical(path).exists() for path in paths)
    if service:
        node.stop("service")
        shutil.rmtree(node.roots)
    node.store.run("nix-store", "--gc")
    assert all(node.store.physical(path).exists() for path in paths), "each link is a root"
    if service:
        assert sum(event["paths"] for event in node.events("prefetched")) >= len(paths)


def test_one_process_fetches_all_paths(directory: Path, registry: Registry) -> None:
    caches = [Substituter(registry.cache_url, [registry.public_key])]
    with new_node(directory / "node", "2", caches) as node:
        runs, own = directory / "runs", directory / "bin/nix-store"
        own.parent.mkdir()
        own.write_text(f'#!/bin/sh\necho "$*" >> {runs}\nexec {shutil.which("nix-store")} "$@"\n')
        own.chmod(0o755)
        node.start("snapshotter", "containerd")
        node.start_service(PATH=f"{own.parent}:{os.environ['PATH']}")
        with node.kubelet() as kubelet:
            for _ in range(2):  # the second time nothing is missing
                kubelet.pull(f"{registry.host}/nix-snapshotter/shell/hello:latest")
        [run] = [line for line in runs.read_text().splitlines() if "--realise" in line]
        assert set(image_paths(registry, "shell/hello")) <= set(run.split())


def test_what_is_not_fetched_ahead_fails_no_pull(directory: Path, registry: Registry) -> None:
    """Here only the snapshotter's Nix knows a substituter."""
    caches = [Substituter(registry.cache_url, [registry.public_key])]
    with new_node(directory / "node", "2", caches) as node:
        node.start("snapshotter", "containerd")
        node.substituters = []
        node.registries = [registry.host]
        node.start("service")
        node.load_pause()
        name = f"{registry.host}/nix-snapshotter/hello:latest"
        with node.kubelet() as kubelet:
            kubelet.pull(name)
            [event] = node.events("prefetch-failed")
            assert event["image"] == name
            assert kubelet.run_pod(name) == (0, "Hello, world!\n")


def test_straight_from_the_registry_without_the_image_service(node: Node, registry: Registry) -> None:
    node.substituters.append(Substituter(registry.cache_url, [registry.public_key]))
    node.start("snapshotter", "containerd")
    name = f"{registry.host}/nix-snapshotter/hello:latest"
    pull_directly(node, name)
    output = node.directory / "output"  # ctr itself may lose it: see Containerd.run
    node.ctr("run", "--rm", "--snapshotter", "nix", "--log-uri", output.as_uri(), name, "test-direct")
    assert output.read_text() == "Hello, world!\n"


def pull_directly(node: Node, name: str) -> None:
    """From the registry by containerd alone; up to 1.7 ctr tells snapshotters of no annotations, but CRI does."""
    if "containerd-1.7" in node.containerd.env["PATH"]:
        alone = Kubelet(node.containerd.socket, node.containerd.socket, node.directory)
        alone.pull(name)
        alone.close()
    else:
        node.ctr("images", "pull", "--plain-http", "--snapshotter", "nix", name)
