"""Garbage collection, checking and copying over every backend; what each of them does is in tests/unit/object_store."""

import asyncio
import time

import pytest

from nixery_snap.nix_stores.decompression import decompress
from nixery_snap.object_store import keys, sweep
from nixery_snap.object_store.check import check, remove
from nixery_snap.object_store.copying import copy, totals
from nixery_snap.object_store.store import ObjectStore
from nixery_snap.object_store.sweep import Rules
from nixery_snap.object_store.sweeps import Sweeps
from nixery_snap.object_store.usage import StoredUses
from nixery_snap.ports import UseKind, use
from tests.stored import Filler, StoredImage, names

PACE = 5.0  # a store that is slow for longer than that ends a sweep
RULES = Rules(unused_seconds=1, grace_seconds=0.1, imprecision_seconds=0, pace_seconds=PACE)


def ignore(*progress: object) -> None:
    """Progress that nobody looks at."""


@pytest.fixture
def store(storage_url: str) -> ObjectStore:
    return ObjectStore(storage_url)


async def fill(store: ObjectStore) -> tuple[StoredImage, StoredImage]:
    """A classic image, and a snapshotter image with its paths."""
    filler = Filler(store)
    inner = (await filler.path("inner")).path
    outer = (await filler.path("outer", inner)).path
    classic = await filler.image("classic", ["one", "two"])
    return classic, await filler.image("snapshotter", closure=[inner, outer], snapshotter=True)


async def findings(store: ObjectStore) -> list[str]:
    return [finding.key for finding in (await check(store, decompress, ignore)).findings]


async def test_what_is_used_stays_and_the_rest_goes(
    store: ObjectStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nixery_snap.object_store.sweeps._LEAD_SECONDS", 0.1)
    uses = StoredUses(store, Sweeps(store, PACE), 0.5, 0.2)
    async with uses.running():
        used, unused = await fill(store)
        await asyncio.sleep(2.5)  # by the store's clock, which may count whole seconds
        assert await names(store, "blobs")
        collecting = asyncio.ensure_future(sweep.collect(store, RULES, ignore))
        while not collecting.done():
            await uses.note(use(UseKind.IMAGE, used.key))
            await asyncio.sleep(0.1)
        report = await collecting
    left = await names(store)
    assert {*used.objects[:2], used.objects[3], *map(keys.blob, used.layers)} <= left
    assert not {*unused.objects, *map(keys.blob, unused.layers)} & left
    assert not [name for name in left if name.endswith(".narinfo") or name.startswith("nar/")]
    assert report.removed["image"] == 1
    assert await findings(store) == []


async def test_what_is_broken_is_removed(store: ObjectStore) -> None:
    classic, snapshotter = await fill(store)
    assert await findings(store) == []
    layer = keys.blob(classic.layers[0])
    await store.put(layer, b"something else")
    found = (await check(store, decompress, ignore)).findings
    assert {layer, keys.blob(classic.digest), keys.record("image", classic.key)} <= {one.key for one in found}
    await remove(store, found)
    assert await findings(store) == []
    assert await store.exists(keys.blob(snapshotter.digest))


async def test_a_copy_has_everything(store: ObjectStore) -> None:
    await fill(store)
    await Filler(store).blob(bytes(2**20 + 1))
    memory = ObjectStore("memory://")
    copied = await copy(store, memory, ignore)
    assert (copied.objects, copied.bytes) == await totals(store)
    back = await copy(memory, store, ignore)
    assert (back.objects, back.present) == (0, copied.objects)
    for name in await names(store):
        assert await store.get(name) == await memory.get(name)


async def test_many_at_once(store: ObjectStore) -> None:
    there = [f"records/tree/aa/{number}.json" for number in range(30)]
    await asyncio.gather(*(store.put(name, b"{}") for name in there))
    await store.delete_many([*there[:25], "records/tree/aa/absent.json"])
    assert await names(store) == set(there[25:])
    await store.delete_many([])
    size_bytes, written = await store.head(there[25]) or (0, 0.0)
    assert size_bytes == 2
    assert abs(written - time.time()) < 100
    assert await store.head(there[0]) is None
