"""One small real Nix store for all contracts; copy it to change it."""

import shutil
import tempfile
import uuid
from collections.abc import Callable, Iterator
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
from tests.integration.azurite import Containers, azurite
from tests.integration.buckets import Buckets, seaweedfs
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


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory, prepared: ChrootStore) -> CacheDirectory:
    """A signed binary cache of all that is in the store, derivations too; other modules add to that."""
    directory = tmp_path_factory.mktemp("cache")
    cache = CacheDirectory(directory / "files", KeyPair.generate(directory / "key"))
    return cache.publish(prepared, ["--all"])


@pytest.fixture
def own_store(prepared: ChrootStore, tmp_path: Path) -> ChrootStore:
    return prepared.copy(tmp_path / "store")


@pytest.fixture(scope="session")
def package_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(EXAMPLES, tmp_path_factory.mktemp("set") / "source"))


@pytest.fixture(scope="session")
def buckets() -> Iterator[Buckets]:
    """Names of sockets must be short."""
    with (
        tempfile.TemporaryDirectory(prefix="nixsnap-", ignore_cleanup_errors=True) as home,
        seaweedfs(Path(home, "s3")) as running,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in running.env.items():
            patch.setenv(name, value)
        yield running


@pytest.fixture(scope="session")
def containers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Containers]:
    with azurite(tmp_path_factory.mktemp("azure") / "home") as running, pytest.MonkeyPatch.context() as patch:
        for name, value in running.env.items():
            patch.setenv(name, value)
        yield running


@pytest.fixture(params=["file", "memory", "s3", "az"])
def storage_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Of an object store of each kind, empty."""
    match request.param:
        case "file":
            return tmp_path.as_uri()
        case "memory":
            return "memory://"
        case "s3":
            buckets: Buckets = request.getfixturevalue("buckets")
            return buckets.url("contract", f"for/{uuid.uuid4().hex}")
        case _:
            containers: Containers = request.getfixturevalue("containers")
            return containers.url("contract", f"for/{uuid.uuid4().hex}")


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
