"""One small real Nix store for all contracts; copy it to change it."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from nixery_snap.evaluation.one_shot import OneShotEvaluator
from nixery_snap.nix.attribute_path import AttributePath
from nixery_snap.nix.signing import PublicKey
from nixery_snap.nix_stores.cache_transport import open_transport
from nixery_snap.nix_stores.command import NixCommand, NixStore
from nixery_snap.nix_stores.substituter import Substituter
from nixery_snap.nix_stores.substituters import Substituters
from nixery_snap.object_store.records import StoredRecords
from nixery_snap.object_store.store import ObjectStore
from nixery_snap.ports import Package, PackageSet
from tests.integration.caches import CacheDirectory, KeyPair
from tests.integration.need import need
from tests.integration.nixtools import EXAMPLES, ChrootStore
from tests.once import made_once

SYSTEM = "x86_64-linux"
BUILT = (
    "hello",
    "curl",
    "openssl.dev",
    "weirdNames",
    "singleFile",
    "executableFile",
    "symlinkPath",
    "emptyDir",
)
OPTIONS = {"sandbox": "false", "substituters": ""}


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> ChrootStore:
    need("nix-store", "nix-build", "nix-instantiate", "nix", "busybox")
    made = made_once("contract-store", lambda root: ChrootStore.create(root).build(*BUILT))
    return ChrootStore(made).copy(tmp_path_factory.mktemp("nix") / "store")


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory, prepared: ChrootStore) -> CacheDirectory:
    """A signed binary cache of all that is in the store, derivations too."""
    directory = tmp_path_factory.mktemp("cache")
    cache = CacheDirectory(directory / "files", KeyPair.generate(directory / "key"))
    return cache.publish(prepared, ["--all"])


@pytest.fixture
def own_store(prepared: ChrootStore, tmp_path: Path) -> ChrootStore:
    return prepared.copy(tmp_path / "store")


@pytest.fixture(scope="session")
def package_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(EXAMPLES, tmp_path_factory.mktemp("set") / "source"))


MakeNix = Callable[[ChrootStore], NixCommand]


@pytest.fixture
def make_nix(tmp_path: Path) -> MakeNix:
    def make(store: ChrootStore) -> NixCommand:
        home = tmp_path / "home"
        home.mkdir(exist_ok=True)
        return NixCommand(NixStore.parse(str(store.root)), home, OPTIONS)

    return make


def names(*texts: str) -> list[AttributePath]:
    return list(map(AttributePath.parse, texts))


async def evaluated(nix: NixCommand, package_set: Path, *texts: str) -> list[Package]:
    """Packages that must be had."""
    results = await OneShotEvaluator(nix, 60, 2, 4096).evaluate(
        PackageSet(package_set), SYSTEM, names(*texts)
    )
    packages = [result for result in results if isinstance(result, Package)]
    assert len(packages) == len(texts), results
    return packages


def substituters_of(cache: CacheDirectory) -> Substituters:
    """That one cache, read as files; to be closed."""
    records = StoredRecords(ObjectStore("memory://"), 1024)
    keys = [PublicKey.parse(cache.key.public)]
    url = f"file://{cache.root}"
    return Substituters([Substituter(url, open_transport(url), keys, records)])
