"""Speed and memory of packing store paths into layers, beside `tar | gzip -6` (bench/README.md)."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

from harness import (
    Server,
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

MIB = 1024 * 1024
GOAL_SPEED = 3.0
GOAL_MEMORY_MIB = 200


def make_tree(directory: Path, size_mib: int) -> tuple[int, int]:
    """Copy what layers are made of from this machine: libraries of scripts and programs. (bytes, files)."""
    size = count = 0
    # Until what share of the size each may fill it.
    shares = {
        Path(sysconfig.get_path("stdlib")): 0.2,
        Path("/usr/share"): 0.4,
        Path("/usr/lib"): 0.7,
        Path("/usr/bin"): 1,
    }
    for source, share in shares.items():
        for file in sorted(source.rglob("*")):
            if file.is_symlink() or not file.is_file() or not os.access(file, os.R_OK):
                continue
            file_bytes = file.stat().st_size
            if size + file_bytes > share * size_mib * MIB:
                continue
            target = directory / str(source).strip("/") / file.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
            size, count = size + file_bytes, count + 1
    return size, count


def split_tree(tree: Path, parts: Path, count: int) -> None:
    """The same files as `count` trees of about the same size."""
    sizes = [0] * count
    files = sorted(((file.stat().st_size, file) for file in tree.rglob("*") if file.is_file()), reverse=True)
    for size, file in files:
        number = sizes.index(min(sizes))
        sizes[number] += size
        target = parts / str(number) / file.relative_to(tree)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.link(file, target)


def package_set(work: Path, size_mib: int, parts: int, gibibyte: bool) -> tuple[Path, int, int]:
    """`tree`: the files as one store path; `parts`: as several; `huge`: one store path of 1 GiB."""
    (work / "tree").mkdir()
    size, files = make_tree(work / "tree", size_mib)
    split_tree(work / "tree", work / "parts", parts)
    tree = f'builtins.path {{ name = "tree"; path = {work / "tree"}; }}'
    some = " ".join(
        f'(builtins.path {{ name = "part{n}"; path = {work / "parts" / str(n)}; }})' for n in range(parts)
    )
    packages = f"""
        tree = mk {{ pname = "tree"; script = "mkdir $out; echo ${{{tree}}} > $out/needs"; }};
        parts = mk {{ pname = "parts"; script = "mkdir $out; echo ${{toString [ {some} ]}} > $out/needs"; }};
    """
    if gibibyte:
        # Half of it noise, half of it as compressible as text; one big file and many of 8 MiB.
        block = work / "block"
        noise = seeded_bytes(4 * MIB, 3)
        block.write_bytes(noise + noise.hex().encode()[: 4 * MIB])
        packages += f"""huge = mk {{ pname = "huge"; script = ''
          mkdir $out
          for i in $(seq 1 64); do cat ${{{block}}} >> $out/file; done
          for i in $(seq 1 64); do cp ${{{block}}} $out/file$i; done
        ''; }};"""
    return make_package_set(work / "packages", packages), size, files


def pack(server: Server, image: str) -> tuple[float, int, float]:
    """(seconds of assembling, bytes of all layers, peak memory in MiB) of a new server with an empty storage."""
    shutil.rmtree(server.state, ignore_errors=True)
    with server.run() as pid:
        manifest = json.loads(server.get(f"/v2/classic/{image}/manifests/latest"))
        peak = peak_memory_mib(pid)
    (seconds,) = (event["seconds"] for event in server.events() if event["event"] == "assembled")
    return seconds, sum(layer["size"] for layer in manifest["layers"]), peak


def tar_gzip(tree: Path, output: Path) -> float:
    begun = time.perf_counter()
    subprocess.run(f"tar -C '{tree}' -cf - . | gzip -6 > '{output}'", shell=True, check=True)  # noqa: S602
    return time.perf_counter() - begun


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mib", type=int, default=200, help="size of the tree")
    parser.add_argument("--parts", type=int, default=8, help="store paths of the divided tree")
    parser.add_argument("--skip-memory", action="store_true", help="do not pack a store path of 1 GiB")
    arguments = parser.parse_args()
    need("nix-store", "tar", "gzip")
    print(machine())
    with work_directory() as work:
        packages, size, files = package_set(work, arguments.mib, arguments.parts, not arguments.skip_memory)
        server = Server(work / "server", packages, work / "store")
        images = {
            f"{title}, {compression}": (image, compression)
            for title, image in (("one store path", "tree"), (f"{arguments.parts} store paths", "parts"))
            for compression in ("gzip", "zstd")
        }
        for image, _ in images.values():
            pack(server, image)  # lets Nix build everything
        reference: list[float] = []
        packed: dict[str, list[tuple[float, int, float]]] = {title: [] for title in images}
        for number in range(arguments.rounds):
            reference.append(tar_gzip(work / "tree", work / "reference.gz"))
            for title, (image, compression) in images.items():
                server.compression = compression
                packed[title].append(pack(server, image))
            print(f"round {number + 1} of {arguments.rounds} done", file=sys.stderr)
        base, base_size = median(reference), (work / "reference.gz").stat().st_size
        rows = [["tar, gzip -6", f"{size / base / 1e6:.0f}", "1", "1", ""]]
        for title, samples in packed.items():
            seconds, layer_bytes, peak = (median(values) for values in zip(*samples, strict=True))
            times = base / seconds
            goal = f"{times:.1f} (goal {GOAL_SPEED:g}, {verdict(times >= GOAL_SPEED)})"
            rows.append(
                [title, f"{size / seconds / 1e6:.0f}", goal, f"{layer_bytes / base_size:.2f}", f"{peak:.0f}"]
            )
        title = f"Packing {size / MIB:.0f} MiB in {files:,} files, medians of {arguments.rounds} rounds"
        header = ["", "MB/s", "times tar, gzip -6", "size against it", "peak memory, MiB"]
        table(title, header, rows)

        if not arguments.skip_memory:
            server.compression = "gzip"
            pack(server, "huge")
            seconds, _, peak = pack(server, "huge")
            goal = f"{peak:.0f} (goal {GOAL_MEMORY_MIB}, {verdict(peak < GOAL_MEMORY_MIB)})"
            speed = f"{1024 * MIB / seconds / 1e6:.0f}"
            table("Packing one store path of 1 GiB", ["MB/s", "peak memory, MiB"], [[speed, goal]])


if __name__ == "__main__":
    main()
