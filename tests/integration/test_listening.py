"""A socket that systemd holds: handed over, kept while settings are read again, never refusing a connection."""

import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.need import need
from tests.integration.processes import Daemon, free_port, wait_until
from tests.integration.server import program_env, request


class Activated:
    """A server that systemd's own tool starts, with settings in a file and somebody to notify."""

    def __init__(self, directory: Path, workers: int) -> None:
        need("systemd-socket-activate")
        self.port = free_port()
        self.config = directory / "settings.toml"
        self.log = directory / "log"
        self.notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notified.bind(str(directory / "notify"))
        self.notified.settimeout(120)
        self.configure(directory, workers, "classic")
        variables = {"NOTIFY_SOCKET": str(directory / "notify")}
        command = ["systemd-socket-activate", f"--listen=127.0.0.1:{self.port}"]
        command += [f"--setenv={name}={value}" for name, value in program_env(directory, **variables).items()]
        command += [sys.executable, "-m", "nixery_snap", "serve", "--config", self.config]
        self.daemon = Daemon(command, log=self.log, env={**os.environ, "SYSTEMD_LOG_LEVEL": "err"})

    def configure(self, directory: Path, workers: int, image_format: str) -> None:
        (directory / "packages").mkdir(exist_ok=True)
        (directory / "packages/default.nix").write_text("{ }\n")
        self.config.write_text(
            f'format = "{image_format}"\nworkers = {workers}\nsource = "path:{directory}/packages"\nsubstituters = []\n'
            f'storage = "file://{directory}/state"\ncache_directory = "{directory}/cache"\n'
            f'[nix]\nstore = "{directory}/nix"\n'
        )

    def front_page(self) -> str:
        return request(self.port, "GET", "/").body.decode()

    def ready(self) -> None:
        assert self.notified.recv(100) == b"READY=1"

    def pids(self) -> set[int]:
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return {line["pid"] for line in lines if line["event"] == "serving"}


@pytest.fixture(params=[1, 2], ids=["one process", "workers"])
def activated(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Activated]:
    server = Activated(tmp_path, request.param)
    try:
        yield server
    finally:
        assert server.daemon.stop() == 0
        server.notified.close()


def test_settings_are_read_again(activated: Activated, tmp_path: Path) -> None:
    def shows_classic() -> bool:
        return f"docker run --rm 127.0.0.1:{activated.port}/shell/git" in activated.front_page()

    wait_until(lambda: not refused(activated.port), seconds=60, what="systemd listens")
    assert shows_classic()  # the first connection starts it
    activated.ready()
    refusals: list[bool] = []
    done = threading.Event()

    def connect() -> None:
        while not done.wait(0.05):  # all that come while it starts again must find room in the queue
            refusals.append(refused(activated.port))

    connecting = threading.Thread(target=connect)
    connecting.start()
    workers = int(activated.config.read_text().split("workers = ")[1][0])
    activated.configure(tmp_path, workers, "nix-snapshotter")
    activated.daemon.process.send_signal(signal.SIGHUP)
    activated.ready()
    assert not shows_classic()
    wait_until(lambda: len(refusals) > 10, seconds=60, what="enough connections")
    done.set()
    connecting.join()
    assert not any(refusals)
    assert activated.daemon.process.poll() is None
    assert len(activated.pids()) == (
        1 if workers == 1 else 2 * workers
    )  # the same process, and other workers


def refused(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=120).close()
    except ConnectionRefusedError:
        return True
    return False
