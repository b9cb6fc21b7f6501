"""Our cache in front of others: what it lacks it fetches, checks, keeps and serves."""

import json
import subprocess
import time
from pathlib import Path

from tests.integration.caches import CacheDirectory, Served, hash_part, nginx, replace
from tests.integration.conftest import MakeNode
from tests.integration.nixtools import ChrootStore
from tests.integration.server import Registry, Start


def reading_through(store: ChrootStore, directory: Path, upstream: Served) -> Registry:
    registry = Registry(directory / "state", store.root, substituters=[upstream.substituter()])
    registry.config = f"[binary_cache]\nupstreams = ['{upstream.url}']\n[substitution]\nnegative_ttl = 0\n"
    return registry


def test_reading_through(
    empty_store: ChrootStore,
    prepared_store: ChrootStore,
    served: Served,
    directory: Path,
    start: Start,
    make_node: MakeNode,
) -> None:
    """Clients that know only us get what upstream has, and each path comes from there once."""
    registry = start(reading_through(empty_store, directory, served))
    [git] = prepared_store.installed(("git",))["git"]
    closure = prepared_store.closure([git])
    for _ in range(2):
        node = make_node()
        node.fetch(registry.cache_url, registry.public_key, git)
        assert node.all_paths() == closure
        nars = [access.path for access in served.nars()]
        assert len(nars) == len(set(nars)) == len(closure)
    asked = len(served.accesses())
    make_node().fetch(registry.cache_url, registry.public_key, git)
    assert len(served.accesses()) == asked
    for path in closure:
        assert registry.get(f"/nix-cache/{hash_part(path)}.ls").status == 200
    assert len(served.accesses()) == asked
    assert registry.get(f"/nix-cache/{'0' * 32}.narinfo").status == 404
    assert empty_store.all_paths() == set()


def test_what_was_read_through_outlives_upstream(
    empty_store: ChrootStore,
    prepared_store: ChrootStore,
    full_cache: CacheDirectory,
    directory: Path,
    start: Start,
    make_node: MakeNode,
) -> None:
    [git] = prepared_store.installed(("git",))["git"]
    with nginx(full_cache, directory / "nginx") as served:
        registry = reading_through(empty_store, directory, served)
        registry.start()
        make_node().fetch(registry.cache_url, registry.public_key, git)
        assert registry.stop() == 0
    start(registry)
    node = make_node()
    node.fetch(registry.cache_url, registry.public_key, git)
    assert node.all_paths() == prepared_store.closure([git])


def test_a_corrupt_nar_of_upstream_is_neither_kept_nor_served(
    empty_store: ChrootStore,
    prepared_store: ChrootStore,
    full_cache: CacheDirectory,
    directory: Path,
    start: Start,
    make_node: MakeNode,
) -> None:
    [hello] = prepared_store.installed(("hello",))["hello"]
    broken = full_cache.copy(directory / "broken")
    nar = broken.nar(hello)
    good = nar.read_bytes()
    replace(nar, good[:-40] + bytes(byte ^ 0xFF for byte in good[-40:]))
    with nginx(broken, directory / "nginx") as served:
        registry = start(reading_through(empty_store, directory, served))
        node = make_node()
        done: subprocess.CompletedProcess[str] = node.fetch(
            registry.cache_url, registry.public_key, hello, check=False
        )
        assert done.returncode != 0
        assert hello not in node.all_paths()
        stored = [file.read_bytes() for file in (registry.storage_directory / "nar").glob("*")]
        assert nar.read_bytes() not in stored
        assert not (registry.storage_directory / f"{hash_part(hello)}.narinfo").exists()
        said = [line for line in registry.log_lines() if hello in json.dumps(line)]
        assert said, "the log names the path"
        nar.write_bytes(good)
        time.sleep(5.5)  # what was bad is not asked for again at once, whatever negative_ttl says
        node = make_node()
        node.fetch(registry.cache_url, registry.public_key, hello)
        assert node.all_paths() == prepared_store.closure([hello])


def test_an_upstream_with_a_second_one_behind(
    empty_store: ChrootStore,
    prepared_store: ChrootStore,
    full_cache: CacheDirectory,
    directory: Path,
    start: Start,
    make_node: MakeNode,
) -> None:
    """The NAR of the first is bad: clients never notice."""
    [hello] = prepared_store.installed(("hello",))["hello"]
    broken = full_cache.copy(directory / "broken")
    broken.nar(hello).unlink()
    with nginx(broken, directory / "nginx-1") as first, nginx(full_cache, directory / "nginx-2") as second:
        registry = Registry(directory / "state", empty_store.root)
        registry.substituters = [first.substituter(1), second.substituter(2)]
        registry.config = f"[binary_cache]\nupstreams = ['{first.url}', '{second.url}']\n"
        start(registry)
        node = make_node()
        node.fetch(registry.cache_url, registry.public_key, hello)
        assert node.all_paths() == prepared_store.closure([hello])
