import asyncio
import re
from collections.abc import Callable

import pytest

from nixery_snap.nix_stores.decompression import decompress
from nixery_snap.object_store import keys
from nixery_snap.object_store.check import Checked, check, remove
from nixery_snap.object_store.store import ObjectStore
from nixery_snap.oci import canonical_json
from nixery_snap.oci.digest import Digest
from tests.stored import Filler, StoredImage, key_of, names, store_path, value_of


@pytest.fixture
def store() -> ObjectStore:
    return ObjectStore("memory://")


class Filled:
    """A store with two images of each kind that share something, and names for what there is."""

    def __init__(self, store: ObjectStore) -> None:
        self.store, self.fill = store, Filler(store)

    async def make(self) -> None:
        self.inner = (await self.fill.path("inner")).path
        self.outer = (await self.fill.path("outer", self.inner)).path
        self.classic = await self.fill.image("classic", ["shared", "own"], [self.outer])
        self.other = await self.fill.image("other", ["shared"])
        self.snapshotter = await self.fill.image("snap", closure=[self.outer, self.inner], snapshotter=True)
        self.index = await self.fill.index_of(self.other)
        self.attributes = await self.fill.attribute_index("index")
        await self.store.put("pins/x.json", b'{"revision":"1"}')
        await self.store.put("nix-cache-info", b"StoreDir: /nix/store\n")
        await self.store.put("records/signing-key/in/in-use.json", b"?")


@pytest.fixture
async def filled(store: ObjectStore) -> Filled:
    made = Filled(store)
    await made.make()
    return made


async def checked(store: ObjectStore) -> Checked:
    said: list[str] = []
    found = await check(store, decompress, said.append)
    assert said
    return found


async def test_a_sound_store(store: ObjectStore, filled: Filled) -> None:
    found = await checked(store)
    assert found.findings == []
    assert found.objects["image record"] == found.objects["narinfo"] == found.objects["manifest"] == 3
    assert found.objects["index"] == 1
    assert found.bytes["blob"] > 1000
    assert (await checked(ObjectStore("memory://"))).objects.total() == 0


def manifest(image: StoredImage) -> str:
    return keys.blob(image.digest)


def record(image: StoredImage) -> str:
    return keys.record("image", image.key)


def layer(image: StoredImage, number: int) -> str:
    return keys.blob(image.layers[number])


def records_of(name: str) -> set[str]:
    return {keys.record(kind, key_of(name)) for kind in ("layer", "member")}


def narinfo(filled: Filled) -> str:
    return f"{filled.inner.hash_part}.narinfo"


# What is broken, and what there is to remove: that, and what names it.
Case = tuple[Callable[[Filled], str], Callable[[Filled], set[str]]]
CASES: dict[str, Case] = {
    "own layer": (
        lambda f: layer(f.classic, 1),
        lambda f: {manifest(f.classic), record(f.classic), *records_of("own")},
    ),
    "shared layer": (
        lambda f: layer(f.classic, 0),
        lambda f: {
            *map(manifest, (f.classic, f.other)),
            *map(record, (f.classic, f.other)),
            *records_of("shared"),
            keys.blob(f.index),
        },
    ),
    "config": (lambda f: f.classic.objects[0], lambda f: {manifest(f.classic), record(f.classic)}),
    "manifest": (lambda f: manifest(f.other), lambda f: {record(f.other), keys.blob(f.index)}),
    "index": (lambda f: keys.blob(f.index), lambda f: set()),
    "part of an attribute index": (
        lambda f: keys.blob(Digest.of(b"part of index")),
        lambda f: {f.attributes, keys.record("index-part", key_of("index"))},
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("how", ["changed", "empty", "missing"])
async def test_a_broken_blob(store: ObjectStore, filled: Filled, case: str, how: str) -> None:
    name, others = CASES[case]
    content = await store.get(name(filled))
    assert content
    if how == "missing":
        await store.delete(name(filled))
    else:
        await store.put(name(filled), b"" if how == "empty" else content[:-1] + bytes([content[-1] ^ 1]))
    expected = others(filled) | ({name(filled)} if how != "missing" else set())
    found = await checked(store)
    assert {finding.key for finding in found.findings} == expected
    await repaired(store, found, expected)


async def repaired(store: ObjectStore, found: Checked, expected: set[str]) -> None:
    """Nothing whole goes, and whoever looks while it goes on sees nothing that names what is gone."""
    before = await names(store)
    for number in range(len(found.findings)):
        await remove(store, found.findings[number : number + 1])
        if number < len(found.findings) - 1:
            left = {finding.key for finding in (await checked(store)).findings}
            assert left == {finding.key for finding in found.findings[number + 1 :]}
    assert before - await names(store) == expected
    assert (await checked(store)).findings == []


async def test_a_broken_nar(store: ObjectStore, filled: Filled) -> None:
    """No node could fetch the image: it is made again, and publishes the path again."""
    (nar,) = [name for name in await names(store, "nar") if b"NAR of inner" in (await store.get(name) or b"")]
    await store.put(nar, b"something else")
    found = await checked(store)
    expected = {nar, narinfo(filled), manifest(filled.snapshotter), record(filled.snapshotter)}
    assert {finding.key for finding in found.findings} == expected
    await repaired(store, found, expected)


async def test_a_wrong_narinfo_takes_no_whole_nar_with_it(store: ObjectStore, filled: Filled) -> None:
    """Paths of the same content share a NAR: that of another one still needs it."""
    name = narinfo(filled)
    content = (await store.get(name) or b"").decode()
    other = f"{store_path('twin').hash_part}.narinfo"
    await store.put(other, content.replace(str(filled.inner), str(store_path("twin"))).encode())
    assert (await checked(store)).findings == []
    await store.put(name, re.sub("(?m)^NarSize: .*$", "NarSize: 1", content).encode())
    found = await checked(store)
    await repaired(store, found, {name, manifest(filled.snapshotter), record(filled.snapshotter)})


async def test_a_missing_nar(store: ObjectStore, filled: Filled) -> None:
    (nar,) = [name for name in await names(store, "nar") if b"NAR of inner" in (await store.get(name) or b"")]
    await store.delete(nar)
    found = await checked(store)
    await repaired(store, found, {narinfo(filled), manifest(filled.snapshotter), record(filled.snapshotter)})


async def test_a_nar_that_nothing_names(store: ObjectStore, filled: Filled) -> None:
    await store.delete(f"{(await filled.fill.path('alone')).path.hash_part}.narinfo")
    assert (await checked(store)).findings == []
    (nar,) = [name for name in await names(store, "nar") if b"NAR of alone" in (await store.get(name) or b"")]
    await store.put(nar, b"something else")
    await repaired(store, await checked(store), {nar})


async def test_a_missing_closure_info(store: ObjectStore, filled: Filled) -> None:
    content = await store.get(manifest(filled.snapshotter))
    assert content
    (name,) = [
        name for name in await names(store) if b"-closure-info\n" in (await store.get(name) or b"")[:100]
    ]
    await store.delete(name)
    await repaired(store, await checked(store), {manifest(filled.snapshotter), record(filled.snapshotter)})


@pytest.mark.parametrize("kind", ["image", "layer", "member", "recipe", "index", "index-part", "resolution"])
@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[1]"], ids=["empty", "cut", "binary", "list"])
async def test_a_broken_record(store: ObjectStore, filled: Filled, kind: str, content: bytes) -> None:
    name = sorted(await names(store, f"records/{kind}"))[0]
    await store.put(name, content)
    found = await checked(store)
    sound = kind == "resolution" and content == b"[1]"  # its form is whoever's who reads it
    await repaired(store, found, set() if sound else {name})


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("layer", {"size": 1}),
        ("member", {"start": 10**6}),
        ("layer", {"digest": "sha256:" + "0" * 64}),
        ("layer", {"digest": "sha1:1"}),
    ],
    ids=["size", "place", "digest", "form"],
)
async def test_a_record_that_is_wrong(
    store: ObjectStore, filled: Filled, kind: str, change: dict[str, object]
) -> None:
    name = keys.record(kind, key_of("own"))
    await store.put(name, canonical_json.encode({**await value_of(store, name), **change}))
    await repaired(store, await checked(store), {name})


@pytest.mark.parametrize("content", [b"", b"StorePath: x\n"])
async def test_a_broken_narinfo(store: ObjectStore, filled: Filled, content: bytes) -> None:
    name = f"{(await filled.fill.path('alone')).path.hash_part}.narinfo"
    await store.put(name, content)
    await repaired(store, await checked(store), {name})


async def test_a_narinfo_of_another_path(store: ObjectStore, filled: Filled) -> None:
    content = await store.get(narinfo(filled))
    assert content
    name = f"{store_path('x').hash_part}.narinfo"
    await store.put(name, content)
    found = await checked(store)
    assert "it is of /nix/store" in found.findings[0].problem
    await repaired(store, found, {name})


async def test_broken_listings_and_pins(store: ObjectStore, filled: Filled) -> None:
    names = {f"{filled.inner.hash_part}.ls", "pins/x.json"}
    for name in names:
        await store.put(name, b"{")
    await repaired(store, await checked(store), names)


async def test_a_config_with_another_diff_id(store: ObjectStore, filled: Filled) -> None:
    """Every digest is right, but the image would not unpack."""
    image = filled.other
    content = await value_of(store, manifest(image))
    config = await value_of(store, keys.blob(Digest.parse(content["config"]["digest"])))
    config["rootfs"]["diff_ids"] = ["sha256:" + "0" * 64]
    packed = canonical_json.encode(config)
    digest = await filled.fill.blob(packed)
    content["config"] |= {"digest": str(digest), "size": len(packed)}
    broken = keys.blob(await filled.fill.blob(canonical_json.encode(content)))
    found = await checked(store)
    assert "diff_id" in found.findings[0].problem
    await repaired(store, found, {broken})


async def test_beside_somebody_who_writes(store: ObjectStore, filled: Filled) -> None:
    """What is written meanwhile was not there when blobs were listed."""

    async def write() -> None:
        for number in range(20):
            await filled.fill.image(f"more {number}", [f"layer {number}"])
            await asyncio.sleep(0)

    found, _ = await asyncio.gather(checked(store), write())
    assert found.findings == []
