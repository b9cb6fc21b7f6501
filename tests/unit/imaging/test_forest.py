import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nixery_snap.imaging.forest import (
    Conflict,
    File,
    Folder,
    ForestNode,
    Link,
    add_rootfs_extras,
    build_forest,
    forest_entries,
)
from nixery_snap.imaging.resolver import Resolver
from nixery_snap.nix.store_path import StorePath
from nixery_snap.oci.tar import EntryType
from tests.unit.stores import FileStore, Run, To, Tree


@pytest.fixture
def store(tmp_path: Path) -> FileStore:
    return FileStore(tmp_path)


async def forest_of(store: FileStore, *outputs: StorePath) -> Folder:
    return (await build_forest(Resolver(store.contents, store.closure), outputs))[0]


def flat(folder: Folder, prefix: str = "") -> dict[str, str]:
    """Every leaf of a forest; a folder without children is one."""
    found: dict[str, str] = {}
    for name, node in folder.children.items():
        match node:
            case Link(target):
                found[prefix + name] = target
            case File(content):
                found[prefix + name] = repr(content)
            case Folder(children):
                found.update(flat(node, f"{prefix}{name}/") if children else {f"{prefix}{name}/": ""})
    return found


async def test_one_package(store: FileStore) -> None:
    path = store.add("p", {"bin": {"tool": Run()}, "share": {"doc": {"deep": {"f": b""}}}, "README": b""})
    assert flat(await forest_of(store, path)) == {
        "bin/tool": f"{path}/bin/tool",
        "share/doc": f"{path}/share/doc",
        "README": f"{path}/README",
    }


async def test_first_level_is_always_a_real_directory(store: FileStore) -> None:
    other = store.add("other", {"bin": {"tool": Run()}})
    path = store.add("p", {"bin": To(f"{other}/bin"), "empty": {}, "lib64": To("lib"), "lib": {"l": b""}})
    assert flat(await forest_of(store, path)) == {
        "bin/tool": f"{other}/bin/tool",
        "empty/": "",
        "lib/l": f"{path}/lib/l",
        "lib64/l": f"{path}/lib/l",
    }


async def test_directories_of_several_packages_are_merged_at_every_depth(store: FileStore) -> None:
    one = store.add("one", {"share": {"man": {"man1": {"one.1": b""}}, "one": {"x": b""}}})
    two = store.add("two", {"share": {"man": {"man1": {"two.1": b""}, "man5": {}}}})
    forest, conflicts = await build_forest(Resolver(store.contents, store.closure), (one, two))
    assert flat(forest) == {
        "share/man/man1/one.1": f"{one}/share/man/man1/one.1",
        "share/man/man1/two.1": f"{two}/share/man/man1/two.1",
        "share/man/man5": f"{two}/share/man/man5",
        "share/one": f"{one}/share/one",
    }
    assert conflicts == []


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (b"1", b"2"),
        (b"1", To("nowhere")),
        (To("nowhere"), b"2"),
        (b"1", {"inside": b""}),
        ({"inside": b""}, b"2"),
    ],
)
async def test_the_first_wins_a_conflict(store: FileStore, first: Tree, second: Tree) -> None:
    one = store.add("one", {"bin": {"tool": first}})
    two = store.add("two", {"bin": {"tool": second}})
    for winner, loser in ((one, two), (two, one)):
        forest, conflicts = await build_forest(Resolver(store.contents, store.closure), (winner, loser))
        assert conflicts == [Conflict("/bin/tool", f"{winner}/bin/tool", f"{loser}/bin/tool")]
        assert all(target.startswith(str(winner)) for target in flat(forest).values())


async def test_conflict_at_the_first_level(store: FileStore) -> None:
    one = store.add("one", {"bin": b"a file"})
    two = store.add("two", {"bin": {"tool": Run()}})
    assert flat(await forest_of(store, one, two)) == {"bin": f"{one}/bin"}
    assert flat(await forest_of(store, two, one)) == {"bin/tool": f"{two}/bin/tool"}


async def test_a_third_package_joins_the_winners_directory(store: FileStore) -> None:
    one = store.add("one", {"share": {"x": {"1": b""}}})
    two = store.add("two", {"share": {"x": b"file"}})
    three = store.add("three", {"share": {"x": {"3": b""}}})
    forest, conflicts = await build_forest(Resolver(store.contents, store.closure), (one, two, three))
    assert flat(forest) == {"share/x/1": f"{one}/share/x/1", "share/x/3": f"{three}/share/x/3"}
    assert conflicts == [Conflict("/share/x", f"{one}/share/x", f"{two}/share/x")]


async def test_the_same_directory_by_two_ways_is_no_conflict(store: FileStore) -> None:
    real = store.add("real", {"share": {"x": {"f": b""}}})
    one = store.add("one", {"share": To(f"{real}/share")})
    two = store.add("two", {"share": {"x": To(f"{real}/share/x")}})
    forest, conflicts = await build_forest(Resolver(store.contents, store.closure), (one, two, real))
    assert flat(forest)["share/x"].startswith("/nix/store/")
    assert conflicts == []


async def test_the_store_is_never_shadowed(store: FileStore) -> None:
    one = store.add("one", {"nix": {"store": {"x": b""}}, "bin": {"a": b""}})
    two = store.add("two", {"nix": To("/etc")})
    assert flat(await forest_of(store, one, two)) == {"bin/a": f"{one}/bin/a"}
    assert flat(await forest_of(store, two)) == {}


async def test_outputs_that_are_no_directories(store: FileStore) -> None:
    package = store.add("package", {"bin": {"tool": Run()}})
    outputs = (
        store.add("file", b"x"),
        store.add("dangling", To("/etc")),
        store.add("link", To(str(package))),
        package,
    )
    assert flat(await forest_of(store, *outputs)) == {"bin/tool": f"{package}/bin/tool"}
    link_to_bin = store.add("link-to-bin", To(f"{package}/bin"))
    assert flat(await forest_of(store, link_to_bin)) == {"tool": f"{package}/bin/tool"}


async def test_directories_that_contain_themselves(store: FileStore) -> None:
    # as ncurses' include/ncurses -> .
    one = store.add("one", {"include": {"ncurses": To("."), "one.h": b""}})
    two = store.add("two", {"include": {"ncurses": To("."), "two.h": b""}})
    found = flat(await forest_of(store, one, two))
    assert found["include/one.h"] == f"{one}/include/one.h"
    assert found["include/two.h"] == f"{two}/include/two.h"


# --- extras


def extended(forest: Folder) -> dict[str, ForestNode]:
    add_rootfs_extras(forest)
    return forest.children


def test_extras_of_an_empty_image() -> None:
    found = extended(Folder())
    assert found["tmp"] == Folder(mode=0o1777)
    assert found["root"] == Folder(mode=0o700)
    etc = found["etc"]
    assert isinstance(etc, Folder)
    assert set(etc.children) == {"passwd", "group"}
    for name, file in etc.children.items():
        assert isinstance(file, File)
        lines = file.content.decode().splitlines()
        assert {line.split(":")[0] for line in lines} == {"root", "nobody"}, name
        assert {len(line.split(":")) for line in lines} == {7 if name == "passwd" else 4}
    assert "usr" not in found


async def test_usr_bin_env_only_when_it_resolves(store: FileStore) -> None:
    path = store.add("p", {"bin": {"env": Run()}})
    forest = await forest_of(store, path)
    add_rootfs_extras(forest)
    assert forest.find("usr/bin/env") == Link("/bin/env")
    without = await forest_of(store, store.add("q", {"bin": {"tool": Run()}}))
    add_rootfs_extras(without)
    assert without.find("usr") is None


async def test_what_a_package_brings_stays(store: FileStore) -> None:
    path = store.add(
        "p",
        {
            "etc": {"passwd": b"", "group": To("passwd")},
            "root": {"profile": b""},
            "usr": {"bin": {"env": Run(), "x": Run()}},
            "bin": {"env": Run()},
        },
    )
    forest = await forest_of(store, path)
    before = flat(forest)
    add_rootfs_extras(forest)
    assert flat(forest) == before | {"tmp/": ""}


async def test_usr_bin_that_is_a_link_stays(store: FileStore) -> None:
    path = store.add("p", {"usr": {"bin": To("../bin")}, "bin": {"env": Run()}})
    forest = await forest_of(store, path)
    add_rootfs_extras(forest)
    assert forest.find("usr/bin") == Link(f"{path}/usr/bin")


@pytest.mark.parametrize("odd", [b"file", To("nowhere"), To("/etc")])
@pytest.mark.parametrize("name", ["tmp", "etc", "root", "usr", "bin"])
async def test_a_package_that_brings_something_else(store: FileStore, name: str, odd: Tree) -> None:
    forest = await forest_of(store, store.add("p", {name: odd}))
    add_rootfs_extras(forest)
    assert forest.children["tmp"] == Folder(mode=0o1777)
    # Runtimes write resolv.conf and hosts there.
    assert isinstance(forest.find("etc/passwd"), File)


def test_tmp_is_open_to_all_whatever_is_in_it() -> None:
    inside = Link("/nix/store/x")
    assert extended(Folder({"tmp": Folder({"x": inside})}))["tmp"] == Folder({"x": inside}, mode=0o1777)


# --- entries and folders

names = st.text(min_size=1, max_size=3).filter(
    lambda name: "/" not in name and "\0" not in name
) | st.sampled_from(["a", "a-", "a.", "a b", "a0", "é", "\udcff"])
leaves: st.SearchStrategy[ForestNode] = st.one_of(
    st.just("/nix/store/x").map(Link), st.binary(max_size=5).map(File), st.builds(Folder)
)
forests = st.recursive(
    leaves, lambda children: st.dictionaries(names, children, max_size=4).map(Folder), max_leaves=12
).filter(lambda node: isinstance(node, Folder))


def encodable(check: Callable[[], None]) -> None:
    try:
        check()
    except UnicodeEncodeError:  # lone surrogates that no file name gives
        return


@given(forests)
def test_entries_are_sorted_and_complete(forest: Folder) -> None:
    def check() -> None:
        entries = list(forest_entries(forest))
        listed = [entry.name for entry, _ in entries]
        assert listed == sorted(listed, key=lambda name: name.split(b"/"))
        assert len(set(listed)) == len(listed)
        kinds = {Link: EntryType.SYMLINK, File: EntryType.REGULAR, Folder: EntryType.DIRECTORY}
        for entry, chunks in entries:
            node = forest.find(os.fsdecode(entry.name))
            assert node is not None
            assert entry.type is kinds[type(node)]
            assert len(b"".join(chunks)) == entry.size_bytes
            parent = entry.name.rpartition(b"/")[0]
            assert not parent or parent in listed[: listed.index(entry.name)]
        leaves = [entry for entry, _ in entries if entry.type is not EntryType.DIRECTORY]
        assert len(leaves) == sum(not name.endswith("/") for name in flat(forest))

    encodable(check)


def test_add_puts_nothing_over_what_is_there() -> None:
    folder = Folder({"file": File(b""), "dir": Folder()})
    assert not folder.add("file", Link("x"))
    assert not folder.add("file/below", Link("x"))
    assert not folder.add("dir", Link("x"))
    assert folder.add("dir/new/deep", Link("x"))
    assert folder.find("dir/new/deep") == Link("x")
    assert folder.find("dir/new/deep/er") is None
    assert folder.children["file"] == File(b"")
