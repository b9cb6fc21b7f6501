from pathlib import Path

import pytest

from nixery_snap.object_store import keys
from nixery_snap.object_store.pins import StoredPins
from nixery_snap.object_store.store import ObjectStore
from nixery_snap.ports import Pin

PIN = Pin("0" * 40, "https://example.org/x", "variant")


@pytest.fixture(params=["memory", "file"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    return ObjectStore("memory://" if request.param == "memory" else tmp_path.as_uri())


async def test_the_last_one_counts(store: ObjectStore) -> None:
    pins, others = StoredPins(store), StoredPins(store)
    assert await pins.get("source", "main") is None
    await pins.put("source", "main", PIN, 1.5)
    await others.put("source", "main", Pin("1" * 40), 2.5)
    assert await pins.get("source", "main") == (Pin("1" * 40), 2.5)
    await pins.put("source", "main", PIN, 3)
    assert await others.get("source", "main") == (PIN, 3)


async def test_sources_and_tags_are_apart(store: ObjectStore) -> None:
    pins = StoredPins(store)
    await pins.put("a", "b/c", PIN, 1)
    for source, tag in (("a/b", "c"), ("a", "b"), ("", "a b/c"), ('a", "b', "c")):
        assert await pins.get(source, tag) is None


async def test_deleted(store: ObjectStore) -> None:
    pins = StoredPins(store)
    await pins.put("a", "b", PIN, 1)
    await pins.delete("a", "b")
    await pins.delete("a", "b")
    assert await pins.get("a", "b") is None


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"revision": 1, "url": null, "variant": "", "made": 1}']
)
async def test_damaged(store: ObjectStore, content: bytes) -> None:
    await store.put(keys.pin("a", "b"), content)
    pins = StoredPins(store)
    assert await pins.get("a", "b") is None
    await pins.put("a", "b", PIN, 1)
    assert await pins.get("a", "b") == (PIN, 1)
