"""dockerd in a directory of its own (facts.md section 6)."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from subprocess import CompletedProcess

from tests.integration.need import need, need_root
from tests.integration.processes import Argument, Daemon, run
from tests.integration.runtimes.cleanup import remove_empty_cgroups, unmount_below


class Docker:
    def __init__(self, directory: Path) -> None:
        self.socket = f"unix://{directory / 'socket'}"
        self.env = {**os.environ, "DOCKER_HOST": self.socket, "DOCKER_CONFIG": str(directory / "client")}

    def command(self, *arguments: str | Path, check: bool = True) -> "CompletedProcess[str]":
        return run("docker", *arguments, env=self.env, check=check)

    def pull(self, reference: str, *, check: bool = True) -> "CompletedProcess[str]":
        return self.command("pull", reference, check=check)

    @property
    def engine_version(self) -> str:
        return self.command("version", "--format", "{{.Server.Version}}").stdout.strip()

    def run(self, reference: str, *command: str) -> str:
        return self.command("run", "--rm", "--network", "none", reference, *command).stdout

    def load(self, archive: Path) -> str:
        return self.command("load", "--input", archive).stdout


@contextlib.contextmanager
def docker(directory: Path) -> Iterator[Docker]:
    need("dockerd", "docker", "containerd", "runc")
    need_root()
    config = directory / "config.json"
    config.write_text("{}")
    places: list[Argument] = [
        "--data-root",
        directory / "data",
        "--exec-root",
        directory / "exec",
        "--pidfile",
        directory / "pid",
    ]
    network = ["--iptables=false", "--ip6tables=false", "--bridge=none"]
    client = Docker(directory)
    daemon = Daemon(
        ["dockerd", *places, *network, "-H", client.socket, "--config-file", config, "-s", "overlay2"],
        log=directory / "log",
    )
    try:
        daemon.wait_ready(lambda: client.command("version", check=False).returncode == 0)
        yield client
    finally:
        daemon.stop()
        unmount_below(directory)
        remove_empty_cgroups("docker/*")
