"""podman with its storage in a directory of its own (facts.md section 6); it has no daemon."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

from tests.integration.need import need, need_root
from tests.integration.processes import Argument, run
from tests.integration.runtimes.cleanup import remove_empty_cgroups, unmount_below

# The machine may lack CAP_SYS_RESOURCE, systemd and cgroups v2.
CONFIG = """
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
netns = "none"
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
"""


class Podman:
    def __init__(self, directory: Path) -> None:
        config = directory / "containers.conf"
        config.write_text(CONFIG)
        self.env = {**os.environ, "CONTAINERS_CONF": str(config)}
        self.places: list[Argument] = [
            "--root",
            directory / "root",
            "--runroot",
            directory / "run",
            "--tmpdir",
            directory / "tmp",
        ]

    def command(self, *arguments: str, check: bool = True) -> "CompletedProcess[str]":
        return run("podman", *self.places, *arguments, env=self.env, check=check)

    def pull(self, reference: str, *, check: bool = True) -> "CompletedProcess[str]":
        return self.command("pull", "--tls-verify=false", reference, check=check)

    def run(self, reference: str, *command: str) -> str:
        return self.command("run", "--rm", "--pull=never", reference, *command).stdout


@contextlib.contextmanager
def podman(directory: Path) -> Iterator[Podman]:
    need("podman", "runc", "conmon")
    need_root()
    try:
        yield Podman(directory)
    finally:
        unmount_below(directory)
        remove_empty_cgroups("libpod_parent/*")
