"""Fixtures: real stores, real registries, real container engines. Daemons are shared by the session."""

import shutil
import tempfile
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.integration.buckets import Buckets, seaweedfs
from tests.integration.builds import Builds
from tests.integration.caches import CacheDirectory, KeyPair, Served, nginx
from tests.integration.need import need, need_nix_2_26
from tests.integration.nixtools import EXAMPLES, ChrootStore
from tests.integration.runtimes.base import Runtime
from tests.integration.runtimes.containerd import RELEASES, containerd
from tests.integration.runtimes.docker import Docker, docker
from tests.integration.runtimes.podman import podman
from tests.integration.server import Registry, Start, serving
from tests.once import made_once

RUNTIMES = ["docker", "podman", *(f"containerd-{release}" for release in RELEASES)]
MakeNode = Callable[[], ChrootStore]
# Attribute names that no image name can hold.
META_PACKAGES = """
[meta_packages]
scopetool = ['nodePackages."@scope/tool"']
"""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failed test shows what its registry logged last."""
    report = yield
    if report.failed and isinstance(item, pytest.Function):
        for value in item.funcargs.values():
            if isinstance(value, Registry) and value.log.exists():
                report.sections.append((f"log of {value.state}", value.log.read_text()[-6000:]))
    return report


@pytest.fixture(scope="session")
def scratch() -> Iterator[Path]:
    """A directory for the session. Its name is short: paths of sockets may have 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="nixsnap-", ignore_cleanup_errors=True) as directory:
        yield Path(directory)


@pytest.fixture
def directory(scratch: Path) -> Iterator[Path]:
    """A directory for one test, gone at its end: what the tests make is big."""
    made = Path(tempfile.mkdtemp(dir=scratch))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture(scope="session")
def prepared_store(scratch: Path) -> ChrootStore:
    """A store in which every package that builds is built. Copy it to change it."""
    need("nix-store", "nix-build", "nix-instantiate", "nix", "busybox")
    made = made_once("store", lambda root: ChrootStore.create(root).build("allGood"))
    return ChrootStore(made).copy(scratch / "store")


@pytest.fixture
def own_store(prepared_store: ChrootStore, directory: Path) -> ChrootStore:
    """A copy of the prepared store."""
    return prepared_store.copy(directory / "own-store")


@pytest.fixture
def empty_store(directory: Path) -> ChrootStore:
    need("nix-store", "busybox")
    return ChrootStore.create(directory / "empty-store")


@pytest.fixture(scope="session")
def full_cache(prepared_store: ChrootStore) -> CacheDirectory:
    """A signed binary cache of every package that builds, with listings. Copy it to change it."""

    def make(root: Path) -> None:
        cache = CacheDirectory(root, KeyPair.generate(root.with_suffix(".key"), "full-cache-1"))
        cache.publish(prepared_store, prepared_store.built_paths())

    root = made_once("cache", make)
    return CacheDirectory(root, KeyPair.read(root.with_suffix(".key")))


@pytest.fixture
def served(full_cache: CacheDirectory, directory: Path) -> Iterator[Served]:
    """The full cache behind an nginx of this test's own."""
    with nginx(full_cache, directory / "nginx") as running:
        yield running


@pytest.fixture(scope="session")
def buckets(scratch: Path) -> Iterator[Buckets]:
    with seaweedfs(scratch / "s3") as running:
        yield running


@pytest.fixture(params=["system", "2.26"])
def make_node(request: pytest.FixtureRequest, directory: Path) -> MakeNode:
    """Empty stores of machines with either release of Nix."""
    need("nix-store", "nix")
    programs = need_nix_2_26() if request.param == "2.26" else None
    made: list[ChrootStore] = []

    def make() -> ChrootStore:
        made.append(ChrootStore.create(directory / f"node-{len(made)}", programs))
        return made[-1]

    return make


@pytest.fixture
def own_source(directory: Path) -> Path:
    """A copy of the package set, to edit."""
    return Path(shutil.copytree(EXAMPLES, directory / "packages"))


@pytest.fixture
def builds(directory: Path) -> Iterator[Builds]:
    made = Builds.create(directory / "waits", directory / "signs")
    yield made
    made.go()


@pytest.fixture(scope="session")
def registry(scratch: Path, prepared_store: ChrootStore) -> Iterator[Registry]:
    """The registry for all tests that leave it as it was."""
    with serving(Registry(scratch / "registry", prepared_store.root, config=META_PACKAGES)) as running:
        yield running


@pytest.fixture
def cold(directory: Path, empty_store: ChrootStore) -> Registry:
    """A registry with an empty store, to be set up and started."""
    return Registry(directory / "state", empty_store.root)


@pytest.fixture
def start(directory: Path) -> Iterator[Start]:
    """Start a registry for this test alone; it must end well."""
    with ExitStack() as stack:
        yield lambda registry: stack.enter_context(serving(registry))


@pytest.fixture(scope="session")
def docker_engine(scratch: Path) -> Iterator[Docker]:
    home = scratch / "docker"
    home.mkdir()
    with docker(home) as engine:
        yield engine


@pytest.fixture(scope="module", params=RUNTIMES)
def runtime(request: pytest.FixtureRequest, scratch: Path) -> Iterator[Runtime]:
    """Every container engine in turn."""
    name: str = request.param
    if name == "docker":
        yield request.getfixturevalue("docker_engine")
        return
    home = Path(tempfile.mkdtemp(prefix=name, dir=scratch))
    with podman(home) if name == "podman" else containerd(home, name.removeprefix("containerd-")) as engine:
        yield engine
