"""A node's pulls with and without the image service, and what a changed package costs (bench/README.md)."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import threading
import time
import urllib.error
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import uvloop
from harness import Server, machine, make_package_set, median, need, table, verdict, work_directory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the node that the tests use
from tests.integration.kubelet import Kubelet, Node, new_node
from tests.integration.server import Substituter

RELEASE = "2"  # of containerd
TIMES_SERIAL = 5
LEAF_PERCENT = 2
CHUNK_BYTES = 64 * 1024
IMAGES = {"wide": "121 paths", "many": "500 paths"}


@dataclass(frozen=True)
class Setup:
    """What a node has."""

    name: str
    legacy: bool  # its snapshotter realises path by path, as nix-snapshotter before 0.3
    service: bool = False
    builder: bool = False


SERIAL = Setup("path by path", legacy=True)
SETUPS = (
    SERIAL,
    Setup("path by path, image service", legacy=True, service=True),
    Setup("path by path, image service, external builder", legacy=True, service=True, builder=True),
    Setup("closure at once", legacy=False),
    Setup("closure at once, image service", legacy=False, service=True),
)


@dataclass
class Relay:
    """A far network: passes TCP connections on, each byte half a round trip later, and counts them."""

    upstream_port: int
    round_trip_seconds: float
    port: int = 0
    moved_bytes: int = 0
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    @contextmanager
    def run(self) -> Iterator[None]:
        loop = uvloop.new_event_loop()
        server = loop.run_until_complete(self._listen())
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        try:
            yield
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            server.close()
            for task in self.tasks:
                task.cancel()
            if self.tasks:
                loop.run_until_complete(asyncio.wait(self.tasks))
            loop.close()

    async def _listen(self) -> asyncio.Server:
        server = await asyncio.start_server(self._accepted, "127.0.0.1", 0, backlog=1024)
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _accepted(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(self.round_trip_seconds)  # of the handshake
        with suppress(OSError):
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.upstream_port)
            for pair in ((reader, far_writer), (far_reader, writer)):
                task = asyncio.ensure_future(self._pass_on(*pair))
                self.tasks.add(task)
                task.add_done_callback(self.tasks.discard)

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        delay = self.round_trip_seconds / 2
        with suppress(OSError):
            while chunk := await reader.read(CHUNK_BYTES):
                self.moved_bytes += len(chunk)
                loop.call_later(delay, _written, writer, chunk)
                await asyncio.sleep(0)
        loop.call_later(delay, writer.close)


def _written(writer: asyncio.StreamWriter, chunk: bytes) -> None:
    if not writer.is_closing():
        writer.write(chunk)


def package_set(directory: Path, content_kib: int) -> Path:
    """`many` is a closure of 500 paths, each with as much noise; what is in the file `leaf` is in one of them."""
    directory.mkdir()
    (directory / "leaf").write_text("1\n")
    return make_package_set(
        directory,
        f"""
  many = let
    leaf = i: mk {{ pname = "leaf-${{toString i}}"; script = ''
      mkdir $out
      dd if=/dev/urandom of=$out/noise bs=1024 count={content_kib} 2> /dev/null
      echo ${{if i == 0 then builtins.readFile ./leaf else toString i}} > $out/id
    ''; }};
  in mk {{ pname = "many"; script = "mkdir $out; echo ${{toString (builtins.genList leaf 495)}} > $out/needs"; }};
""",
    )


@dataclass
class Place:
    """A registry, how far it is, and where nodes may lie."""

    work: Path
    registry: Server
    relay: Relay
    nodes: int = 0

    @contextmanager
    def node(self, setup: Setup) -> Iterator[tuple[Node, Kubelet]]:
        """A cold one: nothing in its Nix store or in containerd."""
        self.nodes += 1
        key = self.registry.get("/nix-cache/public-key").decode().strip()
        caches = [Substituter(f"http://127.0.0.1:{self.relay.port}/nix-cache", [key])]
        with new_node(self.work / f"n{self.nodes}", RELEASE, caches) as node:
            node.legacy = setup.legacy
            node.registries = [f"127.0.0.1:{self.relay.port}"]
            if setup.builder:
                node.use_external_builder()
            node.start("snapshotter", "containerd", *(["service"] if setup.service else []))
            node.load_pause()
            runtime = node.containerd.socket
            kubelet = Kubelet(node.image_socket if setup.service else runtime, runtime, node.directory)
            try:
                yield node, kubelet
            finally:
                kubelet.close()

    def pull_to_running(self, kubelet: Kubelet, image: str) -> tuple[float, int]:
        """Seconds until a pod of it has run to its end, and the bytes that moved."""
        name = f"127.0.0.1:{self.relay.port}/{image}:latest"
        before, begun = self.relay.moved_bytes, time.perf_counter()
        kubelet.pull(name, seconds=600)
        status = kubelet.run_pod(name, "bash", "-c", "echo $((6 * 7))")
        if status != (0, "42\n"):
            sys.exit(f"{image} does not run: {status}")
        return time.perf_counter() - begun, self.relay.moved_bytes - before


def make(registry: Server, image: str) -> None:
    """Wait until it is there: its packages are built first."""
    while True:
        try:
            registry.get(f"/v2/{image}/manifests/latest")
        except urllib.error.HTTPError as error:
            if error.code != 503:  # told to come again
                raise
        else:
            return


def cold(place: Place, rounds: int, images: list[str]) -> list[bool]:
    met = []
    for image in images:
        seconds: defaultdict[Setup, list[float]] = defaultdict(list)
        for _ in range(rounds):
            for setup in SETUPS:
                with place.node(setup) as (_, kubelet):
                    seconds[setup].append(place.pull_to_running(kubelet, f"nix-snapshotter/shell/{image}")[0])
        serial = median(seconds[SERIAL])
        times = {setup: serial / median(seconds[setup]) for setup in SETUPS}
        rows = [[setup.name, f"{median(seconds[setup]):.1f} s", f"{times[setup]:.1f}"] for setup in SETUPS]
        distance = f"{place.relay.round_trip_seconds * 1000:g} ms away"
        table(
            f"{IMAGES[image]}, {distance}: cold node, pull to running",
            ["snapshotter", "median", "times as fast as path by path"],
            rows,
        )
        met.append(max(times[setup] for setup in SETUPS if setup.service) >= TIMES_SERIAL)
        print(f"\nAt least {TIMES_SERIAL} times as fast with the image service: {verdict(met[-1])}")
    return met


def leaf_change(place: Place) -> bool:
    leaf = place.registry.source / "leaf"
    setup = Setup("", legacy=False, service=True)
    found: dict[str, tuple[tuple[float, int], tuple[float, int]]] = {}
    for number, form in enumerate(("classic", "nix-snapshotter"), 2):
        make(place.registry, f"{form}/shell/many")
        with place.node(setup) as (_, kubelet):
            first = place.pull_to_running(kubelet, f"{form}/shell/many")
            leaf.write_text(f"{number}\n")
            make(place.registry, f"{form}/shell/many")
            found[form] = first, place.pull_to_running(kubelet, f"{form}/shell/many")
    (_, whole), (_, classic) = found["classic"]
    moved = found["nix-snapshotter"][1][1]
    rows = [
        [form, *(f"{seconds:.1f} s, {moved / 1000:,.0f} kB" for seconds, moved in both)]
        for form, both in found.items()
    ]
    table("500 paths, one of them changes", ["form", "cold", "after the change"], rows)
    percent = 100 * moved / whole
    met = percent < LEAF_PERCENT
    print(
        f"\nThe snapshotter form moved {percent:.2f} % of the classic image's bytes (aim: below {LEAF_PERCENT} %,"
        f" {verdict(met)}), and {100 * moved / classic:.1f} % of what the classic form moved after the change."
    )
    return met


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--round-trip-ms", type=float, nargs="+", default=[0, 20])
    parser.add_argument("--content-kib", type=int, default=64, help="noise in each of the 500 paths")
    parser.add_argument("--images", nargs="*", choices=sorted(IMAGES), default=list(IMAGES))
    parser.add_argument("--no-leaf", action="store_true", help="do not measure the change of a package")
    given = parser.parse_args()
    need("nix-store", "nginx", "runc", "ctr", "busybox")
    if os.geteuid() != 0:
        sys.exit("containerd needs root")
    print(machine())
    with work_directory() as work:
        source = package_set(work / "packages", given.content_kib)
        registry = Server(work / "registry", source, work / "store")
        with registry.run():
            for image in given.images:
                make(registry, f"nix-snapshotter/shell/{image}")
            for milliseconds in given.round_trip_ms:
                relay = Relay(registry.port, milliseconds / 1000)
                with relay.run():
                    place = Place(work / f"{milliseconds:g}", registry, relay)
                    place.work.mkdir()
                    cold(place, given.rounds, given.images)
                    if not given.no_leaf and milliseconds == given.round_trip_ms[-1]:
                        leaf_change(place)


if __name__ == "__main__":
    main()
