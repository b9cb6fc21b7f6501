"""What nobody uses is removed beside a running server; what is broken or lost is made again; stores are copied."""

import asyncio
import http.client
import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from nixery_snap.imaging.validate import validate
from nixery_snap.nix.store_path import StorePath
from nixery_snap.nix_stores.decompression import decompress
from nixery_snap.object_store.check import check
from nixery_snap.object_store.store import ObjectStore
from nixery_snap.object_store.usage import StoredUses
from nixery_snap.service import open_service
from nixery_snap.settings import load_settings
from tests.integration.nixtools import EXAMPLES, ChrootStore
from tests.integration.processes import run, wait_until
from tests.integration.server import OCI_MANIFEST, PROGRAM, Image, Registry, Start, request

# A use is written down anew after 5 seconds, journals every 2.5. A collection may stand still for half of `grace`,
# and fails behind that.
RETENTION = """
[retention]
unused = 20
grace = 5
interval = 0
[nix]
build_timeout = 600
"""
OLD_SECONDS = 10_000
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
SNAPSHOTTER = "nix-snapshotter/wide"


def command(registry: Registry, *arguments: str, status: int = 0) -> str:
    """Its standard output."""
    config = registry.state / "settings.toml"
    config.write_text(registry.config)
    done = run(
        *(*PROGRAM, *arguments, "--config", config, *registry.options), env=registry.program_env, check=False
    )
    assert done.returncode == status, (done.stdout, done.stderr)
    return done.stdout


def fsck(registry: Registry) -> list[str]:
    """The keys of what is broken."""
    store = ObjectStore(f"file://{registry.storage_directory}")
    checked = asyncio.run(check(store, decompress, lambda line: None))
    return [finding.key for finding in checked.findings]


def age(registry: Registry) -> None:
    """As if everything had happened long ago."""
    before = time.time() - OLD_SECONDS
    for directory in (registry.storage_directory, registry.state / "cache/gcroots"):
        for path in directory.rglob("*"):
            os.utime(path, (before, before), follow_symlinks=False)


def blob(registry: Registry, digest: str) -> Path:
    (found,) = registry.storage_directory.glob(f"blobs/*/*/{digest.removeprefix('sha256:')}")
    return found


def by_digest(registry: Registry, image: Image) -> int:
    return registry.manifest("any", image.digest).status


@pytest.fixture
def registry(directory: Path, own_store: ChrootStore, start: Start) -> Registry:
    return start(Registry(directory / "state", own_store.root, config=RETENTION))


def wait_until_written(registry: Registry, *digests: str, servers: int = 1) -> None:
    """Until journals younger than those that have been aged, of so many servers, tell of their use."""

    def written() -> bool:
        journals = [path for path in registry.storage_directory.glob("usage/*-*-*") if _is_young(path)]
        texts: dict[str, str] = {}
        for path in journals:
            server = path.name.split("-")[1]
            texts[server] = texts.get(server, "") + path.read_text()
        return all(sum(digest in text for text in texts.values()) >= servers for digest in digests)

    wait_until(written, seconds=60, what="uses are written down")


def _is_young(path: Path) -> bool:
    return path.stat().st_mtime > time.time() - OLD_SECONDS / 2


def test_beside_running_servers(registry: Registry, directory: Path, start: Start) -> None:
    """Of two replicas one has what is used; both forget the rest, wherever it is removed."""
    replica = start(
        Registry(
            directory / "replica",
            registry.store,
            config=RETENTION,
            storage=f"file://{registry.storage_directory}",
        )
    )
    images = {name: registry.pull(name) for name in ("hello", "curl", SNAPSHOTTER)}
    used, *unused = images.values()
    for image in unused:  # now they are in memory
        assert by_digest(registry, image) == by_digest(replica, image) == 200
    # New to both, and the last that they are asked for: when it is written down, so is all that came before.
    index = registry.manifest("nix-snapshotter/curl", accept=OCI_INDEX).headers["docker-content-digest"]
    assert replica.manifest("any", index, accept=OCI_INDEX).status == 200
    roots = registry.state / "cache/gcroots"
    (roots / ("0123456789abcdef" * 4)).symlink_to("/nix/store/gone")
    kept_roots = len(list(roots.iterdir()))
    wait_until_written(registry, used.digest)
    wait_until_written(registry, index, *(image.digest for image in unused), servers=2)
    age(registry)

    repeating = http.client.HTTPConnection("127.0.0.1", replica.port)
    asking = threading.Event()

    def ask_again() -> None:
        while not asking.wait(0.1):  # all but the first are hot answers
            repeating.request("GET", "/v2/hello/manifests/latest", headers={"Accept": OCI_MANIFEST})
            assert repeating.getresponse().read() == used.manifest_bytes

    with ThreadPoolExecutor(1) as threads:
        client = threads.submit(ask_again)
        try:
            wait_until_written(registry, used.digest)
            planned = json.loads(command(registry, "gc", "--dry-run", "--json"))
            assert blob(registry, unused[0].digest).exists()
            done = json.loads(command(registry, "gc", "--json"))
        finally:
            asking.set()
        client.result()
    repeating.close()
    layer = max(unused[0].layers, key=lambda layer: layer["size"])
    for report in (planned, done):
        assert report["removed"]["objects"]["image"] == 4
        assert report["kept"]["objects"]["image"] == 1
        assert report["removed"]["bytes"]["blob"] > layer["size"]
        assert report["removed"]["objects"]["narinfo"] >= 123
    assert fsck(registry) == []
    assert catalogue(registry) == {"hello"}
    assert registry.pull("hello") == used
    for image in unused:
        assert by_digest(registry, image) == by_digest(replica, image) == 404, "answered from memory"
        assert registry.get(f"/v2/any/blobs/{image.layers[0]['digest']}").status == 404
    assert registry.manifest("any", index).status == 404
    assert registry.get(f"/nix-cache/{closure_info(unused[1]).hash_part}.narinfo").status == 404
    assert len(list(roots.iterdir())) < kept_roots
    assert {name: replica.pull(name) for name in images} == images
    assert {name: registry.pull(name) for name in images} == images
    assert catalogue(registry) == {*images}
    assert registry.get(f"/nix-cache/{closure_info(unused[1]).hash_part}.narinfo").status == 200
    assert fsck(registry) == []


def catalogue(registry: Registry) -> set[str]:
    return set(json.loads(registry.get("/v2/_catalog").body)["repositories"])


def closure_info(image: Image) -> StorePath:
    return StorePath.parse(image.layers[0]["annotations"]["containerd.io/snapshot/nix-closure"])


def test_requests_while_it_removes(registry: Registry) -> None:
    """Old images are asked for at every moment of a collection; each answer is whole, and so is what follows it."""
    names = ["hello", "curl", "manyfiles", SNAPSHOTTER, "nix-snapshotter/curl", "classic/wide"]
    before = {name: registry.pull(name) for name in names}
    registry.stop()  # or it would think that their uses are written down already
    age(registry)
    registry.start()
    config = registry.state / "settings.toml"
    with ThreadPoolExecutor(4) as threads:
        collecting = subprocess.Popen(
            [*PROGRAM, "gc", "--config", str(config), *registry.options],
            env=registry.program_env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        turns = 0
        while collecting.poll() is None:
            # One more name every two seconds: some are first asked for only while things are removed.
            some = names[: 1 + turns // 20]
            for name, image in zip(some, threads.map(registry.pull, some), strict=True):
                assert image == before[name], name
            turns += 1
            time.sleep(0.1)
    assert collecting.returncode == 0
    assert fsck(registry) == []
    assert {name: registry.pull(name) for name in names} == before


async def test_made_of_what_is_removed_meanwhile(
    directory: Path, own_store: ChrootStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that an image was made of is swept just before its record is there: it is made once more."""
    flags = {
        "source": f"path:{EXAMPLES}",
        "storage": f"file://{directory / 'storage'}",
        "cache_directory": str(directory / "cache"),
        "nix.store": str(own_store.root),
        "nix.options": {"sandbox": "false", "substituters": ""},
        "retention.unused": 4000,
        "substituters": [],
    }
    monkeypatch.setenv("HOME", str(directory))
    asked: list[str] = []

    async def settled(self: StoredUses) -> str:
        asked.append("before" if not asked else "after")
        if len(asked) == 2:
            for blob in (directory / "storage/blobs").glob("*/*/*"):
                blob.unlink()
        return asked[-1]

    async with open_service(load_settings(None, flags, {})) as service:
        while not service.shared.uses.trusted():  # noqa: ASYNC110 - tells nobody
            await asyncio.sleep(0.01)
        monkeypatch.setattr(StoredUses, "settled", settled)
        image = await service.shared.pipeline.image(service.grammar.parse("curl"))
        await asyncio.to_thread(validate, image.digest, service.shared.blobs.read)
    assert asked == ["before", "after", "after", "after"]


def test_everything_is_kept_without_being_told_otherwise(registry: Registry) -> None:
    registry.config = ""
    done = run(*PROGRAM, "gc", *registry.options, env=registry.program_env, check=False)
    assert done.returncode == 1
    assert "retention.unused" in done.stderr


def test_a_server_collects_by_itself(directory: Path, own_store: ChrootStore, start: Start) -> None:
    registry = Registry(directory / "state", own_store.root, config=RETENTION)
    start(registry)
    gone = registry.pull("hello")
    registry.stop()
    age(registry)
    registry.config = RETENTION.replace("interval = 0", "interval = 1")
    registry.env = {"NIXERY_SNAP_METRICS__LISTEN": "127.0.0.1:0"}
    registry.start()
    registry.wait_for_event("garbage-collected")
    [served] = registry.events("metrics-served")

    def counted() -> dict[str, float]:
        said = request(int(served["listen"].rpartition(":")[2]), "GET", "/metrics").body.decode()
        found = re.findall(r"^nixery_snap_collect(?:ed|ion)_(\w+)_total (\S+)$", said, re.MULTILINE)
        return {name: float(value) for name, value in found}

    def logged() -> dict[str, float]:
        collections = registry.events("garbage-collected")
        sums = {what: sum(one[what] for one in collections) for what in ("objects", "bytes")}
        return {**sums, "failures": len(registry.events("garbage-not-collected"))}

    assert registry.events("garbage-collected")[0]["objects"] > 0
    # It goes on collecting: once in a while nothing happens between the two.
    wait_until(lambda: counted() == logged(), seconds=60, what=f"{counted()} is {logged()}")
    assert by_digest(registry, gone) == 404
    assert fsck(registry) == []


# --- lost layers ------------------------------------------------------------------------------------


def lose_a_layer(registry: Registry, name: str = "curl") -> tuple[str, bytes]:
    """The digest and content of a layer of store paths, after its file is gone."""
    image = registry.pull(name)
    digest = max(image.layers, key=lambda layer: layer["size"])["digest"]
    blob(registry, digest).unlink()
    return digest, image.blobs[digest]


def recipe(registry: Registry, digest: str) -> Path:
    (found,) = registry.storage_directory.glob(f"records/recipe/*/{digest.removeprefix('sha256:')}.json")
    return found


def test_a_lost_layer_is_made_again_once(registry: Registry) -> None:
    digest, content = lose_a_layer(registry)
    target = f"/v2/curl/blobs/{digest}"
    with ThreadPoolExecutor(16) as threads:
        answers = list(threads.map(lambda number: registry.get(target), range(16)))
    assert {(answer.status, answer.body) for answer in answers} == {(200, content)}
    assert len(registry.events("layer-made-again")) == 1
    blob(registry, digest).unlink()
    head = registry.head(target)
    assert (head.status, head.headers["content-length"]) == (200, str(len(content)))
    assert fsck(registry) == []


CHANGES: dict[str, Callable[[Any], object]] = {
    "another codec": lambda value: value.update(codec="gzip-zlib-ng-1.0-level2"),
    "another build": lambda value: value["paths"][0].__setitem__(1, "sha256:" + "0" * 52),
    "a path that is nowhere": lambda value: value["paths"][0].__setitem__(0, "0" * 32 + "-nowhere"),
    "other bytes": lambda value: value["layer"].update(size=1),
    "another layer": lambda value: value["layer"].update(digest="sha256:" + "0" * 64),
    "no recipe": lambda value: value.clear(),
}


def test_a_layer_that_cannot_be_made_again(directory: Path, own_store: ChrootStore, start: Start) -> None:
    """Never other bytes: the image is made again when it is asked for by name."""
    nothing_remembered = "[limits]\nmemory_cache = 0\nfailure_ttl = 0\n"
    registry = start(Registry(directory / "state", own_store.root, config=RETENTION + nothing_remembered))
    for what, change in CHANGES.items():
        digest, content = lose_a_layer(registry)
        value = json.loads(recipe(registry, digest).read_bytes())
        change(value)
        recipe(registry, digest).write_text(json.dumps(value))
        answer = registry.get(f"/v2/curl/blobs/{digest}")
        assert (answer.status, answer.error["code"]) == (404, "BLOB_UNKNOWN"), what
        if what == "other bytes":
            blob(registry, digest).unlink()  # it came out right, and only the recipe was wrong
        if what in {"another layer", "no recipe"}:  # it might be anybody's digest
            registry.stop()
            registry.start()
        assert registry.pull("curl").blobs[digest] == content
        assert fsck(registry) == [], what
    assert len(registry.events("layer-lost")) == 4


# --- checking and copying ---------------------------------------------------------------------------


def test_what_is_broken_is_found_and_made_again(registry: Registry) -> None:
    image, whole = registry.pull("curl"), registry.pull(SNAPSHOTTER)
    assert fsck(registry) == []
    layer = blob(registry, image.layers[0]["digest"])
    layer.chmod(0o644)
    layer.write_bytes(layer.read_bytes()[:-1])
    shown = command(registry, "fsck", status=1)
    assert "its bytes have another digest" in shown
    found = fsck(registry)
    assert str(layer.relative_to(registry.storage_directory)) in found
    assert str(blob(registry, image.digest).relative_to(registry.storage_directory)) in found
    registry.stop()
    done = json.loads(command(registry, "fsck", "--repair", "--json", status=1))
    assert [finding["key"] for finding in done["findings"]] == found
    assert fsck(registry) == []
    registry.start()
    assert by_digest(registry, whole) == 200
    assert registry.pull("curl") == image


def test_a_copy_is_served(registry: Registry, directory: Path) -> None:
    images = {name: registry.pull(name) for name in ("curl", SNAPSHOTTER)}
    other = Registry(directory / "other", registry.store)
    done = run(
        *(*PROGRAM, "copy", f"file://{registry.storage_directory}", f"file://{other.storage_directory}"),
        env=registry.program_env,
    )
    assert done.stdout.startswith("copied ")
    other.state.mkdir(exist_ok=True)
    assert fsck(other) == []
    (other.storage_directory / "secrets").mkdir()
    key = shutil.copy2(
        registry.storage_directory / "secrets/signing-key", other.storage_directory / "secrets"
    )
    assert Path(key).stat().st_mode & 0o777 == 0o600
    other.start()
    try:
        for name, image in images.items():
            assert other.pull(name) == image
        assert other.events("assembled") == []
    finally:
        other.stop()
