import os

import pytest

from nixery_snap.errors import PathsMissing
from nixery_snap.nix.file_tree import Directory, Node, Regular, Symlink
from nixery_snap.nix.store_path import StorePath
from nixery_snap.nix_stores.local_store import StoreFiles
from nixery_snap.ports import StoreContents
from tests.contract.conftest import BUILT
from tests.integration.nixtools import ChrootStore, Entry, tree_of
from tests.unit.stores import info

ABSENT = StorePath("0" * 32, "absent")


@pytest.fixture
def contents(prepared: ChrootStore) -> StoreContents:
    return StoreFiles(prepared.root)


@pytest.fixture
def paths(prepared: ChrootStore) -> dict[str, StorePath]:
    installed = prepared.installed(*(tuple(name.split(".")) for name in BUILT))
    return {name: StorePath.parse(found[0]) for name, found in installed.items()}


async def test_roots(contents: StoreContents, paths: dict[str, StorePath]) -> None:
    roots = {name: await contents.root(info(path)) for name, path in paths.items()}
    assert roots["hello"] == roots["weirdNames"] == roots["emptyDir"] == Directory()
    assert roots["singleFile"] == Regular(len(b"just a file\n"))
    assert isinstance(roots["executableFile"], Regular)
    assert roots["executableFile"].executable
    assert roots["symlinkPath"] == Symlink(f"{paths['hello']}/bin/hello")


def flat(node: Node, name: bytes = b"") -> dict[bytes, Entry]:
    match node:
        case Symlink(target):
            return {name: Entry("symlink", os.fsencode(target))}
        case Regular(size_bytes, executable):
            return {name: Entry("executable" if executable else "regular", b"%d" % size_bytes)}
        case Directory(entries):
            found = {name: Entry("directory")}
            for child, below in entries.items():
                found |= flat(below, (name + b"/" if name else b"") + os.fsencode(child))
            return found


async def test_trees_and_entries_are_what_is_on_disk(
    prepared: ChrootStore, contents: StoreContents, paths: dict[str, StorePath]
) -> None:
    for path in map(StorePath.parse, prepared.all_paths()):
        real = tree_of(prepared.physical(str(path)))
        sized = {
            name: Entry(entry.kind, b"%d" % len(entry.content))
            if "r" in entry.kind[:1] or entry.kind == "executable"
            else entry
            for name, entry in real.items()
        }
        assert flat(await contents.file_tree(info(path))) == sized
        listed, found = [], {}
        for entry in contents.entries(info(path)):
            listed.append(entry.name)
            [(_, shown)] = flat(entry.node).items()
            content = b"".join(entry.content)
            found[entry.name] = Entry(shown.kind, shown.content if shown.kind == "symlink" else content)
        assert found == real
        assert listed == sorted(real, key=lambda name: name.split(b"/") if name else [])
    assert len(paths) == len(BUILT)


async def test_absent(contents: StoreContents) -> None:
    with pytest.raises(PathsMissing):
        await contents.root(info(ABSENT))
    with pytest.raises(PathsMissing):
        await contents.file_tree(info(ABSENT))
    with pytest.raises(PathsMissing):
        next(contents.entries(info(ABSENT)))
