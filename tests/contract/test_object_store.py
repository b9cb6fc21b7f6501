"""What every backend must do by itself, below blobs and records."""

import asyncio
import time

import pytest

from nixery_snap.errors import StorageError
from nixery_snap.object_store import keys
from nixery_snap.object_store.store import ObjectStore


@pytest.fixture
def store(storage_url: str) -> ObjectStore:
    return ObjectStore(storage_url, url_lifetime_seconds=60)


async def test_keys(store: ObjectStore) -> None:
    assert [key async for key in store.list("records")] == []
    assert await store.put_if_absent("records/a/1.json", b"one")
    assert not await store.put_if_absent("records/a/1.json", b"two")
    assert await store.put_if_absent("records/b/2.json", b"")
    assert await store.get("records/a/1.json") == b"one"
    listed = [("records/a/1.json", 3), ("records/b/2.json", 0)]
    assert sorted([key async for key in store.list("records")]) == listed
    assert [key async for key in store.list("records/b")] == listed[1:]
    for _ in range(2):
        await store.delete("records/a/1.json")
    assert not await store.exists("records/a/1.json")
    assert await store.get("records/a/1.json") is None
    assert await store.locate("records/a/1.json") is None
    assert await store.exists("records/b/2.json")


async def test_many_keys(store: ObjectStore) -> None:
    there = [f"records/{number % 7}/{number}.json" for number in range(150)]
    assert all(await asyncio.gather(*(store.put_if_absent(key, key.encode()) for key in there)))
    assert not any(await asyncio.gather(*(store.put_if_absent(key, b"") for key in there)))
    found = await store.get_many([*there, "records/absent", "absent/1"])
    assert found == {key: key.encode() for key in there}
    assert await store.get_many([]) == {}
    assert {key async for key, _ in store.list("records")} == set(there)


async def test_one_of_many_is_first(store: ObjectStore) -> None:
    """Replicas depend on it."""
    for number in range(5):
        wrote = await asyncio.gather(*(store.put_if_absent(f"k/{number}", b"%d" % i) for i in range(3)))
        assert sum(wrote) == 1
        assert await store.get(f"k/{number}") == b"%d" % wrote.index(True)


async def test_put_replaces(store: ObjectStore) -> None:
    for content in (b"first", b"", b"second"):
        await store.put("a/b", content)
        assert await store.get("a/b") == content
    assert [key async for key in store.list("")] == [("a/b", 6)]


async def test_when_it_was_written(store: ObjectStore) -> None:
    await store.put("a/b", b"x")
    [(key, size_bytes, written)] = [one async for one in store.list_modified("a")]
    assert (key, size_bytes) == ("a/b", 1)
    assert abs(written - time.time()) < 100


@pytest.mark.parametrize("name", ["ä ö", "100%", "a+b&c=d?e#f", "~tilde", "$'\"", "a:b"])
async def test_odd_names(store: ObjectStore, name: str) -> None:
    """Names of our cache's files hold some of them."""
    key = f"log/{name}-1.0.drv"
    assert await store.put_if_absent(key, b"x")
    assert await store.get(key) == b"x"
    assert [key async for key in store.list("log")] == [(key, 1)]
    assert b"".join(store.read(key, 0, None)) == b"x"


async def test_initialise_leaves_what_is_there(store: ObjectStore) -> None:
    await store.put("a/b", b"x")
    await store.put(f"{keys.STAGING}/young", b"x")
    for _ in range(2):
        await store.initialise()
    assert {key async for key, _ in store.list("")} - {keys.FORMAT} == {"a/b", f"{keys.STAGING}/young"}


async def test_nothing_is_left_in_staging(store: ObjectStore) -> None:
    """Neither of what is published nor of what is given up, small or large."""

    def write(size_bytes: int, key: str | None) -> None:
        with store.stage() as staged:
            for _ in range(size_bytes // 2**20 + 1):
                staged.write(bytes(2**20))
            if key is None:
                raise StorageError("given up")
            staged.publish(key)

    for size_bytes in (0, 20 * 2**20):
        write(size_bytes, f"a/{size_bytes}")
        with pytest.raises(StorageError, match="given up"):
            write(size_bytes, None)
    assert {key async for key, _ in store.list("")} == {"a/0", f"a/{20 * 2**20}"}
