"""containerd in a directory of its own: Debian 12's, and newer ones beside it (facts.md section 6)."""

import contextlib
import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess

from tests.integration.need import need, need_file, need_root
from tests.integration.processes import Argument, Daemon, run
from tests.integration.runtimes.cleanup import remove_empty_cgroups, unmount_below

TEST_TOOLS = Path(__file__).parents[3] / ".test-tools"
# Each release with where its files lie: None is the system's own.
RELEASES = {"1.6": None, "1.7": TEST_TOOLS / "containerd-1.7", "2": TEST_TOOLS / "containerd-2"}


@dataclass(frozen=True)
class Containerd:
    socket: Path
    env: dict[str, str]

    def ctr(self, *arguments: str, check: bool = True) -> "CompletedProcess[str]":
        return run("ctr", "--address", self.socket, *arguments, env=self.env, check=check)

    def answers(self) -> bool:
        if not self.socket.exists():
            return False  # ctr would wait ten seconds for it
        done = run("timeout", "10", "ctr", "--address", self.socket, "version", env=self.env, check=False)
        return done.returncode == 0

    def pull(self, reference: str, *, check: bool = True) -> "CompletedProcess[str]":
        return self.ctr("images", "pull", "--plain-http", reference, check=check)

    def run(self, reference: str, *command: str) -> str:
        """Its output. ctr itself may lose that of a container which ends before ctr has begun to read."""
        name = f"test-{uuid.uuid4().hex}"
        output = self.socket.with_name(name)
        self.ctr("run", "--rm", "--log-uri", output.as_uri(), reference, name, *command)
        return output.read_text()


def config_for(release: str, directory: Path) -> str:
    if release.startswith("1."):
        return f'version = 2\n[plugins."io.containerd.internal.v1.opt"]\npath = "{directory / "opt"}"\n'
    return f"version = 3\n[plugins.'io.containerd.internal.v1.opt']\npath = '{directory / 'opt'}'\n"


@contextlib.contextmanager
def containerd(directory: Path, release: str, more_config: str = "") -> Iterator[Containerd]:
    """`more_config` comes behind what every release needs."""
    with starting(directory, release, more_config) as (client, start):
        daemon = start()
        try:
            yield client
        finally:
            daemon.stop()


@contextlib.contextmanager
def starting(
    directory: Path, release: str, more_config: str = ""
) -> Iterator[tuple[Containerd, Callable[[], Daemon]]]:
    """A client, and what starts the daemon, as often as a test stops it."""
    need("containerd", "ctr", "runc")
    need_root()
    env = dict(os.environ)
    if files := RELEASES[release]:
        programs = need_file(files / "usr" / "bin" / "containerd").parent
        env["PATH"] = f"{programs}{os.pathsep}{env['PATH']}"  # its own shim must be found first
    config = directory / "config.toml"
    config.write_text(config_for(release, directory) + more_config)
    client = Containerd(directory / "socket", env)
    places: list[Argument] = [
        "--root",
        directory / "root",
        "--state",
        directory / "state",
        "--address",
        client.socket,
    ]

    def start() -> Daemon:
        daemon = Daemon(["containerd", "--config", config, *places], log=directory / "log", env=env)
        daemon.wait_ready(client.answers)
        return daemon

    try:
        yield client, start
    finally:
        unmount_below(directory)
        remove_empty_cgroups("default/test-*")
