from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixery_snap.errors import BlobNotFound, ProblemKind, StorageError
from nixery_snap.evaluation.index import (
    Absent,
    Entry,
    Path,
    folded,
    index_key,
    pack,
    pack_entries,
    record_key,
    sort_key,
    unpack,
)
from nixery_snap.nix.attribute_path import AttributePath
from nixery_snap.oci import canonical_json
from nixery_snap.ports import Package, Pin
from tests.unit.evaluation.indexes import PIN, SYSTEM, Made, package, problem

# Few letters, so that spellings meet.
NAMES = st.text("aAbB_1É é.", min_size=1, max_size=3)
# A package by its outputs, a set by what is in it, anything else by None.
Tree = Mapping[str, "Tree | tuple[str, ...] | None"]
TREES = st.recursive(
    st.dictionaries(NAMES, st.lists(NAMES, max_size=2, unique=True).map(tuple) | st.none(), max_size=5),
    lambda below: st.dictionaries(NAMES, below | st.none(), max_size=5),
    max_leaves=25,
)


def entries(tree: Tree, path: Path = ()) -> Iterator[tuple[Entry, list[Entry]]]:
    """Each attribute with the entries of its outputs."""
    for name, value in tree.items():
        here = (*path, name)
        match value:
            case None:
                yield Entry(here, problem(here)), []
            case tuple():
                yield (
                    Entry(here, package(here)),
                    [Entry((*here, output), package((*here, output), output=output)) for output in value],
                )
            case _:
                yield Entry(here, problem(here), is_whole=True), []
                yield from entries(value, here)


def expected(tree: Tree, name: Path) -> Path | Absent | None:
    """resolve.nix once more, on the plain tree: what `name` means."""
    path: Path = ()
    here: Tree | tuple[str, ...] | None = tree
    for number, part in enumerate(name):
        if isinstance(here, tuple):
            is_output = part in here and number == len(name) - 1
            return (*path, part) if is_output else None
        if here is None:
            return None
        spellings = [part, f"_{part}"] if part[0] in "0123456789" else [part]
        exact = [spelling for spelling in spellings if spelling in here]
        same = exact or sorted(attribute for attribute in here if folded(attribute) in spellings)
        if not same:
            return Absent(path, part)
        path, here = (*path, same[0]), here[same[0]]
    return path


@given(
    TREES,
    st.lists(st.lists(NAMES, min_size=1, max_size=4).map(tuple), max_size=8),
    st.integers(1, 4),
    st.data(),
)
def test_lookup_is_that_of_a_plain_tree(
    tree: Tree, names: list[Path], per_part: int, data: st.DataObject
) -> None:
    found = list(entries(tree))
    outputs = [output for _, some in found for output in some]
    all_paths = [entry.path for entry, _ in found] + [output.path for output in outputs]
    if all_paths:
        names += data.draw(st.lists(st.sampled_from(all_paths), max_size=8))
    names += [tuple(folded(part).removeprefix("_") or "_" for part in name) for name in names]

    async def look() -> None:
        index = await Made().add([entry for entry, _ in found], outputs=outputs, per_part=per_part)
        by_path = {entry.path: entry for entry in (*(entry for entry, _ in found), *outputs)}
        for name in names:
            wanted = expected(tree, name)
            result = await index.find(AttributePath(name))
            assert result == (by_path[wanted] if isinstance(wanted, tuple) else wanted), name
        assert {entry.path: entry async for entry in index.entries()} == by_path

    asyncio.run(look())


async def test_sets_that_fold_alike_are_not_mixed_up() -> None:
    paths: list[Path] = [("Set", "x"), ("sEt", "x"), ("sEt", "y"), ("SET", "Z"), ("SET", "z")]
    whole = [Entry((name,), problem((name,)), is_whole=True) for name in ("SET", "Set", "sEt")]
    index = await Made().add([*whole, *(Entry(path, package(path)) for path in paths)], per_part=1)
    for name, meant in (
        (("Set", "x"), ("Set", "x")),
        (("sEt", "x"), ("sEt", "x")),
        (("set",), ("SET",)),
        (("set", "z"), ("SET", "z")),
        (("SET", "Z"), ("SET", "Z")),
    ):
        entry = await index.find(AttributePath(name))
        assert isinstance(entry, Entry)
        assert entry.path == meant
    # As in Nix: the set is chosen before it is looked into.
    assert await index.find(AttributePath(("set", "x"))) == Absent(("SET",), "x")
    assert await index.find(AttributePath(("Set", "y"))) == Absent(("Set",), "y")


def test_what_a_part_says_survives() -> None:
    made = [
        Entry(("a",), package(("a",), "a-1", "prög")),
        Entry(("B", "c d.e"), package(("B", "c d.e"))),
        Entry(("x",), problem(("x",), ProblemKind.UNFREE)),
        Entry(("y",), problem(("y",)), is_whole=True),
    ]
    lines = unpack(pack_entries(made))
    assert [line.split(b"\t\t")[0].decode() for line in lines] == [sort_key(entry.path) for entry in made]
    assert pack_entries(made) == pack_entries(made)
    assert unpack(pack([])) == []


def test_folding_knows_ascii_alone() -> None:
    assert folded("ÀaZ_É") == "Àaz_É"
    assert sort_key(("Foo",)) < sort_key(("foo", "Bar")) < sort_key(("foo bar",)) < sort_key(("foo-bar",))


def test_keys() -> None:
    keys = {
        index_key(Pin("a"), SYSTEM),
        index_key(Pin("b"), SYSTEM),
        index_key(Pin("a"), "aarch64-linux"),
        index_key(Pin("a", variant="v"), SYSTEM),
        record_key("a", [["x"]]),
        record_key("a", [["x", "y"]]),
    }
    assert len(keys) == 6
    assert index_key(Pin("a", "some url"), SYSTEM) in keys


@pytest.mark.parametrize("content", [b"", b"no zstd", pack([b"a" * 100])[:-8]])
def test_damaged_parts(content: bytes) -> None:
    with pytest.raises(StorageError, match="part of an index"):
        unpack(content)


def test_parts_that_explode() -> None:
    with pytest.raises(StorageError, match="larger than"):
        unpack(pack([bytes(65 * 1024 * 1024)]))


async def test_only_what_is_asked_for_is_fetched() -> None:
    made = Made()
    index = await made.add([Entry((f"p{n:03}",), package((f"p{n:03}",))) for n in range(100)], per_part=10)
    parts = [digest async for digest, _ in made.objects.list("blobs/")]
    assert len(parts) == 11
    for digest in parts:
        if not any(digest.endswith(part.removeprefix("sha256:")) for _, part in index._levels[0][4:5]):
            await made.objects.delete(digest)
    for number in range(40, 50):
        entry = await index.find(AttributePath((f"p{number:03}",)))
        assert isinstance(entry, Entry)
        assert isinstance(entry.result, Package)
    with pytest.raises(BlobNotFound):
        await index.find(AttributePath(("p050",)))
    # Parts that were read stay in memory.
    async for digest, _ in made.objects.list("blobs/"):
        await made.objects.delete(digest)
    assert isinstance(await index.find(AttributePath(("p041",))), Entry)


async def test_no_index() -> None:
    made = Made()
    await made.add([])
    assert await made.indexes.open(Pin("other"), SYSTEM) is None
    assert await made.indexes.open(Pin(PIN.revision, variant="x"), SYSTEM) is None
    assert await made.indexes.open(PIN, "aarch64-linux") is None
    empty = await made.indexes.open(PIN, SYSTEM)
    assert empty is not None
    assert await empty.find(AttributePath(("a", "b"))) == Absent((), "a")


async def test_text_that_is_none() -> None:
    index = await Made().add([Entry(("a",), package(("a",)))])
    assert await index.find(AttributePath(("\udc80",))) == Absent((), "\udc80")


def test_the_stored_form_is_json_of_its_own() -> None:
    [line] = unpack(pack_entries([Entry(("a",), package(("a",)))]))
    assert line == b"a\t\t" + canonical_json.encode(Entry(("a",), package(("a",))).to_json())
