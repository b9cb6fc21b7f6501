"""Our cache in front of others: what it lacks it fetches, checks, keeps and serves."""

import json
import time
from pathlib import Path

import pytest

from tests.integration.caches import CacheDirectory, Served, hash_part, nginx, replace
from tests.integration.conftest import MakeNode
from tests.integration.nixtools import ChrootStore
from tests.integration.server import Registry, Start, Substituter


@pytest.fixture
def hello(prepared_store: ChrootStore) -> str:
    [path] = prepared_store.installed(("hello",))["hello"]
    return path


@pytest.fixture
def own_cache(full_cache: CacheDirectory, directory: Path) -> CacheDirectory:
    """A copy of the full one."""
    return full_cache.copy(directory / "cache")


def read_through(registry: Registry, *upstreams: Served) -> Registry:
    """Set up so that it asks them in this order."""
    registry.substituters = [upstream.substituter(number) for number, upstream in enumerate(upstreams)]
    urls = [upstream.url for upstream in upstreams]
    registry.config = f"[binary_cache]\nupstreams = {urls}\n[substitution]\nnegative_ttl = 0\n"
    return registry


def test_reading_through(
    cold: Registry,
    empty_store: ChrootStore,
    prepared_store: ChrootStore,
    served: Served,
    start: Start,
    make_node: MakeNode,
) -> None:
    """Clients that know only us get what upstream has, and each path comes from there once."""
    registry = start(read_through(cold, served))
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
    cold: Registry,
    prepared_store: ChrootStore,
    full_cache: CacheDirectory,
    directory: Path,
    start: Start,
    make_node: MakeNode,
) -> None:
    [git] = prepared_store.installed(("git",))["git"]
    with nginx(full_cache, directory / "nginx") as served:
        registry = read_through(cold, served).start()
        make_node().fetch(registry.cache_url, registry.public_key, git)
        assert registry.stop() == 0
    start(registry)
    node = make_node()
    node.fetch(registry.cache_url, registry.public_key, git)
    assert node.all_paths() == prepared_store.closure([git])


def test_no_upstream_answers(cold: Registry, hello: str, start: Start) -> None:
    """A node would remember a plain no for an hour."""
    cold.substituters = [Substituter("http://127.0.0.1:9")]
    cold.config = "[binary_cache]\nupstreams = ['http://127.0.0.1:9']\n"
    answer = start(cold).get(f"/nix-cache/{hash_part(hello)}.narinfo")
    assert answer.status == 503
    assert int(answer.headers["retry-after"]) >= 1


def test_a_corrupt_nar_of_upstream_is_neither_kept_nor_served(
    cold: Registry,
    prepared_store: ChrootStore,
    own_cache: CacheDirectory,
    hello: str,
    directory: Path,
    start: Start,
    make_node: MakeNode,
) -> None:
    nar = own_cache.nar(hello)
    good = nar.read_bytes()
    replace(nar, good[:-40] + bytes(byte ^ 0xFF for byte in good[-40:]))
    with nginx(own_cache, directory / "nginx") as served:
        registry = start(read_through(cold, served))
        node = make_node()
        done = node.fetch(registry.cache_url, registry.public_key, hello, check=False)
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
    cold: Registry,
    prepared_store: ChrootStore,
    own_cache: CacheDirectory,
    served: Served,
    hello: str,
    directory: Path,
    start: Start,
    make_node: MakeNode,
) -> None:
    """The first lacks a NAR: clients never notice."""
    own_cache.nar(hello).unlink()
    with nginx(own_cache, directory / "nginx-first") as first:
        registry = start(read_through(cold, first, served))
        node = make_node()
        node.fetch(registry.cache_url, registry.public_key, hello)
        assert node.all_paths() == prepared_store.closure([hello])
