"""What the benchmarks share: processes on free ports, package sets made for measuring, medians and tables."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
EXAMPLES = REPOSITORY / "examples" / "packages"
PROGRAM = [sys.executable, "-m", "nixery_snap"]
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
NIX_CONFIG = (
    "sandbox = false\nbuild-users-group =\nsubstituters =\nexperimental-features = nix-command flakes"
)

# Debian keeps nginx where an ordinary user's PATH does not look.
os.environ["PATH"] = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin"])


def need(*programs: str) -> None:
    if missing := [program for program in programs if shutil.which(program) is None]:
        sys.exit(f"not installed: {', '.join(missing)} (see bench/README.md)")


def median(values: Iterable[float]) -> float:
    return statistics.median(values)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def work_directory() -> Iterator[Path]:
    """Removed at the end, read-only Nix store included."""
    directory = Path(tempfile.mkdtemp(prefix="nixery-snap-bench-"))
    try:
        yield directory
    finally:
        subprocess.run(["chmod", "-R", "u+w", directory], check=False, stderr=subprocess.DEVNULL)
        shutil.rmtree(directory, ignore_errors=True)


def environment(home: Path) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NIXERY_SNAP_")}
    home.mkdir(parents=True, exist_ok=True)
    own = {
        "HOME": str(home),
        "NIX_CONFIG": NIX_CONFIG,
        "PYTHONPATH": str(REPOSITORY),
        "NIXERY_SNAP_CACHE_DIRECTORY": str(home / "cache"),
        "NIXERY_SNAP_SUBSTITUTERS": "[]",  # what is measured needs no network
    }
    return kept | own


@contextmanager
def process(
    argv: Sequence[str | Path], port: int, log: Path, env: Mapping[str, str] | None = None
) -> Iterator[int]:
    """A server that listens on `port`; yields its process id. Exits with its log when it does not come up."""
    with log.open("ab") as sink:
        child = subprocess.Popen(
            list(map(str, argv)),
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=sink,
            process_group=0,
        )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if child.poll() is not None or time.monotonic() > deadline:
                    sys.exit(f"{argv[0]} does not start:\n{log.read_text(errors='replace')[-3000:]}")
                time.sleep(0.02)
        yield child.pid
    finally:
        child.send_signal(signal.SIGTERM)
        try:
            child.wait(20)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


@dataclass
class Server:
    """How to start a nixery-snap on a package set; everything it keeps is below `state`."""

    state: Path
    source: Path
    store: Path
    format: str = "classic"
    workers: int = 1
    compression: str = "gzip"
    storage: Path | None = None
    """Below `state` when absent."""
    port: int = field(default_factory=free_port)

    @property
    def options(self) -> list[str]:
        storage = f"file://{self.storage or self.state / 'storage'}"
        return ["--source", f"path:{self.source}", "--storage", storage, "--store", str(self.store)]

    @property
    def log(self) -> Path:
        return self.state / "log"

    @property
    def env(self) -> dict[str, str]:
        return environment(self.state / "home") | {"NIXERY_SNAP_COMPRESSION": self.compression}

    @contextmanager
    def run(self) -> Iterator[int]:
        self.state.mkdir(parents=True, exist_ok=True)
        where = [
            "--listen",
            f"127.0.0.1:{self.port}",
            "--format",
            self.format,
            "--workers",
            str(self.workers),
        ]
        with process([*PROGRAM, "serve", *where, *self.options], self.port, self.log, self.env) as pid:
            yield pid

    def get(self, target: str) -> bytes:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{target}", headers={"Accept": OCI_MANIFEST}
        )
        with urllib.request.urlopen(request, timeout=600) as answer:  # noqa: S310
            content: bytes = answer.read()
        return content

    def events(self, skip: int = 0) -> list[dict[str, Any]]:
        """What it logged after the first `skip` lines."""
        return json_lines(self.log.read_text().splitlines()[skip:])


def json_lines(lines: Iterable[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines if line.startswith("{")]


def make_package_set(directory: Path, packages: str) -> Path:
    """The bundled set with more packages: `packages` are Nix attributes that may use `mk` and `pkgs`."""
    shutil.copytree(EXAMPLES, directory / "bundled")
    (directory / "default.nix").write_text(
        f"""{{ overlays ? [ ], config ? {{ }}, ... }}@arguments:
import ./bundled (arguments // {{
  overlays = [ (pkgs: previous:
    let mk = import ./bundled/mk.nix {{
      inherit (previous) lib system;
      inherit config;
      boot = builtins.path {{ name = "bootstrap-tools"; path = {busybox().parent};
        filter = path: _: baseNameOf path == "{busybox().name}"; }};
      buildSystem = previous.system;
    }}; in {{ {packages} }}) ] ++ overlays;
}})
"""
    )
    return directory


def busybox() -> Path:
    for path in map(Path, ("/usr/bin/busybox", "/bin/busybox")):
        if path.exists():
            return path.resolve()
    sys.exit("not installed: busybox-static (see bench/README.md)")


def seeded_bytes(size_bytes: int, seed: int) -> bytes:
    """Incompressible, and the same on every machine."""
    return random.Random(seed).randbytes(size_bytes)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its children so far."""
    ticks = 0
    pending = [pid]
    while pending:
        pid = pending.pop()
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
        pending += map(int, children)
    return ticks / os.sysconf("SC_CLK_TCK")


def peak_memory_mib(pid: int) -> float:
    """VmHWM: the most that was resident at any time."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print as Markdown, columns aligned."""
    every = [list(header), *map(list, rows)]
    widths = [max(len(row[column]) for row in every) for column in range(len(header))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in every
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    print(f"\n{title}\n", *lines, sep="\n", flush=True)


def verdict(met: bool) -> str:
    return "met" if met else "NOT MET"


def machine() -> str:
    load = os.getloadavg()[0]
    return f"{os.cpu_count()} CPUs, Python {sys.version.split()[0]}, load {load:.1f} before the run"
