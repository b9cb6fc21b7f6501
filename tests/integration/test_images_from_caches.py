"""Images of packages that this machine has never seen, made from what binary caches say of them."""

import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import brotli  # type: ignore[import-untyped]
import pytest
from backports import zstd

from tests.integration.caches import CacheDirectory, KeyPair, Served, nginx
from tests.integration.images import ALWAYS_ADDED, annotated_paths
from tests.integration.nixtools import EXAMPLES, ChrootStore, add_package
from tests.integration.processes import run, wait_until
from tests.integration.server import PROGRAM, Registry, Start, Substituter

# Roots of every kind, outputs, weird names, links from one path into another, and a wide closure.
NAME = (
    "shell/git/openssl.dev/wide/singlefile/executablefile/symlinkpath/dirlink/rootlink/weirdnames/manyfiles"
)
MIB = 1024 * 1024


def verify(registry: Registry, name: str) -> None:
    done = run(*PROGRAM, "inspect", name, "--verify", *registry.options, env=registry.program_env)
    assert "verified" in done.stderr


def check_nothing_realised(registry: Registry, store: ChrootStore) -> None:
    """The local store is empty: nothing was built or fetched, and no derivation was worth writing."""
    assert not registry.events("realised")
    assert store.all_paths() == set()


def closure_of(store: ChrootStore, *attributes: str) -> set[str]:
    """Of an image of these: the store has built them."""
    names = [(attribute,) for attribute in attributes]
    return store.closure(path for paths in store.installed(*names, *ALWAYS_ADDED).values() for path in paths)


@pytest.mark.parametrize(
    "compress",
    [None, brotli.compress, zstd.compress, lzma.compress, gzip.compress],
    ids=["plain", "br", "zstd", "xz", "gzip"],
)
def test_a_snapshotter_image_takes_no_nar_and_no_realisation(
    registry: Registry,
    cold: Registry,
    empty_store: ChrootStore,
    full_cache: CacheDirectory,
    directory: Path,
    start: Start,
    compress: Callable[[bytes], bytes] | None,
) -> None:
    name = f"nix-snapshotter/{NAME}"
    cache = full_cache.copy(directory / "cache")
    if compress:
        cache.compress_listings(compress)
    with nginx(cache, directory / "nginx") as served:
        cold.substituters = [served.substituter()]
        start(cold)
        image = cold.pull(name)
        assert image.manifest == registry.pull(name).manifest  # as if all of it lay here
        assert served.nars() == []
        assert served.asked(".ls")
        narinfos = [access.path for access in served.asked(".narinfo")]
        assert len(narinfos) == len(set(narinfos)), "each is asked for once"
        check_nothing_realised(cold, empty_store)
        verify(cold, name)
        assert served.nars() == []


@pytest.mark.parametrize("compression", ["none", "xz"])
def test_without_listings_nars_are_read_as_far_as_needed(
    own_store: ChrootStore,
    empty_store: ChrootStore,
    own_source: Path,
    directory: Path,
    start: Start,
    compression: str,
) -> None:
    """Of what is only mounted, the first bytes; of what is linked to, all of it."""
    add_package(
        own_source, "heavy", "mkdir $out; dd if=/dev/urandom of=$out/blob bs=1048576 count=8 2>/dev/null"
    )
    add_package(own_source, "light", "mkdir $out; echo ${heavy} > $out/needs")
    own_store.build("heavy", "light", directory=own_source)
    installed = own_store.installed(("light",), ("heavy",), *ALWAYS_ADDED, directory=own_source)
    [heavy] = installed.pop("heavy")
    closure = own_store.closure(path for paths in installed.values() for path in paths)
    assert heavy in closure
    cache = CacheDirectory(directory / "cache", KeyPair.generate(directory / "key"))
    cache.publish(own_store, closure, compression=compression, listings=False)
    with nginx(cache, directory / "nginx") as served:
        cold = Registry(
            directory / "state", empty_store.root, own_source, substituters=[served.substituter()]
        )
        start(cold)
        image = cold.pull("nix-snapshotter/light")
        assert set(annotated_paths(image.layers[0])) == closure
        check_nothing_realised(cold, empty_store)
        verify(cold, "nix-snapshotter/light")
        nar = f"/{cache.nar(heavy).relative_to(cache.root)}"
        wait_until(lambda: bool(served.asked(nar)), seconds=60, what="nginx notes the end of the answer")
        assert sum(access.sent_bytes for access in served.asked(nar)) < MIB < cache.nar(heavy).stat().st_size


def test_a_classic_image_comes_from_nars_and_touches_no_store(
    registry: Registry, cold: Registry, empty_store: ChrootStore, served: Served, start: Start
) -> None:
    """Byte by byte what a server makes that has the paths in its store."""
    cold.substituters = [served.substituter()]
    start(cold)
    image, expected = cold.pull(NAME), registry.pull(NAME)
    assert image.manifest == expected.manifest
    assert image.blobs == expected.blobs
    nars = [access.path for access in served.nars()]
    paths = annotated_paths(registry.pull(f"nix-snapshotter/{NAME}").layers[0])
    assert len(set(nars)) == len(paths)
    check_nothing_realised(cold, empty_store)


def test_what_a_cache_lacks_is_built(
    registry: Registry,
    cold: Registry,
    prepared_store: ChrootStore,
    full_cache: CacheDirectory,
    directory: Path,
    start: Start,
) -> None:
    """Also where the rest of the closure is known to the cache."""
    [curl] = prepared_store.installed(("curl",))["curl"]
    cache = full_cache.copy(directory / "cache")
    cache.remove(curl)
    with nginx(cache, directory / "nginx") as served:
        cold.substituters = [served.substituter()]
        start(cold)
        assert (
            cold.pull("nix-snapshotter/git/hello").manifest
            == registry.pull("nix-snapshotter/git/hello").manifest
        )
        assert len(cold.events("realised")) == 1


def test_paths_of_one_closure_in_two_caches(
    registry: Registry,
    cold: Registry,
    prepared_store: ChrootStore,
    empty_store: ChrootStore,
    full_cache: CacheDirectory,
    directory: Path,
    start: Start,
) -> None:
    """Each has what the other lacks."""
    closure = sorted(closure_of(prepared_store, "git", "wide"))
    halves = [full_cache.copy(directory / "one"), full_cache.copy(directory / "other")]
    for number, path in enumerate(closure):
        halves[number % 2].remove(path)
    with nginx(halves[0], directory / "nginx-1") as one, nginx(halves[1], directory / "nginx-2") as other:
        cold.substituters = [one.substituter(1), other.substituter(2)]
        start(cold)
        for name in ("nix-snapshotter/git/wide", "git/wide"):
            assert cold.pull(name).manifest == registry.pull(name).manifest
        check_nothing_realised(cold, empty_store)


def test_priority_decides_who_is_asked_first(
    empty_store: ChrootStore, full_cache: CacheDirectory, directory: Path, start: Start
) -> None:
    """The settings' over that of nix-cache-info."""
    with nginx(full_cache, directory / "nginx-1") as one, nginx(full_cache, directory / "nginx-2") as other:
        substituters = [one.substituter(90), other.substituter(10)]
        start(Registry(directory / "state", empty_store.root, substituters=substituters)).pull(
            "nix-snapshotter/hello"
        )
        assert one.asked(".narinfo", ".ls") == []
        assert other.asked(".narinfo")


def test_a_cache_of_plain_files_is_a_substituter(
    registry: Registry, cold: Registry, full_cache: CacheDirectory, start: Start
) -> None:
    files = Substituter(f"file://{full_cache.root}", [full_cache.key.public])
    cold.substituters = [files]
    start(cold)
    for name in ("nix-snapshotter/shell/curl", "shell/curl"):
        assert cold.pull(name).manifest == registry.pull(name).manifest
    assert not cold.events("realised")


def test_what_is_known_is_not_asked_again(cold: Registry, served: Served, start: Start) -> None:
    """Not even after a restart: what a cache has said is true for ever."""
    cold.substituters = [served.substituter()]
    cold.start()
    cold.pull("nix-snapshotter/git")
    assert cold.stop() == 0
    asked = len(served.asked(".narinfo"))
    assert asked > 0
    start(cold)
    cold.pull("nix-snapshotter/curl")  # part of git
    assert len(served.asked(".narinfo")) == asked


def test_settings_file_and_default(cold: Registry, served: Served, start: Start) -> None:
    """As people write them."""
    table = f'[[substituters]]\nurl = "{served.url}"\npublic_keys = ["{served.cache.key.public}"]\n'
    cold.config = table
    environment = cold.program_env
    environment.pop("NIXERY_SNAP_SUBSTITUTERS")
    shown = run(*PROGRAM, "check-config", env=environment).stdout
    assert "https://cache.nixos.org" in shown
    assert "cache.nixos.org-1:6NCHdD59X431o0gWypbMrAURkbJ16ZPMQFGspcDShjY=" in shown
    cold.substituters = None
    start(cold).pull("nix-snapshotter/hello")
    assert served.asked(".narinfo")


@pytest.mark.parametrize("image_format", ["nix-snapshotter", "classic"])
def test_another_architecture_needs_no_builder(
    own_store: ChrootStore,
    cold: Registry,
    empty_store: ChrootStore,
    directory: Path,
    start: Start,
    image_format: str,
) -> None:
    attributes = [
        part for name in ("hello", *(".".join(path) for path in ALWAYS_ADDED)) for part in ("-A", name)
    ]
    built = own_store.run(
        "nix-build", "--no-out-link", "--argstr", "system", "aarch64-linux", *attributes, EXAMPLES
    ).split()
    cache = CacheDirectory(directory / "cache", KeyPair.generate(directory / "key")).publish(own_store, built)
    with nginx(cache, directory / "nginx") as served:
        cold.substituters = [served.substituter()]
        image = start(cold).pull(f"{image_format}/arm64/hello")
    assert image.config["architecture"] == "arm64"
    check_nothing_realised(cold, empty_store)
