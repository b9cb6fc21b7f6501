import asyncio
import os
from collections.abc import AsyncIterator, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from nixery_snap.errors import PathsMissing, SubstituterError
from nixery_snap.nix.file_tree import Directory, FileEntry, Node, Regular, Symlink
from nixery_snap.nix.path_info import PathInfo
from nixery_snap.nix.store_path import StorePath
from nixery_snap.nix_stores.combined import CombinedContents
from nixery_snap.nix_stores.local_store import StoreFiles
from nixery_snap.nix_stores.substituted_contents import SubstitutedContents
from nixery_snap.object_store.records import StoredRecords
from nixery_snap.object_store.store import ObjectStore
from nixery_snap.ports import StoreContents
from tests.contract.conftest import BUILT, substituters_of
from tests.integration.caches import CacheDirectory
from tests.integration.nixtools import ChrootStore, Entry, tree_of
from tests.unit.stores import info

ABSENT = StorePath("0" * 32, "absent")


@dataclass(frozen=True)
class Case:
    """Contents, and the path infos that come from the same place."""

    contents: StoreContents
    infos: Mapping[StorePath, PathInfo]
    origin: str = ""

    def info(self, path: StorePath) -> PathInfo:
        return self.infos.get(path) or replace(info(path), origin=self.origin)


@pytest.fixture(params=["files", "listings", "NARs", "files and listings"])
async def case(
    request: pytest.FixtureRequest, prepared: ChrootStore, published: CacheDirectory, tmp_path: Path
) -> AsyncIterator[Case]:
    files = StoreFiles(prepared.root)
    cache = published
    if request.param == "NARs":
        cache = published.copy(tmp_path / "cache")
        for listing in cache.root.glob("*.ls"):
            listing.unlink()
    substituters = substituters_of(cache)
    records = StoredRecords(ObjectStore("memory://"), 1024)
    substituted = SubstitutedContents(substituters, records, asyncio.get_running_loop())
    if request.param == "files":
        yield Case(files, {})
    else:
        infos = await substituters.path_infos(list(map(StorePath.parse, prepared.all_paths())))
        [origin] = {found.origin for found in infos.values()}
        if request.param == "files and listings":
            every_other = dict(sorted(infos.items())[::2])
            yield Case(CombinedContents(files, substituted), every_other)
        else:
            yield Case(substituted, infos, origin)
    await substituters.close()


@pytest.fixture
def paths(prepared: ChrootStore) -> dict[str, StorePath]:
    installed = prepared.installed(*(tuple(name.split(".")) for name in BUILT))
    return {name: StorePath.parse(found[0]) for name, found in installed.items()}


async def test_roots(case: Case, paths: dict[str, StorePath]) -> None:
    found = await case.contents.roots([case.info(path) for path in paths.values()])
    assert found.keys() == set(paths.values())
    roots = {name: found[path] for name, path in paths.items()}
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


def read(entries: Iterator[FileEntry]) -> tuple[list[bytes], dict[bytes, Entry]]:
    """Names in their order, and everything."""
    listed, found = [], {}
    for entry in entries:
        listed.append(entry.name)
        [(_, shown)] = flat(entry.node).items()
        content = b"".join(entry.content)
        found[entry.name] = Entry(shown.kind, shown.content if shown.kind == "symlink" else content)
    return listed, found


async def test_contents_may_be_passed_over(case: Case, paths: dict[str, StorePath]) -> None:
    def names() -> list[bytes]:
        return [entry.name for entry in case.contents.entries(case.info(paths["hello"]))]

    assert await asyncio.to_thread(names) == [b"", b"bin", b"bin/hello"]


async def test_entries_may_be_given_up(case: Case, paths: dict[str, StorePath]) -> None:
    def first() -> bytes:
        entries = case.contents.entries(case.info(paths["weirdNames"]))
        name = next(entries).name
        if isinstance(entries, Generator):
            entries.close()
        return name

    assert await asyncio.to_thread(first) == b""


async def test_trees_and_entries_are_what_is_on_disk(
    prepared: ChrootStore, case: Case, paths: dict[str, StorePath]
) -> None:
    for path in map(StorePath.parse, prepared.all_paths()):
        real = tree_of(prepared.physical(str(path)))
        sized = {
            name: Entry(entry.kind, b"%d" % len(entry.content))
            if "r" in entry.kind[:1] or entry.kind == "executable"
            else entry
            for name, entry in real.items()
        }
        assert flat(await case.contents.file_tree(case.info(path))) == sized
        listed, found = await asyncio.to_thread(read, case.contents.entries(case.info(path)))
        assert found == real
        assert listed == sorted(real, key=lambda name: name.split(b"/") if name else [])
    assert len(paths) == len(BUILT)


async def test_absent(case: Case) -> None:
    absent = case.info(ABSENT)
    with pytest.raises((PathsMissing, SubstituterError)):
        await case.contents.roots([absent])
    with pytest.raises((PathsMissing, SubstituterError)):
        await case.contents.file_tree(absent)
    with pytest.raises((PathsMissing, SubstituterError)):
        await asyncio.to_thread(list, case.contents.entries(absent))
