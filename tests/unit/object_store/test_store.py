import asyncio
import os
import resource
import threading
import time
from pathlib import Path

import pytest

from nixery_snap.errors import BlobNotFound, SettingsError, StorageError
from nixery_snap.object_store import keys
from nixery_snap.object_store.blobs import Blobs
from nixery_snap.object_store.store import ObjectStore
from nixery_snap.oci.digest import Digest

CONTENT = b"content" * 1000


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "objects"


@pytest.fixture
def store(root: Path) -> ObjectStore:
    return ObjectStore(f"file://{root}")


def files(root: Path) -> list[Path]:
    return sorted(path.relative_to(root) for path in root.rglob("*") if path.is_file())


def test_nothing_is_visible_before_commit(store: ObjectStore, root: Path) -> None:
    with Blobs(store).writer() as writer:
        for _ in range(3):
            writer.write(CONTENT)
        assert all(path.parts[0] == keys.STAGING for path in files(root))
        digest = writer.commit()
        assert writer.size_bytes == 3 * len(CONTENT)
    assert files(root) == [Path(keys.blob(digest))]
    assert (root / keys.blob(digest)).read_bytes() == 3 * CONTENT
    assert (root / keys.blob(digest)).stat().st_mode & 0o777 == 0o644


def test_a_full_disk_is_a_storage_error(store: ObjectStore, root: Path) -> None:
    """Here the disk is full for this process."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(StorageError, match="too large"):
            write_all(Blobs(store), 100 * CONTENT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert files(root) == []


async def test_a_key_that_cannot_be_is_a_storage_error(store: ObjectStore) -> None:
    await store.put("file", CONTENT)
    with pytest.raises(StorageError):
        await store.locate("file/below")


def give_up(blobs: Blobs) -> None:
    with blobs.writer() as writer:
        writer.write(CONTENT)
        raise KeyboardInterrupt


def write_all(blobs: Blobs, content: bytes = CONTENT) -> None:
    with blobs.writer() as writer:
        writer.write(content)
        writer.commit()


def test_nothing_is_left_without_commit(store: ObjectStore, root: Path) -> None:
    with Blobs(store).writer() as writer:
        writer.write(CONTENT)
    with pytest.raises(KeyboardInterrupt):
        give_up(Blobs(store))
    assert files(root) == []


def test_a_commit_without_room_leaves_nothing(store: ObjectStore, root: Path) -> None:
    (root / "blobs").write_bytes(b"in the way")
    with pytest.raises((StorageError, OSError)):
        write_all(Blobs(store))
    assert files(root) == [Path("blobs")]


def test_writers_of_the_same_content_at_the_same_time(store: ObjectStore, root: Path) -> None:
    together = threading.Barrier(8)
    digests = []

    def write() -> None:
        with Blobs(store).writer() as writer:
            writer.write(CONTENT)
            together.wait()
            digests.append(writer.commit())

    threads = [threading.Thread(target=write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert digests == [Digest.of(CONTENT)] * 8
    assert files(root) == [Path(keys.blob(digests[0]))]


def test_what_a_killed_process_left_is_swept_when_it_is_old(root: Path) -> None:
    staging = root / keys.STAGING
    staging.mkdir(parents=True)
    (staging / "old").write_bytes(b"")
    (staging / "young").write_bytes(b"")
    two_days_ago = time.time() - 2 * 24 * 3600
    os.utime(staging / "old", (two_days_ago, two_days_ago))
    ObjectStore(f"file://{root}")
    assert files(root) == [Path(keys.STAGING, "young")]


async def test_an_object_shorter_than_recorded_is_an_error(store: ObjectStore, root: Path) -> None:
    digest = await Blobs(store).put(CONTENT)
    with pytest.raises(StorageError, match="shorter"):
        b"".join(Blobs(store).read(digest, 10, len(CONTENT)))
    (root / keys.blob(digest)).write_bytes(b"")
    with pytest.raises(StorageError, match="shorter"):
        b"".join(Blobs(store).read(digest, 0, 1))


@pytest.mark.parametrize("damaged", [b"", CONTENT[:-1], CONTENT[:-1] + b"x"])
async def test_damaged_content_makes_room(store: ObjectStore, root: Path, damaged: bytes) -> None:
    blobs = Blobs(store)
    digest = await blobs.put(CONTENT)
    (root / keys.blob(digest)).write_bytes(damaged)
    with pytest.raises(BlobNotFound):
        await blobs.get(digest)
    assert not await blobs.has(digest)
    await blobs.put(CONTENT)
    assert await blobs.get(digest) == CONTENT


async def test_operating_system_errors_are_ours(store: ObjectStore, root: Path) -> None:
    digest = Digest.of(CONTENT)
    target = root / keys.blob(digest)
    target.parent.parent.mkdir(parents=True)
    target.parent.write_bytes(b"a file where a directory should be")
    with pytest.raises(StorageError):
        await store.put_if_absent(keys.blob(digest), CONTENT)


def test_what_cannot_be_read_is_a_storage_error(store: ObjectStore, root: Path) -> None:
    (root / "loop").symlink_to("loop")
    with pytest.raises(StorageError):
        b"".join(store.read("loop", 0, None))
    with pytest.raises(FileNotFoundError):
        b"".join(store.read("absent", 0, None))


async def test_directories_with_odd_names(tmp_path: Path) -> None:
    root = tmp_path / "with space äöü"
    store = ObjectStore(f"file://{root}")
    digest = await Blobs(store).put(b"x")
    assert (root / keys.blob(digest)).exists()


@pytest.mark.parametrize("name", ["c#", "what?", "100%"])
async def test_directories_whose_names_urls_escape(tmp_path: Path, name: str) -> None:
    """Used as they stand or refused, never another directory."""
    try:
        store = ObjectStore(f"file://{tmp_path}/{name}")
    except SettingsError:
        return
    digest = await Blobs(store).put(b"x")
    assert (tmp_path / name / keys.blob(digest)).exists()


@pytest.mark.parametrize(
    "url",
    ["", "objects", "/objects", "file://host/x", "file://", "file:relative", "s3", "ftp://x/y", "http://x/y"],
)
def test_urls_that_are_none(url: str) -> None:
    with pytest.raises(SettingsError) as raised:
        ObjectStore(url)
    assert raised.value.key == "storage"


def test_a_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(SettingsError, match="cannot be used"):
        ObjectStore(f"file://{tmp_path}/file/below")
    with pytest.raises(SettingsError, match="cannot be used"):
        ObjectStore("file:///proc/nixery-snap")


def test_writing_stops_when_the_program_ends(store: ObjectStore, root: Path) -> None:
    blobs = Blobs(store)
    blobs.close()
    with pytest.raises(StorageError):
        write_all(blobs)
    assert files(root) == []


@pytest.mark.parametrize("url", ["memory://", "file://"])
async def test_keys(tmp_path: Path, url: str) -> None:
    store = ObjectStore(url if url == "memory://" else f"file://{tmp_path}")
    assert [key async for key in store.list("records")] == []
    assert await store.put_if_absent("records/a/1.json", b"one")
    assert not await store.put_if_absent("records/a/1.json", b"two")
    assert await store.put_if_absent("records/b/2.json", b"")
    assert await store.get("records/a/1.json") == b"one"
    assert sorted([key async for key in store.list("records")]) == [
        ("records/a/1.json", 3),
        ("records/b/2.json", 0),
    ]
    assert [key async for key in store.list("records/b")] == [("records/b/2.json", 0)]
    await store.delete("records/a/1.json")
    await store.delete("records/a/1.json")
    assert not await store.exists("records/a/1.json")
    assert await store.get("records/a/1.json") is None
    assert await store.exists("records/b/2.json")


@pytest.mark.parametrize("url", ["memory://", "file://"])
async def test_many_keys(tmp_path: Path, url: str) -> None:
    store = ObjectStore(url if url == "memory://" else f"file://{tmp_path}")
    keys_there = [f"records/{number % 7}/{number}.json" for number in range(300)]
    written = await asyncio.gather(*(store.put_if_absent(key, key.encode()) for key in keys_there * 2))
    assert sum(written) == 300
    found = await store.get_many([*keys_there, "records/absent", "absent/1"])
    assert found == {key: key.encode() for key in keys_there}
    assert await store.get_many([]) == {}


async def test_writing_leaves_nothing_beside(store: ObjectStore, root: Path) -> None:
    assert await store.put_if_absent("a/b/c", b"1")
    assert not await store.put_if_absent("a/b/c", b"2")
    with pytest.raises(StorageError):
        await store.put_if_absent("a/b/c/d", b"3")
    assert files(root) == [Path("a/b/c")]
    assert (root / "a/b/c").read_bytes() == b"1"
    assert (root / "a/b/c").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("key", ["../outside", "a/../../outside", "/etc/passwd", "a//b", "a/./b", "", "a\0b"])
async def test_keys_lead_nowhere_else(store: ObjectStore, root: Path, key: str) -> None:
    (root.parent / "outside").write_bytes(b"secret")
    with pytest.raises(StorageError):
        await store.get(key)
    with pytest.raises(StorageError):
        await store.get_many(["a", key])
    with pytest.raises(StorageError):
        await store.put_if_absent(key, b"x")
    assert (root.parent / "outside").read_bytes() == b"secret"
