"""What a node must not keep: everything that pulls leave behind, counted once the images are gone."""

import os
import time
from collections.abc import Iterator
from pathlib import Path

from tests.integration.kubelet import PAUSE, Node


def nothing_left(node: Node, *, killed: bool = False) -> None:
    """Once its images are removed, a node is as it was.

    What a killed image service was writing is swept after a day.
    """
    with node.kubelet() as kubelet:
        deadline = time.monotonic() + 120
        while True:
            for image in kubelet.images():
                if PAUSE not in image.repo_tags:
                    kubelet.remove(image.id)
            # containerd cleans up a moment later, and so does the image service.
            left = list(leftovers(node, killed=killed))
            if not left:
                return
            assert time.monotonic() < deadline, left
            time.sleep(0.5)


def leftovers(node: Node, *, killed: bool) -> Iterator[str]:
    if node.roots.exists():
        yield from (f"links of {name}" for name in os.listdir(node.roots))
    yield from (f"lease {line}" for line in node.ctr("leases", "ls", "--quiet").stdout.split())
    yield from (f"image {name}" for name in images(node) if not name.startswith(("localhost/", "sha256:")))
    yield from (f"upload {line}" for line in node.ctr("content", "active").stdout.splitlines()[1:])
    pinned = PAUSE in images(node)
    snapshots = node.ctr("snapshots", "--snapshotter", "nix", "ls").stdout.splitlines()[1:]
    yield from (f"snapshot {line}" for line in snapshots[1 if pinned else 0 :])
    kept = len(os.listdir(node.directory / "snapshotter/snapshots")) if snapshots else 0
    if kept > len(snapshots):
        yield f"{kept - len(snapshots)} directories of snapshots"
    yield from (f"temporary {file}" for file in temporary(node, killed=killed))


def images(node: Node) -> list[str]:
    return node.ctr("images", "ls", "--quiet").stdout.split()


def temporary(node: Node, *, killed: bool) -> Iterator[Path]:
    """Files that are being written, of the image service and of containerd's content store."""
    staging = [] if killed else [node.directory / "storage/staging"]
    for directory in (*staging, *node.directory.glob("root/*content*/ingest")):
        if directory.exists():
            yield from directory.iterdir()
