"""Our binary cache beside nginx, closures beside Nix, and images made with and without realising (bench/README.md)."""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import multiprocessing
import os
import random
import re
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import uvloop
from first_request import STEPS, Steps, first_request
from harness import (
    EXAMPLES,
    Server,
    cpu_seconds,
    environment,
    free_port,
    machine,
    make_package_set,
    median,
    need,
    peak_memory_mib,
    seeded_bytes,
    table,
    verdict,
    work_directory,
)
from serving import CONNECTIONS, Peer, Row, client_of, run_nginx

from nixery_snap import event_loop
from nixery_snap.imaging.locate import find_closure
from nixery_snap.nix import base32
from nixery_snap.nix.narinfo import NarInfo
from nixery_snap.nix.path_info import PathInfo
from nixery_snap.nix.signing import PublicKey, SecretKey
from nixery_snap.nix.store_path import StorePath
from nixery_snap.nix_stores import narinfos
from nixery_snap.nix_stores.cache_transport import open_transport
from nixery_snap.nix_stores.substituter import Substituter
from nixery_snap.nix_stores.substituters import Substituters
from nixery_snap.object_store.records import StoredRecords
from nixery_snap.object_store.store import ObjectStore

PREFIX = "/nix-cache"
CACHE_INFO = b"StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 40\n"
NAR_BYTES = 10_000_000
NARINFO_REFERENCES = 22  # make a narinfo of some 2 kB
COLD_AT_A_TIME = 4000
PATHS, DEPTH = 2000, 30
RECORDS_MEMORY_BYTES = 64 * 1024 * 1024  # the default of the setting limits.memory_cache
IMAGE = "many"
IMAGE_PATHS = 500
BASE_PACKAGES = ("cacert", "iana-etc")  # are in every image
TIMES_NGINX = 0.9
CLOSURE_SECONDS, CLOSURE_MIB, TIMES_NIX = 1.5, 60, 3
TIMES_REALISING = 5


@dataclass
class CacheServer(Server):
    """It knows just the `substituters` named here, in TOML."""

    substituters: str = "[]"

    @property
    def env(self) -> dict[str, str]:
        return super().env | {"NIXERY_SNAP_SUBSTITUTERS": self.substituters}


@dataclass
class Times:
    """Seconds of each measurement, by what was measured."""

    samples: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    def median(self, name: str) -> float:
        return median(self.samples[name])

    def milliseconds(self, name: str) -> str:
        return f"{self.median(name) * 1000:,.0f}"


@contextmanager
def nginx(work: Path, root: Path) -> Iterator[Peer]:
    """One worker that serves `root` as a binary cache at / and below PREFIX; its log has every request."""
    work.mkdir()
    port = free_port()
    http = f"""
  log_format plain '$uri'; access_log {work}/access.log plain buffer=64k flush=1s;
  sendfile on; tcp_nopush on; tcp_nodelay on; open_file_cache max=100;
  server {{
    listen 127.0.0.1:{port} backlog=1024; root {root}; default_type text/x-nix-narinfo;
    location {PREFIX}/ {{ alias {root}/; access_log off; }}
  }}
"""
    with run_nginx(work, port, http) as peer:
        yield peer


def made_up_path(name: str) -> StorePath:
    return StorePath(base32.encode(hashlib.sha256(name.encode()).digest()[:20]), name)


def made_up_narinfo(path: StorePath, references: Iterable[StorePath], key: SecretKey) -> NarInfo:
    nar_hash = base32.encode(hashlib.sha256(str(path).encode()).digest())
    info = PathInfo(path, f"sha256:{nar_hash}", 1_000_000, tuple(sorted(references)), origin="")
    info = replace(info, signatures=(key.sign(info),))
    return NarInfo(info, f"nar/{nar_hash}.nar.zst", "zstd", info.nar_hash, 300_000)


def write_narinfos(root: Path, narinfos: Iterable[NarInfo]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    (root / "nix-cache-info").write_bytes(CACHE_INFO)
    for narinfo in narinfos:
        (root / f"{narinfo.info.path.hash_part}.narinfo").write_bytes(bytes(narinfo))


# --- serving ----------------------------------------------------------------------------------------------


class _OnceClient(asyncio.Protocol):
    """Asks for one target after the other of an iterator that several connections share."""

    _transport: asyncio.Transport

    def __init__(self, targets: Iterator[str], done: asyncio.Future[None]) -> None:
        self._targets, self._done, self._seen, self._size = targets, done, b"", 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's own class
        self._ask()

    def data_received(self, data: bytes) -> None:
        self._seen += data
        if not self._size:
            head, separator, _ = self._seen.partition(b"\r\n\r\n")
            if not separator:
                return
            length = re.search(rb"(?i)content-length: (\d+)", head)
            if b" 200 " not in head[:15] or length is None:
                self._done.set_exception(ConnectionError(head.decode()))
                self._transport.abort()
                return
            self._size = len(head) + 4 + int(length[1])
        if len(self._seen) == self._size:
            self._ask()

    def _ask(self) -> None:
        self._seen, self._size = b"", 0
        target = next(self._targets, None)
        if target is None:
            self._transport.close()
            self._done.set_result(None)
        else:
            self._transport.write(f"GET {target} HTTP/1.1\r\nHost: bench\r\n\r\n".encode())


def requests_each_once(port: int, targets: Sequence[str]) -> float:
    """A second, over CONNECTIONS connections."""

    async def load() -> float:
        loop = asyncio.get_running_loop()
        shared = iter(targets)
        done = [loop.create_future() for _ in range(CONNECTIONS)]
        begun = time.perf_counter()
        for one in done:
            await loop.create_connection(lambda one=one: _OnceClient(shared, one), "127.0.0.1", port)
        await asyncio.gather(*done)
        return len(targets) / (time.perf_counter() - begun)

    return uvloop.run(load())


def measure_serving(work: Path, rounds: int, seconds: int) -> None:
    server = CacheServer(work / "server", EXAMPLES, work / "store")
    root = server.state / "storage"
    key = SecretKey.generate("bench-1")
    references = [made_up_path(f"library-with-a-usual-name-{number}") for number in range(NARINFO_REFERENCES)]
    # A round asks each server for its own part of the paths, none of which was asked for before.
    narinfos = [
        made_up_narinfo(made_up_path(f"package-{number}"), references, key)
        for number in range(rounds * COLD_AT_A_TIME)
    ]
    write_narinfos(root, narinfos)
    targets = [f"{PREFIX}/{narinfo.info.path.hash_part}.narinfo" for narinfo in narinfos]
    nar = seeded_bytes(NAR_BYTES, 1)
    nar_target = f"nar/{base32.encode(hashlib.sha256(nar).digest())}.nar.zst"
    (root / "nar").mkdir()
    (root / nar_target).write_bytes(nar)
    cold = "narinfo, each asked for once (1/s)"
    rows = [
        Row("narinfo, GET again and again (1/s)", "GET", targets[0], 0, TIMES_NGINX),
        Row("narinfo, HEAD again and again (1/s)", "HEAD", targets[0], 0, TIMES_NGINX),
        Row(cold, "GET", "", 0, TIMES_NGINX),
        Row("10 MB NAR, 1 connection (MB/s)", "GET", f"{PREFIX}/{nar_target}", 0, TIMES_NGINX, 1, True),
        Row("10 MB NAR, 4 connections (MB/s)", "GET", f"{PREFIX}/{nar_target}", 0, TIMES_NGINX, 4, True),
    ]
    rates: defaultdict[tuple[Row, str], list[float]] = defaultdict(list)
    costs: defaultdict[tuple[Row, str], list[float]] = defaultdict(list)
    with ExitStack() as running:
        ours = Peer("nixery-snap", server.port, running.enter_context(server.run()))
        peers = [ours, running.enter_context(nginx(work / "nginx", root))]
        for number in range(rounds):
            for row in rows:
                for peer in peers[number % 2 :] + peers[: number % 2]:
                    before, begun = cpu_seconds(peer.pid), time.perf_counter()
                    if row.title == cold:
                        part = targets[number * COLD_AT_A_TIME :][:COLD_AT_A_TIME]
                        rate = requests_each_once(peer.port, part)
                    else:
                        rate = client_of(row)(peer.port, row, seconds)
                    used = cpu_seconds(peer.pid) - before
                    rates[row, peer.name].append(rate)
                    costs[row, peer.name].append(used / (time.perf_counter() - begun) / rate * 1e6)
            print(f"serving: round {number + 1} of {rounds} done", file=sys.stderr)
    lines = []
    for row in rows:
        mine, static = (median(rates[row, peer.name]) for peer in peers)
        ratio = mine / static
        line = [row.title, f"{mine:,.0f}", f"{static:,.0f}"]
        line += [f"{median(costs[row, peer.name]):.0f}" for peer in peers]
        lines.append([*line, f"{ratio:.2f} (goal {row.times_nginx:g}, {verdict(ratio >= row.times_nginx)})"])
    size = len(bytes(narinfos[0]))
    header = ["", "nixery-snap", "nginx", "CPU µs per request or MB", "of nginx", "times nginx"]
    table(f"Serving narinfos of {size} bytes and a NAR, medians of {rounds} rounds", header, lines)


# --- closures ---------------------------------------------------------------------------------------------


def made_up_closure(key: SecretKey) -> tuple[StorePath, list[NarInfo]]:
    """The root and all PATHS, in DEPTH levels: each is referred to from the level above."""
    rng = random.Random(1)
    count = PATHS - 1
    sizes = [
        1,
        *(count * level // (DEPTH - 1) - count * (level - 1) // (DEPTH - 1) for level in range(1, DEPTH)),
    ]
    levels = [
        [made_up_path(f"level-{level}-member-{member}-1.0") for member in range(size)]
        for level, size in enumerate(sizes)
    ]
    references: defaultdict[StorePath, set[StorePath]] = defaultdict(set)
    for level, members in enumerate(levels[1:], 1):
        for path in members:
            references[rng.choice(levels[level - 1])].add(path)
    for level, members in enumerate(levels):
        for path in members:
            # None from further below: a breadth-first search must wait for DEPTH rounds of answers.
            below = levels[level + 1] if level + 1 < DEPTH else []
            references[path].update(rng.sample(below, min(6, len(below))))
            references[path].add(path)  # as most real ones do
    narinfos = [made_up_narinfo(path, references[path], key) for members in levels for path in members]
    return levels[0][0], narinfos


def resolve(url: str, public_key: str, root: str, records: str, checks: bool) -> tuple[int, float, float]:
    """Paths, seconds and MiB more than before, in a process of its own."""
    if not checks:
        narinfos.verified_by = lambda _, keys: next(iter(keys))

    async def work() -> tuple[int, float]:
        begun = time.perf_counter()
        substituter = Substituter(
            url,
            open_transport(url, request_timeout=15, nar_timeout=3600),
            [PublicKey.parse(public_key)],
            StoredRecords(ObjectStore(f"file://{records}"), RECORDS_MEMORY_BYTES),
            concurrency=64,
        )
        substituters = Substituters([substituter])
        closure = await find_closure(substituters, [StorePath.parse(root)])
        seconds = time.perf_counter() - begun
        await substituters.close()
        return len(closure), seconds

    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = peak_memory_mib(os.getpid())
    paths, seconds = event_loop.run(work())
    return paths, seconds, peak_memory_mib(os.getpid()) - before


def measure_closures(work: Path, rounds: int) -> None:
    key = SecretKey.generate("bench-1")
    root, narinfos = made_up_closure(key)
    write_narinfos(work / "cache", narinfos)
    times, growths = Times(), []
    log, asked_before = work / "nginx" / "access.log", 0
    with nginx(work / "nginx", work / "cache") as cache:
        url = f"http://127.0.0.1:{cache.port}"
        for number in range(rounds):
            checked, unchecked = work / f"records-{number}", work / f"unchecked-{number}"
            for name, records in (("ours", checked), ("again", checked), ("unchecked", unchecked)):
                records.mkdir(exist_ok=True)
                with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                    arguments = (url, str(key.public_key), str(root), str(records), name != "unchecked")
                    paths, seconds, growth = pool.submit(resolve, *arguments).result()
                check(paths == PATHS, f"{paths} paths in the closure")
                times.samples[name].append(seconds)
                if name == "ours":
                    growths.append(growth)
            # None was asked for twice, nor again by the process that had the records.
            check_asked(log, ".narinfo", asked_before + 2 * PATHS)
            trusted = ("--option", "trusted-public-keys", str(key.public_key))
            for name, command in (
                ("path-info", ["path-info"]),
                ("verify", ["store", "verify", "--no-contents", *trusted]),
            ):
                env = environment(work / f"home-{number}-{name}")  # a new one, so that Nix knows nothing
                line = ["nix", *command, "-r", "--store", url, str(root)]
                begun = time.perf_counter()
                found = subprocess.run(line, env=env, capture_output=True, check=True).stdout.split()
                times.samples[name].append(time.perf_counter() - begun)
                check(name == "verify" or len(found) == PATHS, f"{len(found)} paths of Nix")
            asked_before = asked(log, ".narinfo")  # Nix asks for one of them twice
            print(f"closures: round {number + 1} of {rounds} done", file=sys.stderr)
    ours, nix = times.median("ours"), times.median("path-info")
    growth = max(growths)
    table(
        f"Closure of {PATHS:,} paths, depth {DEPTH}, from a loopback cache; medians of {rounds} rounds",
        ["", "measured", "goal"],
        [
            [
                "find_closure",
                f"{ours * 1000:,.0f} ms",
                f"{CLOSURE_SECONDS} s, {verdict(ours < CLOSURE_SECONDS)}",
            ],
            ["nix path-info -r", f"{nix * 1000:,.0f} ms", ""],
            ["times faster", f"{nix / ours:.1f}", f"{TIMES_NIX}, {verdict(nix / ours >= TIMES_NIX)}"],
            ["nix store verify --no-contents -r", f"{times.milliseconds('verify')} ms", ""],
            ["times faster", f"{times.median('verify') / ours:.1f}", ""],
            [
                "find_closure without signatures, times faster than path-info",
                f"{nix / times.median('unchecked'):.1f}",
                "",
            ],
            [
                "memory more, largest",
                f"{growth:.0f} MiB",
                f"{CLOSURE_MIB} MiB, {verdict(growth < CLOSURE_MIB)}",
            ],
            ["again in a new process, from its records", f"{times.milliseconds('again')} ms", ""],
        ],
    )


def asked(log: Path, suffix: str) -> int:
    time.sleep(1.2)  # nginx writes its log once a second
    return sum(line.endswith(suffix) for line in log.read_text().splitlines())


def check_asked(log: Path, suffix: str, times: int) -> None:
    count = asked(log, suffix)
    check(count == times, f"{count} files {suffix} were asked for, not {times}")


def check(holds: bool, otherwise: str) -> None:
    if not holds:
        sys.exit(f"this is not what was to be measured: {otherwise}")


# --- images -----------------------------------------------------------------------------------------------


def image_packages(directory: Path, content_kib: int) -> Path:
    """IMAGE refers to IMAGE_PATHS - 1 small packages, each of which refers to up to three others."""
    rng = random.Random(2)
    names = [f"many-{number}" for number in range(IMAGE_PATHS - 1)]
    noise = f"dd if=/dev/urandom of=$out/noise bs=1024 count={content_kib} 2>/dev/null" if content_kib else ""
    packages = ""
    for number, name in enumerate(names):
        needs = " ".join(f"${{pkgs.{other}}}" for other in rng.sample(names[:number], min(3, number)))
        script = f"mkdir $out; echo {name} {needs} > $out/needs; {noise}"
        packages += f'{name} = mk {{ pname = "{name}"; script = "{script}"; }};\n'
    needs = " ".join(f"${{pkgs.{name}}}" for name in names)
    packages += f'{IMAGE} = mk {{ pname = "{IMAGE}"; script = "mkdir $out; echo {needs} > $out/needs"; }};\n'
    return make_package_set(directory, packages)


def nix(store: Path, home: Path, *command: str | Path) -> str:
    program, *arguments = map(str, command)
    line = [program, "--store", str(store), *arguments]
    done = subprocess.run(line, env=environment(home), capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(line[:8])}:\n{done.stderr[-3000:]}")
    return done.stdout


def fill_cache(work: Path, source: Path) -> tuple[list[str], str]:
    """The image's packages, built and copied into the cache work/cache by Nix, and its public key."""
    store, home = work / "building", work / "home"
    key = SecretKey.generate("bench-1")
    key_file = work / "key"
    key_file.touch(0o600)
    key_file.write_text(key.text)
    nix(store, home, "nix-store", "--init")
    attributes = [word for name in (IMAGE, *BASE_PACKAGES) for word in ("-A", name)]
    built = nix(
        store, home, "nix-build", source, "--no-out-link", "-j", str(os.cpu_count()), *attributes
    ).split()
    options = f"write-nar-listing=1&compression=zstd&secret-key={key_file}"
    nix(store, home, "nix", "copy", "--to", f"file://{work / 'cache'}?{options}", *built)
    return built, str(key.public_key)


def measure_images(work: Path, rounds: int, content_kib: int) -> None:
    source = image_packages(work / "packages", content_kib)
    print("images: building the packages", file=sys.stderr)
    roots, public_key = fill_cache(work, source)
    samples: defaultdict[str, list[Steps]] = defaultdict(list)
    paths, log = 0, work / "nginx" / "access.log"
    with nginx(work / "nginx", work / "cache") as cache:
        url = f"http://127.0.0.1:{cache.port}"
        trusted = f"{{ url = {json.dumps(url)}, public_keys = [{json.dumps(public_key)}] }}"
        for number in range(rounds):
            for realises in (False, True):
                state = work / f"{number}-{realises}"
                state.mkdir()
                server = CacheServer(
                    state / "server",
                    source,
                    state / "store",
                    format="nix-snapshotter",
                    substituters=f"[{trusted}]",
                )
                steps: Steps = {}
                nix(server.store, state / "home", "nix-store", "--init")
                if realises:
                    options = ("--option", "substituters", url, "--option", "trusted-public-keys", public_key)
                    begun = time.perf_counter()
                    nix(server.store, state / "home", "nix-store", "--realise", *options, *roots)
                    steps["realise first"] = time.perf_counter() - begun
                with server.run():
                    taken, facts = first_request(server, IMAGE, "nix-snapshotter")
                    names = {event["event"] for event in server.events()}
                check("realised" not in names, "the server realised")
                steps |= taken
                steps["total"] += steps.get("realise first", 0.0)
                samples["realised first" if realises else "from the cache's word"].append(steps)
                paths = facts["paths"]
                # Only Nix downloads NARs, each once.
                check_asked(log, ".nar.zst", (number + realises) * paths)
            print(f"images: round {number + 1} of {rounds} done", file=sys.stderr)
    columns = ["realise first", *STEPS, "other", "total"]
    lines = []
    for name, several in samples.items():
        values = [[steps[column] for steps in several if column in steps] for column in columns]
        lines.append([name, *(f"{median(each) * 1000:,.0f}" if each else "" for each in values)])
    word, first = (median(steps["total"] for steps in several) for several in samples.values())
    ratio = first / word
    header = ["", "realise first", *STEPS.values(), "other", "total"]
    table(
        f"First request of a snapshotter image of {paths} paths with {content_kib} KiB each beside its text;"
        f" medians of {rounds} rounds in ms",
        header,
        lines,
    )
    print(f"\n{ratio:.1f} times faster (goal {TIMES_REALISING}, {verdict(ratio >= TIMES_REALISING)})")

    shared = median(steps["pinned"] + steps["evaluated"] for steps in samples["from the cache's word"])
    print(f"{(first - shared) / (word - shared):.1f} times, if pinning and evaluating took no time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=2, help="of each measurement of serving")
    parser.add_argument("--content-kib", type=int, default=0, help="of noise in each path of the image")
    parser.add_argument("parts", nargs="*", help="serving, closures, images; all by default")
    arguments = parser.parse_args()
    parts = arguments.parts or ["serving", "closures", "images"]
    need("wrk", "nginx", "nix", "nix-store")
    print(machine())
    with work_directory() as work:
        for part in parts:
            directory = work / part
            directory.mkdir()
            if part == "serving":
                measure_serving(directory, arguments.rounds, arguments.seconds)
            elif part == "closures":
                measure_closures(directory, arguments.rounds)
            elif part == "images":
                measure_images(directory, arguments.rounds, arguments.content_kib)
            else:
                parser.error(f"there is no part {part!r}")


if __name__ == "__main__":
    main()
