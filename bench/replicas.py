"""One, two and four servers on one store, and memory under a thousand downloads at a time (bench/README.md)."""

from __future__ import annotations

import argparse
import json
import re
import selectors
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from harness import (
    OCI_MANIFEST,
    Server,
    cpu_seconds,
    machine,
    make_package_set,
    median,
    need,
    peak_memory_mib,
    seeded_bytes,
    table,
    work_directory,
)

MIB = 1024 * 1024
COUNTS = (1, 2, 4)
CONNECTIONS = 8  # of each replica
DOWNLOADS = 1000
GOAL_MORE_MIB = 64
IMAGE = "payload"


def package_set(work: Path, images: int) -> Path:
    """`payload` has a blob of 50 MB; `new0` … are what is asked for the first time."""
    (work / "big").write_bytes(seeded_bytes(50_000_000, 1))
    (work / "some").write_bytes(seeded_bytes(2_000_000, 2))
    packages = f'{IMAGE} = mk {{ pname = "{IMAGE}"; script = "mkdir $out; cp ${{{work / "big"}}} $out/content"; }};\n'
    for number in range(images):
        script = f"mkdir $out; echo {number} > $out/id; cp ${{{work / 'some'}}} $out/content"
        packages += f'new{number} = mk {{ pname = "new{number}"; script = "{script}"; }};\n'
    return make_package_set(work / "packages", packages)


def requests(ports: list[int], target: str, seconds: int) -> float:
    """Requests a second of all together."""

    def load(port: int) -> float:
        url = f"http://127.0.0.1:{port}{target}"
        command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "-H", f"Accept: {OCI_MANIFEST}", url]
        said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
        if "Non-2xx" in said or "Socket errors" in said:
            sys.exit(said)
        rate = re.search(r"Requests/sec:\s+([\d.]+)", said)
        return float(rate[1]) if rate else 0.0

    with ThreadPoolExecutor(len(ports)) as pool:
        return sum(pool.map(load, ports))


def first_requests(servers: list[Server], images: int) -> float:
    """Seconds until each new image was had from every server, all asked at once."""
    asked = [(server, f"/v2/new{number}/manifests/latest") for number in range(images) for server in servers]
    begun = time.perf_counter()
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda one: one[0].get(one[1]), asked))
    if len(set(answers)) != images:
        sys.exit("the replicas do not agree")
    return time.perf_counter() - begun


def downloads(port: int, target: str, part_bytes: int) -> float:
    """Seconds for as many as there may be, all begun before one goes on."""
    head = f"GET {target} HTTP/1.1\r\nHost: x\r\nRange: bytes=0-{part_bytes - 1}\r\nConnection: close\r\n\r\n"
    begun = time.perf_counter()
    with ExitStack() as stack, selectors.DefaultSelector() as selector:
        got = {}
        for _ in range(DOWNLOADS):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", port), 60))
            sock.sendall(head.encode())
            got[sock] = 0
        for sock in got:
            got[sock] += len(sock.recv(1))
            selector.register(sock, selectors.EVENT_READ)
        buffer = bytearray(256 * 1024)
        while selector.get_map():
            for key, _ in selector.select(60):
                sock = key.fileobj
                if not isinstance(sock, socket.socket):
                    continue
                if count := sock.recv_into(buffer):
                    got[sock] += count
                    continue
                selector.unregister(sock)
                if got[sock] < part_bytes:
                    sys.exit("a download was cut off")
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=2, help="of each measurement")
    parser.add_argument("--images", type=int, default=24, help="new images in each round")
    parser.add_argument("--part-mib", type=int, default=4, help="of the blob that each download takes")
    arguments = parser.parse_args()
    need("wrk", "nix-store")
    print(machine())
    with work_directory() as work:
        source, store = package_set(work, arguments.images), work / "store"
        builder = Server(work / "builder", source, store)
        with builder.run():
            first_requests([builder], arguments.images)  # Nix builds everything
            builder.get(f"/v2/{IMAGE}/manifests/latest")
        rows = []
        for kind in ("replicas", "workers"):
            for count in COUNTS:
                rates, costs, firsts = [], [], []
                for number in range(arguments.rounds):
                    storage = work / f"storage-{kind}-{count}-{number}"
                    servers = [
                        Server(work / f"{storage.name}-{n}", source, store, storage=storage)
                        for n in range(count if kind == "replicas" else 1)
                    ]
                    servers[0].workers = 1 if kind == "replicas" else count
                    with ExitStack() as running:
                        pids = [running.enter_context(server.run()) for server in servers]
                        firsts.append(first_requests(servers, arguments.images))
                        target = f"/v2/{IMAGE}/manifests/latest"
                        for server in servers:
                            server.get(target)
                        before = sum(map(cpu_seconds, pids))
                        rate = requests([server.port for server in servers], target, arguments.seconds)
                        rates.append(rate)
                        used = sum(map(cpu_seconds, pids)) - before
                        costs.append(used / arguments.seconds / rate * 1e6)
                rows.append((kind, count, median(rates), median(costs), median(firsts)))
        lines = [
            [f"{count} {kind}", f"{rate:,.0f}", f"{cost:.0f}", f"{first:.2f}"]
            for kind, count, rate, cost, first in rows
        ]
        table(
            f"One store, medians of {arguments.rounds} rounds",
            ["", "warm manifests/s", "CPU µs each", f"s for {arguments.images} new images from each"],
            lines,
        )

        lines = []
        for workers in (1, 2):
            # The builder's storage, so that making the image has no part in the peak.
            server = Server(
                work / f"memory-{workers}", source, store, workers=workers, storage=builder.state / "storage"
            )
            with server.run() as pid:
                manifest = json.loads(server.get(f"/v2/{IMAGE}/manifests/latest"))
                big = max(manifest["layers"], key=lambda layer: int(layer["size"]))["digest"]
                pids = worker_pids(pid) or [pid]
                before = sum(map(peak_memory_mib, pids))
                seconds = downloads(server.port, f"/v2/{IMAGE}/blobs/{big}", arguments.part_mib * MIB)
                more = sum(map(peak_memory_mib, pids)) - before
            speed = DOWNLOADS * arguments.part_mib / seconds
            verdict = "met" if more < GOAL_MORE_MIB else "NOT MET"
            lines.append(
                [
                    str(workers),
                    f"{before:.0f}",
                    f"{more:.0f} (goal {GOAL_MORE_MIB}, {verdict})",
                    f"{speed:.0f}",
                ]
            )
        header = ["workers", "MiB before", "MiB more at the peak", "MiB/s"]
        table(f"{DOWNLOADS} downloads of {arguments.part_mib} MiB at a time", header, lines)


def worker_pids(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


if __name__ == "__main__":
    main()
