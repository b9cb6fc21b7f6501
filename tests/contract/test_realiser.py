import asyncio
import dataclasses
import os
import shutil
from pathlib import Path

import pytest

from nixery_snap.errors import RealisationFailed, RealisationTimedOut
from nixery_snap.nix_stores.command import NixCommand
from nixery_snap.nix_stores.realiser import NixRealiser
from nixery_snap.ports import Package, Realiser
from tests.contract.conftest import MakeNix, evaluated
from tests.integration.nixtools import ChrootStore


@pytest.fixture
def nix(own_store: ChrootStore, make_nix: MakeNix) -> NixCommand:
    return make_nix(own_store)


@pytest.fixture
def realiser(nix: NixCommand, tmp_path: Path) -> Realiser:
    (tmp_path / "roots").mkdir()
    return NixRealiser(nix, tmp_path / "roots", nix.store.uri, 60)


def silent(_line: str) -> None:
    pass


def are_there(store: ChrootStore, *packages: Package) -> list[bool]:
    return [
        os.path.lexists(store.physical(str(path)))
        for package in packages
        for path in package.outputs.values()
    ]


async def test_outputs_are_there_afterwards(
    own_store: ChrootStore, nix: NixCommand, realiser: Realiser, package_set: Path
) -> None:
    packages = await evaluated(nix, package_set, "git", "zlib", "zlib.dev", "dirLink")
    assert not all(are_there(own_store, *packages))
    lines: list[str] = []
    await realiser.realise("key", packages, lines.append)
    assert all(are_there(own_store, *packages))
    assert any("git-2.45" in line for line in lines)
    assert all(line.isprintable() for line in lines)
    lines.clear()
    await realiser.realise("key", packages, lines.append)
    assert lines == []


async def test_only_the_asked_outputs_need_be_there(
    own_store: ChrootStore, nix: NixCommand, realiser: Realiser, package_set: Path
) -> None:
    [package] = await evaluated(nix, package_set, "openssl")
    own_store.run("nix-store", "--gc")
    await evaluated(nix, package_set, "openssl")
    await realiser.realise("key", [package], silent)
    assert are_there(own_store, package) == [True]


async def test_kept_from_the_garbage_collector(
    own_store: ChrootStore, nix: NixCommand, realiser: Realiser, package_set: Path
) -> None:
    kept = await evaluated(nix, package_set, "hello", "zlib", "zlib.dev")
    also, lost = await evaluated(nix, package_set, "conflictA", "conflictB")
    await realiser.realise("one", kept, silent)
    await realiser.realise("two", [also, kept[0]], silent)
    own_store.build("conflictB", directory=package_set)
    assert all(are_there(own_store, *kept, also, lost))
    own_store.run("nix-store", "--gc")
    assert all(are_there(own_store, *kept, also))
    assert are_there(own_store, lost) == [False]


async def test_unwritten(
    own_store: ChrootStore, nix: NixCommand, realiser: Realiser, package_set: Path
) -> None:
    packages = await evaluated(nix, package_set, "hello", "curl")
    assert await realiser.unwritten(packages) == []
    foreign = dataclasses.replace(packages[0], drv_path=f"/nix/store/{'0' * 32}-absent.drv")
    assert await realiser.unwritten([*packages, foreign]) == [foreign]
    assert await realiser.unwritten([]) == []


async def failure(nix: NixCommand, realiser: Realiser, package_set: Path, name: str) -> RealisationFailed:
    packages = await evaluated(nix, package_set, name)
    with pytest.raises(RealisationFailed) as raised:
        await realiser.realise("key", packages, silent)
    return raised.value


async def test_a_failing_builder(nix: NixCommand, realiser: Realiser, package_set: Path) -> None:
    [package] = await evaluated(nix, package_set, "failsToBuild")
    error = await failure(nix, realiser, package_set, "failsToBuild")
    assert error.drv_path == package.drv_path
    assert error.log_tail == ("configure: error: no acceptable C compiler",)
    assert "77" in error.reason


async def test_the_end_of_a_long_log(
    own_store: ChrootStore, nix: NixCommand, realiser: Realiser, package_set: Path
) -> None:
    error = await failure(nix, realiser, package_set, "failsVerbose")
    assert error.log_tail == tuple(str(number) for number in range(476, 501))
    program, *arguments = error.log_command.split()
    assert program == "nix-store"
    assert own_store.run(program, *arguments).split() == [str(number) for number in range(1, 501)]


async def test_a_dependency_that_fails_is_named(
    nix: NixCommand, realiser: Realiser, package_set: Path
) -> None:
    error = await failure(nix, realiser, package_set, "dependsOnFailure")
    assert "fails-to-build" in str(error.drv_path)
    assert error.log_tail == ("configure: error: no acceptable C compiler",)


@pytest.mark.parametrize(
    ("name", "words"),
    [("failsNoOutput", "output"), ("badHash", "hash mismatch"), ("needsArmBuilder", "aarch64-linux")],
)
async def test_other_failures(
    nix: NixCommand, realiser: Realiser, package_set: Path, name: str, words: str
) -> None:
    error = await failure(nix, realiser, package_set, name)
    assert words in error.reason
    assert "\n" not in error.reason


async def test_one_failure_does_not_spoil_the_next(
    own_store: ChrootStore, nix: NixCommand, realiser: Realiser, package_set: Path
) -> None:
    await failure(nix, realiser, package_set, "failsToBuild")
    packages = await evaluated(nix, package_set, "conflictA")
    await realiser.realise("key", packages, silent)
    assert all(are_there(own_store, *packages))


async def test_takes_too_long(nix: NixCommand, package_set: Path, tmp_path: Path) -> None:
    packages = await evaluated(nix, package_set, "slow")
    with pytest.raises(RealisationTimedOut):
        await NixRealiser(nix, tmp_path, nix.store.uri, 0.5).realise("key", packages, silent)


async def test_several_at_the_same_time(
    own_store: ChrootStore, nix: NixCommand, realiser: Realiser, package_set: Path
) -> None:
    names = ("conflictA", "conflictB", "conflictC", "conflictD", "longPath", "ownPasswd")
    packages = await evaluated(nix, package_set, *names)
    await asyncio.gather(*(realiser.realise(package.name, [package], silent) for package in packages))
    assert all(are_there(own_store, *packages))


@pytest.mark.parametrize("aborts", [1, 2])
async def test_nix_aborts(
    own_store: ChrootStore,
    make_nix: MakeNix,
    package_set: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    aborts: int,
) -> None:
    """It is run again, at last without the caches that made it: real Nix behind one that aborts so often."""
    programs = tmp_path / "programs"
    programs.mkdir()
    script = programs / "nix-store"
    real = shutil.which("nix-store")
    script.write_text(
        f'#!/bin/sh\ncase "$*" in *--realise*) echo $NIX_CONFIG >>{tmp_path}/runs\n'
        f'[ "$(wc -l <{tmp_path}/runs)" -gt {aborts} ] || kill -ABRT $$ ;; esac\nexec {real} "$@"\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    nix = make_nix(own_store)
    options = {"extra-substituters": "http://127.0.0.1:9"}
    realiser = NixRealiser(nix, tmp_path / "roots", nix.store.uri, 60, lambda: options)
    packages = await evaluated(nix, package_set, "git")
    await realiser.realise("key", packages, silent)
    assert all(are_there(own_store, *packages))
    told = ["extra-substituters" in line for line in (tmp_path / "runs").read_text().splitlines()]
    assert told == [True, True, False][: aborts + 1]
