"""A registry that is killed at random moments, while it makes images and while it removes what is unused."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

from nixery_snap.imaging.validate import validate
from nixery_snap.nix_stores.decompression import decompress
from nixery_snap.object_store.blobs import Blobs
from nixery_snap.object_store.check import check
from nixery_snap.object_store.store import ObjectStore
from nixery_snap.oci.digest import Digest
from tests.integration.nixtools import ChrootStore
from tests.integration.server import Image, Registry

# What was not asked for in the last three seconds is removed all the time.
CONFIG = """
[retention]
unused = 2
grace = 1
interval = 1
"""
NAMES = ["shell/hello", "nix-snapshotter/shell/hello", "curl", "manyfiles", "nix-snapshotter/wide/curl"]
STEPS = 4  # an image logs about so many lines from pinned to assembled
IDLE_SECONDS = 8.0  # some rounds wait up to so long: then what is unused is being removed


def request_and_hang_up(registry: Registry, name: str) -> None:
    with contextlib.suppress(OSError, http.client.HTTPException, AssertionError, ValueError):
        registry.pull(name)


def wait_for_steps(registry: Registry, more: int) -> None:
    """Until the log has so many more lines, or work has come to its end without."""
    begun = registry.log.read_bytes().count(b"\n")
    deadline = time.monotonic() + 2
    while registry.log.read_bytes().count(b"\n") < begun + more and time.monotonic() < deadline:
        time.sleep(0.001)


def crash(
    directory: Path,
    store: ChrootStore,
    source: Path,
    rounds: int,
    seed: int,
    said: Callable[[str], None] = lambda line: None,
) -> None:
    """Every round is a new revision with a new hello, so that all steps run again in all of them."""
    generator = random.Random(seed)
    registry = Registry(directory / "state", store.root, source, config=CONFIG)
    basics = source / "basics.nix"
    text = basics.read_text()
    images: list[Image] = []
    registry.start()
    try:
        for number in range(rounds):
            where = f"seed {seed}, round {number}"
            basics.write_text(text.replace("Hello, world!", f"Hello, round {number}!"))
            clients = [threading.Thread(target=request_and_hang_up, args=(registry, name)) for name in NAMES]
            for client in clients:
                client.start()
            wait_for_steps(registry, generator.randrange(STEPS * len(NAMES)))
            time.sleep(generator.uniform(0, IDLE_SECONDS if generator.random() < 0.3 else 0.03))
            registry.kill()
            for client in clients:
                client.join()
            assert findings(registry) == [], where
            registry.start()
            images = [registry.pull(name) for name in NAMES]
            assert findings(registry) == [], where
            (path,) = store.installed(("hello",), directory=source)["hello"]
            assert f"round {number}!" in (store.physical(path) / "bin" / "hello").read_text()
            collected = len(registry.events("garbage-collected"))
            said(f"{where}: whole, garbage collected {collected} times so far")
        registry.stop()
        registry.config = ""  # from now on nothing is removed, however long it takes to look at all
        registry.start()
        assert images == [registry.pull(name) for name in NAMES]
    finally:
        registry.stop()
    read = Blobs(ObjectStore(f"file://{registry.storage_directory}")).read
    for image in images:
        validate(Digest.parse(image.digest), read)


def findings(registry: Registry) -> list[str]:
    store = ObjectStore(f"file://{registry.storage_directory}")
    checked = asyncio.run(check(store, decompress, lambda line: None))
    return [f"{finding.key}: {finding.problem}" for finding in checked.findings]
