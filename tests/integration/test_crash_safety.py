"""`kill -9` at any moment leaves nothing behind that a restart would serve wrongly."""

import contextlib
import os
import random
import threading
from pathlib import Path

from tests.integration.crashes import crash, request_and_hang_up
from tests.integration.need import need
from tests.integration.nixtools import ENDLESS, ChrootStore, add_package
from tests.integration.processes import wait_until
from tests.integration.server import Registry

ROUNDS = 4
MORE_THAN_A_PACKAGE_SECONDS = 3
SLEEPER = "sleeper-of-the-dead"


def test_killed_at_random_moments(directory: Path, own_store: ChrootStore, own_source: Path) -> None:
    """bench/crashes.py does the same a hundred times."""
    crash(directory, own_store, own_source, ROUNDS, random.SystemRandom().randrange(2**32))


def processes_of(registry: Registry) -> dict[int, str]:
    """The command lines of those that it has started, and theirs."""
    home = f"HOME={registry.state}/cache/home".encode()
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            environment = (process / "environ").read_bytes().split(b"\0")
            if home in environment or f"name={SLEEPER}".encode() in environment:
                found[int(process.name)] = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


def cpu_seconds(pid: int) -> float:
    """Of its own code; 0 when it has ended."""
    with contextlib.suppress(OSError):
        user_ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11]
        return int(user_ticks) / os.sysconf("SC_CLK_TCK")
    return 0.0


def test_nothing_works_on_for_a_server_that_is_dead(
    directory: Path, own_store: ChrootStore, own_source: Path
) -> None:
    """Not an evaluation that never ends, nor a build that nobody will ever stop."""
    need("setpriv")
    add_package(own_source, "sleeper", f"name={SLEEPER}; export name; $bb sleep 1000")
    file = own_source / "failing.nix"
    file.write_text(file.read_text().replace("  throws =", f"  endless = {ENDLESS};\n  throws =", 1))
    registry = Registry(directory / "state", own_store.root, own_source).start()
    clients = [
        threading.Thread(target=request_and_hang_up, args=(registry, name)) for name in ("sleeper", "endless")
    ]

    def builds() -> bool:
        return any("sleep 1000" in line for line in processes_of(registry).values())

    def evaluates() -> bool:
        found = processes_of(registry).items()
        return any("repl" in line and cpu_seconds(pid) > MORE_THAN_A_PACKAGE_SECONDS for pid, line in found)

    try:
        registry.pull("hello")
        for client, is_at_work in zip(clients, (builds, evaluates), strict=True):
            client.start()
            wait_until(is_at_work, seconds=120, what=is_at_work.__name__)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{processes_of(registry)}\n{registry.log.read_text()}") from error
    finally:
        registry.kill()
    wait_until(lambda: not processes_of(registry), seconds=60, what="all of them end")
    for client in clients:
        client.join()


def test_blobs_that_a_power_cut_emptied(directory: Path, own_store: ChrootStore) -> None:
    """The name is on the disk and the content is not: the image is assembled again."""
    registry = Registry(directory / "state", own_store.root).start()
    try:
        image = registry.pull("hello")
        for digest in (image.digest, image.manifest["config"]["digest"]):
            registry.stop()
            (blob,) = (directory / "state/storage").glob(f"blobs/*/*/{digest.removeprefix('sha256:')}")
            blob.write_bytes(b"")
            registry.start()
            assert registry.pull("hello") == image
    finally:
        registry.stop()
