"""Requests a second and megabytes a second of warm answers, beside docker-registry and nginx (bench/README.md)."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import uvloop
from harness import (
    OCI_MANIFEST,
    Server,
    cpu_seconds,
    free_port,
    machine,
    make_package_set,
    median,
    need,
    process,
    seeded_bytes,
    table,
    verdict,
    work_directory,
)

BIG_BYTES = 50_000_000
SMALL_BYTES = 2_000
IMAGE = "payload"
CONNECTIONS = 16


@dataclass(frozen=True)
class Peer:
    name: str
    port: int
    pid: int


@dataclass(frozen=True)
class Row:
    """`times_registry` and `times_nginx` are the goals."""

    title: str
    method: str
    target: str
    times_registry: float
    times_nginx: float
    connections: int = CONNECTIONS
    is_big: bool = False


def requests_by_wrk(port: int, row: Row, seconds: int) -> float:
    url = f"http://127.0.0.1:{port}{row.target}"
    threads = min(2, row.connections)
    command = [
        "wrk",
        f"-t{threads}",
        f"-c{row.connections}",
        f"-d{seconds}s",
        "-H",
        f"Accept: {OCI_MANIFEST}",
        url,
    ]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    if "Non-2xx" in said or "Socket errors" in said:
        sys.exit(f"{' '.join(command)}:\n{said}")
    rate = re.search(r"Requests/sec:\s+([\d.]+)", said)
    return float(rate[1]) if rate else 0.0


class _HeadClient(asyncio.Protocol):
    """Sends one HEAD after the other on one connection and counts the answers. (wrk waits for a body.)"""

    _transport: asyncio.Transport

    def __init__(self, head: bytes, counts: list[int]) -> None:
        self._head, self._counts, self._seen = head, counts, b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own class
        self._transport.write(self._head)

    def data_received(self, data: bytes) -> None:
        if not data.endswith(b"\r\n\r\n"):
            self._seen += data
            if not self._seen.endswith(b"\r\n\r\n"):
                return
            data, self._seen = self._seen, b""
        if b" 200 " not in data[:15]:
            self._counts[1] += 1
        self._counts[0] += 1
        self._transport.write(self._head)


def requests_by_head_client(port: int, row: Row, seconds: int) -> float:
    head = f"HEAD {row.target} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAccept: {OCI_MANIFEST}\r\n\r\n".encode()
    counts = [0, 0]

    async def load() -> float:
        loop = asyncio.get_running_loop()
        begun = time.perf_counter()
        clients = [
            await loop.create_connection(lambda: _HeadClient(head, counts), "127.0.0.1", port)
            for _ in range(row.connections)
        ]
        await asyncio.sleep(seconds)
        taken = time.perf_counter() - begun
        for transport, _ in clients:
            transport.abort()
        return counts[0] / taken

    rate = uvloop.run(load())
    if counts[1]:
        sys.exit(f"HEAD {row.target} on port {port}: {counts[1]} answers were not 200")
    return rate


def bytes_by_discarding_client(port: int, row: Row, seconds: int) -> float:
    """MB/s over keep-alive connections whose content is received into one buffer again and again."""
    totals = [0] * row.connections
    deadline = time.perf_counter() + seconds

    def fetch(number: int) -> None:
        buffer = bytearray(256 * 1024)
        with socket.create_connection(("127.0.0.1", port)) as sock:
            while time.perf_counter() < deadline:
                sock.sendall(f"GET {row.target} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())
                head = b""
                while b"\r\n\r\n" not in head:
                    head += sock.recv(4096)
                head, _, start = head.partition(b"\r\n\r\n")
                length = re.search(rb"(?i)content-length: (\d+)", head)
                if b" 200 " not in head[:15] or length is None:
                    sys.exit(f"GET {row.target} on port {port}: {head.decode()}")
                left = int(length[1]) - len(start)
                while left:
                    left -= (count := sock.recv_into(buffer, min(left, len(buffer))))
                    totals[number] += count
                    if not count:
                        sys.exit(f"GET {row.target} on port {port}: the answer is too short")

    begun = time.perf_counter()
    threads = [threading.Thread(target=fetch, args=(number,)) for number in range(row.connections)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(totals) / (time.perf_counter() - begun) / 1e6


def client_of(row: Row) -> Callable[[int, Row, int], float]:
    if row.is_big:
        return bytes_by_discarding_client
    return requests_by_head_client if row.method == "HEAD" else requests_by_wrk


@contextmanager
def docker_registry(work: Path) -> Iterator[Peer]:
    port = free_port()
    settings = work / "registry.json"  # JSON is YAML
    settings.write_text(
        json.dumps({
            "version": 0.1,
            "log": {"level": "error", "accesslog": {"disabled": True}},
            "storage": {
                "cache": {"blobdescriptor": "inmemory"},
                "filesystem": {"rootdirectory": str(work / "registry")},
            },
            "http": {"addr": f"127.0.0.1:{port}"},
        })
    )  # fmt: skip
    with process(["docker-registry", "serve", settings], port, work / "registry.log") as pid:
        yield Peer("docker-registry", port, pid)


@contextmanager
def nginx(work: Path, files: dict[str, tuple[str, str, bytes]]) -> Iterator[Peer]:
    """One worker; `files`: target -> (media type, digest, content), served from disk with a registry's headers."""
    port = free_port()
    root = work / "www"
    locations = []
    for target, (media_type, digest, content) in files.items():
        file = root / target.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        locations.append(
            f"location = {target} {{ types {{ }} default_type {media_type};"
            f" add_header Docker-Content-Digest {digest}; add_header ETag '\"{digest}\"'; }}"
        )
    http = (
        "access_log off; sendfile on; tcp_nopush on; etag off; open_file_cache max=100;"
        f" server {{ listen 127.0.0.1:{port}; root {root}; {' '.join(locations)} }}"
    )
    with run_nginx(work, port, http) as peer:
        yield peer


@contextmanager
def run_nginx(work: Path, port: int, http: str) -> Iterator[Peer]:
    """One worker; `http` goes into the section of that name."""
    user = "user root;" if os.geteuid() == 0 else ""  # the files are in a private directory
    temporary = " ".join(
        f"{kind}_temp_path {work}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    settings = work / "nginx.conf"
    settings.write_text(
        f"{user} worker_processes 1; daemon off; pid {work}/nginx.pid; error_log {work}/nginx.err;\n"
        f"events {{ worker_connections 1024; }}\n"
        f"http {{ {temporary} keepalive_requests 1000000000; {http} }}\n"
    )
    command = ["nginx", "-e", work / "nginx.err", "-c", settings, "-p", work]
    with process(command, port, work / "nginx.log") as pid:
        yield Peer("nginx", port, pid)


def package_set(work: Path) -> Path:
    (work / "big").write_bytes(seeded_bytes(BIG_BYTES, 1))
    (work / "small").write_bytes(seeded_bytes(SMALL_BYTES, 2))
    packages = "".join(
        f'{name} = mk {{ pname = "{name}"; script = "mkdir $out; cp ${{{work / name}}} $out/content"; }};\n'
        for name in ("big", "small")
    )
    needs = "mkdir $out; echo ${pkgs.big} ${pkgs.small} > $out/needs"
    image = f'{IMAGE} = mk {{ pname = "{IMAGE}"; script = "{needs}"; }};'
    return make_package_set(work / "packages", packages + image)


def measure(peers: list[Peer], rows: list[Row], rounds: int, seconds: int) -> list[list[str]]:
    rates: defaultdict[tuple[Row, Peer], list[float]] = defaultdict(list)
    costs: defaultdict[tuple[Row, Peer], list[float]] = defaultdict(list)
    for number in range(rounds):
        for row in rows:
            for peer in peers[number % len(peers) :] + peers[: number % len(peers)]:
                before = cpu_seconds(peer.pid)
                rate = client_of(row)(peer.port, row, seconds)
                rates[row, peer].append(rate)
                costs[row, peer].append((cpu_seconds(peer.pid) - before) / seconds / rate * 1e6)
        print(f"round {number + 1} of {rounds} done", file=sys.stderr)
    lines = []
    for row in rows:
        ours, registry, static = (median(rates[row, peer]) for peer in peers)
        line = [row.title, *(f"{rate:,.0f}" for rate in (ours, registry, static))]
        line += [f"{median(costs[row, peer]):.0f}" for peer in peers]
        for ratio, goal in ((ours / registry, row.times_registry), (ours / static, row.times_nginx)):
            line.append(f"{ratio:.2f} (goal {goal:g}, {verdict(ratio >= goal)})")
        lines.append(line)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2, help="of each measurement")
    parser.add_argument("--workers", type=int, default=1, help="processes of nixery-snap; goals are for one")
    parser.add_argument("--only", default="", help="just the rows whose title has this text")
    arguments = parser.parse_args()
    need("wrk", "nginx", "docker-registry", "skopeo", "nix-store")
    print(machine())
    with work_directory() as work, ExitStack() as running:
        server = Server(work / "server", package_set(work), work / "store", workers=arguments.workers)
        ours = Peer("nixery-snap", server.port, running.enter_context(server.run()))
        registry = running.enter_context(docker_registry(work))
        manifest = server.get(f"/v2/{IMAGE}/manifests/latest")
        source, copy = (f"docker://127.0.0.1:{peer.port}/{IMAGE}:latest" for peer in (ours, registry))
        insecure = ["--src-tls-verify=false", "--dest-tls-verify=false"]
        subprocess.run(["skopeo", "copy", "-q", "--preserve-digests", *insecure, source, copy], check=True)

        parsed = json.loads(manifest)
        digest = f"sha256:{hashlib.sha256(manifest).hexdigest()}"
        by_size = {layer["size"]: layer["digest"] for layer in parsed["layers"]}
        big = by_size[max(by_size)]
        small = by_size[min(by_size, key=lambda size: abs(size - SMALL_BYTES - 300))]
        manifests, blobs = (f"/v2/{IMAGE}/{kind}" for kind in ("manifests", "blobs"))
        files = {
            f"{blobs}/{each}": ("application/octet-stream", each, server.get(f"{blobs}/{each}"))
            for each in (big, small)
        }
        files |= {
            f"{manifests}/{reference}": (OCI_MANIFEST, digest, manifest) for reference in ("latest", digest)
        }
        static = running.enter_context(nginx(work, files))

        rows = [
            Row("manifest by tag, GET (1/s)", "GET", f"{manifests}/latest", 8, 0.5),
            Row("manifest by tag, HEAD (1/s)", "HEAD", f"{manifests}/latest", 8, 0.5),
            Row("manifest by digest, GET (1/s)", "GET", f"{manifests}/{digest}", 8, 0.5),
            Row("manifest by digest, HEAD (1/s)", "HEAD", f"{manifests}/{digest}", 8, 0.5),
            Row("2 kB blob, GET (1/s)", "GET", f"{blobs}/{small}", 2, 0.9),
            Row("2 kB blob, HEAD (1/s)", "HEAD", f"{blobs}/{small}", 2, 0.9),
            Row("50 MB blob, 1 connection (MB/s)", "GET", f"{blobs}/{big}", 2, 0.9, 1, True),
            Row("50 MB blob, 4 connections (MB/s)", "GET", f"{blobs}/{big}", 2, 0.9, 4, True),
        ]
        rows = [row for row in rows if arguments.only in row.title]
        peers = [ours, registry, static]
        lines = measure(peers, rows, arguments.rounds, arguments.seconds)
        header = [
            "",
            "nixery-snap",
            "docker-registry",
            "nginx",
            "CPU µs per request or MB",
            "of registry",
            "of nginx",
            "times registry",
            "times nginx",
        ]
        table(
            f"Warm answers, medians of {arguments.rounds} rounds, {arguments.workers} worker(s)",
            header,
            lines,
        )


if __name__ == "__main__":
    main()
