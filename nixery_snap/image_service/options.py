"""What the image service is told by the settings."""

from __future__ import annotations

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Final

NAMESPACE: Final = "k8s.io"  # where containerd's CRI keeps the kubelet's images
_MACHINES: Final = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, slots=True)
class ImageServiceOptions:
    """`listen` and `containerd` are `unix:///PATH`.

    `registries` are HOST[:PORT] of registries that serve snapshotter images; when empty, each manifest tells by its
    annotations. `certs_directory` holds containerd's `hosts.toml` files. `substituters` is shown to people whose paths
    were in none.
    """

    listen: str
    containerd: str
    gc_roots: Path
    snapshotter: str = "nix"
    registries: tuple[str, ...] = ()
    certs_directory: Path = Path("/etc/containerd/certs.d")
    substituters: tuple[str, ...] = ()
    group: str = ""
    shutdown_timeout: float = 60

    @property
    def socket(self) -> Path:
        return Path(self.listen.removeprefix("unix://"))


def node_architecture() -> str:
    """OCI's (Go's) word for this machine's CPU."""
    machine = platform.machine()
    return _MACHINES.get(machine, machine)
