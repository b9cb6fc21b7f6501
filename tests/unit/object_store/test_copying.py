import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from nixery_snap.errors import SettingsError, StorageError
from nixery_snap.nix_stores.decompression import decompress
from nixery_snap.object_store import keys
from nixery_snap.object_store.check import check
from nixery_snap.object_store.copying import copy, store_at, stores_of, totals
from nixery_snap.object_store.store import ObjectStore
from nixery_snap.object_store.sweeps import Marker, State
from tests.stored import Filler, names
from tests.unit.object_store.test_check import Filled, manifest, record

STAYS = {keys.SWEEP, keys.USAGE_BEGIN, "leases/x.0", "staging/x", "secrets/signing-key", "format"}


def ignore(objects: int, size_bytes: int) -> None:
    """Progress that nobody looks at."""


@pytest.fixture
def source(tmp_path: Path) -> ObjectStore:
    return ObjectStore(f"file://{tmp_path}/source")


@pytest.fixture
async def filled(source: ObjectStore) -> Filled:
    made = Filled(source)
    await made.make()
    await made.fill.blob(bytes(2**20 + 1))  # one that is staged
    for name in STAYS:
        await source.put(name, b"?")
    return made


@pytest.fixture(params=["file", "memory"])
def target(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    return ObjectStore("memory://" if request.param == "memory" else f"file://{tmp_path}/target")


async def assert_same(source: ObjectStore, target: ObjectStore) -> None:
    expected = await names(source) - STAYS
    assert await names(target) == expected
    for name in expected:
        assert await target.get(name) == await source.get(name)


async def test_all_of_it_once(source: ObjectStore, target: ObjectStore, filled: Filled) -> None:
    done = [0, 0]

    def advance(objects: int, size_bytes: int) -> None:
        done[0] += objects
        done[1] += size_bytes

    copied = await copy(source, target, advance)
    await assert_same(source, target)
    assert tuple(done) == await totals(source) == (copied.objects, copied.bytes)
    again = await copy(source, target, ignore)
    assert again.present == copied.objects - 2  # a pin and nix-cache-info may have changed
    assert again.objects == 2
    assert not again.broken


class Breaking(ObjectStore):
    """Fails after so many writes."""

    writes = 0

    async def put(self, key: str, content: bytes) -> None:
        self.writes -= 1
        if self.writes < 0:
            raise StorageError("the network is gone")
        await super().put(key, content)


async def test_broken_off_anywhere_and_begun_again(
    source: ObjectStore, filled: Filled, tmp_path: Path
) -> None:
    """At every moment all that is in the target is whole, and at last everything is there."""
    target = Breaking(f"file://{tmp_path}/target")
    for _ in range(30):
        target.writes = 4
        try:
            await copy(source, target, ignore)
            break
        except StorageError:
            found = await check(target, decompress, lambda line: None)
            assert found.findings == []
            held = await names(target)
            for hash_part in (filled.outer.hash_part, filled.inner.hash_part):
                assert f"{hash_part}.narinfo" not in held or f"{filled.inner.hash_part}.narinfo" in held
    await assert_same(source, target)


@pytest.mark.parametrize(
    "broken",
    [
        lambda f: keys.blob(f.classic.layers[1]),
        lambda f: f.classic.objects[0],
    ],
    ids=["layer", "config"],
)
async def test_what_is_broken_stays_behind(
    source: ObjectStore, target: ObjectStore, filled: Filled, broken: Callable[[Filled], str]
) -> None:
    name = broken(filled)
    await source.put(name, b"something else")
    copied = await copy(source, target, ignore)
    assert copied.broken
    left = await names(target)
    assert not {name, manifest(filled.classic), record(filled.classic)} & left
    assert {manifest(filled.other), record(filled.other), keys.blob(filled.index)} <= left
    assert (await check(target, decompress, lambda line: None)).findings == []


async def test_a_broken_nar_stays_behind(source: ObjectStore, target: ObjectStore, filled: Filled) -> None:
    (nar,) = [
        name for name in await names(source, "nar") if b"NAR of inner" in (await source.get(name) or b"")
    ]
    await source.put(nar, b"something else")
    assert (await copy(source, target, ignore)).broken
    assert not {nar, f"{filled.inner.hash_part}.narinfo"} & await names(target)


@pytest.mark.parametrize("size_bytes", [20, 2**20 + 20])
async def test_what_was_cut_off_in_the_target_is_replaced(
    source: ObjectStore, target: ObjectStore, size_bytes: int
) -> None:
    digest = await Filler(source).blob(bytes(size_bytes))
    await target.put(keys.blob(digest), b"half of it")
    await copy(source, target, ignore)
    await assert_same(source, target)


async def test_what_is_broken_replaces_nothing(source: ObjectStore, target: ObjectStore) -> None:
    digest = await Filler(source).blob(bytes(2**20 + 20))
    await copy(source, target, ignore)
    await source.put(keys.blob(digest), bytes(2**20 + 19))
    assert (await copy(source, target, ignore)).broken
    assert await target.get(keys.blob(digest)) == bytes(2**20 + 20)


class Swept(ObjectStore):
    """Its own servers sweep it when the first record comes: nothing has named the blobs and NARs until then."""

    sweeps = 1

    async def put(self, key: str, content: bytes) -> None:
        if key.startswith("records/") and self.sweeps:
            self.sweeps -= 1
            await self.delete_many([*await names(self, "blobs"), *await names(self, "nar")])
            await super().put(keys.SWEEP, bytes(Marker("theirs", State.DONE)))
        await super().put(key, content)


async def test_into_a_store_that_is_swept_meanwhile(
    source: ObjectStore, filled: Filled, tmp_path: Path
) -> None:
    target = Swept(f"file://{tmp_path}/target")
    await copy(source, target, ignore)
    assert target.sweeps == 0
    assert (await check(target, decompress, lambda line: None)).findings == []
    assert await names(target) - {keys.SWEEP} == await names(source) - STAYS


async def test_names_follow_their_newest_image(source: ObjectStore, target: ObjectStore) -> None:
    for image in ("0" * 64, "1" * 64):
        await source.put(keys.image_name("a"), image.encode())
        await copy(source, target, ignore)
        assert await target.get(keys.image_name("a")) == image.encode()


async def test_beside_somebody_who_writes(source: ObjectStore, target: ObjectStore, filled: Filled) -> None:
    writing = True

    async def write() -> None:
        number = 0
        while writing:
            number += 1
            path = (await filled.fill.path(f"path {number}".replace(" ", "-"), filled.inner)).path
            await filled.fill.image(f"more {number}", [f"layer {number}"], [path], snapshotter=True)

    writer = asyncio.ensure_future(write())
    try:
        await copy(source, target, ignore)
    finally:
        writing = False
        await writer
    assert (await check(target, decompress, lambda line: None)).findings == []
    await copy(source, target, ignore)
    await assert_same(source, target)


async def test_stores_within_a_store(source: ObjectStore, filled: Filled, tmp_path: Path) -> None:
    """Each is copied in its own order."""
    url, other = f"file://{tmp_path}/source", f"file://{tmp_path}/target"
    await Filler(store_at(url, "/separate/internal")).image("internal")
    assert await stores_of(url) == ["", "/separate/internal"]
    for path in await stores_of(url):
        await copy(store_at(url, path), store_at(other, path), ignore)
    within = await names(ObjectStore(other), "separate")
    assert within == {name for name in await names(source) if name.startswith("separate/")}
    assert {name for name in await names(ObjectStore(other)) if not name.startswith("separate/")} == (
        await names(source) - STAYS - within
    )


def test_a_mistyped_source_is_no_empty_store(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"there is no directory .*/a b$"):
        asyncio.run(stores_of(f"file://{tmp_path}/a%20b"))
    assert not list(tmp_path.iterdir())
