import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from nixery_snap.errors import StorageError
from nixery_snap.imaging.locate import find_closure
from nixery_snap.nix.store_path import StorePath
from nixery_snap.nix_stores.combined import CombinedPathInfos
from nixery_snap.nix_stores.local_store import StoreDatabase
from nixery_snap.nix_stores.path_info_command import LocalPathInfos, NixPathInfos
from nixery_snap.ports import PathInfoSource
from tests.contract.conftest import MakeNix, substituters_of
from tests.integration.caches import CacheDirectory
from tests.integration.nixtools import ChrootStore

ABSENT = StorePath("0" * 32, "absent")


@pytest.fixture(
    params=[
        "database",
        "command",
        "database or command",
        "command for a closed database",
        "substituters",
        "an empty store or substituters",
    ]
)
async def source(
    request: pytest.FixtureRequest,
    prepared: ChrootStore,
    published: CacheDirectory,
    make_nix: MakeNix,
    tmp_path: Path,
) -> AsyncIterator[PathInfoSource]:
    nix = make_nix(prepared)
    database, command = StoreDatabase(nix.store.database), NixPathInfos(nix)
    substituters = substituters_of(published)
    empty = ChrootStore.create(tmp_path / "empty")
    sources: dict[str, PathInfoSource] = {
        "database": database,
        "command": command,
        "database or command": LocalPathInfos(database, command),
        "command for a closed database": LocalPathInfos(StoreDatabase(tmp_path / "absent.sqlite"), command),
        "substituters": substituters,
        "an empty store or substituters": CombinedPathInfos(
            StoreDatabase(make_nix(empty).store.database), substituters
        ),
    }
    yield sources[request.param]
    await substituters.close()


def path_of(store: ChrootStore, *attribute: str) -> StorePath:
    [[path]] = store.installed(attribute).values()
    return StorePath.parse(path)


def is_drv(path: StorePath) -> bool:
    return path.name.endswith(".drv")


async def test_what_nix_says(prepared: ChrootStore, source: PathInfoSource) -> None:
    paths = [path for path in sorted(map(StorePath.parse, prepared.all_paths())) if not is_drv(path)]
    infos = await source.path_infos(paths)
    assert infos.keys() == set(paths)
    asked = prepared.run("nix-store", "-q", "--hash", *map(str, paths)).split()
    sizes = prepared.run("nix-store", "-q", "--size", *map(str, paths)).split()
    for path, nar_hash, nar_size in zip(paths, asked, sizes, strict=True):
        assert (infos[path].path, infos[path].nar_hash, infos[path].nar_size) == (
            path,
            nar_hash,
            int(nar_size),
        )
        assert infos[path].references == tuple(sorted(infos[path].references))
    glibc = path_of(prepared, "glibc")
    assert glibc in infos[glibc].references, "it refers to itself"
    for path in (glibc, path_of(prepared, "curl"), path_of(prepared, "emptyDir")):
        shown = prepared.run("nix-store", "-q", "--references", str(path)).split()
        assert set(map(str, infos[path].references)) == set(shown)


async def test_derivations_are_paths_too(prepared: ChrootStore, source: PathInfoSource) -> None:
    paths = [path for path in map(StorePath.parse, prepared.all_paths()) if is_drv(path)]
    assert paths
    infos = await source.path_infos(paths)
    assert infos.keys() >= set(paths)


async def test_closures(prepared: ChrootStore, source: PathInfoSource) -> None:
    curl = path_of(prepared, "curl")
    closure = await find_closure(source, [curl])
    assert list(map(str, closure)) == sorted(prepared.closure([str(curl)]))


async def test_unknown_paths_are_left_out(prepared: ChrootStore, source: PathInfoSource) -> None:
    hello = path_of(prepared, "hello")
    assert await source.path_infos([ABSENT]) == {}
    infos = await source.path_infos([ABSENT, hello])
    assert hello in infos
    assert ABSENT not in infos


async def test_no_question_no_answer(source: PathInfoSource) -> None:
    assert await source.path_infos([]) == {}


@pytest.mark.parametrize("name", ["a b", "a%20b", "a#b", "a?b", "a%b"])
async def test_databases_in_directories_with_odd_names(
    prepared: ChrootStore, tmp_path: Path, name: str
) -> None:
    shutil.copytree(prepared.root / "nix/var/nix/db", tmp_path / name)
    hello = path_of(prepared, "hello")
    assert hello in await StoreDatabase(tmp_path / name / "db.sqlite").path_infos([hello])


async def test_a_database_that_is_none(tmp_path: Path) -> None:
    (tmp_path / "db.sqlite").write_bytes(b"junk" * 1000)
    for file in (tmp_path / "db.sqlite", tmp_path / "absent.sqlite"):
        with pytest.raises(StorageError):
            await StoreDatabase(file).path_infos([ABSENT])
    assert not (tmp_path / "absent.sqlite").exists()
