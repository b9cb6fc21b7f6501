"""`kill -9` at any moment leaves nothing behind that a restart would serve wrongly."""

import contextlib
import random
import threading
from pathlib import Path

from tests.integration.crashes import crash, request_and_hang_up
from tests.integration.need import need
from tests.integration.nixtools import ENDLESS, ChrootStore, add_package
from tests.integration.processes import wait_until
from tests.integration.server import Registry

ROUNDS = 4
SLEEPER = "sleeper-of-the-dead"


def test_killed_at_random_moments(directory: Path, own_store: ChrootStore, own_source: Path) -> None:
    """bench/crashes.py does the same a hundred times."""
    crash(directory, own_store, own_source, ROUNDS, random.SystemRandom().randrange(2**32))


def processes_of(registry: Registry) -> list[str]:
    """Those that it has started, and theirs."""
    home = f"HOME={registry.state}/cache/home".encode()
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            environment = (process / "environ").read_bytes().split(b"\0")
            if home in environment or f"name={SLEEPER}".encode() in environment:
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
    return found


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
    try:
        registry.pull("hello")
        for client in clients:
            client.start()
        wait_until(
            lambda: all(
                any(word in line for line in processes_of(registry)) for word in ("sleep 1000", "repl")
            ),
            seconds=60,
            what="both are at work",
        )
    finally:
        registry.kill()
    wait_until(lambda: processes_of(registry) == [], seconds=5, what="all of them end")
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
