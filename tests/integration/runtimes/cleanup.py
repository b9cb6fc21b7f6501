"""Leaving the machine as it was: daemons leave mounts and empty cgroups behind."""

import contextlib
from pathlib import Path

from tests.integration.processes import run


def unmount_below(directory: Path) -> None:
    """Deepest first; lazily, since a dead daemon's mount may still count as busy."""
    mounts = [line.split(" ")[1] for line in Path("/proc/mounts").read_text().splitlines()]
    below = [mount for mount in mounts if Path(mount.replace("\\040", " ")).is_relative_to(directory)]
    for mount in sorted(below, key=len, reverse=True):
        run("umount", "--lazy", mount.replace("\\040", " "), check=False)


def remove_empty_cgroups(pattern: str) -> None:
    """Cgroup directories that match, and the directory these are in, where nothing runs any more."""
    for hierarchy in Path("/sys/fs/cgroup").glob("*/"):
        matches = sorted(hierarchy.glob(f"{pattern}/**/"), reverse=True)
        parents = {match.parent for match in hierarchy.glob(pattern) if match.parent != hierarchy}
        for group in [*matches, *parents]:
            with contextlib.suppress(OSError):  # in use by somebody else, or gone already
                group.rmdir()
