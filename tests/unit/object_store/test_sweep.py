import asyncio
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from nixery_snap.errors import StorageError
from nixery_snap.nix_stores.decompression import decompress
from nixery_snap.object_store import keys, sweep
from nixery_snap.object_store.check import check
from nixery_snap.object_store.store import ObjectStore
from nixery_snap.object_store.sweep import Report, Rules
from nixery_snap.object_store.sweeps import Hold, Marker, State, Sweeps
from nixery_snap.object_store.usage import StoredUses
from nixery_snap.object_store.walking import Stored
from nixery_snap.ports import UseKind, use
from tests.stored import Filler, StoredImage, key_of, names, store_path
from tests.support.waiting import until

DAY = 86400.0
RULES = Rules(unused_seconds=30 * DAY, grace_seconds=600, imprecision_seconds=DAY, pace_seconds=0.1)


@pytest.fixture
async def store() -> ObjectStore:
    made = ObjectStore("memory://")
    await made.put(keys.USAGE_BEGIN, b"")
    return made


def ignore(line: str) -> None:
    """Progress that nobody looks at."""


async def swept(store: ObjectStore, days: float = 40, *uses: str) -> Report:
    """What a sweep so many days from now would do, with `uses` written down just before."""
    if uses:
        await store.put("usage/later", "\n".join(uses).encode())
    one = sweep._Sweep(store, RULES, time.time() + days * DAY, ignore)
    if uses:  # as if they had been written then
        one._since = sweep.Since(0, one._since.made, one._since.young)
        one._marking._since = one._since

    async def remove(some: Sequence[Stored]) -> None:
        await store.delete_many([stored.key for stored in some])

    await one.mark()
    await one.sweep(remove)
    return one.report


def manifest(image: StoredImage) -> str:
    return use(UseKind.MANIFEST, image.digest)


async def test_what_is_unused_goes_with_all_that_is_only_its_own(store: ObjectStore) -> None:
    fill = Filler(store)
    kept, gone = await fill.image("kept", ["shared", "own"]), await fill.image("gone", ["shared", "other"])
    before = await names(store)
    report = await swept(store, 40, use(UseKind.IMAGE, kept.key))
    left = await names(store) - {"usage/later"}
    other = key_of("other")
    assert before - left == {
        *gone.objects,
        keys.record("resolution", kept.key),  # can be found out again
        *(keys.record(kind, other) for kind in ("layer", "member")),
        keys.record("recipe", gone.layers[1].hex),
        keys.blob(gone.layers[1]),
    }
    assert report.removed.total() == len(before - left)
    assert report.removed["image"] == report.kept["image"] == 1
    assert report.removed_bytes.total() > 0


async def test_nothing_goes_before_its_time(store: ObjectStore) -> None:
    fill = Filler(store)
    await fill.image("image", closure=[(await fill.path("path")).path], snapshotter=True)
    await fill.attribute_index("index")
    before = await names(store)
    assert not (await swept(store, 29)).removed
    assert await names(store) == before
    await swept(store, 40)
    assert await names(store) == {keys.USAGE_BEGIN}


async def test_a_manifest_keeps_what_it_names(store: ObjectStore) -> None:
    """It was asked for by digest only, so nobody knows by which name the image was made."""
    image = await Filler(store).image("image", ["one", "two"])
    await swept(store, 40, manifest(image))
    blobs = {name for name in await names(store) if name.startswith("blobs/")}
    assert blobs == {*map(keys.blob, (image.digest, *image.layers)), *image.objects[:1]}
    assert await store.exists(keys.record("recipe", image.layers[0].hex))


async def test_an_index_keeps_its_manifests(store: ObjectStore) -> None:
    fill = Filler(store)
    image = await fill.image("image")
    index = await fill.index_of(image)
    await swept(store, 40, use(UseKind.MANIFEST, index))
    assert {keys.blob(index), keys.blob(image.digest), keys.blob(image.layers[0])} <= await names(
        store, "blobs"
    )
    await store.delete("usage/later")
    await swept(store, 40)
    assert not await names(store, "blobs")


async def test_a_snapshotter_image_keeps_its_paths(store: ObjectStore) -> None:
    """Also those that only the closure-info path, or another path, refers to."""
    fill = Filler(store)
    inner = await fill.path("inner")
    outer = await fill.path("outer", inner.path)
    alone = await fill.path("alone")
    image = await fill.image("image", closure=[outer.path], snapshotter=True)
    await swept(store, 40, manifest(image))
    left = await names(store)
    for info in (inner, outer):
        assert {f"{info.path.hash_part}.narinfo", f"{info.path.hash_part}.ls"} <= left
    assert len([name for name in left if name.startswith("nar/")]) == 3  # with the closure-info path's
    assert len([name for name in left if name.startswith("log/")]) == 2
    assert f"{alone.path.hash_part}.narinfo" not in left


@pytest.mark.parametrize("kind", [UseKind.PATH, UseKind.FILE])
async def test_a_path_that_nix_fetches_is_kept_with_its_closure(store: ObjectStore, kind: UseKind) -> None:
    fill = Filler(store)
    inner = await fill.path("inner")
    outer = await fill.path("outer", inner.path)
    (nar,) = [name for name in await names(store, "nar") if b"outer" in (await store.get(name) or b"")]
    used = outer.path.hash_part if kind is UseKind.PATH else nar.removeprefix("nar/")
    await swept(store, 40, use(kind, used))
    assert {f"{path.hash_part}.narinfo" for path in (inner.path, outer.path)} <= await names(store)
    assert len(await names(store, "nar")) == 2


async def test_a_path_that_was_read_through_is_kept(store: ObjectStore) -> None:
    """Clients remember the name that its NAR had before it was kept."""
    path = await Filler(store).path("upstream")
    asked = f"{path.path.hash_part}{path.nar_hash.removeprefix('sha256:')}.nar.xz"
    await swept(store, 40, use(UseKind.FILE, asked))
    assert f"{path.path.hash_part}.narinfo" in await names(store)
    assert len(await names(store, "nar")) == 1


async def test_names_go_with_their_images(store: ObjectStore) -> None:
    fill = Filler(store)
    for name in ("kept", "gone"):
        image = await fill.image(name)
        await store.put(keys.image_name(name), image.key.encode())
    await store.put(keys.image_name("strange"), b"\xff/")
    report = await swept(store, 40, use(UseKind.IMAGE, key_of("kept")))
    assert await names(store, keys.IMAGE_NAMES) == {keys.image_name("kept")}
    assert (report.removed["name"], report.kept["name"]) == (2, 1)


async def test_leases_of_the_dead(store: ObjectStore) -> None:
    await store.put(keys.lease("a", 0), b"{}")
    await swept(store, 20)
    assert await names(store, "leases")
    await swept(store)
    assert not await names(store, "leases")


async def test_a_used_attribute_index_is_kept(store: ObjectStore) -> None:
    fill = Filler(store)
    kept, gone = await fill.attribute_index("kept"), await fill.attribute_index("gone")
    await swept(store, 40, use(UseKind.INDEX, key_of("kept")))
    left = await names(store)
    assert kept in left
    assert gone not in left
    assert len([name for name in left if name.startswith("blobs/")]) == 2


async def test_referrers_go_first(store: ObjectStore) -> None:
    """Whenever it is interrupted: what is there has all that it names."""
    fill = Filler(store)
    inner = await fill.path("inner")
    outer = await fill.path("outer", inner.path)
    image = await fill.image("image", closure=[outer.path])
    index = await fill.index_of(image)
    order: list[str] = []

    async def remove(some: Sequence[Stored]) -> None:
        order.extend(one.key for one in some)

    one = sweep._Sweep(store, RULES, time.time() + 40 * DAY, ignore)
    await one.mark()
    await one.sweep(remove)
    places = {name: place for place, name in enumerate(order)}
    chain = [
        *(keys.record("image", image.key), keys.blob(index), keys.blob(image.digest)),
        *(keys.record("layer", key_of("layer of image")), keys.blob(image.layers[0])),
        *(f"{outer.path.hash_part}.narinfo", f"{inner.path.hash_part}.narinfo"),
    ]
    assert [places[name] for name in chain] == sorted(places[name] for name in chain)
    assert places[f"{inner.path.hash_part}.narinfo"] < min(places[n] for n in order if n.startswith("nar/"))


async def test_killed_after_any_removal(store: ObjectStore) -> None:
    """There is never anything that names what is gone."""
    fill = Filler(store)
    inner = await fill.path("inner")
    outer = await fill.path("outer", inner.path)
    await fill.index_of(await fill.image("image", ["shared", "own"]))
    await fill.image("snapshotter", ["shared"], closure=[inner.path, outer.path], snapshotter=True)
    await fill.attribute_index("index")
    steps = 0

    async def remove(some: Sequence[Stored]) -> None:
        nonlocal steps
        for one in some:
            await store.delete(one.key)
            steps += 1
            assert (await check(store, decompress, ignore)).findings == [], one.key

    one = sweep._Sweep(store, RULES, time.time() + 40 * DAY, ignore)
    await one.mark()
    await one.sweep(remove)
    assert steps > 30
    assert await names(store) == {keys.USAGE_BEGIN}


async def test_what_is_strange_is_left_alone(store: ObjectStore) -> None:
    strange = [
        "records/newer/aa/aa.json",
        "blobs/sha256/zz/zz",
        "README",
        "secrets/key",
        "a/b.narinfo",
    ]
    for name in strange:
        await store.put(name, b"?")
    assert not (await swept(store, 400)).removed
    assert await names(store) == {*strange, keys.USAGE_BEGIN}


async def test_damage_stops_nothing(store: ObjectStore) -> None:
    image = await Filler(store).image("image", ["layer"])
    for kind, key in (("image", image.key), ("layer", key_of("layer"))):
        await store.put(keys.record(kind, key), b'{"manifest": [')
    await store.put(f"{store_path('x').hash_part}.narinfo", b"StorePath: ?\n")
    await store.put(keys.record("index", key_of("index")), b"[]")
    await swept(store, 20)
    await swept(store, 40)
    assert await names(store) == {keys.USAGE_BEGIN}


async def test_unused_is_known_only_from_when_uses_are_written(tmp_path: Path) -> None:
    store = ObjectStore(f"file://{tmp_path}")
    await Filler(store).image("image")
    before = await names(store)
    _age(tmp_path, 100 * DAY)
    for _ in range(2):
        report = await sweep.plan(store, RULES, ignore)
        assert not report.removed
        assert 30.9 * DAY < report.too_early_seconds <= 31 * DAY
        assert await names(store) == before
    await store.put(keys.USAGE_BEGIN, b"")
    assert (await sweep.plan(store, RULES, ignore)).too_early_seconds
    _age(tmp_path / keys.USAGE_BEGIN, 40 * DAY)
    assert (await sweep.plan(store, RULES, ignore)).removed.total() == len(before)
    assert await names(store) == {*before, keys.USAGE_BEGIN}


def _age(path: Path, seconds: float) -> None:
    for file in [path, *path.rglob("*")]:
        os.utime(file, (time.time() - seconds,) * 2)


# A sweep that gives no sign of life for its pace gives up: nothing of it may be held up that long.
QUICK = Rules(unused_seconds=30 * DAY, grace_seconds=0.1, imprecision_seconds=DAY, pace_seconds=60)


async def test_used_or_made_while_a_sweep_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the real thing, with a server beside it that noticed nothing yet."""
    noticed = asyncio.Event()
    monkeypatch.setattr(Hold, "wait_for_servers", lambda _: noticed.wait())
    store = ObjectStore(f"file://{tmp_path}")
    fill = Filler(store)
    used, unused = await fill.image("used"), await fill.image("unused")
    (tmp_path / "pins").mkdir()
    (tmp_path / "pins/x#1").write_bytes(b"{")  # left by a killed process
    await store.put(keys.USAGE_BEGIN, b"")
    _age(tmp_path, 100 * DAY)
    uses = StoredUses(store, Sweeps(store, 0.1), DAY, DAY)
    begun = asyncio.Event()
    collecting = asyncio.ensure_future(sweep.collect(store, QUICK, lambda line: begun.set()))
    async with uses.running():
        await begun.wait()
        noted = {use(UseKind.IMAGE, used.key), manifest(used)}
        await uses.note(*noted)
        made = await fill.image("made")
        await until(lambda: not uses.trusted() and uses._written >= noted)
        noticed.set()
        report = await collecting
    left = await names(store)
    assert set(used.objects[:2]) | {used.objects[3]} <= left  # its resolution can be found out again
    assert set(made.objects) <= left
    assert not set(unused.objects) & left
    assert report.removed["image"] == 1
    assert not (tmp_path / "pins/x#1").exists()
    assert Marker.parse(await store.get(keys.SWEEP) or b"").state is State.DONE


async def test_two_sweeps_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nixery_snap.object_store.sweeps._LEAD_SECONDS", 0.1)
    store = ObjectStore(f"file://{tmp_path}")
    await Filler(store).image("image")
    await store.put(keys.USAGE_BEGIN, b"")
    _age(tmp_path, 100 * DAY)
    results = await asyncio.gather(
        *(sweep.collect(store, replace(QUICK, pace_seconds=2), ignore) for _ in range(3)),
        return_exceptions=True,
    )
    done = [one for one in results if isinstance(one, Report)]
    assert done
    assert all(isinstance(one, Report | StorageError) for one in results)
    assert await names(store) == {keys.USAGE_BEGIN, keys.SWEEP}
