"""Storage that fails: nothing half-written stays, clients are told to come back where it helps, the server goes on."""

import asyncio
import contextlib
import http.client
import os
import sys
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest

from nixery_snap.errors import SettingsError, StorageUnavailable
from nixery_snap.object_store.multipart import PART_BYTES
from nixery_snap.object_store.store import ObjectStore
from tests.integration import broken_bucket as broken
from tests.integration.broken_bucket import BrokenBucket, Fault, Meant, broken_bucket
from tests.integration.buckets import Buckets
from tests.integration.caches import KeyPair
from tests.integration.need import need, need_root
from tests.integration.nixtools import ChrootStore
from tests.integration.processes import run, wait_until
from tests.integration.server import Registry, digest_of

PARTS = 3


@pytest.fixture(scope="module")
def bucket(buckets: Buckets) -> Iterator[BrokenBucket]:
    buckets.request("PUT", "/uploads")
    with broken_bucket(buckets) as running, pytest.MonkeyPatch.context() as patch:
        for name, value in buckets.env.items():
            patch.setenv(name, value)
        yield running


# --- uploads ----------------------------------------------------------------------------------------


def upload(store: ObjectStore, key: str) -> None:
    with store.stage() as staged:
        for _ in range(PARTS * PART_BYTES // 2**20):
            staged.write(bytes(2**20))
        staged.write(b"the end")
        staged.publish(key)


SILENT = "a part without answer"
UPLOAD_FAULTS: dict[str, tuple[Fault, Meant]] = {
    "cannot be begun": (broken.status(500), broken.beginning),
    "first part refused": (broken.status(503), broken.part(1)),
    "a part refused": (broken.status(500), broken.part(3)),
    "a part broken off": (broken.reset, broken.part(2)),
    SILENT: (broken.silence, broken.part(2)),
    "cannot be ended": (broken.status(500), broken.completion),
    "ended with an error that looks well": (broken.error_with_200, broken.completion),
    "cannot be copied": (broken.status(500), broken.copying),
}


@pytest.mark.parametrize("fault", UPLOAD_FAULTS)
async def test_uploads_that_fail(bucket: BrokenBucket, fault: str) -> None:
    """They are aborted, and nothing of them is to be seen; then it works."""
    prefix = uuid.uuid4().hex
    impatient = ObjectStore(bucket.url("uploads", prefix), timeout_seconds=6 if fault == SILENT else 60)
    with bucket.doing(*UPLOAD_FAULTS[fault]), pytest.raises(StorageUnavailable, match="failed at"):
        await asyncio.to_thread(upload, impatient, "nar/x")
    store = ObjectStore(bucket.url("uploads", prefix))
    assert [key async for key, _ in store.list("")] == []
    assert [key for key in bucket.buckets.uploads("uploads") if key.startswith(prefix)] == []
    await asyncio.to_thread(upload, store, "nar/x")
    assert [key async for key in store.list("")] == [("nar/x", PARTS * PART_BYTES + len(b"the end"))]
    assert [key for key in bucket.buckets.uploads("uploads") if key.startswith(prefix)] == []


async def test_what_is_given_up(bucket: BrokenBucket) -> None:
    """By the program's own fault, in the middle of a part."""

    def give_up() -> None:
        with store.stage() as staged:
            for _ in range(PARTS * PART_BYTES // 2**20):
                staged.write(bytes(2**20))
            raise ZeroDivisionError

    prefix = uuid.uuid4().hex
    store = ObjectStore(bucket.url("uploads", prefix))
    with pytest.raises(ZeroDivisionError):
        await asyncio.to_thread(give_up)
    assert [key async for key, _ in store.list("")] == []
    assert [key for key in bucket.buckets.uploads("uploads") if key.startswith(prefix)] == []


async def test_what_a_killed_process_leaves_is_nothing(bucket: BrokenBucket) -> None:
    """No object: the parts that it has sent are for the bucket's lifecycle rule."""
    prefix = uuid.uuid4().hex
    url = bucket.url("uploads", prefix)
    script = f"""
import os
from nixery_snap.object_store.store import ObjectStore
with ObjectStore({url!r}).stage() as staged:
    for _ in range(20):
        staged.write(bytes(2**20))
    os.kill(os.getpid(), 9)
"""
    done = await asyncio.to_thread(run, sys.executable, "-c", script, env=dict(os.environ), check=False)
    assert done.returncode == -9
    assert [key async for key, _ in ObjectStore(url).list("")] == []


async def test_larger_than_a_server_copies(bucket: BrokenBucket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nixery_snap.object_store.multipart.COPY_BYTES", PART_BYTES)
    store = ObjectStore(bucket.url("uploads", uuid.uuid4().hex))
    await asyncio.to_thread(upload, store, "nar/x")
    assert [key async for key in store.list("")] == [("nar/x", PARTS * PART_BYTES + len(b"the end"))]


async def test_a_server_that_overwrites_is_refused(bucket: BrokenBucket) -> None:
    store = ObjectStore(bucket.url("uploads", uuid.uuid4().hex))
    with bucket.doing(broken.overwriting), pytest.raises(SettingsError, match="overwrites objects"):
        await store.initialise()


# --- a server whose bucket fails --------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(scratch: Path, prepared_store: ChrootStore, bucket: BrokenBucket) -> Iterator[Registry]:
    """It is impatient, and everything passes through it."""
    home = scratch / "storage-faults"
    # The first objects of a bucket can take SeaweedFS longer than this server waits.
    asyncio.run(ObjectStore(bucket.url("faults", "all")).initialise())
    registry = Registry(
        home / "state",
        prepared_store.copy(home / "store").root,
        storage=bucket.url("faults", "all"),
        config="[object_store]\ndelivery = 'proxy'\ntimeout = 6\n[nix]\nwait_timeout = 110\n",
        env={
            **bucket.buckets.env,
            "XDG_STATE_HOME": str(home),
            "NIXERY_SNAP_BINARY_CACHE__SIGNING_KEY_FILE": str(KeyPair.generate(home / "key").file),
        },
    )
    registry.start()
    yield registry
    assert registry.stop() == 0


BUCKET_FAULTS: dict[str, tuple[str, Fault]] = {
    "errors": ("which", broken.status(500)),
    "too busy": ("nano", broken.status(503)),
    "no answers": ("coreutils", broken.silence),
    "resets": ("curl", broken.reset),
}


@pytest.mark.parametrize("fault", BUCKET_FAULTS)
def test_a_bucket_that_fails_as_a_whole(server: Registry, bucket: BrokenBucket, fault: str) -> None:
    """Clients are told to come back, and find everything well as soon as it is; what is in memory is served."""
    name, doing = BUCKET_FAULTS[fault]
    known = server.pull("hello")
    with bucket.doing(doing):
        for target in (f"classic/{name}", f"nix-snapshotter/{name}"):
            answer = server.manifest(target)
            assert (answer.status, answer.error["code"]) == (503, "UNAVAILABLE"), answer
            assert int(answer.headers["retry-after"]) > 0
            assert b"127.0.0.1" not in answer.body
        digest = known.layers[-1]["digest"]
        narinfo = server.get(f"/nix-cache/{'0' * 32}.narinfo")
        assert narinfo.status == 503
        assert server.manifest("hello").body == known.manifest_bytes
        assert server.get("/healthz").status == 200
    assert server.pull(name).layers
    assert server.pull(f"nix-snapshotter/{name}").layers
    assert server.get(f"/v2/hello/blobs/{digest}").status == 200
    assert any(
        "object store failed at" in event.get("error", "") for event in server.events("request-failed")
    )


def test_a_bucket_that_is_slow(server: Registry, bucket: BrokenBucket) -> None:
    """As long as it answers, so does the server."""
    with bucket.doing(broken.late(0.05)):
        assert server.pull("classic/which/hello").layers
        assert server.pull("nix-snapshotter/which/hello").layers


def test_a_body_that_breaks_off(server: Registry, bucket: BrokenBucket) -> None:
    """The client sees that it is not whole."""
    image = server.pull("shell/hello")
    layer = max(image.layers, key=lambda one: int(one["size"]))
    assert layer["size"] > 2**20 + 1000, "it has to be more than one piece"
    url = f"/v2/shell/hello/blobs/{layer['digest']}"
    with (
        bucket.doing(broken.no_end, broken.reading),
        pytest.raises((http.client.IncompleteRead, ConnectionError)),
    ):
        server.get(url)
    with bucket.doing(broken.status(500), broken.reading):
        assert server.get(url).status == 503
    assert digest_of(server.get(url).body) == layer["digest"]


# --- disks ------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(directory: Path) -> Iterator[Path]:
    """ext4 on a loop device; in containers that have none a tmpfs, which fills up in the same way."""
    need("mount", "umount", "losetup", "mkfs.ext4")
    need_root()
    disk, image = directory / "disk", directory / "disk.img"
    disk.mkdir()
    with image.open("wb") as file:
        file.truncate(16 * 2**20)
    run("mkfs.ext4", "-q", "-m", "0", image)
    if run("mount", "-o", "loop", image, disk, check=False).returncode:
        run("mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk)
    try:
        yield disk
    finally:
        run("umount", "--lazy", disk)


def fill(disk: Path) -> Path:
    """To the last byte."""
    filler = disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass
    return filler


def test_a_full_disk(prepared_store: ChrootStore, directory: Path, small_disk: Path) -> None:
    registry = Registry(directory / "state", prepared_store.root, storage=f"file://{small_disk}/storage")
    registry.start()
    try:
        known = registry.pull("hello")
        filler = fill(small_disk)
        for name in ("classic/curl", "nix-snapshotter/curl"):
            answer = registry.manifest(name)
            assert (answer.status, answer.error["code"]) == (503, "UNAVAILABLE"), answer
        assert registry.pull("hello") == known
        staging = small_disk / "storage/staging"
        # Layers beside the one that failed first may still be being given up.
        wait_until(lambda: not list(staging.iterdir()), seconds=60, what="nothing half-written is left")
        filler.unlink()
        for name in ("classic/curl", "nix-snapshotter/curl"):
            assert registry.pull(name)
        reasons = [event["error"] for event in registry.events("request-failed")]
        assert any("No space left on device" in reason for reason in reasons), reasons
    finally:
        assert registry.stop() == 0


def test_a_read_only_disk(prepared_store: ChrootStore, directory: Path, small_disk: Path) -> None:
    """What is there is served, also after a restart."""
    registry = Registry(
        directory / "state", prepared_store.root, storage=f"file://{small_disk}/storage"
    ).start()
    known = registry.pull("hello")
    # Not while the server still has a file open that it writes in the background.
    remount = ("mount", "-o", "remount,ro", small_disk)
    wait_until(lambda: run(*remount, check=False).returncode == 0, seconds=60, what="it is read-only")
    try:
        for _ in range(2):
            answer = registry.manifest("curl")
            assert (answer.status, answer.error["code"]) == (500, "UNKNOWN")
            assert registry.pull("hello") == known
            assert registry.stop() == 0
            registry.start()
        run("mount", "-o", "remount,rw", small_disk)
        assert registry.pull("curl")
        reasons = [event["error"] for event in registry.events("request-failed")]
        assert all("Read-only file system" in reason for reason in reasons), reasons
    finally:
        registry.stop()


# --- clocks -----------------------------------------------------------------------------------------


def test_a_clock_that_jumps(prepared_store: ChrootStore, directory: Path, own_source: Path) -> None:
    """By days, either way, while it serves and between two starts."""
    need("faketime")
    [library] = Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")
    clock = directory / "clock"
    clock.write_text("+0")
    faked = {
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    registry = Registry(directory / "state", prepared_store.root, own_source)
    registry.env = {"LD_PRELOAD": str(library), **faked}

    def set_clock(jump: str) -> None:
        clock.write_text(jump)
        shift = timedelta(days=int(jump.removesuffix("d")))

        def has_jumped() -> bool:
            told = parsedate_to_datetime(registry.get("/healthz").headers["date"])
            return abs(told - datetime.now(UTC) - shift) < timedelta(hours=1)

        wait_until(has_jumped, seconds=60, what="its clock has jumped")

    registry.start()
    try:
        known = registry.pull("hello")
        for jump, name in (("+3d", "curl"), ("-3d", "which")):
            set_clock(jump)
            assert registry.pull("hello") == known
            assert registry.pull(name)
            basics = own_source / "basics.nix"
            basics.write_text(f"{basics.read_text()}# {jump}\n")
            moved = registry.pull("hello")
            assert moved.digest != known.digest, "the package set is another one now"
            known = moved
        clock.write_text("+0")
        assert registry.stop() == 0
        registry.start()
        assert registry.pull("hello") == known
    finally:
        registry.stop()
