"""A store of very many images: what a start, a request and garbage collection take of it, in time and memory."""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from harness import (
    EXAMPLES,
    PROGRAM,
    REPOSITORY,
    environment,
    free_port,
    median,
    need,
    process,
    work_directory,
)

sys.path.insert(0, str(REPOSITORY))
from nixery_snap.object_store import keys
from nixery_snap.object_store.store import ObjectStore
from tests.stored import Filler

RETENTION = "[retention]\nunused = 2592000\ngrace = 1\ninterval = 0\n"
AT_A_TIME = 64
LAYERS = 50  # that a classic image may share with others
CLOSURE = 40  # store paths of an image


async def fill(root: Path, begin: int, end: int) -> None:
    """Half of the images are classic, half snapshotter ones; every tenth has a path in our binary cache."""
    filler = Filler(ObjectStore(root.as_uri()))
    shared = [(await filler.path(f"path-{number}")).path for number in range(CLOSURE)]

    async def make(number: int) -> None:
        if number % 2:
            layers = [f"shared {number % LAYERS}", f"own {number}"]
            await filler.image(f"image {number}", layers, shared)
        elif number % 10:
            await filler.image(f"image {number}", closure=shared, snapshotter=True)
        else:
            own = await filler.path(f"own-{number}", *shared[:3])
            await filler.image(f"image {number}", closure=[*shared, own.path], snapshotter=True)

    for first in range(begin, end, AT_A_TIME):
        await asyncio.gather(*(make(number) for number in range(first, min(first + AT_A_TIME, end))))


def age(root: Path, days: float, share: Callable[[Path], bool]) -> None:
    before = time.time() - days * 86400
    for directory, _, names in os.walk(root):
        for name in names:
            path = Path(directory, name)
            if share(path):
                os.utime(path, (before, before))


def status(pid: int, key: str) -> float:
    """MiB, of /proc/PID/status."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024
    raise KeyError(key)


def measured(options: list[str], work: Path, command: str, *arguments: str) -> tuple[float, float, str]:
    """Seconds, MiB at the peak, and what it said."""
    output = work / "output"
    begun = time.monotonic()
    with output.open("wb") as sink:
        child = subprocess.Popen(
            [*PROGRAM, command, *arguments, *options],
            env=environment(work / "home"),
            stdout=sink,
            stderr=sink,
        )
        _, code, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(code)
    if child.returncode != 0:
        sys.exit(output.read_text())
    # What it says on the way, and at last JSON.
    said = output.read_text()
    return time.monotonic() - begun, usage.ru_maxrss / 1024, said[said.index("\n{\n") :]


def get(port: int, target: str) -> float:
    """Seconds of a request on a new connection."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    begun = time.monotonic()
    connection.request("GET", target)
    answer = connection.getresponse()
    body = answer.read()
    if answer.status != 200:
        sys.exit(f"{target}: {answer.status} {body[:300]!r}")
    connection.close()
    return time.monotonic() - begun


def serve(work: Path, root: Path, options: list[str]) -> list[str]:
    port = free_port()
    argv = [*PROGRAM, "serve", "--listen", f"127.0.0.1:{port}", *options]
    begun = time.monotonic()
    with process(argv, port, work / "log", environment(work / "home")) as pid:
        started = time.monotonic() - begun
        get(port, "/readyz")
        records = sorted((root / "records/image").glob("*/*.json"))[:200]
        digests = [json.loads(record.read_bytes())["manifest"] for record in records]
        cold = median(get(port, f"/v2/any/manifests/{digest}") for digest in digests)
        warm = median(get(port, f"/v2/any/manifests/{digest}") for digest in digests)
        return [
            f"{started:.2f} s",
            f"{cold * 1000:.2f} ms",
            f"{warm * 1000:.2f} ms",
            f"{status(pid, 'VmHWM'):.0f} MiB",
        ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, nargs="+", default=[1000, 10_000, 100_000])
    sizes = sorted(parser.parse_args().images)
    need("nix-store")
    columns = (
        "images",
        "objects",
        "start",
        "manifest, cold",
        "again",
        "server",
        "gc, nothing unused",
        "",
        "gc, half unused",
        "",
        "fsck",
        "",
    )
    print(" | ".join(columns), flush=True)
    with work_directory() as work:
        root, before = work / "storage", 0
        config = work / "settings.toml"
        config.write_text(RETENTION)
        options = ["--config", str(config), "--source", f"path:{EXAMPLES}", "--storage", root.as_uri()]
        stored = ["--store", str(work / "nix")]
        for images in sizes:
            asyncio.run(fill(root, before, images))
            before = images
            (root / keys.USAGE).mkdir(exist_ok=True)
            (root / keys.USAGE_BEGIN).write_bytes(b"")
            age(root, 60, lambda path: path.name == "begin")
            objects = sum(len(names) for _, _, names in os.walk(root))
            row = [str(images), str(objects), *serve(work, root, [*options, *stored])]
            seconds, memory, _ = measured(options, work, "gc", "--dry-run", "--json")
            row += [f"{seconds:.1f} s", f"{memory:.0f} MiB"]
            # What is unused is half of the records, and whatever only they name.
            age(root, 60, lambda path: path.suffix != ".json" or path.stem[-1] < "8")
            seconds, memory, said = measured(options, work, "gc", "--dry-run", "--json")
            removed = sum(json.loads(said)["removed"]["objects"].values())
            row += [f"{seconds:.1f} s ({removed} objects)", f"{memory:.0f} MiB"]
            seconds, memory, _ = measured(options, work, "fsck", "--json")
            row += [f"{seconds:.1f} s", f"{memory:.0f} MiB"]
            print(" | ".join(row), flush=True)
            age(root, 0, lambda path: True)


if __name__ == "__main__":
    main()
