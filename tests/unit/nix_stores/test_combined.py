import asyncio
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from nixery_snap.errors import PathsMissing, StorageError
from nixery_snap.nix.file_tree import Directory, Regular, Symlink
from nixery_snap.nix.path_info import PathInfo
from nixery_snap.nix.store_path import StorePath
from nixery_snap.nix_stores.combined import CombinedContents, CombinedPathInfos
from nixery_snap.nix_stores.substituted_contents import SubstitutedContents
from nixery_snap.nix_stores.substituters import Substituters
from nixery_snap.object_store.records import StoredRecords
from nixery_snap.object_store.store import ObjectStore
from tests.unit.nix_stores.caches import ScriptedCache, asking, cached, serving
from tests.unit.stores import FileStore, To, info, store_path

ONE, TWO, THREE = (store_path(name) for name in ("one", "two", "three"))
HELLO = cached("hello")


class Known:
    """Implements PathInfoSource; answers with more than was asked for."""

    def __init__(self, name: str, *paths: StorePath) -> None:
        self.infos = {path: replace(info(path), origin=name) for path in paths}
        self.asked: list[set[StorePath]] = []

    async def path_infos(self, paths: Collection[StorePath]) -> Mapping[StorePath, PathInfo]:
        self.asked.append(set(paths))
        return self.infos if self.infos.keys() & set(paths) else {}


async def origins(*sources: Known, paths: Collection[StorePath] = (ONE, TWO, THREE)) -> dict[str, str]:
    found = await CombinedPathInfos(*sources).path_infos(paths)
    return {path.name: info.origin for path, info in found.items()}


async def test_the_first_that_knows_a_path_counts() -> None:
    local, cache = Known("local", ONE), Known("cache", ONE, TWO)
    assert await origins(local, cache) == {"one": "local", "two": "cache"}
    assert (local.asked, cache.asked) == ([{ONE, TWO, THREE}], [{TWO, THREE}])


async def test_what_comes_unasked_does_not_replace_what_is_known() -> None:
    local, cache = Known("local", ONE, TWO), Known("cache", THREE, ONE)
    assert await origins(local, cache, paths=[ONE, THREE]) == {
        "one": "local",
        "two": "local",
        "three": "cache",
    }


async def test_nobody_is_asked_for_nothing() -> None:
    local, cache = Known("local", ONE), Known("cache")
    assert await origins(local, cache, paths=[ONE]) == {"one": "local"}
    assert cache.asked == []
    assert await origins(paths=[ONE]) == {}


async def test_a_source_that_fails_is_not_passed_over() -> None:
    """A local store that cannot be read must not look like an empty one."""

    class Broken(Known):
        async def path_infos(self, paths: Collection[StorePath]) -> Mapping[StorePath, PathInfo]:
            raise StorageError("the database is locked")

    with pytest.raises(StorageError):
        await origins(Broken("local"), Known("cache", ONE))


def names_of(contents: CombinedContents, info: PathInfo) -> list[bytes]:
    return [entry.name for entry in contents.entries(info)]


async def contents_of(store: FileStore, cache: ScriptedCache, paths: Collection[PathInfo]) -> object:
    async with asking(cache.url) as substituter:
        records = StoredRecords(ObjectStore("memory://"), 1 << 20)
        loop = asyncio.get_running_loop()
        substituted = SubstitutedContents(Substituters([substituter]), records, loop)
        contents = CombinedContents(store.contents, substituted)
        roots = await contents.roots(paths)
        trees = [await contents.file_tree(one) for one in paths]
        listed = [await asyncio.to_thread(names_of, contents, one) for one in paths]
        return [(roots[one.path], tree, names) for one, tree, names in zip(paths, trees, listed, strict=True)]


async def test_contents_come_from_where_the_path_info_came_from(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    # The same path is another thing here.
    mine = info(store.add("hello", b"12345"))
    link = info(store.add("link", To("x")))
    async with serving(HELLO) as cache:
        theirs = replace(HELLO.info, origin=cache.url)
        assert mine.path == theirs.path
        assert await contents_of(store, cache, [mine, link]) == [
            (Regular(5), Regular(5), [b""]),
            (Symlink("x"), Symlink("x"), [b""]),
        ]
        assert cache.asked == {}
        assert await contents_of(store, cache, [theirs, link]) == [
            (Directory(), HELLO.tree, [b"", b"bin", b"bin/run", b"bin/sh", b"large"]),
            (Symlink("x"), Symlink("x"), [b""]),
        ]
        assert await contents_of(store, cache, []) == []


async def test_a_path_that_is_gone(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    there = info(store.add("there", b""))
    async with serving(HELLO) as cache:
        for absent in (info(ONE), replace(info(ONE), origin=cache.url)):
            with pytest.raises(PathsMissing) as caught:
                await contents_of(store, cache, [there, absent])
            assert caught.value.paths == (str(ONE),)
